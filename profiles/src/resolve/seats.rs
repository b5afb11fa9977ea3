//! The CPUs a plan may use, as cores on nodes in the order in which they are handed out, and who sits where so far.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::profile::Smt;
use crate::topology::{CoreKind, CpuSet, Topology};

/// A core with usable CPUs.
#[derive(Debug, Clone)]
pub(super) struct Core {
    pub(super) id: u32,
    pub(super) node: Option<u32>,
    l3: Option<u32>,
    /// Its usable CPUs, ascending.
    pub(super) cpus: Vec<u32>,
    /// Those that are to stay idle.
    idle: Vec<u32>,
    pub(super) isolated: bool,
    kind: CoreKind,
    /// Whether all its online CPUs are usable, so that nobody else works on it.
    whole: bool,
}

/// All usable cores. Does not change while placing.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    pub(super) cores: Vec<Core>,
    core_of: BTreeMap<u32, usize>,
    pub(super) usable: CpuSet,
}

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
                l3: cpu.l3,
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
        // A pin of the profile's own can sit on a CPU that the planner leaves idle; its core is taken all the same.
        let all = |core: &Core| core.cpus.iter().chain(&core.idle).copied().collect::<Vec<u32>>();
        let core_of = cores
            .iter()
            .enumerate()
            .flat_map(|(at, c)| all(c).into_iter().map(move |cpu| (cpu, at)))
            .collect();
        let usable = cores.iter().flat_map(|c| c.cpus.iter().copied()).collect();
        Seats { cores, core_of, usable }
    }

    /// The index of a CPU's core.
    pub(super) fn core_of(&self, cpu: u32) -> Option<usize> {
        self.core_of.get(&cpu).copied()
    }

    /// The nodes with usable CPUs, nearest to `home` first, home itself at the head.
    pub(super) fn nodes_from(&self, topology: &Topology, home: Option<u32>) -> Vec<Option<u32>> {
        let nodes: BTreeSet<Option<u32>> = self.cores.iter().map(|c| c.node).collect();
        let mut nodes: Vec<Option<u32>> = nodes.into_iter().collect();
        nodes.sort_by_key(|node| (*node != home, topology.distance(home, *node), *node));
        nodes
    }
}

impl Core {
    /// Isolated cores first: pinned threads are what they were isolated for. Then fast ones, then whole ones.
    fn rank(&self) -> (bool, CoreKind, bool, u32) {
        (!self.isolated, self.kind, !self.whole, self.id)
    }
}

/// What sits on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sitter {
    Vcpu(u32),
    IoThread(u32),
    Emulator,
}

/// Who sits where, while one attempt at a layout is made.
#[derive(Debug, Clone)]
pub(super) struct Board<'s> {
    seats: &'s Seats,
    sitters: BTreeMap<u32, Vec<Sitter>>,
    /// Per core: how many sitters, and whether a vCPU is among them.
    crowd: Vec<(usize, bool)>,
}

impl<'s> Board<'s> {
    pub(super) fn new(seats: &'s Seats) -> Board<'s> {
        Board { seats, sitters: BTreeMap::new(), crowd: vec![(0, false); seats.cores.len()] }
    }

    pub(super) fn sit(&mut self, cpu: u32, who: Sitter) {
        self.sitters.entry(cpu).or_default().push(who);
        if let Some(core) = self.seats.core_of(cpu) {
            self.crowd[core].0 += 1;
            self.crowd[core].1 |= matches!(who, Sitter::Vcpu(_));
        }
    }

    /// The usable CPUs of a core.
    pub(super) fn cpus(&self, core: usize) -> &'s [u32] {
        &self.seats.cores[core].cpus
    }

    /// The node of a core.
    pub(super) fn node(&self, core: usize) -> Option<u32> {
        self.seats.cores[core].node
    }

    /// How many sit on a CPU.
    pub(super) fn sitters_on(&self, cpu: u32) -> usize {
        self.sitters.get(&cpu).map_or(0, Vec::len)
    }

    /// Whether the core of this CPU has one sitter at most.
    pub(super) fn alone_on_core(&self, cpu: u32) -> bool {
        self.seats.core_of(cpu).is_none_or(|core| self.crowd[core].0 <= 1)
    }

    fn free(&self, cpu: u32) -> bool {
        !self.sitters.contains_key(&cpu)
    }

    /// The cores of a node on which nobody sits, in order.
    pub(super) fn empty_cores(&self, node: Option<u32>) -> Vec<usize> {
        (0..self.seats.cores.len())
            .filter(|at| self.seats.cores[*at].node == node && self.crowd[*at].0 == 0)
            .collect()
    }

    /// A free CPU on a core of the node where no vCPU sits: an empty core's first, else a sibling's.
    pub(super) fn quiet_cpu(&self, node: Option<u32>) -> Option<(u32, bool)> {
        let cores = || (0..self.seats.cores.len()).filter(|at| self.seats.cores[*at].node == node);
        if let Some(at) = cores().find(|at| self.crowd[*at].0 == 0) {
            return self.seats.cores[at].cpus.first().map(|cpu| (*cpu, true));
        }
        cores()
            .filter(|at| !self.crowd[*at].1)
            .find_map(|at| self.seats.cores[at].cpus.iter().copied().find(|cpu| self.free(*cpu)))
            .map(|cpu| (cpu, false))
    }

    /// How many free CPUs the node has on cores without vCPUs.
    pub(super) fn quiet_cpus(&self, node: Option<u32>) -> usize {
        (0..self.seats.cores.len())
            .filter(|at| self.seats.cores[*at].node == node && !self.crowd[*at].1)
            .map(|at| self.seats.cores[at].cpus.iter().filter(|cpu| self.free(**cpu)).count())
            .sum()
    }

    /// A free CPU beside a vCPU, and that vCPU.
    pub(super) fn beside_vcpu(&self, node: Option<u32>) -> Option<(u32, u32)> {
        (0..self.seats.cores.len()).filter(|at| self.seats.cores[*at].node == node).find_map(|at| {
            let cpus = &self.seats.cores[at].cpus;
            let free = cpus.iter().copied().find(|cpu| self.free(*cpu))?;
            let vcpu = cpus.iter().find_map(|cpu| self.vcpu_on(*cpu))?;
            Some((free, vcpu))
        })
    }

    /// A vCPU that sits on this CPU.
    pub(super) fn vcpu_on(&self, cpu: u32) -> Option<u32> {
        self.sitters.get(&cpu)?.iter().find_map(|who| match who {
            Sitter::Vcpu(id) => Some(*id),
            _ => None,
        })
    }

    /// The CPU with the fewest sitters, those that `nodes` names first coming first among equals.
    pub(super) fn emptiest_cpu(&self, nodes: &[Option<u32>]) -> Option<u32> {
        let place = |cpu: u32| {
            let node = self.seats.core_of(cpu).map(|at| self.seats.cores[at].node);
            nodes.iter().position(|n| Some(*n) == node)
        };
        self.seats.usable.iter().min_by_key(|cpu| (self.sitters_on(*cpu), place(*cpu), *cpu))
    }

    /// The empty core for the emulator: an ordinary one before an isolated one, a slow one before a fast one, the
    /// lowest of them.
    pub(super) fn housekeeping_core(&self, node: Option<u32>) -> Option<u32> {
        let cores = self.empty_cores(node).into_iter().map(|at| &self.seats.cores[at]);
        cores.min_by_key(|core| (core.isolated, Reverse(core.kind), core.id))?.cpus.first().copied()
    }

    /// The node's empty cores in the order vCPUs take them: those of the L3 cache that holds all `wanted` first, the
    /// tightest such cache, else the roomiest.
    pub(super) fn cores_by_cache(&self, node: Option<u32>, wanted: usize) -> Vec<usize> {
        let mut groups: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
        for at in self.empty_cores(node) {
            groups.entry(self.seats.cores[at].l3).or_default().push(at);
        }
        let isolated = |group: &[usize]| group.iter().filter(|at| self.seats.cores[**at].isolated).count();
        let fast = |group: &[usize]| {
            group.iter().filter(|at| self.seats.cores[**at].kind == CoreKind::Performance).count()
        };
        let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
        groups.sort_by_key(|group| {
            let fits = group.len() >= wanted;
            let room = if fits { group.len() } else { usize::MAX - group.len() };
            let best = (Reverse(isolated(group).min(wanted)), Reverse(fast(group).min(wanted)));
            (best, !fits, room, group.first().copied())
        });
        groups.concat()
    }
}
