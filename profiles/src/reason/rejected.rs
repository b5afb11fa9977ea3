//! The best choice that was not made, and why not.

use std::fmt;

use vmprof_document::{Line, format_size};

use crate::plan::Rejected;
use crate::topology::CpuSet;

/// What could have been instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Instead {
    Cpu { cpu: u32, node: Option<u32> },
    Node(u32),
    Count(u32),
    RoundRobin,
    Locality,
    Pages(&'static str),
    OrdinaryPages,
}

/// Why it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Against {
    /// The profile says otherwise.
    ProfileSaid { line: Line },
    /// A sibling of this CPU, where that thread runs.
    SiblingOf { cpu: u32, who: String },
    /// The other half of its own core.
    OwnSibling { cpu: u32 },
    /// It stays idle, as the profile asks.
    Idle { next_to: u32 },
    /// That thread runs there.
    Taken { who: String },
    /// No isolated CPU, as the chosen one is.
    NotIsolated { chosen: u32 },
    /// Isolated, which the emulator has no use for.
    Isolated,
    /// A core built for economy.
    Economy,
    /// A core built for speed, which the emulator has no use for.
    Speed,
    /// Somebody else works on its sibling.
    NotWhole,
    /// In another cache than the chosen one.
    OtherCache { chosen: u32 },
    /// As good; the chosen one comes first.
    ComesLater { chosen: u32 },
    /// Farther from the disk.
    FarFromDisk { node: u32, far: u32, disk: String, home: u32, near: u32 },
    /// Farther from where the VM lives.
    FarFromHome { node: u32, far: u32, home: u32 },
    /// On a node that is not known.
    UnknownNode,
    /// Memory too little.
    TooLittleMemory { has: u64, wanted: u64 },
    /// A deeper step of the ladder.
    Deeper { step: &'static str, threads: u32 },
    /// Fewer isolated cores.
    FewerIsolated { has: usize, home: u32, there: usize },
    /// Fewer cores.
    FewerCores { has: usize, home: u32, there: usize },
    /// No roomier, and later in order.
    NoRoomier { home: u32 },
    /// The profile pins the vCPUs elsewhere.
    PinnedElsewhere { home: u32 },
    /// Remote to the vCPUs.
    RemoteToVcpus { node: u32, home: u32, distance: u32 },
    /// Part of it would not fit.
    DoesNotFit { node: u32, has: u64, wanted: u64 },
    /// Too few free pages.
    FewPages { wanted: u64, free: u64 },
    /// Pages that are pinned and never shared out, wanted by the profile.
    ProfileAsksPages,
    /// More IOThreads than virtqueues.
    NoQueueLeft { device: String, queues: u32, next: u32 },
    /// More saturate no drive further.
    Enough,
    /// The profile's own bound.
    Most { max: u32 },
    /// The profile's own lower bound.
    Least { min: u32 },
    /// No CPU for it.
    NoCpuLeft { home: String, free: u32 },
    /// Nothing to be near to.
    NothingNear { why: &'static str },
    /// Would cross caches.
    CrossesCaches { queues: CpuSet },
    /// The profile leaves locality unasked, where it would be nearer.
    CrossesCachesAsAsked { queues: CpuSet },
    /// The plan evens out instead.
    Uneven,
}

/// A rejected choice, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) instead: Instead,
    pub(crate) against: Against,
}

impl From<Rejection> for Rejected {
    fn from(rejection: Rejection) -> Rejected {
        Rejected { instead: rejection.instead.to_string(), because: rejection.against.to_string() }
    }
}

impl fmt::Display for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Instead::Cpu { cpu, node: Some(node) } => write!(f, "CPU {cpu} (node {node})"),
            Instead::Cpu { cpu, node: None } => write!(f, "CPU {cpu}"),
            Instead::Node(node) => write!(f, "node {node}"),
            Instead::Count(count) => write!(f, "{count}"),
            Instead::RoundRobin => f.write_str("round robin"),
            Instead::Locality => f.write_str("locality"),
            Instead::Pages(size) => write!(f, "{size} pages"),
            Instead::OrdinaryPages => f.write_str("ordinary pages"),
        }
    }
}

impl fmt::Display for Against {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Against::ProfileSaid { line } => write!(f, "the profile says otherwise in line {line}"),
            Against::SiblingOf { cpu, who } => write!(f, "it is the sibling of CPU {cpu}, where {who} runs"),
            Against::OwnSibling { cpu } => write!(f, "it is the sibling of CPU {cpu}: the same core"),
            Against::Idle { next_to } => {
                write!(f, "`smt isolate` leaves the siblings of CPU {next_to} idle")
            }
            Against::Taken { who } => write!(f, "{who} runs there"),
            Against::NotIsolated { chosen } => write!(f, "it is not isolated, and CPU {chosen} is"),
            Against::Isolated => f.write_str("it is isolated, which is for vCPUs and IOThreads"),
            Against::Economy => f.write_str("it is an efficiency core"),
            Against::Speed => f.write_str("it is a performance core, which is for vCPUs and IOThreads"),
            Against::NotWhole => f.write_str("part of its core is not vmprof's to use"),
            Against::OtherCache { chosen } => write!(f, "it is in another cache than CPU {chosen}"),
            Against::ComesLater { chosen } => write!(f, "it is as good, and CPU {chosen} comes first"),
            Against::FarFromDisk { node, far, disk, home, near } => {
                let [far, near] = [far, near].map(distance);
                write!(f, "node {node} is {far} away from disk `{disk}`, node {home} is {near}")
            }
            Against::FarFromHome { node, far, home } => {
                write!(f, "node {node} is {} away from node {home}, where the VM lives", distance(far))
            }
            Against::UnknownNode => f.write_str("its node is not known"),
            Against::TooLittleMemory { has, wanted } => {
                write!(f, "it has {}, and the guest is given {}", format_size(*has), format_size(*wanted))
            }
            Against::Deeper { step, threads } => {
                let noun = if *threads == 1 { "thread" } else { "threads" };
                write!(f, "it would put {threads} {noun} on step ({step}) of the ladder")
            }
            Against::FewerIsolated { has, home, there } => {
                write!(f, "{has} of its cores are isolated, {there} of node {home}'s")
            }
            Against::FewerCores { has, home, there } => {
                write!(f, "it has {has} usable {}, node {home} has {there}", cores(*has))
            }
            Against::NoRoomier { home } => write!(f, "it is no roomier, and node {home} comes first"),
            Against::PinnedElsewhere { home } => write!(f, "the profile pins the vCPUs to node {home}"),
            Against::RemoteToVcpus { node, home, distance: far } => {
                write!(f, "node {node} is {} away from node {home}, where the vCPUs run", distance(far))
            }
            Against::DoesNotFit { node, has, wanted } => {
                let [has, wanted] = [has, wanted].map(|bytes| format_size(*bytes));
                write!(f, "node {node} has {has}, and the guest is given {wanted}")
            }
            Against::FewPages { wanted, free } => write!(f, "{wanted} are wanted and {free} are free"),
            Against::ProfileAsksPages => f.write_str("the profile asks for hugepages"),
            Against::NoQueueLeft { device, queues, next } => {
                let noun = if *queues == 1 { "virtqueue" } else { "virtqueues" };
                write!(f, "{device} has {queues} {noun}: IOThread {next} would serve none")
            }
            Against::Enough => f.write_str("8 saturate a drive, and more can hurt"),
            Against::Most { max } => write!(f, "the profile says `max={max}`"),
            Against::Least { min } => write!(f, "the profile asks for at least {min}"),
            Against::NoCpuLeft { home, free: 0 } => write!(f, "no CPU is left for it on {home}"),
            Against::NoCpuLeft { home, free } => {
                let noun = if *free == 1 { "CPU" } else { "CPUs" };
                write!(f, "the {free} free {noun} on {home} are for vCPUs that float")
            }
            Against::NothingNear { why } => f.write_str(why),
            Against::CrossesCaches { queues } => {
                write!(f, "it serves virtqueue {queues} in another cache than its vCPU's")
            }
            Against::CrossesCachesAsAsked { queues } => {
                write!(f, "the profile does not ask for it; virtqueue {queues} would have a nearer IOThread")
            }
            Against::Uneven => f.write_str("it is farther from the vCPUs, or leaves an IOThread with more"),
        }
    }
}

fn distance(distance: &u32) -> String {
    match distance {
        255 => "an unknown distance".to_owned(),
        known => known.to_string(),
    }
}

fn cores(count: usize) -> &'static str {
    if count == 1 { "core" } else { "cores" }
}
