//! Reading back where the threads of a VM really are, against where the plan has them.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A thread as the plan has it: its name in the operating system, and its CPUs as a kernel list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedThread {
    pub name: String,
    pub cpus: String,
}

/// One planned thread, with what /proc says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub thread: String,
    pub tid: Option<u32>,
    pub planned: String,
    /// `Cpus_allowed_list` of /proc/PID/task/TID/status.
    pub allowed: Option<String>,
    /// The CPU it ran on last: field 39 of /proc/PID/task/TID/stat.
    pub last_cpu: Option<u32>,
    /// The thread is there, may run on the planned CPUs and on no other.
    pub as_planned: bool,
}

/// Looks every planned thread up in `tasks`, a process's `task` directory under /proc.
pub fn read_back(planned: &[PlannedThread], tasks: &Path) -> Vec<Finding> {
    let found: Vec<Task> = fs::read_dir(tasks)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Task::read(&entry.path()))
        .collect();
    let finding = |thread: &PlannedThread| {
        // The kernel keeps 15 bytes of a name.
        let comm = &thread.name.as_bytes()[..thread.name.len().min(15)];
        // Of several threads with one name (the emulator's helpers) the one that strayed is worth a line.
        let mut named = found.iter().filter(|task| task.name.as_bytes() == comm);
        let task = named.clone().find(|task| task.allowed != thread.cpus).or_else(|| named.next());
        Finding {
            thread: thread.name.clone(),
            tid: task.map(|task| task.tid),
            planned: thread.cpus.clone(),
            allowed: task.map(|task| task.allowed.clone()),
            last_cpu: task.and_then(|task| task.last_cpu),
            as_planned: task.is_some_and(|task| task.allowed == thread.cpus),
        }
    };
    planned.iter().map(finding).collect()
}

struct Task {
    tid: u32,
    name: String,
    allowed: String,
    last_cpu: Option<u32>,
}

impl Task {
    /// `None` when the thread has ended meanwhile.
    fn read(directory: &Path) -> Option<Task> {
        let tid = directory.file_name()?.to_str()?.parse().ok()?;
        let file = |name| fs::read_to_string(directory.join(name)).ok();
        let status = file("status")?;
        let allowed =
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
        Some(Task {
            tid,
            name: file("comm")?.trim_end().to_owned(),
            allowed,
            last_cpu: last_cpu(&file("stat")?),
        })
    }
}

/// proc(5): field 39 of stat; the name in field 2 may hold spaces and parentheses of its own.
pub fn last_cpu(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(39 - 3)?.parse().ok()
}

/// The findings as a table for a person.
pub fn table(findings: &[Finding]) -> String {
    let mut text =
        format!("{:<16} {:>8}  {:<12} {:<12} {:>8}\n", "THREAD", "TID", "PLANNED", "ALLOWED", "LAST CPU");
    for finding in findings {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        text += &format!(
            "{:<16} {:>8}  {:<12} {:<12} {:>8}{}\n",
            finding.thread,
            or_dash(finding.tid.map(|tid| tid.to_string())),
            finding.planned,
            or_dash(finding.allowed.clone()),
            or_dash(finding.last_cpu.map(|cpu| cpu.to_string())),
            if finding.as_planned { "" } else { "  NOT AS PLANNED" },
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_thread_is_found_where_it_is() {
        let (ready, wait) = std::sync::mpsc::channel();
        let (done, hold) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("IO iothread99".into()).spawn(move || {
            ready.send(fs::read_to_string("/proc/thread-self/status").unwrap()).unwrap();
            let _ = hold.recv();
        });
        let status = wait.recv().unwrap();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
        let planned = |name: &str, cpus: &str| PlannedThread { name: name.into(), cpus: cpus.into() };
        let threads =
            [planned("IO iothread99", allowed), planned("IO iothread99", "4096"), planned("CPU 77/KVM", "0")];
        let findings = read_back(&threads, Path::new("/proc/self/task"));
        assert_eq!(
            findings.iter().map(|finding| finding.as_planned).collect::<Vec<_>>(),
            [true, false, false]
        );
        assert!(findings[0].last_cpu.is_some() && findings[2].tid.is_none());
        drop(done);
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|field| field.to_string()).collect();
        assert_eq!(last_cpu(&format!("12 (a) b) {}", fields.join(" "))), Some(39));
    }
}
