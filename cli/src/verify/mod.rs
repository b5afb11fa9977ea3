//! Reading back what a run was promised, against its plan: a file for each kind of thing. What is read is this process, its
//! host and its guest as they are now; nothing is taken from what was done at the start.

pub mod disks;
mod memory;
mod nets;
pub mod schedulers;
mod table;
mod threads;

use std::path::Path;

use serde::{Deserialize, Serialize};
use vmprof_job::DiskScheduler;
use vmprof_profiles::Plan;
use vmprof_vmm::virtio::blk::OpenAs;
use vmprof_vmm::virtio::net::NetSnapshot;

use crate::tasks;

pub use memory::NodePages;
pub use table::table;
pub use threads::PlannedThread;

/// One thing that was planned, with what is found of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    #[serde(flatten)]
    pub what: What,
    /// `None`: the plan leaves it as it is.
    pub planned: Option<String>,
    /// In the same words; `None`: unknown.
    pub found: Option<String>,
    /// What else is to be said, as why it is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    pub as_planned: bool,
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum What {
    /// The CPUs that a thread may run on.
    Thread {
        thread: String,
        tid: Option<i32>,
        /// `Cpus_allowed_list` of /proc/PID/task/TID/status.
        allowed: Option<String>,
        /// The CPU it ran on last.
        last_cpu: Option<u32>,
    },
    /// The policy of the guest's memory, and where its pages are.
    Memory { pages: Vec<NodePages> },
    /// The size of its pages.
    HugePages,
    /// What a disk's requests are given to.
    Engine { disk: String },
    /// Whether a disk's file is open with O_DIRECT.
    DirectIo { disk: String },
    /// The scheduler of the drives that a disk lies on.
    HostScheduler { disk: String, device: Option<String> },
    /// The scheduler that a disk has in the guest.
    GuestScheduler { disk: String },
    /// Whether a network device is carried by what it was planned with.
    Link { net: String },
    /// The IOThreads that serve its virtqueues.
    Virtqueues { net: String },
}

impl What {
    /// As messages and the table have it.
    pub fn name(&self) -> String {
        match self {
            What::Thread { thread, .. } => thread.clone(),
            What::Memory { .. } => "memory".into(),
            What::HugePages => "memory's pages".into(),
            What::Engine { disk } => format!("{disk}: engine"),
            What::DirectIo { disk } => format!("{disk}: direct I/O"),
            What::HostScheduler { disk, .. } => format!("{disk}: scheduler"),
            What::GuestScheduler { disk } => format!("{disk}: scheduler in the guest"),
            What::Link { net } => format!("{net}: link"),
            What::Virtqueues { net } => format!("{net}: virtqueues"),
        }
    }
}

impl Finding {
    /// Whether `found` is `planned`; where nothing is planned, all is as planned.
    fn new(what: What, planned: Option<String>, found: Result<String, String>) -> Finding {
        let (found, note) = match found {
            Ok(found) => (Some(found), None),
            Err(why) => (None, Some(why)),
        };
        let as_planned = planned.is_none() || planned == found;
        Finding { what, planned, found, note, as_planned }
    }
}

/// Where to read: a process and the block devices of its host.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// /proc/self.
    pub process: &'a Path,
    /// /sys/block.
    pub block: &'a Path,
}

impl Host<'static> {
    pub fn this_one() -> Self {
        Host { process: Path::new("/proc/self"), block: Path::new("/sys/block") }
    }
}

/// Everything that the plan says and that can be read back. `open` and `nets` are how the machine has its disks and networks,
/// `guest` is what the guest says of its disks, or why it says nothing.
pub fn read_back(
    plan: &Plan,
    threads: &[PlannedThread],
    open: &[OpenAs],
    nets: &[NetSnapshot],
    guest: Result<&[DiskScheduler], &str>,
    host: Host<'_>,
) -> Vec<Finding> {
    let tasks = tasks::all(&host.process.join("task"));
    let mut findings = threads::read_back(threads, &tasks);
    findings.extend(threads::submitters(&plan.iothreads, &tasks));
    findings.extend(memory::read_back(&plan.memory, host.process));
    for disk in &plan.disks {
        findings.extend(disks::read_back(disk, open.iter().find(|open| open.name == disk.name)));
        findings.push(schedulers::on_the_host(disk, host.block));
        findings.push(schedulers::in_the_guest(disk, guest));
    }
    for net in &plan.nets {
        findings.extend(nets::read_back(net, nets.iter().find(|found| found.name == net.name)));
    }
    findings
}

#[cfg(test)]
mod tests;
