//! Rules 3 to 6: from explicit pins and the ladder's layout to the plan's threads, each with its reason and the seat it
//! did not get, and to a warning for each step down the ladder that says what it costs.

use std::collections::BTreeMap;

use vmprof_document::Line;

use crate::ledger::Ledger;
use crate::plan::{EmulatorPlan, IoThreadCountPlan, IoThreadPlan, SqPollPlan, VcpuPlan};
use crate::profile::{EmulatorPin, IoThreadCount, Profile, SqPoll, ThreadPins};
use crate::reason::rejected::{Against, Instead, Rejection};
use crate::reason::{CountReason, Home, Reason};
use crate::topology::{CpuSet, Topology};

use super::alternatives::{self, Alternatives, Kind};
use super::board::Sitter;
use super::demand::{Demand, ENOUGH_IOTHREADS};
use super::ladder::{Layout, Seat, Terms};
use super::seats::Seats;
use super::{Gathered, report};

/// How long an IOThread with a CPU to itself looks for work before it sleeps.
const POLL_MAX_NS: u64 = 32_768;

/// All threads of the VM.
#[derive(Debug)]
pub(super) struct Threads {
    pub(super) vcpus: Vec<VcpuPlan>,
    pub(super) iothreads: Vec<IoThreadPlan>,
    pub(super) emulator: EmulatorPlan,
    pub(super) count: IoThreadCountPlan,
}

/// A thread's CPUs and why.
pub(super) type Place = (CpuSet, Reason);

/// The CPUs that explicit pins occupy before anyone is placed.
pub(super) fn taken(profile: &Profile) -> Vec<(u32, Sitter)> {
    let mut taken = Vec::new();
    let mut occupy = |pins: &ThreadPins, sitter: fn(u32) -> Sitter| {
        if let ThreadPins::Explicit(pins) = pins {
            for (id, set) in pins {
                taken.extend(set.value.iter().map(|cpu| (cpu, sitter(*id))));
            }
        }
    };
    occupy(&profile.vcpus.pin, Sitter::Vcpu);
    occupy(&profile.iothreads.pin, Sitter::IoThread);
    if let Some(sqpoll) = &profile.iothreads.sqpoll {
        // Whoever shared such a CPU would wait for a thread that is never done.
        taken.extend((0..).zip(sqpoll.cpus.value.iter()).map(|(id, cpu)| (cpu, Sitter::IoThread(id))));
    }
    if let EmulatorPin::Explicit(set) = &profile.emulator {
        taken.extend(set.value.iter().map(|cpu| (cpu, Sitter::Emulator)));
    }
    taken
}

/// The kernel's thread of the IOThread `id`: the CPUs in turn.
fn sqpoll_of(sqpoll: &SqPoll, id: u32) -> Option<SqPollPlan> {
    let cpus: Vec<u32> = sqpoll.cpus.value.iter().collect();
    let cpu = cpus.get((id as usize).checked_rem(cpus.len())?)?;
    Some(SqPollPlan { cpu: *cpu, idle_ms: sqpoll.idle_ms })
}

/// Writes the layout down.
#[expect(clippy::too_many_arguments, reason = "everything that a reason speaks of")]
pub(super) fn threads(
    profile: &Profile,
    topology: &Topology,
    home: &Home,
    demand: &Demand,
    layout: &Layout<'_>,
    alternatives: &Alternatives<'_>,
    ledger: &Ledger,
    gathered: &mut Gathered,
) -> Threads {
    let seats = layout.board.seats;
    let mut sitters: BTreeMap<u32, usize> = BTreeMap::new();
    let seated = layout.vcpus.iter().chain(&layout.iothreads).map(|(_, seat)| seat);
    seated.chain(&layout.emulator).for_each(|seat| *sitters.entry(seat.cpu).or_default() += 1);
    let mut cores: BTreeMap<usize, CpuSet> = BTreeMap::new();
    for (id, seat) in layout.vcpus.iter().filter(|(_, seat)| seat.terms == Terms::PairedCore) {
        cores.entry(seats.core_of(seat.cpu).unwrap_or(usize::MAX)).or_default().insert(*id);
    }
    let view = View { topology, seats, home, sitters, cores };
    let vcpus = view.vcpus(profile, layout);
    let emulator = view.emulator(profile, layout);
    let iothreads = view.iothreads(profile, layout, &emulator.0);
    report::steps(layout, profile, home, &seats.usable, ledger, gathered);
    report::overlaps(&vcpus, &iothreads, &emulator, gathered);
    let crowded: CpuSet = vcpus.iter().fold(CpuSet::new(), |all, (cpus, _)| all.or(cpus));
    let node = |cpus: &CpuSet| topology.one_node_of(cpus);
    let rejected = |kind: Kind, line: Option<&Line>, cpus: &CpuSet| {
        let rejection = match (line, cpus.first()) {
            (Some(line), _) => alternatives.said(cpus, line),
            (None, Some(cpu)) => alternatives.placed(kind, cpu),
            (None, None) => None,
        };
        rejection.map(Into::into)
    };
    let emulator_line = match &profile.emulator {
        EmulatorPin::Auto => None,
        EmulatorPin::Float { line } => Some(line),
        EmulatorPin::Explicit(pin) => Some(&pin.line),
    };
    Threads {
        iothreads: (0u32..)
            .zip(iothreads)
            .map(|(id, (cpus, because))| IoThreadPlan {
                id,
                name: format!("iothread{id}"),
                node: node(&cpus),
                // Polling takes time from whoever shares the CPU.
                poll_max_ns: profile.iothreads.poll_max_ns.unwrap_or(if cpus.meets(&crowded) {
                    0
                } else {
                    POLL_MAX_NS
                }),
                poll_grow: profile.iothreads.poll_grow.unwrap_or(0),
                poll_shrink: profile.iothreads.poll_shrink.unwrap_or(0),
                registered_memory: profile.iothreads.registered_memory,
                sqpoll: profile.iothreads.sqpoll.as_ref().and_then(|sqpoll| sqpoll_of(sqpoll, id)),
                because: because.to_string(),
                rejected: rejected(Kind::IoThread, alternatives::line(&profile.iothreads.pin, id), &cpus),
                cpus,
            })
            .collect(),
        vcpus: (0u32..)
            .zip(vcpus)
            .map(|(id, (cpus, because))| VcpuPlan {
                id,
                node: node(&cpus),
                because: because.to_string(),
                rejected: rejected(Kind::Vcpu, alternatives::line(&profile.vcpus.pin, id), &cpus),
                cpus,
            })
            .collect(),
        emulator: EmulatorPlan {
            node: node(&emulator.0),
            because: emulator.1.to_string(),
            rejected: rejected(Kind::Emulator, emulator_line, &emulator.0),
            cpus: emulator.0,
        },
        count: count(profile, home, demand, layout),
    }
}

/// Rule 4 in words: what bounds the number of IOThreads.
fn count(profile: &Profile, home: &Home, demand: &Demand, layout: &Layout<'_>) -> IoThreadCountPlan {
    let count = layout.iothread_count;
    let device = || demand.widest_name.clone().unwrap_or_else(|| "the root disk".to_owned());
    let next = count.saturating_add(1);
    let no_queue = Against::NoQueueLeft { device: device(), queues: demand.widest, next: count };
    let (because, rejected) = match &profile.iothreads.count {
        IoThreadCount::Fixed(said) => {
            // What `auto` would come to.
            let free = CountReason::ProfileSaid { line: said.line.clone() };
            let ideal = demand.widest.min(ENOUGH_IOTHREADS);
            let rejected = match ideal == count {
                false => Rejection {
                    instead: Instead::Count(ideal),
                    against: Against::ProfileSaid { line: said.line.clone() },
                },
                true if count >= ENOUGH_IOTHREADS => {
                    Rejection { instead: Instead::Count(next), against: Against::Enough }
                }
                true => Rejection { instead: Instead::Count(next), against: no_queue },
            };
            (free, rejected)
        }
        IoThreadCount::Auto { min, max } => {
            let (least, floor, most) = demand.bounds();
            let more = |against| Rejection { instead: Instead::Count(next), against };
            let fewer = |against| Rejection { instead: Instead::Count(count.saturating_sub(1)), against };
            let home = home.short();
            let left =
                || Against::NoCpuLeft { home: home.clone(), free: layout.board.quiet_cpus(layout.home) };
            if count < floor {
                (CountReason::Fell { home: home.clone() }, more(left()))
            } else if count < most {
                let because = CountReason::CpusLeft { home: home.clone() };
                (because, more(left()))
            } else if count > *max.min(&demand.widest).min(&ENOUGH_IOTHREADS) {
                let because = if count == least && least > *min {
                    CountReason::Named
                } else {
                    CountReason::Least { min: *min }
                };
                (because, fewer(Against::Least { min: count }))
            } else if count == demand.widest {
                (CountReason::Queues { device: device(), queues: count }, more(no_queue))
            } else if count == *max {
                (CountReason::Most { max: *max }, more(Against::Most { max: *max }))
            } else {
                (CountReason::Enough, more(Against::Enough))
            }
        }
    };
    IoThreadCountPlan { count, because: because.to_string(), rejected: Some(rejected.into()) }
}

struct View<'a> {
    topology: &'a Topology,
    seats: &'a Seats,
    home: &'a Home,
    /// How many threads the planner put on a CPU.
    sitters: BTreeMap<u32, usize>,
    /// The vCPUs that share a core because the profile requires it.
    cores: BTreeMap<usize, CpuSet>,
}

impl View<'_> {
    fn place(&self, seat: &Seat, kind: Kind) -> Place {
        let home = self.home.clone();
        let shared = self.sitters.get(&seat.cpu).is_some_and(|n| *n > 1);
        let because = match seat.terms {
            Terms::OwnCore if shared && kind == Kind::Vcpu => Reason::ApartFromVcpus { home },
            Terms::OwnCore if shared && kind == Kind::IoThread => Reason::WithTheEmulator { home },
            Terms::OwnCore => {
                let isolated = self.seats.core_of(seat.cpu).is_some_and(|at| self.seats.cores[at].isolated);
                Reason::OwnCore { home, isolated }
            }
            Terms::PairedCore => {
                let core = self.seats.core_of(seat.cpu).unwrap_or(usize::MAX);
                Reason::PairedCore { home, vcpus: self.cores.get(&core).cloned().unwrap_or_default() }
            }
            Terms::QuietSibling => Reason::QuietSibling { home },
            Terms::VcpuSibling => Reason::VcpuSibling { home },
            Terms::NextNode => Reason::NextNode { node: self.topology.node_of(seat.cpu), home },
            Terms::BesideVcpu(vcpu) => Reason::BesideVcpu { vcpu },
            Terms::BesideIoThread => Reason::BesidePinned,
            Terms::SharesVcpu(vcpu) => Reason::SharesVcpu { vcpu },
            Terms::SharesCpu => Reason::SharesCpu { usable: self.seats.usable.clone() },
            Terms::SharesIoThread(iothread) => Reason::SharesIoThread { iothread },
        };
        (CpuSet::of(seat.cpu), because)
    }

    fn anywhere(&self) -> Place {
        (self.seats.usable.clone(), Reason::SharesCpu { usable: self.seats.usable.clone() })
    }

    fn pool(
        &self,
        kind: Kind,
        pins: &ThreadPins,
        count: u32,
        seated: &[(u32, Seat)],
        emulator: &CpuSet,
    ) -> Vec<Place> {
        let seated: BTreeMap<u32, &Seat> = seated.iter().map(|(id, seat)| (*id, seat)).collect();
        (0..count)
            .map(|id| match (pins, seated.get(&id)) {
                (ThreadPins::Float { line }, _) => {
                    (self.seats.usable.clone(), Reason::Floats { line: line.clone() })
                }
                (ThreadPins::Emulator { line }, _) => {
                    (emulator.clone(), Reason::WithEmulator { line: line.clone() })
                }
                (ThreadPins::Explicit(pins), None) => match pins.get(&id) {
                    Some(pin) => (pin.value.clone(), Reason::ProfileSaid { line: pin.line.clone() }),
                    None => self.anywhere(),
                },
                (_, Some(seat)) => self.place(seat, kind),
                (_, None) => self.anywhere(),
            })
            .collect()
    }

    fn vcpus(&self, profile: &Profile, layout: &Layout<'_>) -> Vec<Place> {
        self.pool(Kind::Vcpu, &profile.vcpus.pin, profile.vcpus.count, &layout.vcpus, &self.seats.usable)
    }

    fn iothreads(&self, profile: &Profile, layout: &Layout<'_>, emulator: &CpuSet) -> Vec<Place> {
        self.pool(Kind::IoThread, &profile.iothreads.pin, layout.iothread_count, &layout.iothreads, emulator)
    }

    fn emulator(&self, profile: &Profile, layout: &Layout<'_>) -> Place {
        match (&profile.emulator, &layout.emulator) {
            (EmulatorPin::Explicit(pin), _) => {
                (pin.value.clone(), Reason::ProfileSaid { line: pin.line.clone() })
            }
            (EmulatorPin::Float { line }, _) => {
                (self.seats.usable.clone(), Reason::Floats { line: line.clone() })
            }
            (EmulatorPin::Auto, Some(seat)) => self.place(seat, Kind::Emulator),
            (EmulatorPin::Auto, None) => self.anywhere(),
        }
    }
}
