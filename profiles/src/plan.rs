//! The plan: plain data that is printed, stored, compared and obeyed. Its JSON is a contract (`vmprof.plan/1`): fields
//! may be added, the named ones stay, in this order. CPU sets are kernel list strings; every id starts at 0.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::profile::{Aio, CacheMode, DiskSource, ErrorPolicy, Format, MemoryMode, NetBackend, PageSize};
use crate::topology::{CpuSet, NodeSet};

/// The version of the rules that make plans; part of every digest.
pub(crate) const RULES: &str = "vmprof.rules/2";

/// Which thread runs where, which virtqueue is served by whom, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// `vmprof.plan/1`.
    pub schema: Schema,
    /// The profile's name.
    pub profile: String,
    /// blake3 of the profile, every fact it was resolved against, and the rules' version.
    pub digest: String,
    /// blake3 of the profile's text alone, the files it extends included.
    pub profile_digest: String,
    /// The host's size.
    pub host: HostSize,
    /// What the guest is shown of its CPUs.
    pub guest: GuestCpus,
    /// The node the VM lives on.
    pub home: HomePlan,
    /// The guest's memory.
    pub memory: MemoryPlan,
    /// How many IOThreads, and why.
    pub iothread_count: IoThreadCountPlan,
    /// One per vCPU.
    pub vcpus: Vec<VcpuPlan>,
    /// One per IOThread.
    pub iothreads: Vec<IoThreadPlan>,
    /// The emulator thread.
    pub emulator: EmulatorPlan,
    /// One per disk of the profile.
    pub disks: Vec<DiskPlan>,
    /// One per network device of the profile.
    pub nets: Vec<NetPlan>,
    /// The steps of the ladder that were taken, the cheapest first; empty where there is room for all.
    pub ladder: Vec<LadderStep>,
    /// What the host made the planner give up, and other remarks.
    pub diagnostics: Vec<Diagnostic>,
}

/// The steps by their weight, the heaviest first; where a letter stands for two, with the code that tells them apart.
const PRICES: [(&str, &str); 11] = [
    ("home", ""),
    ("memory", ""),
    ("g", ""),
    ("f", "_shares_vcpu"),
    ("f", "beside_"),
    ("e", "_other_node"),
    ("e", "_siblings"),
    ("d", ""),
    ("c", ""),
    ("b", ""),
    ("a", ""),
];

/// The version of the JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Schema {
    /// The only one so far.
    #[default]
    #[serde(rename = "vmprof.plan/1")]
    V1,
}

/// The host the plan is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostSize {
    /// Online CPUs.
    pub cpus: usize,
    /// NUMA nodes; 1 where the kernel knows none.
    pub nodes: usize,
    /// blake3 of the machine as the plan lays threads on it: see [`crate::host_digest`].
    pub digest: String,
}

/// A step down the ladder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LadderStep {
    /// `a` to `g`; `memory` where memory outgrows its node, `home` where the disk's node has no usable CPU.
    pub step: String,
    /// The code of the warning that goes with it.
    pub code: String,
    /// How many threads stand on it. For `memory` on how many nodes it lies, for `home` how far that is from the disk.
    pub count: u32,
}

/// The best choice that was not made, and why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Rejected {
    /// What could have been, such as `CPU 6`.
    pub instead: String,
    /// Why it is not.
    pub because: String,
}

/// What the guest is shown of its CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestCpus {
    /// SMT siblings per core: 2 where the profile pairs the guest's threads on siblings.
    pub threads_per_core: u32,
}

/// The node a VM lives on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HomePlan {
    /// The node; `null` where the host's are unknown.
    pub node: Option<u32>,
    /// Why this one.
    pub because: String,
    /// The next best one.
    pub rejected: Option<Rejected>,
}

/// How many IOThreads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IoThreadCountPlan {
    /// As many as the plan has.
    pub count: u32,
    /// Why so many.
    pub because: String,
    /// The next best number.
    pub rejected: Option<Rejected>,
}

/// The guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryPlan {
    /// How much.
    pub bytes: u64,
    /// The nodes it is bound to; `null` where the host's are unknown.
    pub nodes: Option<NodeSet>,
    /// The pages that back it; `null` for ordinary ones.
    pub hugepages: Option<PageSize>,
    /// How it is bound to them.
    pub mode: MemoryMode,
    /// Why there and so.
    pub because: String,
    /// The next best place.
    pub rejected: Option<Rejected>,
}

/// One vCPU's thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VcpuPlan {
    /// Its number.
    pub id: u32,
    /// Where its thread may run.
    pub cpus: CpuSet,
    /// The node of those CPUs, where it is one and known.
    pub node: Option<u32>,
    /// Why there.
    pub because: String,
    /// The next best place.
    pub rejected: Option<Rejected>,
}

/// One IOThread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IoThreadPlan {
    /// Its number.
    pub id: u32,
    /// `iothread0` and so on.
    pub name: String,
    /// Where it may run.
    pub cpus: CpuSet,
    /// The node of those CPUs, where it is one and known.
    pub node: Option<u32>,
    /// How long it looks for work before it sleeps, in nanoseconds; 0 never polls.
    pub poll_max_ns: u64,
    /// By what the window grows; 0 is the built-in factor, as in QEMU.
    #[serde(default)]
    pub poll_grow: u32,
    /// By what the window shrinks; 0 is the built-in behaviour, as in QEMU.
    #[serde(default)]
    pub poll_shrink: u32,
    /// Whether the guest's memory is pinned for its io_uring before the guest starts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub registered_memory: bool,
    /// The thread of the kernel's that takes its requests, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sqpoll: Option<SqPollPlan>,
    /// Why there.
    pub because: String,
    /// The next best place.
    pub rejected: Option<Rejected>,
}

/// A thread of the kernel's that looks for requests of an IOThread (SQPOLL).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SqPollPlan {
    /// Its CPU.
    pub cpu: u32,
    /// How long it looks in vain before it sleeps, in milliseconds.
    pub idle_ms: u32,
}

/// The thread `vmprof`: device emulation that is no IOThread's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EmulatorPlan {
    /// Where it may run.
    pub cpus: CpuSet,
    /// The node of those CPUs, where it is one and known.
    pub node: Option<u32>,
    /// Why there.
    pub because: String,
    /// The next best place.
    pub rejected: Option<Rejected>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiskPlan {
    /// Its name, which is its serial.
    pub name: String,
    /// How the page cache is used.
    pub cache: CacheMode,
    /// The engine.
    pub aio: Aio,
    /// Whether the source is opened with O_DIRECT.
    pub direct: bool,
    /// Whether the guest sees a volatile write cache.
    pub write_cache: bool,
    /// How many virtqueues.
    pub queues: u32,
    /// Descriptors per virtqueue.
    pub queue_size: u16,
    /// Whether the guest is offered packed virtqueues; left out where it is not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub packed: bool,
    /// The node of the controller under it; `null` where unknown.
    pub node: Option<u32>,
    /// Who serves each virtqueue, in the order of the virtqueues.
    pub virtqueues: Vec<Virtqueue>,
    /// The block schedulers.
    pub scheduler: Scheduler,
    /// Where its bytes lie, as the profile writes it.
    pub source: DiskSource,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// The host's block device under it; `null` where unknown.
    pub device: Option<String>,
    /// The engine to take where the host lacks the first.
    pub aio_fallback: Option<Aio>,
    /// Whether its IOThreads look at the drive for what ended; left out where they wait for its interrupt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub iopoll: bool,
    /// Whether the guest's discards free space.
    pub discard: bool,
    /// What a failed read does.
    pub rerror: ErrorPolicy,
    /// What a failed write or flush does.
    pub werror: ErrorPolicy,
    /// The guest's unit of addressing, bytes; `null` is 512.
    pub logical_block_bytes: Option<u32>,
    /// The unit that the guest is told to write whole, bytes; `null` is what direct I/O on the source asks for.
    pub physical_block_bytes: Option<u32>,
    /// The filesystem made on it when it is empty.
    pub format: Option<Format>,
    /// Why these queues are served so.
    pub because: String,
    /// The next best mapping.
    pub rejected: Option<Rejected>,
}

/// One network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetPlan {
    /// `net0` and so on.
    pub name: String,
    /// What carries its packets.
    pub backend: NetBackend,
    /// Queue pairs.
    pub queues: u32,
    /// Descriptors per virtqueue.
    pub queue_size: u16,
    /// The guest's hardware address; `null` derives it from the VM's name.
    pub mac: Option<String>,
    /// Who serves each virtqueue: receive and transmit of each pair, then the control queue (virtio 1.3, 5.1.2).
    pub virtqueues: Vec<Virtqueue>,
    /// Why these queues are served so.
    pub because: String,
}

/// One virtqueue and its IOThread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Virtqueue {
    /// The virtqueue's index.
    pub vq: u32,
    /// The IOThread's number.
    pub iothread: u32,
}

/// The block schedulers of a disk; `null` leaves what is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Scheduler {
    /// On the host: checked, never set.
    pub host: Option<String>,
    /// In the guest: set by its first process.
    pub guest: Option<String>,
}

/// A remark on the plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// Such as `vmprof::plan::dense_host`.
    pub code: String,
    /// What was given up, or what to know.
    pub message: String,
    /// What would avoid it.
    pub help: String,
}

/// How much a remark matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something was given up.
    Warning,
    /// Good to know.
    Note,
}

impl Plan {
    /// The plan's JSON, as `vmprof plan --format json` prints it. The same plan gives the same bytes.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// The price of this plan, to compare with that of the same profile on another host: the less, the better.
    ///
    /// It counts how far home lies from the hottest disk, then whether memory outgrows it, then how many threads
    /// stand on each step of the ladder, the deepest step first.
    pub fn price(&self) -> Vec<u32> {
        let on = |step: &str, code: &str| {
            let steps =
                self.ladder.iter().filter(|s| s.step == step && (code.is_empty() || s.code.contains(code)));
            steps.fold(0u32, |all, s| all.saturating_add(s.count))
        };
        let take_turns = on("g", "") > 0;
        let price = |step: &str, code: &str| match step {
            "memory" => on(step, code).min(1),
            // Where vCPUs take turns it no longer counts on which CPUs the others of them are alone.
            "e" if take_turns => 0,
            _ => on(step, code),
        };
        PRICES.iter().map(|(step, code)| price(step, code)).collect()
    }

    /// Reads a stored plan.
    pub fn from_json(text: &str) -> Result<Plan, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The threads of the running VM by the names /proc shows, and the CPUs each is to be allowed, and no others.
    pub fn threads(&self) -> Vec<(String, CpuSet)> {
        let vcpus = self.vcpus.iter().map(|v| (format!("CPU {}/KVM", v.id), v.cpus.clone()));
        let iothreads = self.iothreads.iter().map(|i| (format!("IO {}", i.name), i.cpus.clone()));
        let emulator = ("vmprof".to_owned(), self.emulator.cpus.clone());
        vcpus.chain(iothreads).chain([emulator]).collect()
    }
}
