//! The CPUs a plan may use, as cores on nodes in the order in which they are handed out. Who sits where is
//! [`super::board`]'s.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::profile::Smt;
use crate::topology::{CoreKind, CpuSet, Topology};

/// A core with usable CPUs.
#[derive(Debug, Clone)]
pub(super) struct Core {
    pub(super) id: u32,
    pub(super) node: Option<u32>,
    /// The last cache that its CPUs share with others; where the host tells none, the die, else the cluster.
    pub(super) cache: Option<u32>,
    /// Its usable CPUs, ascending.
    pub(super) cpus: Vec<u32>,
    /// Those that are to stay idle.
    idle: Vec<u32>,
    pub(super) isolated: bool,
    pub(super) kind: CoreKind,
    /// Whether all its online CPUs are usable, so that nobody else works on it.
    pub(super) whole: bool,
}

/// All usable cores. Does not change while placing.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    pub(super) cores: Vec<Core>,
    /// By CPU: its core's index, or `NOBODY`.
    core_of: Vec<u32>,
    /// The cores of each node, by index, in the order of `cores`.
    by_node: BTreeMap<Option<u32>, Vec<usize>>,
    pub(super) usable: CpuSet,
}

const NOBODY: u32 = u32::MAX;

impl Seats {
    pub(super) fn new(topology: &Topology, usable: &CpuSet, smt: Smt) -> Seats {
        let mut online: BTreeMap<u32, usize> = BTreeMap::new();
        for cpu in topology.cpus.values() {
            *online.entry(cpu.core).or_default() += 1;
        }
        let mut cores: BTreeMap<u32, Core> = BTreeMap::new();
        for id in usable.iter() {
            let Some(cpu) = topology.cpus.get(&id) else { continue };
            let core = cores.entry(cpu.core).or_insert_with(|| Core {
                id: cpu.core,
                node: cpu.node,
                cache: cpu.l3.or(cpu.die).or(cpu.cluster),
                cpus: Vec::new(),
                idle: Vec::new(),
                isolated: false,
                kind: cpu.kind,
                whole: false,
            });
            core.cpus.push(id);
            core.isolated |= topology.isolated.contains(id) || topology.nohz_full.contains(id);
        }
        for core in cores.values_mut() {
            core.whole = online.get(&core.id).is_some_and(|n| *n == core.cpus.len());
            if smt == Smt::Isolate {
                core.idle = core.cpus.split_off(1);
            }
        }
        let mut cores: Vec<Core> = cores.into_values().collect();
        cores.sort_by_key(Core::rank);
        let last = usable.last().map_or(0, |cpu| cpu as usize + 1);
        let mut core_of = vec![NOBODY; last];
        let mut by_node: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
        for (at, core) in cores.iter().enumerate() {
            by_node.entry(core.node).or_default().push(at);
            // A pin of the profile's own can sit on a CPU that the planner leaves idle; its core is taken all the same.
            for cpu in core.cpus.iter().chain(&core.idle) {
                if let (Some(slot), Ok(at)) = (core_of.get_mut(*cpu as usize), u32::try_from(at)) {
                    *slot = at;
                }
            }
        }
        let usable = cores.iter().flat_map(|c| c.cpus.iter().copied()).collect();
        Seats { cores, core_of, by_node, usable }
    }

    /// The index of a CPU's core.
    pub(super) fn core_of(&self, cpu: u32) -> Option<usize> {
        self.core_of.get(cpu as usize).filter(|at| **at != NOBODY).map(|at| *at as usize)
    }

    /// A CPU that stays idle because the profile says so, and the CPU of its core that does not.
    pub(super) fn idle(&self) -> Option<(u32, u32)> {
        self.cores.iter().find_map(|core| Some((*core.idle.first()?, *core.cpus.first()?)))
    }

    /// The cores of a node, by index, in the order in which they are handed out.
    pub(super) fn on_node(&self, node: Option<u32>) -> &[usize] {
        self.by_node.get(&node).map_or(&[], Vec::as_slice)
    }

    /// The nodes with usable CPUs, ascending; the unknown one first.
    pub(super) fn nodes(&self) -> impl Iterator<Item = Option<u32>> + '_ {
        self.by_node.keys().copied()
    }

    /// The nodes with usable CPUs, nearest to `home` first, home itself at the head. Of nodes as near as each other
    /// those of the same package come first.
    pub(super) fn nodes_from(&self, topology: &Topology, home: Option<u32>) -> Vec<Option<u32>> {
        let packages = |node: Option<u32>| -> BTreeSet<u32> {
            let cpus = self.on_node(node).iter().filter_map(|at| topology.cpus.get(&self.cores[*at].id));
            cpus.filter_map(|cpu| cpu.package).collect()
        };
        let own = packages(home);
        let mut nodes: Vec<Option<u32>> = self.nodes().collect();
        nodes.sort_by_cached_key(|node| {
            let apart = packages(*node).is_disjoint(&own);
            (*node != home, topology.distance(home, *node), apart, *node)
        });
        nodes
    }
}

impl Core {
    /// Isolated cores first: pinned threads are what they were isolated for. Then fast ones, then whole ones.
    fn rank(&self) -> (bool, CoreKind, bool, u32) {
        (!self.isolated, self.kind, !self.whole, self.id)
    }

    /// The other way round, for the emulator: ordinary cores before isolated ones, slow ones before fast ones.
    pub(super) fn housekeeping_rank(&self) -> (bool, Reverse<CoreKind>, u32) {
        (self.isolated, Reverse(self.kind), self.id)
    }
}
