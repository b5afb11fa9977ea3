//! The validated profile: what a file says, right on any host. [`crate::read_profile`] makes it, the planner reads
//! it. Values that a host can refuse keep their place in the text, so that the refusal can point there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vmprof_document::{Line, Problem, SourceSpan, Sources};

use crate::asserts::Assert;
use crate::conditions::{Facts, When};
use crate::topology::CpuSet;

mod disk;
mod memory;
mod net;

pub use disk::{Aio, CacheMode, Disk, DiskSource, ErrorPolicy, Format, Mapping};
pub use memory::{Hugepages, Memory, MemoryMode, PageSize};
pub use net::{Forward, Net, NetBackend, Protocol};

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
    /// Whether the guest's memory is pinned for io_uring before the guest starts.
    pub registered_memory: bool,
    /// Whether a thread of the kernel's takes requests for io_uring.
    pub sqpoll: Option<SqPoll>,
}

/// `sqpoll`: the kernel's threads that look for requests.
#[derive(Debug, Clone)]
pub struct SqPoll {
    /// Their CPUs, one for each IOThread in turn.
    pub cpus: Written<CpuSet>,
    /// How long one looks in vain before it sleeps.
    pub idle_ms: u32,
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
