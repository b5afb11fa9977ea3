//! What each thread has had of its CPUs, as the kernel counts it (proc(5)).

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::verify::last_cpu;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    pub name: String,
    /// The kernel's thread id.
    pub tid: i32,
    /// Where it runs, or ran last.
    pub cpu: Option<u32>,
    /// Nanoseconds that it ran, and that it was ready and had to wait for a CPU.
    pub cpu_ns: u64,
    pub waited_ns: u64,
    /// How often it gave up its CPU, and how often that was taken from it.
    pub voluntary: u64,
    pub involuntary: u64,
}

/// Those below a task directory.
pub(super) fn all(tasks: &Path) -> Vec<Thread> {
    let entries = fs::read_dir(tasks).into_iter().flatten().flatten();
    // One that has ended since is not there any more.
    let mut threads: Vec<Thread> = entries.filter_map(|entry| read(&entry.path())).collect();
    threads.sort_by_key(|thread| thread.tid);
    threads
}

fn read(task: &Path) -> Option<Thread> {
    let text = |file: &str| fs::read_to_string(task.join(file)).ok();
    let tid = task.file_name()?.to_str()?.parse().ok()?;
    let (schedstat, status) = (text("schedstat").unwrap_or_default(), text("status")?);
    let mut times = schedstat.split_whitespace().map(|number| number.parse().unwrap_or(0));
    let (cpu_ns, waited_ns) = (times.next().unwrap_or(0), times.next().unwrap_or(0));
    let count = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    };
    Some(Thread {
        name: text("comm")?.trim_end().to_owned(),
        tid,
        cpu: text("stat").and_then(|stat| last_cpu(&stat)),
        cpu_ns,
        waited_ns,
        voluntary: count("voluntary_ctxt_switches"),
        involuntary: count("nonvoluntary_ctxt_switches"),
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    #[test]
    fn a_thread_is_found_with_what_it_had() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let busy = std::thread::Builder::new().name("a (b) c".into()).spawn(move || {
            while clock_gettime(ClockId::ThreadCPUTime).tv_nsec < 20_000_000 {}
            let _ = ended.recv();
        });
        // A kernel without schedstat tells no times.
        let is_counted = Path::new("/proc/self/schedstat").exists();
        let has_worked = |thread: &Thread| !is_counted || thread.cpu_ns >= 20_000_000;
        let begun = Instant::now();
        let found = loop {
            let found = all("/proc/self/task".as_ref()).into_iter().find(|thread| thread.name == "a (b) c");
            match found.filter(|thread| has_worked(thread) && thread.voluntary > 0) {
                Some(found) => break found,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "no such thread works and waits");
        };
        assert!(found.cpu.is_some(), "{found:?}");
        drop(end);
        busy.unwrap().join().unwrap();
    }
}
