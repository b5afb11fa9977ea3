//! The validated profile: what a file says, right on any host. [`crate::read_profile`] makes it, the planner reads
//! it. Values that a host can refuse keep their place in the text, so that the refusal can point there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use vmprof_document::{Line, Problem, SourceSpan, Sources};

use crate::asserts::Assert;
use crate::conditions::{Facts, When};
use crate::topology::{CpuSet, NodeSet};

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written<T> {
    /// The value.
    pub value: T,
    /// Its place in the text.
    pub span: SourceSpan,
    /// Its line.
    pub line: Line,
}

/// One profile.
#[derive(Debug, Clone)]
pub struct Profile {
    /// `profile NAME`.
    pub name: String,
    /// `description`, if there is one.
    pub description: Option<String>,
    /// The path of the guest recipe as written: relative to the profile's own file.
    pub guest: Written<String>,
    /// `host { … }`.
    pub host: HostWish,
    /// `strict`: where the host calls for a step of the ladder, refuse to plan.
    pub strict: Option<Written<()>>,
    /// `vcpu`.
    pub vcpus: Vcpus,
    /// `emulatorpin`.
    pub emulator: EmulatorPin,
    /// `memory`.
    pub memory: Memory,
    /// `iothreads`.
    pub iothreads: IoThreads,
    /// `disk`, in the order of the file.
    pub disks: Vec<Disk>,
    /// `net`, in the order of the file; `net none` is no entry.
    pub nets: Vec<Net>,
    /// Remarks that need no host; the plan repeats them.
    pub warnings: Vec<Problem>,
    /// `assert`, in the order of the files.
    pub asserts: Vec<Assert>,
    /// The conditions that hold in this profile: none in the one that was read, those that apply in what
    /// [`Profile::on`] gives.
    pub applied: Vec<When>,
    pub(crate) conditional: Conditional,
    pub(crate) source: Sources,
}

/// A profile's conditions, and what it comes to for each set of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conditional {
    pub(crate) whens: Arc<[When]>,
    /// Bit n of the index plus one: whether the n-th condition holds. Without any, the profile itself is meant.
    pub(crate) variants: Arc<[Profile]>,
}

impl Profile {
    /// The texts it was read from, under their names, for diagnostics that point into them. The first is the profile's own
    /// file, the others those that it extends, with their paths relative to the first one's directory.
    pub fn source(&self) -> &Sources {
        &self.source
    }

    /// `when`, in the order of the files.
    pub fn whens(&self) -> &[When] {
        &self.conditional.whens
    }

    /// The remarks of reading it, and those that it has only where some of its `when`s hold: these point at them.
    pub fn remarks(&self) -> Vec<Problem> {
        let mut remarks = self.warnings.clone();
        let mut known: BTreeSet<_> = remarks.iter().map(Problem::identity).collect();
        let mut variants: Vec<&Profile> = self.conditional.variants.iter().collect();
        // The fewest conditions that bring a remark are the ones to name.
        variants.sort_by_key(|variant| variant.applied.len());
        for variant in variants {
            for remark in variant.warnings.iter().filter(|remark| known.insert(remark.identity())) {
                let places = variant.applied.iter().map(|when| when.span);
                remarks.push(places.fold(remark.clone(), |remark, at| remark.at(at, "where this holds")));
            }
        }
        remarks
    }

    /// What the profile says on a host with these facts: the conditions that hold are laid over the rest in the order of
    /// the file. Every such profile was validated when this one was read.
    pub fn on(&self, facts: &Facts) -> &Profile {
        let holds = (0..).zip(self.conditional.whens.iter()).filter(|(_, when)| when.holds(facts));
        let set = holds.fold(0usize, |set, (bit, _)| set | 1 << bit);
        set.checked_sub(1).and_then(|at| self.conditional.variants.get(at)).unwrap_or(self)
    }
}

/// What the profile asks of the host's CPUs and nodes.
#[derive(Debug, Clone, Default)]
pub struct HostWish {
    /// Only these CPUs.
    pub cpuset: Option<Written<CpuSet>>,
    /// What to do with SMT siblings.
    pub smt: Smt,
    /// The node everything goes to; `None` lets the planner choose.
    pub node: Option<Written<u32>>,
}

/// What to do with the siblings of a core that a pinned thread has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Smt {
    /// Use them when whole cores run out.
    #[default]
    Prefer,
    /// Leave them idle.
    Isolate,
    /// Pair the guest's threads on them, and show the guest that topology.
    Require,
}

/// `vcpu N`.
#[derive(Debug, Clone)]
pub struct Vcpus {
    /// How many.
    pub count: u32,
    /// Where they go.
    pub pin: ThreadPins,
}

/// Where the threads of one kind go.
#[derive(Debug, Clone)]
pub enum ThreadPins {
    /// The planner places them.
    Auto,
    /// They float over the usable CPUs.
    Float {
        /// The line that says so.
        line: Line,
    },
    /// These are pinned as written, the others placed by the planner.
    Explicit(BTreeMap<u32, Written<CpuSet>>),
    /// On the emulator's CPUs; for IOThreads only.
    Emulator {
        /// The line that says so.
        line: Line,
    },
}

/// `emulatorpin`.
#[derive(Debug, Clone)]
pub enum EmulatorPin {
    /// The planner places it.
    Auto,
    /// It floats.
    Float {
        /// The line that says so.
        line: Line,
    },
    /// As written.
    Explicit(Written<CpuSet>),
}

/// `memory`.
#[derive(Debug, Clone)]
pub struct Memory {
    /// How much.
    pub bytes: Written<u64>,
    /// Which pages back it.
    pub hugepages: Hugepages,
    /// The nodes it lies on; `None` lets the planner choose.
    pub nodes: Option<Written<NodeSet>>,
    /// How it is bound to its nodes.
    pub mode: MemoryMode,
}

/// How memory is bound to its nodes, in libvirt's words (`numatune`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MemoryMode {
    /// There and nowhere else (MPOL_BIND).
    #[default]
    Strict,
    /// There as long as there is room (MPOL_PREFERRED_MANY).
    Preferred,
    /// Page by page over the nodes in turn (MPOL_INTERLEAVE).
    Interleave,
}

impl MemoryMode {
    /// The word of the language.
    pub fn word(self) -> &'static str {
        match self {
            MemoryMode::Strict => "strict",
            MemoryMode::Preferred => "preferred",
            MemoryMode::Interleave => "interleave",
        }
    }
}

/// Which pages back the guest's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hugepages {
    /// Ordinary ones.
    None,
    /// 2 MiB ones where enough are free.
    Auto,
    /// These, or no run at all.
    Required(Written<PageSize>),
}

/// The hugepage sizes of x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub enum PageSize {
    /// 2 MiB.
    #[serde(rename = "2MiB")]
    Mib2,
    /// 1 GiB.
    #[serde(rename = "1GiB")]
    Gib1,
}

impl PageSize {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            PageSize::Mib2 => 2 << 20,
            PageSize::Gib1 => 1 << 30,
        }
    }
}

/// `iothreads`.
#[derive(Debug, Clone)]
pub struct IoThreads {
    /// How many.
    pub count: IoThreadCount,
    /// Where they go.
    pub pin: ThreadPins,
    /// How long an idle IOThread looks for work before it sleeps, in nanoseconds; `None` leaves it to the planner.
    pub poll_max_ns: Option<u64>,
    /// By how much the window is multiplied when it was too short; `None` leaves it to the machine, which doubles it.
    pub poll_grow: Option<u32>,
    /// By how much the window is divided when it was too long; `None` and 0 start again from nothing.
    pub poll_shrink: Option<u32>,
}

/// How many IOThreads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IoThreadCount {
    /// As many as written; never changed.
    Fixed(Written<u32>),
    /// As the host allows.
    Auto {
        /// Given up only when CPUs run out.
        min: u32,
        /// Never more.
        max: u32,
    },
}

/// `disk NAME`.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The name, which is the serial the guest sees.
    pub name: Written<String>,
    /// Where its bytes lie.
    pub source: DiskSource,
    /// How the host's page cache is used.
    pub cache: CacheMode,
    /// Which engine moves the bytes.
    pub aio: Aio,
    /// The engine to take where the host lacks the first.
    pub aio_fallback: Option<Aio>,
    /// Whether the guest's discards free space (`discard=unmap`).
    pub discard: bool,
    /// What a failed read does.
    pub rerror: ErrorPolicy,
    /// What a failed write or flush does.
    pub werror: ErrorPolicy,
    /// The guest's unit of addressing, bytes; `None` is the source's own.
    pub logical_block_bytes: Option<u32>,
    /// The unit that the guest is told to write whole, bytes; `None` is the source's own.
    pub physical_block_bytes: Option<u32>,
    /// The filesystem made on it when it is empty, and where the guest mounts it.
    pub format: Option<Written<Format>>,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// How many virtqueues.
    pub queues: u32,
    /// The line that says so; `None` where it follows from the vCPUs.
    pub queues_line: Option<Line>,
    /// Descriptors per virtqueue.
    pub queue_size: u16,
    /// Which IOThread serves which virtqueue.
    pub mapping: Mapping,
    /// `scheduler host=`: checked on the host, never set.
    pub host_scheduler: Option<Written<String>>,
    /// `scheduler guest=`: set inside the guest.
    pub guest_scheduler: Option<String>,
}

/// Where a disk's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskSource {
    /// A raw image file.
    File {
        /// The path as written.
        path: String,
        /// How large to make it when it does not exist.
        bytes: Option<u64>,
    },
    /// A block device of the host.
    #[serde(rename = "dev")]
    Device {
        /// The path as written.
        path: String,
    },
}

/// libvirt's and QEMU's cache modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// O_DIRECT, the guest flushes.
    None,
    /// O_DIRECT, every write durable.
    Directsync,
    /// Page cache, the guest flushes.
    Writeback,
    /// Page cache, every write durable.
    Writethrough,
    /// Page cache, flushes ignored.
    Unsafe,
}

impl CacheMode {
    /// The word of the language.
    pub fn word(self) -> &'static str {
        match self {
            CacheMode::None => "none",
            CacheMode::Directsync => "directsync",
            CacheMode::Writeback => "writeback",
            CacheMode::Writethrough => "writethrough",
            CacheMode::Unsafe => "unsafe",
        }
    }

    /// Whether the source is opened with O_DIRECT.
    pub fn direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }

    /// Whether the guest sees a volatile write cache, and so must flush.
    pub fn write_cache(self) -> bool {
        !matches!(self, CacheMode::Directsync | CacheMode::Writethrough)
    }
}

/// The engine that moves a disk's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aio {
    /// io_uring.
    IoUring,
    /// Linux native AIO.
    Native,
    /// A pool of threads.
    Threads,
}

/// Which IOThread serves which virtqueue of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// Round robin over all IOThreads.
    RoundRobin,
    /// Each queue to an IOThread in the L3 cache of the vCPU that submits to it, else on its node.
    Locality,
    /// Round robin over these, in this order.
    Over(Vec<u32>),
    /// Exactly so: IOThread and its virtqueues.
    Exact(Vec<(u32, Vec<u32>)>),
}

/// What a failed request does, in QEMU's words (`rerror`, `werror`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ErrorPolicy {
    /// The guest is told.
    #[default]
    Report,
    /// The guest is told that all is well.
    Ignore,
    /// The VM pauses, and the request is tried again when it goes on.
    Stop,
    /// The VM pauses where the host's disk is full; any other error is told to the guest. For writes only.
    Enospc,
}

impl ErrorPolicy {
    /// The word of the language.
    pub fn word(self) -> &'static str {
        match self {
            ErrorPolicy::Report => "report",
            ErrorPolicy::Ignore => "ignore",
            ErrorPolicy::Stop => "stop",
            ErrorPolicy::Enospc => "enospc",
        }
    }
}

/// `format ext4 mount="/srv"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Format {
    /// `ext4` or `xfs`.
    pub filesystem: String,
    /// Where the guest mounts it; `None` leaves that to the recipe.
    pub mount: Option<String>,
}

/// `net`.
#[derive(Debug, Clone)]
pub struct Net {
    /// What carries its packets, and where that was written.
    pub backend: Written<NetBackend>,
    /// Queue pairs.
    pub queues: u32,
    /// The line that says so; `None` where it is the default.
    pub queues_line: Option<Line>,
    /// Descriptors per virtqueue.
    pub queue_size: u16,
    /// The guest's hardware address; `None` derives it from the VM's name.
    pub mac: Option<String>,
}

/// What carries a network device's packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetBackend {
    /// passt as a child process: no root, the host's own addresses.
    Passt {
        /// Ports of the host that reach the guest.
        forwards: Vec<Forward>,
    },
    /// A tap device that exists.
    Tap {
        /// Its name.
        name: String,
    },
}

/// One port of the host that reaches the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Forward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port on the host.
    pub host: u16,
    /// The port in the guest.
    pub guest: u16,
}

/// The protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}
