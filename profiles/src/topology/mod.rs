//! What vmprof knows about a host: CPUs with core, caches and node; nodes with distance, memory and hugepages; block
//! devices with their node and queues. [`Topology::read`] fills it from a [`Source`]; everything that decides takes
//! the filled struct and looks at nothing else.
//!
//! Every fact can be missing: then it is `None` or an empty set, and planning goes on without it.

mod allowance;
mod block;
mod capture;
mod cpus;
mod cpuset;
pub(crate) mod devices;
mod gaps;
mod host_file;
mod hwloc;
mod kinds;
pub(crate) mod mounts;
mod nodes;
pub(crate) mod source;
mod sysfs;
mod table;

use std::collections::BTreeMap;

use serde::Serialize;

pub use block::BlockDevice;
pub use capture::{Capture, CaptureError};
pub use cpuset::{CpuSet, ListError, NodeSet};
pub use host_file::HostFileError;
pub use hwloc::HwlocError;
pub use source::Source;

/// A host as the planner sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Topology {
    /// CPUs that are switched on.
    pub online: CpuSet,
    /// The machine's architecture in the kernel's word (`x86_64`, `aarch64`), where the source says.
    pub arch: Option<String>,
    /// CPUs that are there and switched off.
    pub offline: CpuSet,
    /// CPUs the caller may run on; `None` where the source does not say.
    pub affinity: Option<CpuSet>,
    /// CPUs that the caller's cgroup leaves it (cpuset, v1 or v2); `None` where there is no such cgroup.
    pub cgroup_cpus: Option<CpuSet>,
    /// Nodes the caller may take memory from; `None` where the source does not say.
    pub allowed_nodes: Option<NodeSet>,
    /// CPUs the scheduler leaves alone (`isolcpus`).
    pub isolated: CpuSet,
    /// CPUs without a periodic tick (`nohz_full`).
    pub nohz_full: CpuSet,
    /// One entry per online CPU.
    pub cpus: BTreeMap<u32, Cpu>,
    /// Every NUMA node, those without CPUs or without memory too. Empty where the kernel has no NUMA.
    pub nodes: BTreeMap<u32, Node>,
    /// The memory of a kernel that has no NUMA, which belongs to no node; `None` where there are nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unplaced: Option<Node>,
    /// Every block device, whole ones only, by kernel name.
    pub block: BTreeMap<String, BlockDevice>,
    /// What the source says and contradicts, as short phrases; [`Topology::gaps`] adds what it does not say.
    #[serde(skip)]
    pub doubts: Vec<String>,
}

/// One online CPU (a hardware thread).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// The socket.
    pub package: Option<u32>,
    /// The die, named by its lowest online CPU.
    pub die: Option<u32>,
    /// The cluster (CPUs that share an L2 cache or an interconnect), named likewise.
    pub cluster: Option<u32>,
    /// The core, named by its lowest online CPU.
    pub core: u32,
    /// The L2 cache, named by the lowest online CPU that shares it.
    pub l2: Option<u32>,
    /// The last shared cache, named likewise.
    pub l3: Option<u32>,
    /// The NUMA node.
    pub node: Option<u32>,
    /// What the core is built for.
    pub kind: CoreKind,
    /// How fast the core is where cores differ, in 1024ths of the fastest; `None` where the kernel does not say.
    pub capacity: Option<u32>,
}

/// The two kinds of core of a hybrid CPU; all cores of other CPUs are performance cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CoreKind {
    /// For speed.
    Performance,
    /// For economy.
    Efficiency,
}

/// One NUMA node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its online CPUs; may be empty.
    pub cpus: CpuSet,
    /// Distance to each node, as the firmware tells it.
    pub distance: BTreeMap<u32, u32>,
    /// Memory in all; `None` where unknown, 0 for a node without memory.
    pub memory_bytes: Option<u64>,
    /// Memory that is free right now. Shown, never decided upon: it changes by the second.
    pub free_bytes: Option<u64>,
    /// Hugepage size in bytes → how many of them are free.
    pub free_hugepages: BTreeMap<u64, u64>,
}

impl Topology {
    /// Reads everything there is to know from `source`. Missing files mean unknown facts, never an error.
    pub fn read(source: &Source) -> Topology {
        match source {
            Source::Described(topology) => Topology::clone(topology),
            _ => sysfs::read(&source::Reader::new(source)),
        }
    }

    /// The CPUs of the same core as `cpu`, itself included.
    pub fn core_of(&self, cpu: u32) -> CpuSet {
        match self.cpus.get(&cpu) {
            Some(one) => self.cpus.iter().filter(|(_, c)| c.core == one.core).map(|(id, _)| *id).collect(),
            None => CpuSet::new(),
        }
    }

    /// The node of a CPU, where known.
    pub fn node_of(&self, cpu: u32) -> Option<u32> {
        self.cpus.get(&cpu)?.node
    }

    /// The node that all of `cpus` lie on, if they lie on one.
    pub fn one_node_of(&self, cpus: &CpuSet) -> Option<u32> {
        let mut nodes = cpus.iter().map(|cpu| self.node_of(cpu));
        let first = nodes.next()??;
        nodes.all(|node| node == Some(first)).then_some(first)
    }

    /// How far apart two nodes are: 10 is the node itself. Unknown distances count as far, and so do those below 10,
    /// which mean nothing (ACPI 6.5, 5.2.17: values 0 to 9 are reserved).
    pub fn distance(&self, from: Option<u32>, to: Option<u32>) -> u32 {
        match (from, to) {
            (a, b) if a == b => 10,
            (Some(a), Some(b)) => {
                let told = self.nodes.get(&a).and_then(|n| n.distance.get(&b)).copied();
                told.filter(|distance| *distance >= 10).unwrap_or(255)
            }
            _ => 255,
        }
    }

    /// All memory of the host, where every node's is known.
    pub fn memory_bytes(&self) -> Option<u64> {
        if let Some(memory) = &self.unplaced {
            return memory.memory_bytes;
        }
        let known: Vec<u64> = self.nodes.values().filter_map(|n| n.memory_bytes).collect();
        (!known.is_empty() && known.len() == self.nodes.len())
            .then(|| known.iter().fold(0, |all: u64, one| all.saturating_add(*one)))
    }
}
