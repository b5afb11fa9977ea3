//! What each thread has had of its CPUs, as the kernel counts it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::tasks::{self, Task};

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
    tasks::all(tasks).into_iter().map(Thread::from).collect()
}

impl From<Task> for Thread {
    fn from(task: Task) -> Thread {
        let Task { tid, name, allowed: _, last_cpu, cpu_ns, waited_ns, voluntary, involuntary } = task;
        Thread { name, tid, cpu: last_cpu, cpu_ns, waited_ns, voluntary, involuntary }
    }
}
