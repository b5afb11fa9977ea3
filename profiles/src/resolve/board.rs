//! Who sits on which CPU while a layout is made, and the free seats of each kind.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::seats::Seats;
use crate::topology::CoreKind;

/// What sits on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sitter {
    Vcpu(u32),
    IoThread(u32),
    Emulator,
}

/// How a core is used.
#[derive(Debug, Clone, Copy, Default)]
struct Crowd {
    sitters: u32,
    vcpus: u32,
    iothreads: u32,
}

/// Who sits where.
#[derive(Debug, Clone)]
pub(super) struct Board<'s> {
    pub(super) seats: &'s Seats,
    /// By CPU: how many sit there.
    counts: Vec<u32>,
    sitters: Vec<(u32, Sitter)>,
    /// By core.
    crowds: Vec<Crowd>,
}

impl<'s> Board<'s> {
    pub(super) fn new(seats: &'s Seats, taken: &[(u32, Sitter)]) -> Board<'s> {
        let last = seats.usable.last().map_or(0, |cpu| cpu as usize + 1);
        let crowds = vec![Crowd::default(); seats.cores.len()];
        let mut board = Board { seats, counts: vec![0; last], sitters: Vec::new(), crowds };
        taken.iter().for_each(|(cpu, who)| board.sit(*cpu, *who));
        board
    }

    pub(super) fn sit(&mut self, cpu: u32, who: Sitter) {
        if let Some(count) = self.counts.get_mut(cpu as usize) {
            *count += 1;
        }
        self.sitters.push((cpu, who));
        if let Some(crowd) = self.seats.core_of(cpu).and_then(|core| self.crowds.get_mut(core)) {
            crowd.sitters += 1;
            crowd.vcpus += u32::from(matches!(who, Sitter::Vcpu(_)));
            crowd.iothreads += u32::from(matches!(who, Sitter::IoThread(_)));
        }
    }

    fn crowd(&self, core: usize) -> Crowd {
        self.crowds.get(core).copied().unwrap_or_default()
    }

    /// The usable CPUs of a core.
    pub(super) fn cpus(&self, core: usize) -> &'s [u32] {
        &self.seats.cores[core].cpus
    }

    /// The node of a CPU's core.
    pub(super) fn node_of(&self, cpu: u32) -> Option<Option<u32>> {
        self.seats.core_of(cpu).map(|at| self.seats.cores[at].node)
    }

    /// How many sit on a CPU.
    pub(super) fn sitters_on(&self, cpu: u32) -> u32 {
        self.counts.get(cpu as usize).copied().unwrap_or(0)
    }

    pub(super) fn free(&self, cpu: u32) -> bool {
        self.sitters_on(cpu) == 0
    }

    /// Whether the core of this CPU has one sitter at most.
    pub(super) fn alone_on_core(&self, cpu: u32) -> bool {
        self.seats.core_of(cpu).is_none_or(|core| self.crowd(core).sitters <= 1)
    }

    /// Nobody sits on the core.
    pub(super) fn empty(&self, core: usize) -> bool {
        self.crowd(core).sitters == 0
    }

    /// No vCPU sits on the core.
    pub(super) fn quiet(&self, core: usize) -> bool {
        self.crowd(core).vcpus == 0
    }

    /// Whether a vCPU really sits on the core.
    pub(super) fn has_vcpu(&self, core: usize) -> bool {
        let on = |cpu: u32| self.seats.core_of(cpu) == Some(core);
        self.sitters.iter().any(|(cpu, who)| matches!(who, Sitter::Vcpu(_)) && on(*cpu))
    }

    /// The cores of a node on which nobody sits, in order.
    pub(super) fn empty_cores(&self, node: Option<u32>) -> impl Iterator<Item = usize> + '_ {
        self.seats.on_node(node).iter().copied().filter(|at| self.empty(*at))
    }

    /// The free CPUs of a core.
    pub(super) fn free_cpus(&self, core: usize) -> impl Iterator<Item = u32> + '_ {
        self.cpus(core).iter().copied().filter(|cpu| self.free(*cpu))
    }

    /// A free CPU on a core of the node where no vCPU sits, the best by `rank`: an empty core's first, else a
    /// sibling's, and whether the core is empty.
    pub(super) fn quiet_cpu<K: Ord>(
        &self,
        node: Option<u32>,
        rank: impl Fn(usize) -> K,
    ) -> Option<(u32, bool)> {
        let quiet = self.seats.on_node(node).iter().copied().filter(|at| self.quiet(*at));
        let free = quiet.filter_map(|at| Some((at, self.free_cpus(at).next()?)));
        let best = free.min_by_key(|(at, _)| (!self.empty(*at), rank(*at)))?;
        Some((best.1, self.empty(best.0)))
    }

    /// How many free CPUs the node has on cores without vCPUs.
    pub(super) fn quiet_cpus(&self, node: Option<u32>) -> u32 {
        let quiet = self.seats.on_node(node).iter().filter(|at| self.quiet(**at));
        quiet.map(|at| u32::try_from(self.free_cpus(*at).count()).unwrap_or(u32::MAX)).sum()
    }

    /// A free CPU of the node on a core where this kind of thread sits, and who that is.
    pub(super) fn beside(
        &self,
        node: Option<u32>,
        kind: impl Fn(Sitter) -> Option<u32>,
    ) -> Option<(u32, u32)> {
        let cores = self.seats.on_node(node).iter().copied();
        let crowded = cores.filter(|at| !self.empty(*at));
        crowded.filter_map(|at| Some((at, self.free_cpus(at).next()?))).find_map(|(at, free)| {
            let on = |cpu: u32| self.seats.core_of(cpu) == Some(at);
            let who = self.sitters.iter().filter(|(cpu, _)| on(*cpu)).find_map(|(_, who)| kind(*who))?;
            Some((free, who))
        })
    }

    /// vCPUs are about to go beside the threads that sit already: none of their cores is quiet any more.
    pub(super) fn disturb(&mut self) {
        for crowd in self.crowds.iter_mut().filter(|crowd| crowd.sitters > 0) {
            crowd.vcpus = crowd.vcpus.max(1);
        }
    }

    /// A free CPU of the node on a core where someone sits.
    pub(super) fn crowded_cpu(&self, node: Option<u32>) -> Option<u32> {
        let cores = self.seats.on_node(node).iter().filter(|at| !self.empty(**at));
        cores.flat_map(|at| self.free_cpus(*at)).next()
    }

    /// How many vCPUs and IOThreads sit in each cache of a node.
    pub(super) fn by_cache(&self, node: Option<u32>) -> BTreeMap<Option<u32>, (u32, u32)> {
        let mut caches: BTreeMap<Option<u32>, (u32, u32)> = BTreeMap::new();
        for at in self.seats.on_node(node) {
            let (vcpus, iothreads) = caches.entry(self.seats.cores[*at].cache).or_default();
            *vcpus += self.crowd(*at).vcpus;
            *iothreads += self.crowd(*at).iothreads;
        }
        caches
    }

    /// Everyone, in the order in which they sat down.
    pub(super) fn sitters(&self) -> &[(u32, Sitter)] {
        &self.sitters
    }

    /// A vCPU that sits on this CPU.
    pub(super) fn vcpu_on(&self, cpu: u32) -> Option<u32> {
        self.sitters.iter().find_map(|(at, who)| match who {
            Sitter::Vcpu(id) if *at == cpu => Some(*id),
            _ => None,
        })
    }

    /// The CPU with the fewest sitters, those of the nodes that come first in `nodes` first among equals.
    pub(super) fn emptiest_cpu(&self, nodes: &[Option<u32>]) -> Option<u32> {
        let cpus = |node: &Option<u32>| self.seats.on_node(*node).iter().flat_map(|at| self.cpus(*at));
        let on = |(place, node)| cpus(node).map(move |cpu| (place, *cpu));
        let all = nodes.iter().enumerate().flat_map(on);
        all.min_by_key(|(place, cpu)| (self.sitters_on(*cpu), *place, *cpu)).map(|(_, cpu)| cpu)
    }

    /// The empty core for the emulator: an ordinary one before an isolated one, a slow one before a fast one, the
    /// lowest of them.
    pub(super) fn housekeeping_core(&self, node: Option<u32>) -> Option<u32> {
        let best = self.empty_cores(node).min_by_key(|at| self.seats.cores[*at].housekeeping_rank())?;
        self.cpus(best).first().copied()
    }

    /// The node's empty cores with at least `siblings` CPUs in the order vCPUs take them: those of the cache that
    /// holds all `wanted` first, the tightest such cache, else the roomiest.
    pub(super) fn cores_by_cache(&self, node: Option<u32>, wanted: usize, siblings: usize) -> Vec<usize> {
        let mut groups: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
        for at in self.empty_cores(node).filter(|at| self.cpus(*at).len() >= siblings) {
            groups.entry(self.seats.cores[at].cache).or_default().push(at);
        }
        let isolated = |group: &[usize]| group.iter().filter(|at| self.seats.cores[**at].isolated).count();
        let fast = |group: &[usize]| {
            group.iter().filter(|at| self.seats.cores[**at].kind == CoreKind::Performance).count()
        };
        let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
        groups.sort_by_cached_key(|group| {
            let fits = group.len() >= wanted;
            let room = if fits { group.len() } else { usize::MAX - group.len() };
            let best = (Reverse(isolated(group).min(wanted)), Reverse(fast(group).min(wanted)));
            (best, !fits, room, group.first().copied())
        });
        groups.concat()
    }
}
