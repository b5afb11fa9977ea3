//! The published ladder: where threads go when a host has room, and what is given up, cheapest first, when it has
//! not. Each step is one attempt at a whole layout; the first that succeeds is the plan. Pure: cores in, seats out.

use super::seats::{Board, Seats, Sitter};
use crate::profile::IoThreadCount;

/// How far down the ladder an attempt may go; each step allows all above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Everyone on a core of the home node, the emulator on one of its own.
    Roomy,
    /// (a) The emulator on another node, unless a pinned IOThread's core has a sibling for it.
    EmulatorAway,
    /// (b) The emulator on an IOThread's CPU.
    EmulatorShares,
    /// (c) An `auto` IOThread count falls below what the profile asks.
    FewerIoThreads,
    /// (d) IOThreads on other nodes.
    IoThreadsAway,
    /// (e) vCPUs on siblings,
    Siblings,
    /// (e) and on other nodes.
    Spill,
    /// (f) IOThreads beside vCPUs, and on their CPUs.
    IoThreadsOnVcpus,
    /// (g) Several vCPUs on one CPU.
    VcpusShare,
}

const STEPS: [Step; 9] = [
    Step::Roomy,
    Step::EmulatorAway,
    Step::EmulatorShares,
    Step::FewerIoThreads,
    Step::IoThreadsAway,
    Step::Siblings,
    Step::Spill,
    Step::IoThreadsOnVcpus,
    Step::VcpusShare,
];

/// What is to be placed.
#[derive(Debug, Clone)]
pub(super) struct Demand {
    /// The vCPUs that the planner places, by number.
    pub(super) vcpus: Vec<u32>,
    /// vCPUs that float: they take no seat, and room is left for them.
    pub(super) floating_vcpus: usize,
    /// How many IOThreads the profile wants.
    pub(super) iothreads: IoThreadCount,
    /// The profile names IOThreads below this, so they must be there.
    pub(super) iothreads_named: u32,
    /// Whether IOThreads need seats of their own.
    pub(super) seat_iothreads: bool,
    /// IOThreads with a pin of their own.
    pub(super) pinned_iothreads: Vec<u32>,
    /// The virtqueues of the widest disk.
    pub(super) widest: u32,
    /// Whether the planner places the emulator.
    pub(super) emulator: bool,
}

/// Rule 4: more IOThreads than this saturate no drive further.
const ENOUGH_IOTHREADS: u32 = 8;

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
    QuietSibling,
    VcpuSibling,
    NextNode,
    BesideVcpu(u32),
    SharesVcpu(u32),
    SharesCpu,
    SharesIoThread(u32),
}

/// A whole layout.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) vcpus: Vec<(u32, Seat)>,
    pub(super) iothread_count: u32,
    /// Those that need seats of their own.
    pub(super) iothreads: Vec<(u32, Seat)>,
    /// `None` where it is not ours to place, or where it rides with IOThread 0 and that one has no seat.
    pub(super) emulator: Option<Seat>,
    /// The profile's own least count, where an `auto` count fell below it.
    pub(super) fell_below: Option<u32>,
}

/// Places everyone. `nodes` has home at its head; `taken` are CPUs with explicit pins on them.
pub(super) fn place(
    seats: &Seats,
    nodes: &[Option<u32>],
    taken: &[(u32, Sitter)],
    demand: &Demand,
) -> Option<Layout> {
    let mut board = Board::new(seats);
    for (cpu, who) in taken {
        board.sit(*cpu, *who);
    }
    STEPS.iter().find_map(|step| Attempt { nodes, demand, step: *step, board: board.clone() }.layout())
}

struct Attempt<'a> {
    nodes: &'a [Option<u32>],
    demand: &'a Demand,
    step: Step,
    board: Board<'a>,
}

impl Attempt<'_> {
    fn home(&self) -> Option<u32> {
        self.nodes.first().copied().flatten()
    }

    fn others(&self) -> &[Option<u32>] {
        self.nodes.get(1..).unwrap_or_default()
    }

    fn layout(mut self) -> Option<Layout> {
        let early = self.demand.emulator && self.step == Step::Roomy;
        let emulator = if early {
            let cpu = self.board.housekeeping_core(self.home())?;
            self.board.sit(cpu, Sitter::Emulator);
            Some(Seat { cpu, terms: Terms::OwnCore })
        } else {
            None
        };
        let vcpus = self.vcpus()?;
        let (iothread_count, fell_below) = self.iothread_count();
        let iothreads = self.iothreads(iothread_count)?;
        let emulator = match emulator {
            None if self.demand.emulator => Some(self.emulator(&iothreads)?),
            early => early,
        };
        Some(Layout { vcpus, iothread_count, iothreads, emulator, fell_below })
    }

    fn vcpus(&mut self) -> Option<Vec<(u32, Seat)>> {
        let wanted = self.demand.vcpus.len();
        if self.step == Step::VcpusShare {
            return self.crowded_vcpus();
        }
        let mut seats = Vec::with_capacity(wanted);
        if self.step < Step::Siblings {
            let cores = self.board.cores_by_cache(self.home(), wanted);
            if cores.len() < wanted {
                return None;
            }
            for core in cores.into_iter().take(wanted) {
                seats.push(Seat { cpu: *self.board.cpus(core).first()?, terms: Terms::OwnCore });
            }
        } else {
            let nodes =
                if self.step < Step::Spill { &self.nodes[..self.nodes.len().min(1)] } else { self.nodes };
            let cores: Vec<usize> =
                nodes.iter().flat_map(|node| self.board.cores_by_cache(*node, wanted)).collect();
            let room = |cores: &[usize]| cores.iter().map(|at| self.board.cpus(*at).len()).sum::<usize>();
            // Cores are kept for the IOThreads as far as the vCPUs still fit.
            let keep = if self.step < Step::IoThreadsOnVcpus { self.least_iothreads() } else { 0 };
            let kept = (0..=keep).rev().find(|kept| {
                cores.len().checked_sub(*kept).is_some_and(|rest| room(&cores[..rest]) >= wanted)
            })?;
            seats = self.packed(&cores[..cores.len() - kept], wanted);
        }
        let seated: Vec<(u32, Seat)> = self.demand.vcpus.iter().copied().zip(seats).collect();
        for (id, seat) in &seated {
            self.board.sit(seat.cpu, Sitter::Vcpu(*id));
        }
        (seated.len() == wanted).then_some(seated)
    }

    /// `wanted` CPUs of these cores, node by node: each core's first CPU, then the siblings.
    fn packed(&self, cores: &[usize], wanted: usize) -> Vec<Seat> {
        let mut seats = Vec::with_capacity(wanted);
        for node in self.nodes {
            let here: Vec<usize> = cores.iter().copied().filter(|at| self.board.node(*at) == *node).collect();
            let deepest = here.iter().map(|at| self.board.cpus(*at).len()).max().unwrap_or(0);
            for depth in 0..deepest {
                for at in &here {
                    if seats.len() == wanted {
                        return seats;
                    }
                    let Some(cpu) = self.board.cpus(*at).get(depth) else { continue };
                    let terms = match (*node == self.home(), depth) {
                        (false, _) => Terms::NextNode,
                        (true, 0) => Terms::OwnCore,
                        (true, _) => Terms::VcpuSibling,
                    };
                    seats.push(Seat { cpu: *cpu, terms });
                }
            }
        }
        seats
    }

    fn crowded_vcpus(&mut self) -> Option<Vec<(u32, Seat)>> {
        let mut placed = Vec::new();
        for id in &self.demand.vcpus {
            let cpu = self.board.emptiest_cpu(self.nodes)?;
            self.board.sit(cpu, Sitter::Vcpu(*id));
            placed.push((*id, cpu));
        }
        let terms = |cpu: u32| match self.board.sitters_on(cpu) {
            0 | 1 if self.board.alone_on_core(cpu) => Terms::OwnCore,
            0 | 1 => Terms::VcpuSibling,
            _ => Terms::SharesCpu,
        };
        Some(placed.into_iter().map(|(id, cpu)| (id, Seat { cpu, terms: terms(cpu) })).collect())
    }

    /// The fewest IOThreads that need a seat here.
    fn least_iothreads(&self) -> usize {
        if !self.demand.seat_iothreads {
            return 0;
        }
        let count = match &self.demand.iothreads {
            IoThreadCount::Fixed(count) => count.value,
            IoThreadCount::Auto { .. } => self.demand.iothreads_named.max(1),
        };
        (0..count).filter(|id| !self.demand.pinned_iothreads.contains(id)).count()
    }

    /// Rule 4, and what an `auto` count fell below.
    fn iothread_count(&self) -> (u32, Option<u32>) {
        let (min, max) = match &self.demand.iothreads {
            IoThreadCount::Fixed(count) => return (count.value, None),
            IoThreadCount::Auto { min, max } => (*min, *max),
        };
        // At the first step the emulator has its seat already; from then on it goes elsewhere.
        let left = self.board.quiet_cpus(self.home()).saturating_sub(self.demand.floating_vcpus);
        let left = u32::try_from(left)
            .unwrap_or(u32::MAX)
            .saturating_add(u32::try_from(self.demand.pinned_iothreads.len()).unwrap_or(0));
        let ideal = max.min(left).min(self.demand.widest).min(ENOUGH_IOTHREADS);
        let named = self.demand.iothreads_named.max(1);
        let count = ideal.max(min).max(named);
        if self.step < Step::FewerIoThreads || !self.demand.seat_iothreads {
            return (count, None);
        }
        let fallen = count.min(left.max(named));
        (fallen, (fallen < min).then_some(min))
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
        if let Some((cpu, own)) = self.board.quiet_cpu(self.home()) {
            return Some(Seat { cpu, terms: if own { Terms::OwnCore } else { Terms::QuietSibling } });
        }
        if self.step >= Step::IoThreadsAway
            && let Some((cpu, _)) = self.others().iter().find_map(|node| self.board.quiet_cpu(*node))
        {
            return Some(Seat { cpu, terms: Terms::NextNode });
        }
        if self.step < Step::IoThreadsOnVcpus {
            return None;
        }
        if let Some((cpu, vcpu)) = self.nodes.iter().find_map(|node| self.board.beside_vcpu(*node)) {
            return Some(Seat { cpu, terms: Terms::BesideVcpu(vcpu) });
        }
        let cpu = self.board.emptiest_cpu(self.nodes)?;
        let terms = self.board.vcpu_on(cpu).map_or(Terms::SharesCpu, Terms::SharesVcpu);
        Some(Seat { cpu, terms })
    }

    fn emulator(&self, iothreads: &[(u32, Seat)]) -> Option<Seat> {
        if let Some((cpu, own)) = self.board.quiet_cpu(self.home()) {
            return Some(Seat { cpu, terms: if own { Terms::OwnCore } else { Terms::QuietSibling } });
        }
        if self.step >= Step::EmulatorAway
            && let Some((cpu, _)) = self.others().iter().find_map(|node| self.board.quiet_cpu(*node))
        {
            return Some(Seat { cpu, terms: Terms::NextNode });
        }
        if self.step < Step::EmulatorShares {
            return None;
        }
        match iothreads.first() {
            Some((id, seat)) => Some(Seat { cpu: seat.cpu, terms: Terms::SharesIoThread(*id) }),
            None => {
                if let Some((cpu, vcpu)) = self.nodes.iter().find_map(|node| self.board.beside_vcpu(*node)) {
                    return Some(Seat { cpu, terms: Terms::BesideVcpu(vcpu) });
                }
                let cpu = self.board.emptiest_cpu(self.nodes)?;
                Some(Seat { cpu, terms: self.board.vcpu_on(cpu).map_or(Terms::SharesCpu, Terms::SharesVcpu) })
            }
        }
    }
}
