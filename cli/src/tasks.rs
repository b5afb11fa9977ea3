//! The threads of a process as the kernel shows them: a directory `task` under /proc (proc(5)).

use std::fs;
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The kernel's thread id.
    pub tid: i32,
    /// At most 15 bytes.
    pub name: String,
    /// `Cpus_allowed_list` of its status.
    pub allowed: String,
    /// Where it runs, or ran last: field 39 of its stat.
    pub last_cpu: Option<u32>,
    /// Nanoseconds that it ran, and that it was ready and had to wait for a CPU; 0 on a kernel without schedstat.
    pub cpu_ns: u64,
    pub waited_ns: u64,
    /// How often it gave up its CPU, and how often that was taken from it.
    pub voluntary: u64,
    pub involuntary: u64,
}

/// Those below `tasks`, in the order in which they began.
pub fn all(tasks: &Path) -> Vec<Task> {
    let entries = fs::read_dir(tasks).into_iter().flatten().flatten();
    // One that has ended since is not there any more.
    let mut found: Vec<Task> = entries.filter_map(|entry| Task::read(&entry.path())).collect();
    found.sort_by_key(|task| task.tid);
    found
}

impl Task {
    fn read(directory: &Path) -> Option<Task> {
        let text = |file: &str| fs::read_to_string(directory.join(file)).ok();
        let tid = directory.file_name()?.to_str()?.parse().ok()?;
        let (schedstat, status) = (text("schedstat").unwrap_or_default(), text("status")?);
        let mut times = schedstat.split_whitespace().map(|number| number.parse().unwrap_or(0));
        let (cpu_ns, waited_ns) = (times.next().unwrap_or(0), times.next().unwrap_or(0));
        let said = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            Some(line.trim().to_owned())
        };
        let count = |key: &str| said(key).and_then(|number| number.parse().ok()).unwrap_or(0);
        Some(Task {
            tid,
            name: text("comm")?.trim_end().to_owned(),
            allowed: said("Cpus_allowed_list")?,
            last_cpu: text("stat").and_then(|stat| last_cpu(&stat)),
            cpu_ns,
            waited_ns,
            voluntary: count("voluntary_ctxt_switches"),
            involuntary: count("nonvoluntary_ctxt_switches"),
        })
    }
}

/// The name in field 2 may hold spaces and parentheses of its own.
fn last_cpu(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    #[test]
    fn a_thread_is_found_with_what_it_had_and_where_it_may_run() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let busy = std::thread::Builder::new().name("a (b) c".into()).spawn(move || {
            tell.send(fs::read_to_string("/proc/thread-self/status").unwrap()).unwrap();
            while clock_gettime(ClockId::ThreadCPUTime).tv_nsec < 20_000_000 {}
            let _ = ended.recv();
        });
        let status = told.recv().unwrap();
        // A kernel without schedstat tells no times.
        let is_counted = Path::new("/proc/self/schedstat").exists();
        let has_worked = |task: &Task| !is_counted || task.cpu_ns >= 20_000_000;
        let begun = Instant::now();
        let found = loop {
            let found = all("/proc/self/task".as_ref()).into_iter().find(|task| task.name == "a (b) c");
            match found.filter(|task| has_worked(task) && task.voluntary > 0) {
                Some(found) => break found,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "no such thread works and waits");
        };
        assert!(found.last_cpu.is_some(), "{found:?}");
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        assert_eq!(found.allowed, allowed.trim());
        drop(end);
        busy.unwrap().join().unwrap();
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        assert_eq!(last_cpu(&format!("12 (a) b) {}", fields.join(" "))), Some(39));
    }
}
