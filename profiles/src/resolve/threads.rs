//! Rules 3 to 6: from explicit pins and the ladder's layout to the plan's threads, each with its reason, and to a
//! warning for each step down the ladder that says what it costs.

use std::collections::BTreeMap;

use crate::plan::{EmulatorPlan, IoThreadPlan, VcpuPlan};
use crate::profile::{EmulatorPin, Mapping, Profile, ThreadPins};
use crate::reason::{Home, Reason};
use crate::topology::{CpuSet, Topology};

use super::ladder::{self, Demand, Layout, Seat, Terms};
use super::seats::{Seats, Sitter};
use super::{Gathered, problem, report};

/// How long an IOThread with a CPU to itself looks for work before it sleeps.
const POLL_MAX_NS: u64 = 32_768;

/// All threads of the VM.
#[derive(Debug)]
pub(super) struct Threads {
    pub(super) vcpus: Vec<VcpuPlan>,
    pub(super) iothreads: Vec<IoThreadPlan>,
    pub(super) emulator: EmulatorPlan,
}

/// A thread's CPUs and why.
pub(super) type Place = (CpuSet, Reason);

/// Places every thread.
pub(super) fn threads(
    profile: &Profile,
    topology: &Topology,
    seats: &Seats,
    home: &Home,
    gathered: &mut Gathered,
) -> Option<Threads> {
    let nodes = seats.nodes_from(topology, home.node);
    let Some(layout) = ladder::place(seats, &nodes, &taken(profile), &demand(profile)) else {
        gathered.refuse(
            problem("no_usable_cpu", format!("no layout fits on the usable CPUs {}", seats.usable))
                .help("widen `host { cpuset }`"),
        );
        return None;
    };
    let mut sitters: BTreeMap<u32, usize> = BTreeMap::new();
    let seated = layout.vcpus.iter().chain(&layout.iothreads).map(|(_, seat)| seat);
    seated.chain(&layout.emulator).for_each(|seat| *sitters.entry(seat.cpu).or_default() += 1);
    let view = View { topology, seats, home, sitters };
    let vcpus = view.vcpus(profile, &layout);
    let emulator = view.emulator(profile, &layout);
    let iothreads = view.iothreads(profile, &layout, &emulator.0);
    report::steps(&layout, profile, home, &seats.usable, gathered);
    report::overlaps(&vcpus, &iothreads, &emulator, gathered);
    let crowded: CpuSet = vcpus.iter().fold(CpuSet::new(), |all, (cpus, _)| all.or(cpus));
    let node = |cpus: &CpuSet| topology.one_node_of(cpus);
    Some(Threads {
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
                cpus,
                because: because.to_string(),
                rejected: None,
            })
            .collect(),
        vcpus: (0u32..)
            .zip(vcpus)
            .map(|(id, (cpus, because))| VcpuPlan {
                id,
                node: node(&cpus),
                cpus,
                because: because.to_string(),
                rejected: None,
            })
            .collect(),
        emulator: EmulatorPlan {
            node: node(&emulator.0),
            cpus: emulator.0,
            because: emulator.1.to_string(),
            rejected: None,
        },
    })
}

fn explicit(pins: &ThreadPins) -> Vec<u32> {
    match pins {
        ThreadPins::Explicit(pins) => pins.keys().copied().collect(),
        _ => Vec::new(),
    }
}

fn demand(profile: &Profile) -> Demand {
    let (count, pin) = (profile.vcpus.count, &profile.vcpus.pin);
    let pinned = explicit(pin);
    let floats = matches!(pin, ThreadPins::Float { .. });
    let named = profile.disks.iter().flat_map(|disk| match &disk.mapping {
        Mapping::RoundRobin | Mapping::Locality => Vec::new(),
        Mapping::Over(ids) => ids.clone(),
        Mapping::Exact(entries) => entries.iter().map(|(id, _)| *id).collect(),
    });
    let pinned_iothreads = explicit(&profile.iothreads.pin);
    Demand {
        vcpus: if floats { Vec::new() } else { (0..count).filter(|id| !pinned.contains(id)).collect() },
        floating_vcpus: if floats { count as usize } else { 0 },
        iothreads: profile.iothreads.count.clone(),
        iothreads_named: named.chain(pinned_iothreads.iter().copied()).map(|id| id + 1).max().unwrap_or(0),
        seat_iothreads: matches!(profile.iothreads.pin, ThreadPins::Auto | ThreadPins::Explicit(_)),
        pinned_iothreads,
        widest: profile.disks.iter().map(|d| d.queues).max().unwrap_or(1),
        emulator: matches!(profile.emulator, EmulatorPin::Auto),
    }
}

/// The CPUs that explicit pins occupy before anyone is placed.
fn taken(profile: &Profile) -> Vec<(u32, Sitter)> {
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
    if let EmulatorPin::Explicit(set) = &profile.emulator {
        taken.extend(set.value.iter().map(|cpu| (cpu, Sitter::Emulator)));
    }
    taken
}

struct View<'a> {
    topology: &'a Topology,
    seats: &'a Seats,
    home: &'a Home,
    /// How many threads the planner put on a CPU.
    sitters: BTreeMap<u32, usize>,
}

/// The kinds of thread whose place depends on the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vcpu,
    IoThread,
    Emulator,
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
            Terms::QuietSibling => Reason::QuietSibling { home },
            Terms::VcpuSibling => Reason::VcpuSibling { home },
            Terms::NextNode => Reason::NextNode { node: self.topology.node_of(seat.cpu), home },
            Terms::BesideVcpu(vcpu) => Reason::BesideVcpu { vcpu },
            Terms::SharesVcpu(vcpu) => Reason::SharesVcpu { vcpu },
            Terms::SharesCpu => Reason::SharesCpu { usable: self.seats.usable.clone() },
            Terms::SharesIoThread(iothread) => Reason::SharesIoThread { iothread },
        };
        (CpuSet::of(seat.cpu), because)
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
                    None => {
                        (self.seats.usable.clone(), Reason::SharesCpu { usable: self.seats.usable.clone() })
                    }
                },
                (_, Some(seat)) => self.place(seat, kind),
                (_, None) => {
                    (self.seats.usable.clone(), Reason::SharesCpu { usable: self.seats.usable.clone() })
                }
            })
            .collect()
    }

    fn vcpus(&self, profile: &Profile, layout: &Layout) -> Vec<Place> {
        self.pool(Kind::Vcpu, &profile.vcpus.pin, profile.vcpus.count, &layout.vcpus, &self.seats.usable)
    }

    fn iothreads(&self, profile: &Profile, layout: &Layout, emulator: &CpuSet) -> Vec<Place> {
        self.pool(Kind::IoThread, &profile.iothreads.pin, layout.iothread_count, &layout.iothreads, emulator)
    }

    fn emulator(&self, profile: &Profile, layout: &Layout) -> Place {
        match (&profile.emulator, &layout.emulator) {
            (EmulatorPin::Explicit(pin), _) => {
                (pin.value.clone(), Reason::ProfileSaid { line: pin.line.clone() })
            }
            (EmulatorPin::Float { line }, _) => {
                (self.seats.usable.clone(), Reason::Floats { line: line.clone() })
            }
            (EmulatorPin::Auto, Some(seat)) => self.place(seat, Kind::Emulator),
            (EmulatorPin::Auto, None) => {
                (self.seats.usable.clone(), Reason::SharesCpu { usable: self.seats.usable.clone() })
            }
        }
    }
}
