//! What a running VM has done, and what its process holds: the answer to `stats`.

mod blockstats;
mod latency;
mod nets;
mod prometheus;
mod rates;
mod text;
mod threads;

use std::fs;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use vmprof_vmm::stats::Stats as Machine;

pub use blockstats::as_qemu_counts;
pub use rates::Section;
pub use text::table;
pub use threads::Thread;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    pub schema: String,
    /// When they were taken, by the clock of the host that the VM runs on (CLOCK_MONOTONIC).
    #[serde(default)]
    pub taken_ns: u64,
    pub process: Process,
    /// Every thread of the process, in the order in which they began.
    #[serde(default)]
    pub threads: Vec<Thread>,
    #[serde(flatten)]
    pub machine: Machine,
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

/// Resident memory of the VMM's process, from /proc/self/smaps (proc(5)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    /// What of the guest's memory has been touched.
    pub guest_bytes: u64,
    /// Everything else: the binary's pages, stacks, rings, the heap.
    pub beyond_guest_bytes: u64,
    /// Of that, what is anonymous: the part that the kernel cannot read back from the binary.
    pub anonymous_bytes: u64,
}

/// How the guest's memory shows in /proc/self/smaps: by its memfd's name.
pub const GUEST_MEMORY: &str = "/memfd:vmprof guest memory";

impl Process {
    pub fn of_this_one() -> Process {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        Process { pid: std::process::id(), ..Process::from_smaps(&smaps) }
    }

    fn from_smaps(smaps: &str) -> Process {
        let mut process = Process::default();
        let mut is_guest = false;
        for line in smaps.lines() {
            let Some((key, value)) = line.split_once(':').filter(|(key, _)| !key.contains(' ')) else {
                // A mapping's first line has spaces before any colon; its name, if it has one, is at the end.
                is_guest = line.contains(GUEST_MEMORY);
                continue;
            };
            let bytes =
                value.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10;
            match key {
                "Rss" if is_guest => process.guest_bytes += bytes,
                "Rss" => process.beyond_guest_bytes += bytes,
                "Anonymous" if !is_guest => process.anonymous_bytes += bytes,
                _ => {}
            }
        }
        process
    }
}

impl Stats {
    pub fn of(machine: Machine) -> Stats {
        Stats {
            schema: "vmprof.stats/1".to_owned(),
            taken_ns: now_ns(),
            process: Process::of_this_one(),
            threads: threads::all("/proc/self/task".as_ref()),
            machine,
        }
    }
}

#[cfg(test)]
pub use {nets::tests::net as stats_of_a_net, tests::stats as stats_of_a_vm};

#[cfg(test)]
mod tests {
    use vmprof_vmm::iothread::counters::{IoThreadSnapshot, QueueSnapshot};
    use vmprof_vmm::stats::VcpuStats;
    use vmprof_vmm::virtio::blk::DiskSnapshot;

    use super::*;

    /// Of a VM with a vCPU, an IOThread and a disk of two virtqueues.
    pub fn stats() -> Stats {
        let queue = |vq| QueueSnapshot {
            vq,
            iothread: Some(0),
            reads: 10,
            writes: 5,
            flushes: 1,
            others: 1,
            read_bytes: 40_960,
            written_bytes: 20_480,
            kicks: 3,
            interrupts: 4,
            in_flight: 2,
            ..QueueSnapshot::default()
        };
        let iothread = IoThreadSnapshot {
            id: 0,
            name: "iothread0".into(),
            tid: 8,
            enters: 20,
            wakeups: 6,
            poll_hits: 0,
            poll_misses: 0,
            looks: 0,
            batch: false,
            latency: false,
        };
        let thread = |name: &str, tid| Thread {
            name: name.into(),
            tid,
            cpu: Some(3),
            cpu_ns: 1_500_000_000,
            ..Thread::default()
        };
        let disk = DiskSnapshot { name: "data".into(), virtqueues: vec![queue(0), queue(1)], fault: None };
        Stats {
            schema: "vmprof.stats/1".into(),
            taken_ns: 1_000_000_000,
            process: Process::default(),
            threads: vec![thread("CPU 0/KVM", 7), thread("IO iothread0", 8)],
            machine: Machine {
                vcpus: vec![VcpuStats { name: "CPU 0/KVM".into(), tid: 7, ..VcpuStats::default() }],
                iothreads: vec![iothread],
                disks: vec![disk],
                nets: vec![],
                paused: None,
            },
        }
    }

    #[test]
    fn the_guests_memory_is_told_from_everything_else() {
        let smaps = "\
            00400000-00500000 r-xp 00000000 00:01 7    /usr/bin/vmprof\nRss:    300 kB\nAnonymous:   0 kB\n\
            7f0000000000-7f0040000000 rw-s 00000000 00:01 9   /memfd:vmprof guest memory (deleted)\nRss:   4096 kB\n\
            7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0    [stack]\nRss:     12 kB\nAnonymous:  12 kB\n";
        let process = Process::from_smaps(smaps);
        assert_eq!((process.guest_bytes, process.beyond_guest_bytes), (4096 << 10, 312 << 10));
        assert_eq!(process.anonymous_bytes, 12 << 10);
    }

    #[test]
    fn this_process_has_memory_of_its_own() {
        let process = Process::of_this_one();
        assert!(
            process.pid > 0
                && process.anonymous_bytes > 0
                && process.beyond_guest_bytes > process.anonymous_bytes
        );
    }
}
