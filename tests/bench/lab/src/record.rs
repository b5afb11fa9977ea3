//! What the driver in the emulated host tells, one JSON object a line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::counters::{Counts, Memory};
use crate::settings::{Backing, Point, Vmm};

/// A pair of machines that differ in nothing but the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pair {
    pub backing: Backing,
    pub iothreads: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Record {
    Host {
        kernel: String,
        processor: String,
        cpus: usize,
        vmprof: String,
        cmdline: String,
    },
    /// From the start of the VMM's program to the guest's first.
    Boot {
        vmm: Vmm,
        pair: Pair,
        ms: f64,
    },
    /// Both machines have booted once more.
    Booted {
        pair: Pair,
        round: u32,
    },
    Window(Window),
    /// Counted under the kernel's trace events; `requests` are the guest's in the same time.
    Trace {
        vmm: Vmm,
        pair: Pair,
        point: Point,
        requests: u64,
        counts: BTreeMap<String, u64>,
    },
    /// A machine of the pair ended or fell silent, or all of the emulated host did (`None`): what was measured stands, and
    /// the rest was begun again.
    Lost {
        pair: Option<Pair>,
        why: String,
    },
    /// After all the windows of a pair.
    Memory {
        vmm: Vmm,
        pair: Pair,
        memory: Memory,
    },
}

/// Some seconds of one point on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    pub vmm: Vmm,
    pub pair: Pair,
    pub point: Point,
    pub round: u32,
    /// Requests that the guest's kernel saw complete.
    pub requests: u64,
    /// Interrupts of the disk's queues that the guest's kernel counted in the same time.
    pub interrupts: u64,
    pub counts: Counts,
    /// What vmprof itself counted: `iothread0.requests`, `kicks`, `interrupts`, `iothread0.enters`, `iothread0.wakeups`.
    pub own: BTreeMap<String, u64>,
}
