//! Why a value of the plan is what it is, and how each reason reads aloud.

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
    /// Home is full; this is the nearest node that is not.
    NextNode {
        /// The node it got.
        node: Option<u32>,
        /// The one that is full.
        home: Home,
    },
    /// No free core is left: the sibling of a vCPU's CPU.
    BesideVcpu {
        /// The vCPU.
        vcpu: u32,
    },
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
            Reason::QuietSibling { home } => write!(f, "a free sibling on a core without vCPUs, on {home}"),
            Reason::VcpuSibling { home } => {
                write!(f, "shares a core with another vCPU: whole cores ran out on {}", home.short())
            }
            Reason::NextNode { node: Some(node), home } => {
                write!(f, "node {node} is the nearest with room: {} is full", home.short())
            }
            Reason::NextNode { node: None, home } => {
                write!(f, "outside every known node: {} is full", home.short())
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
