//! The published ladder: where threads go when a host has room, and what is given up, cheapest first, when it has
//! not. [`shape`] counts how far down one has to go; here the threads are seated, the better seats first as long as the
//! price stays the same. Pure: cores in, seats out.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::board::{Board, Sitter};
use super::demand::Demand;
use super::shape::{self, Depths, Part, Shape, Sizes};

/// Where one thread sits, and on what terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seat {
    pub(super) cpu: u32,
    pub(super) terms: Terms,
}

/// The terms on which a thread has its CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Terms {
    OwnCore,
    /// On the siblings of one core with other vCPUs, because the profile requires it.
    PairedCore,
    QuietSibling,
    VcpuSibling,
    NextNode,
    BesideVcpu(u32),
    BesideIoThread,
    SharesVcpu(u32),
    SharesCpu,
    SharesIoThread(u32),
}

/// A whole layout.
#[derive(Debug, Clone)]
pub(super) struct Layout<'s> {
    pub(super) home: Option<u32>,
    pub(super) vcpus: Vec<(u32, Seat)>,
    pub(super) iothread_count: u32,
    /// Those that need seats of their own.
    pub(super) iothreads: Vec<(u32, Seat)>,
    /// `None` where it is not ours to place.
    pub(super) emulator: Option<Seat>,
    /// The profile's own least count, where an `auto` count fell below it.
    pub(super) fell_below: Option<u32>,
    /// How many threads stand on each step.
    pub(super) depths: Depths,
    /// Everyone in their seats.
    pub(super) board: Board<'s>,
}

/// How far down the ladder this home leads; `None` where `require` finds too few whole cores.
pub(super) fn depths(board: &Board<'_>, nodes: &[Option<u32>], demand: &Demand) -> Option<Depths> {
    match shape::best(board, nodes, demand) {
        Some(shape) => Some(shape.depths),
        None if demand.siblings > 1 => None,
        None => Some(crowded(board, nodes, demand)?.depths),
    }
}

/// Places everyone. `nodes` has home at its head. `None` where no CPU is usable at all, or where `require` finds too few
/// whole cores. `near` are caches that IOThreads had better be in, where the profile maps queues by locality.
pub(super) fn place<'s>(
    board: &Board<'s>,
    nodes: &[Option<u32>],
    demand: &Demand,
    locality: bool,
) -> Option<Layout<'s>> {
    let Some(shape) = shape::best(board, nodes, demand) else {
        return if demand.siblings > 1 { None } else { crowded(board, nodes, demand) };
    };
    let attempt = |early: bool, thrifty: bool| {
        Attempt { nodes, demand, locality, board: board.clone() }.layout(&shape, early, thrifty)
    };
    // An emulator core of its own first, and the better cores for vCPUs; then what costs no more by the ladder.
    let same = |layout: &Layout<'_>| layout.depths == shape.depths;
    let ways = [(true, false), (true, true), (false, false)];
    let fits = ways.into_iter().find_map(|(early, thrifty)| attempt(early, thrifty).filter(same));
    fits.or_else(|| attempt(false, true))
}

/// (g) More vCPUs than CPUs: they are dealt out evenly, and everyone else shares.
fn crowded<'s>(board: &Board<'s>, nodes: &[Option<u32>], demand: &Demand) -> Option<Layout<'s>> {
    let mut attempt = Attempt { nodes, demand, locality: false, board: board.clone() };
    let free = board.seats.usable.iter().filter(|cpu| board.free(*cpu)).count();
    let vcpus = attempt.crowded_vcpus()?;
    let mut layout = attempt.others(vcpus, None)?;
    // Where vCPUs take turns it no longer counts on which CPUs the others of them are alone.
    layout.depths = Depths { vcpus_away: 0, vcpus_on_siblings: 0, ..layout.depths };
    layout.depths.vcpus_share = u32::try_from(demand.vcpus.len().saturating_sub(free)).unwrap_or(u32::MAX);
    Some(layout)
}

struct Attempt<'a, 's> {
    nodes: &'a [Option<u32>],
    demand: &'a Demand,
    locality: bool,
    board: Board<'s>,
}

impl<'s> Attempt<'_, 's> {
    fn home(&self) -> Option<u32> {
        self.nodes.first().copied().flatten()
    }

    fn elsewhere(&self) -> &[Option<u32>] {
        self.nodes.get(1..).unwrap_or_default()
    }

    /// With `early` the emulator has an empty core before anyone else sits. With `thrifty` the cores that the shape
    /// keeps are kept, whatever vCPUs would prefer.
    fn layout(mut self, shape: &Shape, early: bool, thrifty: bool) -> Option<Layout<'s>> {
        if shape.beside_iothreads > 0 {
            self.board.disturb();
        }
        let emulator = match early {
            true if self.demand.emulator => {
                let cpu = self.board.housekeeping_core(self.home())?;
                self.board.sit(cpu, Sitter::Emulator);
                Some(Seat { cpu, terms: Terms::OwnCore })
            }
            true => return None,
            false => None,
        };
        let vcpus = self.vcpus(shape, thrifty)?;
        self.others(vcpus, emulator)
    }

    /// IOThreads and emulator, once the vCPUs sit.
    fn others(mut self, vcpus: Vec<(u32, Seat)>, emulator: Option<Seat>) -> Option<Layout<'s>> {
        let waits = self.demand.emulator && emulator.is_none();
        let (iothread_count, fewer) = self.demand.iothread_count(self.board.quiet_cpus(self.home()), waits);
        let iothreads = self.iothreads(iothread_count)?;
        let emulator = match emulator {
            None if self.demand.emulator => {
                let seat = self.emulator(&iothreads)?;
                self.board.sit(seat.cpu, Sitter::Emulator);
                Some(seat)
            }
            early => early,
        };
        let fell_below = (fewer > 0).then(|| iothread_count + fewer);
        let depths = Depths { iothreads_fewer: fewer, ..count(&vcpus, &iothreads, emulator) };
        let home = self.home();
        Some(Layout {
            home,
            vcpus,
            iothread_count,
            iothreads,
            emulator,
            fell_below,
            depths,
            board: self.board,
        })
    }

    fn vcpus(&mut self, shape: &Shape, thrifty: bool) -> Option<Vec<(u32, Seat)>> {
        let siblings = self.demand.siblings as usize;
        let mut seats = Vec::with_capacity(self.demand.vcpus.len());
        let home = self.nodes.get(..1).unwrap_or_default();
        for (part, nodes) in shape.parts.iter().zip([home, self.elsewhere()]) {
            let first = nodes.first().copied() == self.nodes.first().copied();
            let wanted = part.on_cores as usize;
            let fewest = (part.on_cores.min(part.cores)) as usize;
            let mut cores: Vec<usize> = Vec::new();
            for node in nodes.iter().filter(|_| wanted > 0) {
                cores.extend(self.board.cores_by_cache(*node, fewest, siblings));
            }
            if thrifty {
                cores = self.without_kept(cores, part);
            }
            cores.truncate(part.cores as usize);
            seats.extend(match siblings {
                1 => self.packed(&cores, nodes, wanted, first)?,
                _ => self.paired(&cores, wanted, siblings, first)?,
            });
            let beside = self.beside(nodes, part.beside_pinned as usize, true);
            let terms = if first { Terms::VcpuSibling } else { Terms::NextNode };
            seats.extend(beside?.into_iter().map(|cpu| Seat { cpu, terms }));
        }
        let pinned = self.beside(self.nodes, shape.beside_iothreads as usize, false);
        seats.extend(pinned?.into_iter().map(|cpu| Seat { cpu, terms: Terms::BesideIoThread }));
        if seats.len() != self.demand.vcpus.len() {
            return None;
        }
        let seated: Vec<(u32, Seat)> = self.demand.vcpus.iter().copied().zip(seats).collect();
        seated.iter().for_each(|(id, seat)| self.board.sit(seat.cpu, Sitter::Vcpu(*id)));
        Some(seated)
    }

    /// The cores without the last ones of each size that is kept.
    fn without_kept(&self, cores: Vec<usize>, part: &Part) -> Vec<usize> {
        let mut kept: Sizes = part.kept;
        let mut left: Vec<usize> = Vec::with_capacity(cores.len());
        for core in cores.into_iter().rev() {
            match kept.get_mut(self.board.cpus(core).len()) {
                Some(keep) if *keep > 0 => *keep -= 1,
                _ => left.push(core),
            }
        }
        left.reverse();
        left
    }

    /// `wanted` CPUs of these cores, node by node: each core's first CPU, then the siblings.
    fn packed(&self, cores: &[usize], nodes: &[Option<u32>], wanted: usize, home: bool) -> Option<Vec<Seat>> {
        let mut seats = Vec::with_capacity(wanted);
        for node in nodes {
            let here = || cores.iter().filter(|at| self.board.seats.cores[**at].node == *node);
            let deepest = here().map(|at| self.board.cpus(*at).len()).max().unwrap_or(0);
            for depth in 0..deepest {
                for at in here() {
                    if seats.len() == wanted {
                        return Some(seats);
                    }
                    let Some(cpu) = self.board.cpus(*at).get(depth) else { continue };
                    let terms = match (home, depth) {
                        (false, _) => Terms::NextNode,
                        (true, 0) => Terms::OwnCore,
                        (true, _) => Terms::VcpuSibling,
                    };
                    seats.push(Seat { cpu: *cpu, terms });
                }
            }
        }
        (seats.len() == wanted).then_some(seats)
    }

    /// A core each for `wanted` groups of `siblings` vCPUs.
    fn paired(&self, cores: &[usize], wanted: usize, siblings: usize, home: bool) -> Option<Vec<Seat>> {
        let terms = if home { Terms::PairedCore } else { Terms::NextNode };
        let taken = cores.get(..wanted)?;
        let cpus = taken.iter().flat_map(|at| self.board.cpus(*at).iter().take(siblings));
        Some(cpus.map(|cpu| Seat { cpu: *cpu, terms }).collect())
    }

    /// `wanted` free CPUs on cores where somebody is pinned: those with a vCPU, or those without.
    fn beside(&self, nodes: &[Option<u32>], wanted: usize, vcpus: bool) -> Option<Vec<u32>> {
        let seats = self.board.seats;
        let cores = nodes.iter().flat_map(|node| seats.on_node(*node)).copied();
        let crowded = cores.filter(|at| !self.board.empty(*at) && self.board.has_vcpu(*at) == vcpus);
        let cpus: Vec<u32> = crowded.flat_map(|at| self.board.free_cpus(at)).take(wanted).collect();
        (cpus.len() == wanted).then_some(cpus)
    }

    fn crowded_vcpus(&mut self) -> Option<Vec<(u32, Seat)>> {
        let mut placed = Vec::new();
        for id in &self.demand.vcpus {
            let cpu = self.board.emptiest_cpu(self.nodes)?;
            self.board.sit(cpu, Sitter::Vcpu(*id));
            placed.push((*id, cpu));
        }
        let home = self.nodes.first().copied();
        let terms = |cpu: u32| match self.board.sitters_on(cpu) {
            0 | 1 if self.board.node_of(cpu) != home => Terms::NextNode,
            0 | 1 if self.board.alone_on_core(cpu) => Terms::OwnCore,
            0 | 1 => Terms::VcpuSibling,
            _ => Terms::SharesCpu,
        };
        Some(placed.into_iter().map(|(id, cpu)| (id, Seat { cpu, terms: terms(cpu) })).collect())
    }

    fn iothreads(&mut self, count: u32) -> Option<Vec<(u32, Seat)>> {
        if !self.demand.seat_iothreads {
            return Some(Vec::new());
        }
        let mut seated = Vec::new();
        for id in (0..count).filter(|id| !self.demand.pinned_iothreads.contains(id)) {
            let seat = self.iothread()?;
            self.board.sit(seat.cpu, Sitter::IoThread(id));
            seated.push((id, seat));
        }
        Some(seated)
    }

    fn iothread(&self) -> Option<Seat> {
        // Where queues go by locality, the cache with the most vCPUs per IOThread wants one most.
        let caches = if self.locality { self.board.by_cache(self.home()) } else { BTreeMap::new() };
        let wish = |at: usize| {
            let load = caches.get(&self.board.seats.cores[at].cache);
            Reverse(load.map_or(0, |(vcpus, iothreads)| vcpus * 1024 / (iothreads + 1)))
        };
        if let Some((cpu, own)) = self.board.quiet_cpu(self.home(), |at| (wish(at), at)) {
            return Some(Seat { cpu, terms: if own { Terms::OwnCore } else { Terms::QuietSibling } });
        }
        let quiet = |node: &Option<u32>| self.board.quiet_cpu(*node, |at| at);
        if let Some((cpu, _)) = self.elsewhere().iter().find_map(quiet) {
            return Some(Seat { cpu, terms: Terms::NextNode });
        }
        if let Some((cpu, vcpu)) = self.beside_vcpu() {
            return Some(Seat { cpu, terms: Terms::BesideVcpu(vcpu) });
        }
        if let Some(cpu) = self.nodes.iter().find_map(|node| self.board.crowded_cpu(*node)) {
            return Some(Seat { cpu, terms: Terms::BesideIoThread });
        }
        let cpu = self.board.emptiest_cpu(self.nodes)?;
        let terms = self.board.vcpu_on(cpu).map_or(Terms::SharesCpu, Terms::SharesVcpu);
        Some(Seat { cpu, terms })
    }

    fn beside_vcpu(&self) -> Option<(u32, u32)> {
        let vcpu = |who| match who {
            Sitter::Vcpu(id) => Some(id),
            _ => None,
        };
        self.nodes.iter().find_map(|node| self.board.beside(*node, vcpu))
    }

    fn emulator(&self, iothreads: &[(u32, Seat)]) -> Option<Seat> {
        let rank = |at: usize| self.board.seats.cores[at].housekeeping_rank();
        if let Some((cpu, own)) = self.board.quiet_cpu(self.home(), rank) {
            return Some(Seat { cpu, terms: if own { Terms::OwnCore } else { Terms::QuietSibling } });
        }
        let quiet = |node: &Option<u32>| self.board.quiet_cpu(*node, rank);
        if let Some((cpu, _)) = self.elsewhere().iter().find_map(quiet) {
            return Some(Seat { cpu, terms: Terms::NextNode });
        }
        if let Some((id, seat)) = iothreads.first() {
            return Some(Seat { cpu: seat.cpu, terms: Terms::SharesIoThread(*id) });
        }
        if let Some((cpu, vcpu)) = self.beside_vcpu() {
            return Some(Seat { cpu, terms: Terms::BesideVcpu(vcpu) });
        }
        let cpu = self.board.emptiest_cpu(self.nodes)?;
        Some(Seat { cpu, terms: self.board.vcpu_on(cpu).map_or(Terms::SharesCpu, Terms::SharesVcpu) })
    }
}

/// How many threads stand on each step, by the terms they have. (c) and (g) are counted where they arise.
fn count(vcpus: &[(u32, Seat)], iothreads: &[(u32, Seat)], emulator: Option<Seat>) -> Depths {
    let on = |seats: &[(u32, Seat)], terms: fn(&Terms) -> bool| {
        u32::try_from(seats.iter().filter(|(_, seat)| terms(&seat.terms)).count()).unwrap_or(u32::MAX)
    };
    let beside = |t: &Terms| matches!(t, Terms::BesideVcpu(_) | Terms::BesideIoThread);
    let away = |t: &Terms| *t == Terms::NextNode;
    let shares = |t: &Terms| matches!(t, Terms::SharesVcpu(_) | Terms::SharesCpu | Terms::SharesIoThread(_));
    let emulator: Vec<(u32, Seat)> = emulator.into_iter().map(|seat| (0, seat)).collect();
    Depths {
        vcpus_share: 0,
        iothreads_share: on(iothreads, shares),
        iothreads_beside: on(iothreads, beside) + on(vcpus, beside),
        vcpus_away: on(vcpus, away),
        vcpus_on_siblings: on(vcpus, |t| *t == Terms::VcpuSibling),
        iothreads_away: on(iothreads, away),
        iothreads_fewer: 0,
        emulator_shares: on(&emulator, |t| {
            matches!(
                t,
                Terms::SharesVcpu(_) | Terms::SharesCpu | Terms::SharesIoThread(_) | Terms::BesideVcpu(_)
            )
        }),
        emulator_away: on(&emulator, away),
    }
}
