//! Why a value of the plan is what it is, and how each reason reads aloud. What could have been instead, and why it is
//! not, is in [`rejected`].

pub(crate) mod rejected;

use std::fmt;

use vmprof_document::Line;

use crate::topology::CpuSet;

/// Why a thread runs where it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The profile pins it.
    ProfileSaid {
        /// In this line.
        line: Line,
    },
    /// The profile leaves it unpinned.
    Floats {
        /// In this line.
        line: Line,
    },
    /// The profile puts IOThreads on the emulator's CPUs.
    WithEmulator {
        /// In this line.
        line: Line,
    },
    /// A core that it shares with no other thread of the VM.
    OwnCore {
        /// Where.
        home: Home,
        /// Whether the host isolates that core.
        isolated: bool,
    },
    /// A vCPU on a core without other vCPUs, which threads of another kind share.
    ApartFromVcpus {
        /// Where.
        home: Home,
    },
    /// An IOThread on a core without vCPUs, which the emulator shares.
    WithTheEmulator {
        /// Where.
        home: Home,
    },
    /// All the siblings of one core, with the vCPUs that the guest sees as siblings.
    PairedCore {
        /// Where.
        home: Home,
        /// The vCPUs on that core.
        vcpus: CpuSet,
    },
    /// A sibling on a core without vCPUs.
    QuietSibling {
        /// Where.
        home: Home,
    },
    /// A vCPU on the sibling of another vCPU.
    VcpuSibling {
        /// Where.
        home: Home,
    },
    /// Home has no core left for it, siblings of vCPUs aside; this is the nearest node that has.
    NextNode {
        /// The node it got.
        node: Option<u32>,
        /// The one that has not.
        home: Home,
    },
    /// No free core is left: the sibling of a vCPU's CPU.
    BesideVcpu {
        /// The vCPU.
        vcpu: u32,
    },
    /// A vCPU on the sibling of a thread that the profile pins.
    BesidePinned,
    /// No CPU is left: a vCPU's own.
    SharesVcpu {
        /// The vCPU.
        vcpu: u32,
    },
    /// More threads of one kind than CPUs.
    SharesCpu {
        /// The usable CPUs.
        usable: CpuSet,
    },
    /// The emulator rides with an IOThread.
    SharesIoThread {
        /// The IOThread.
        iothread: u32,
    },
}

/// Why a plan has as many IOThreads as it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CountReason {
    ProfileSaid {
        line: Line,
    },
    /// As many as the widest device has virtqueues.
    Queues {
        device: String,
        queues: u32,
    },
    /// As many as CPUs are left.
    CpusLeft {
        home: String,
    },
    /// Fewer than the profile asks.
    Fell {
        home: String,
    },
    Least {
        min: u32,
    },
    /// A mapping or a pin names one with this number.
    Named,
    Most {
        max: u32,
    },
    Enough,
}

impl fmt::Display for CountReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CountReason::ProfileSaid { line } => write!(f, "as line {line} says"),
            CountReason::Queues { device, queues } => {
                let noun = if *queues == 1 { "virtqueue" } else { "virtqueues" };
                write!(f, "one for each of the {queues} {noun} of {device}")
            }
            CountReason::CpusLeft { home } => {
                write!(f, "one for each CPU left on {home} after vCPUs and emulator")
            }
            CountReason::Fell { home } => write!(f, "no more CPUs are left on {home} for them"),
            CountReason::Least { min } => write!(f, "the profile asks for at least {min}"),
            CountReason::Named => f.write_str("the profile names the last of them"),
            CountReason::Most { max } => write!(f, "the profile says `max={max}`"),
            CountReason::Enough => f.write_str("so many saturate a drive"),
        }
    }
}

/// Why memory lies where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MemoryReason {
    ProfileSaid { line: Line },
    AtHome { home: Home },
    Outgrows { node: u32 },
    Interleaved,
    UnknownNodes,
    NoMemoryKnown,
}

impl fmt::Display for MemoryReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryReason::ProfileSaid { line } => write!(f, "as line {line} says"),
            MemoryReason::AtHome { home } => write!(f, "on the node of the vCPUs: {home}"),
            MemoryReason::Outgrows { node } => write!(f, "node {node} is too small, so the nearest follow"),
            MemoryReason::Interleaved => f.write_str("interleaved over every node with memory"),
            MemoryReason::NoMemoryKnown => {
                f.write_str("no node is known to have memory for it, so it is bound to none")
            }
            MemoryReason::UnknownNodes => f.write_str("the host's nodes are unknown, so it is bound to none"),
        }
    }
}

/// Why these pages back it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PagesReason {
    ProfileSaid { line: Line },
    Enough { free: u64 },
    TooFew { wanted: u64, free: u64 },
}

impl fmt::Display for PagesReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PagesReason::ProfileSaid { line } => write!(f, "the pages that line {line} asks for"),
            PagesReason::Enough { free } => write!(f, "{free} free 2MiB pages are enough"),
            PagesReason::TooFew { wanted, free } => {
                write!(f, "ordinary pages, as {wanted} of 2MiB are wanted and {free} are free")
            }
        }
    }
}

/// Why these virtqueues are served by these IOThreads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MappingReason {
    /// As the profile maps them.
    ProfileSaid,
    /// Round robin over those that the profile names.
    OverNamed,
    RoundRobin,
    /// Each queue near the vCPU that submits to it.
    Locality {
        cache: usize,
        node: usize,
        far: usize,
    },
    /// Queue pairs round robin.
    Pairs,
}

impl fmt::Display for MappingReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MappingReason::ProfileSaid => f.write_str("as the profile maps them"),
            MappingReason::OverNamed => f.write_str("round robin over the IOThreads the profile names"),
            MappingReason::RoundRobin => f.write_str("round robin over all IOThreads"),
            MappingReason::Locality { cache, node, far } => {
                write!(f, "by locality: {cache} in the cache of their vCPU")?;
                if *node > 0 {
                    write!(f, ", {node} on its node")?;
                }
                if *far > 0 {
                    write!(f, ", {far} farther away")?;
                }
                Ok(())
            }
            MappingReason::Pairs => f.write_str(
                "receive and transmit of a pair together, the pairs round robin over all IOThreads",
            ),
        }
    }
}

/// The node a VM lives on, and what chose it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The node; `None` where the host's nodes are unknown.
    pub node: Option<u32>,
    /// What chose it.
    pub choice: HomeChoice,
}

/// What chose the home node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HomeChoice {
    /// The hottest disk's controller is there.
    Disk {
        /// The disk.
        disk: String,
        /// Its device.
        device: String,
    },
    /// The nearest node with usable CPUs to the disk's, which has none.
    NearDisk {
        /// The disk.
        disk: String,
        /// The disk's node.
        node: u32,
    },
    /// The profile names it.
    Profile {
        /// In this line.
        line: Line,
    },
    /// The profile pins every vCPU there.
    Pins,
    /// The host has no other.
    OnlyNode,
    /// No disk's node is known, and this one has the most free cores.
    Roomiest,
    /// The host's nodes are unknown.
    Unknown,
}

impl Home {
    /// The node alone, for sentences that told the reason already.
    pub(crate) fn short(&self) -> String {
        match self.node {
            Some(node) => format!("node {node}"),
            None => "this host".to_owned(),
        }
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())?;
        match &self.choice {
            HomeChoice::Disk { disk, device } => write!(f, ", where disk `{disk}` lies ({device})"),
            HomeChoice::NearDisk { disk, node } => {
                write!(f, ", the nearest with usable CPUs to node {node}, where disk `{disk}` lies")
            }
            HomeChoice::Profile { line } => write!(f, ", as the profile says in line {line}"),
            HomeChoice::Pins => f.write_str(", where the profile pins the vCPUs"),
            HomeChoice::OnlyNode => f.write_str(", the only one in use"),
            HomeChoice::Roomiest => f.write_str(", the roomiest (no disk's node is known)"),
            HomeChoice::Unknown => f.write_str(", whose nodes are unknown"),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::ProfileSaid { line } => write!(f, "the profile pins it in line {line}"),
            Reason::Floats { line } => write!(f, "the profile leaves it unpinned in line {line}"),
            Reason::WithEmulator { line } => {
                write!(f, "the profile puts it with the emulator in line {line}")
            }
            Reason::OwnCore { home, isolated: false } => write!(f, "a core of its own on {home}"),
            Reason::OwnCore { home, isolated: true } => write!(f, "an isolated core of its own on {home}"),
            Reason::ApartFromVcpus { home } => write!(f, "a core without other vCPUs on {home}"),
            Reason::WithTheEmulator { home } => {
                write!(f, "a core without vCPUs on {home}; the emulator shares it")
            }
            Reason::PairedCore { home, vcpus } => {
                write!(f, "one core for vcpu {vcpus}, which the guest sees as siblings, on {home}")
            }
            Reason::BesidePinned => {
                f.write_str("no core is left: the sibling of a thread that the profile pins")
            }
            Reason::QuietSibling { home } => write!(f, "a free sibling on a core without vCPUs, on {home}"),
            Reason::VcpuSibling { home } => {
                write!(f, "shares a core with another vCPU: whole cores ran out on {}", home.short())
            }
            Reason::NextNode { node: Some(node), home } => {
                write!(f, "node {node} is the nearest with room: {} has no free core left", home.short())
            }
            Reason::NextNode { node: None, home } => {
                write!(f, "outside every known node: {} has no free core left", home.short())
            }
            Reason::BesideVcpu { vcpu } => {
                write!(f, "no free core is left: a sibling on the core of vcpu {vcpu}")
            }
            Reason::SharesVcpu { vcpu } => write!(f, "no CPU is left: it shares that of vcpu {vcpu}"),
            Reason::SharesCpu { usable } => {
                write!(f, "takes turns: the usable CPUs are {usable}, fewer than the threads")
            }
            Reason::SharesIoThread { iothread } => {
                write!(
                    f,
                    "no core is left for it: it shares that of iothread {iothread}, and has little to do"
                )
            }
        }
    }
}
