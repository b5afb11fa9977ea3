//! For each thread the seat that it did not get and that is most worth knowing, and why not: found once for the whole
//! layout, so that it costs the same on a thousand CPUs. A seat as good as the thread's own teaches nothing, and is named
//! only where there is no other.

use std::collections::BTreeSet;

use vmprof_document::Line;

use crate::profile::ThreadPins;
use crate::reason::rejected::{Against, Instead, Rejection};
use crate::topology::{CpuSet, Topology};

use super::board::{Board, Sitter};
use super::home::Hottest;

/// As many sorts of empty core are told apart: more than one host has, but for its caches.
const SORTS: usize = 16;

/// A free seat next to somebody.
#[derive(Debug, Clone)]
struct Beside {
    cpu: u32,
    /// The CPU of that somebody.
    next_to: u32,
    who: String,
}

/// The seats that are left, the best of each kind.
pub(super) struct Alternatives<'a> {
    board: &'a Board<'a>,
    topology: &'a Topology,
    hottest: Option<&'a Hottest>,
    home: Option<u32>,
    /// The first empty core at home of each sort, in the order in which they are handed out.
    empty: Vec<u32>,
    /// Free siblings at home beside vCPUs, of two cores, so that one of them is not the thread's own.
    beside_vcpus: Vec<Beside>,
    /// The same beside IOThreads and the emulator.
    beside_others: Vec<Beside>,
    /// The nearest free CPU on another node.
    elsewhere: Option<u32>,
    /// Two CPUs with threads on them.
    taken: Vec<(u32, String)>,
}

/// The kinds of thread whose place depends on the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Vcpu,
    IoThread,
    Emulator,
}

pub(super) fn name(who: Sitter) -> String {
    match who {
        Sitter::Vcpu(id) => format!("vcpu {id}"),
        Sitter::IoThread(id) => format!("iothread{id}"),
        Sitter::Emulator => "the emulator".to_owned(),
    }
}

impl<'a> Alternatives<'a> {
    /// `board` has everyone on it; `nodes` has home at its head.
    pub(super) fn new(
        board: &'a Board<'a>,
        topology: &'a Topology,
        hottest: Option<&'a Hottest>,
        nodes: &[Option<u32>],
    ) -> Alternatives<'a> {
        let home = nodes.first().copied().flatten();
        let mut beside_vcpus = Vec::new();
        let mut beside_others = Vec::new();
        for at in board.seats.on_node(home) {
            if board.empty(*at) {
                continue;
            }
            let side = if board.quiet(*at) { &mut beside_others } else { &mut beside_vcpus };
            if side.len() == 2 {
                continue;
            }
            let Some(cpu) = board.free_cpus(*at).next() else { continue };
            let sitter = board.sitters().iter().find(|(other, _)| board.seats.core_of(*other) == Some(*at));
            let Some((next_to, who)) = sitter else { continue };
            side.push(Beside { cpu, next_to: *next_to, who: name(*who) });
        }
        let free = |node: &Option<u32>| {
            let mut cores = board.seats.on_node(*node).iter().copied();
            let quiet = cores.clone().filter(|at| board.quiet(*at)).find_map(|at| board.free_cpus(at).next());
            quiet.or_else(|| cores.find_map(|at| board.free_cpus(at).next()))
        };
        let mut sorts = BTreeSet::new();
        let sort = |at: &usize| {
            let core = &board.seats.cores[*at];
            (core.isolated, core.kind, core.whole, core.cache)
        };
        let new = |at: &usize| sorts.len() < SORTS && sorts.insert(sort(at));
        let empty =
            board.empty_cores(home).filter(new).filter_map(|at| board.cpus(at).first().copied()).collect();
        let mut taken: Vec<(u32, String)> = Vec::new();
        for (cpu, who) in board.sitters() {
            let usable = board.seats.usable.contains(*cpu);
            if usable && taken.len() < 2 && taken.iter().all(|(other, _)| other != cpu) {
                taken.push((*cpu, name(*who)));
            }
        }
        Alternatives {
            empty,
            elsewhere: nodes.iter().skip(1).find_map(free),
            board,
            topology,
            hottest,
            home,
            beside_vcpus,
            beside_others,
            taken,
        }
    }

    /// For a thread that the planner placed on `cpu`.
    pub(super) fn placed(&self, kind: Kind, cpu: u32) -> Option<Rejection> {
        let lesser = || self.empty.iter().find_map(|other| Some((*other, self.lesser(kind, *other, cpu)?)));
        let vcpus = || self.beside(&self.beside_vcpus, cpu);
        let others = || self.beside(&self.beside_others, cpu);
        // The free sibling at home is what one would take by hand; that of a vCPU is the worst of them.
        let found =
            lesser().or_else(vcpus).or_else(others).or_else(|| self.away(cpu)).or_else(|| self.as_good(cpu));
        let idle = || self.board.seats.idle().map(|(idle, next_to)| (idle, Against::Idle { next_to }));
        let (other, against) = found.or_else(|| self.occupied(&CpuSet::of(cpu))).or_else(idle)?;
        Some(self.rejection(other, against))
    }

    /// For threads that the profile itself has placed on `cpus`.
    pub(super) fn said(&self, cpus: &CpuSet, line: &Line) -> Option<Rejection> {
        let beside = self.beside_others.iter().chain(&self.beside_vcpus).map(|seat| seat.cpu);
        let free = self.empty.iter().copied().chain(beside).chain(self.elsewhere);
        let taken = self.taken.iter().map(|(cpu, _)| *cpu);
        let usable = self.board.seats.usable.first();
        // One CPU out of several is another choice than all of them.
        let other = |cpu: &u32| *cpus != CpuSet::of(*cpu);
        let idle = self.board.seats.idle().map(|(idle, _)| idle);
        let cpu = free.chain(taken).chain(usable).chain(idle).find(other)?;
        Some(self.rejection(cpu, Against::ProfileSaid { line: line.clone() }))
    }

    fn rejection(&self, cpu: u32, against: Against) -> Rejection {
        let node = self.topology.node_of(cpu).filter(|node| Some(*node) != self.home);
        Rejection { instead: Instead::Cpu { cpu, node }, against }
    }

    fn beside(&self, seats: &[Beside], own: u32) -> Option<(u32, Against)> {
        let seat = seats.iter().find(|seat| seat.next_to != own && seat.cpu != own)?;
        Some((seat.cpu, Against::SiblingOf { cpu: seat.next_to, who: seat.who.clone() }))
    }

    /// Another seat that is neither better nor worse: an empty core, the other half of its own, one beside it elsewhere.
    fn as_good(&self, own: u32) -> Option<(u32, Against)> {
        let empty = self.empty.iter().find(|other| **other != own);
        if let Some(empty) = empty {
            return Some((*empty, Against::ComesLater { chosen: own }));
        }
        let mut siblings = self.beside_vcpus.iter().chain(&self.beside_others);
        if let Some(sibling) = siblings.find(|seat| seat.cpu != own) {
            return Some((sibling.cpu, Against::OwnSibling { cpu: sibling.next_to }));
        }
        let elsewhere = self.elsewhere.filter(|cpu| *cpu != own)?;
        Some((elsewhere, Against::ComesLater { chosen: own }))
    }

    /// Why an empty core at home is not as good; `None` where it is.
    fn lesser(&self, kind: Kind, other: u32, chosen: u32) -> Option<Against> {
        let core = |cpu: u32| self.board.seats.core_of(cpu).map(|at| &self.board.seats.cores[at]);
        let (other, mine) = (core(other)?, core(chosen)?);
        Some(if kind == Kind::Emulator && other.isolated && !mine.isolated {
            Against::Isolated
        } else if kind == Kind::Emulator && other.kind < mine.kind {
            Against::Speed
        } else if kind != Kind::Emulator && mine.isolated && !other.isolated {
            Against::NotIsolated { chosen }
        } else if kind != Kind::Emulator && mine.kind < other.kind {
            Against::Economy
        } else if kind == Kind::Vcpu && mine.cache != other.cache {
            Against::OtherCache { chosen }
        } else if mine.whole && !other.whole {
            Against::NotWhole
        } else {
            return None;
        })
    }

    fn away(&self, own: u32) -> Option<(u32, Against)> {
        // A thread that is there itself could have had another CPU there: nothing is nearer about that one.
        let there = self.topology.node_of(own);
        let cpu = self.elsewhere.filter(|cpu| *cpu != own && self.topology.node_of(*cpu) != there)?;
        let (Some(node), Some(home)) = (self.topology.node_of(cpu), self.home) else {
            return Some((cpu, Against::UnknownNode));
        };
        let far = |from: u32, to: u32| self.topology.distance(Some(from), Some(to));
        let near_disk = self.hottest.filter(|hottest| hottest.node == home);
        let against = match near_disk {
            Some(hottest) => Against::FarFromDisk {
                node,
                far: far(hottest.node, node),
                disk: hottest.disk.clone(),
                home,
                near: far(hottest.node, home),
            },
            None => Against::FarFromHome { node, far: far(home, node), home },
        };
        Some((cpu, against))
    }

    fn occupied(&self, own: &CpuSet) -> Option<(u32, Against)> {
        let (cpu, who) = self.taken.iter().find(|(cpu, _)| !own.contains(*cpu))?;
        Some((*cpu, Against::Taken { who: who.clone() }))
    }
}

/// The line that pins these threads, or leaves them unpinned.
pub(super) fn line(pins: &ThreadPins, id: u32) -> Option<&Line> {
    match pins {
        ThreadPins::Auto => None,
        ThreadPins::Float { line } | ThreadPins::Emulator { line } => Some(line),
        ThreadPins::Explicit(pins) => pins.get(&id).map(|pin| &pin.line),
    }
}
