//! Rules 3 to 6: from explicit pins and the ladder's layout to the plan's threads, each with its reason, and to a
//! warning for each step down the ladder that says what it costs.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{EmulatorPlan, IoThreadPlan, VcpuPlan};
use crate::profile::{EmulatorPin, IoThreadCount, Mapping, Profile, ThreadPins};
use crate::reason::{Home, Reason};
use crate::topology::{CpuSet, Topology};

use super::ladder::{self, Demand, Layout, Seat, Terms};
use super::seats::{Seats, Sitter};
use super::usable::Usable;
use super::{Gathered, problem};

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
type Place = (CpuSet, Reason);

/// Places every thread.
pub(super) fn threads(
    profile: &Profile,
    topology: &Topology,
    seats: &Seats,
    usable: &Usable,
    home: &Home,
    gathered: &mut Gathered,
) -> Option<Threads> {
    let nodes = seats.nodes_from(topology, home.node);
    let Some(layout) = ladder::place(seats, &nodes, &taken(profile), &demand(profile)) else {
        gathered.refuse(
            problem("no_usable_cpu", format!("no layout fits on the usable CPUs {}", usable.cpus))
                .help("widen `host { cpuset }`"),
        );
        return None;
    };
    let mut sitters: BTreeMap<u32, usize> = BTreeMap::new();
    let seated = layout.vcpus.iter().chain(&layout.iothreads).map(|(_, seat)| seat);
    seated.chain(&layout.emulator).for_each(|seat| *sitters.entry(seat.cpu).or_default() += 1);
    let view = View { topology, seats, usable, home, sitters };
    let vcpus = view.vcpus(profile, &layout);
    let emulator = view.emulator(profile, &layout);
    let iothreads = view.iothreads(profile, &layout, &emulator.0);
    let emulator = match (&layout.emulator, &profile.emulator, iothreads.first()) {
        // IOThread 0 may float or be pinned; the emulator then goes where that one may.
        (Some(Seat { terms: Terms::SharesIoThread(_), .. }), EmulatorPin::Auto, Some((cpus, _))) => {
            (cpus.clone(), emulator.1)
        }
        _ => emulator,
    };
    view.report(&layout, profile, gathered);
    view.report_overlap(&vcpus, &iothreads, &emulator, profile, gathered);
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
            })
            .collect(),
        vcpus: (0u32..)
            .zip(vcpus)
            .map(|(id, (cpus, because))| VcpuPlan {
                id,
                node: node(&cpus),
                cpus,
                because: because.to_string(),
            })
            .collect(),
        emulator: EmulatorPlan { node: node(&emulator.0), cpus: emulator.0, because: emulator.1.to_string() },
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
        Mapping::RoundRobin => Vec::new(),
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
    usable: &'a Usable,
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
            Terms::SharesCpu => Reason::SharesCpu { usable: self.usable.cpus.clone() },
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
                (ThreadPins::Float { line }, _) => (self.usable.cpus.clone(), Reason::Floats { line: *line }),
                (ThreadPins::Emulator { line }, _) => {
                    (emulator.clone(), Reason::WithEmulator { line: *line })
                }
                (ThreadPins::Explicit(pins), None) => match pins.get(&id) {
                    Some(pin) => (pin.value.clone(), Reason::ProfileSaid { line: pin.line }),
                    None => {
                        (self.usable.cpus.clone(), Reason::SharesCpu { usable: self.usable.cpus.clone() })
                    }
                },
                (_, Some(seat)) => self.place(seat, kind),
                (_, None) => {
                    (self.usable.cpus.clone(), Reason::SharesCpu { usable: self.usable.cpus.clone() })
                }
            })
            .collect()
    }

    fn vcpus(&self, profile: &Profile, layout: &Layout) -> Vec<Place> {
        self.pool(Kind::Vcpu, &profile.vcpus.pin, profile.vcpus.count, &layout.vcpus, &self.usable.cpus)
    }

    fn iothreads(&self, profile: &Profile, layout: &Layout, emulator: &CpuSet) -> Vec<Place> {
        self.pool(Kind::IoThread, &profile.iothreads.pin, layout.iothread_count, &layout.iothreads, emulator)
    }

    fn emulator(&self, profile: &Profile, layout: &Layout) -> Place {
        match (&profile.emulator, &layout.emulator) {
            (EmulatorPin::Explicit(pin), _) => (pin.value.clone(), Reason::ProfileSaid { line: pin.line }),
            (EmulatorPin::Float { line }, _) => (self.usable.cpus.clone(), Reason::Floats { line: *line }),
            (EmulatorPin::Auto, Some(seat)) => self.place(seat, Kind::Emulator),
            (EmulatorPin::Auto, None) => {
                (self.usable.cpus.clone(), Reason::SharesCpu { usable: self.usable.cpus.clone() })
            }
        }
    }

    /// One warning for each step of the ladder that was taken, with what it costs.
    fn report(&self, layout: &Layout, profile: &Profile, gathered: &mut Gathered) {
        let home = self.home.short();
        let usable = &self.usable.cpus;
        let widen = "widen `host { cpuset }`, or ask for less";
        let who = |seats: &[(u32, Seat)], wanted: fn(&Terms) -> bool| -> Option<(CpuSet, CpuSet)> {
            let these: Vec<_> = seats.iter().filter(|(_, seat)| wanted(&seat.terms)).collect();
            let ids: CpuSet = these.iter().map(|(id, _)| *id).collect();
            (!ids.is_empty()).then(|| (ids, these.iter().map(|(_, seat)| seat.cpu).collect()))
        };
        match layout.emulator.map(|seat| seat.terms) {
            Some(Terms::NextNode) => gathered.step(
                "emulator_on_other_node",
                format!("the emulator thread runs on another node: {home} has no core left for it"),
                format!("device emulation crosses nodes, which is rarely felt; {widen}"),
            ),
            Some(Terms::SharesIoThread(id)) => gathered.step(
                "emulator_shares_iothread",
                format!("the emulator thread shares the CPU of iothread {id}: no other is left for it"),
                format!("what the emulator does delays that IOThread a little; {widen}"),
            ),
            Some(Terms::SharesVcpu(id)) => gathered.step(
                "emulator_shares_vcpu",
                format!("the emulator thread shares the CPU of vcpu {id}: no other is left for it"),
                format!("what the emulator does takes time from that vCPU; {widen}"),
            ),
            _ => {}
        }
        if let Some(min) = layout.fell_below {
            gathered.step(
                "fewer_iothreads",
                format!(
                    "{} IOThreads instead of at least {min}: no more CPUs are left",
                    layout.iothread_count
                ),
                format!("each serves more virtqueues; {widen}"),
            );
        }
        if let Some((ids, cpus)) = who(&layout.iothreads, |t| *t == Terms::NextNode) {
            gathered.step(
                "iothread_on_other_node",
                format!("iothread {ids} runs on another node (CPU {cpus}): {home} has no free core left"),
                format!("its requests and completions cross nodes; {widen}"),
            );
        }
        if let Some((ids, cpus)) = who(&layout.vcpus, |t| *t == Terms::VcpuSibling) {
            gathered.step(
                "vcpus_on_siblings",
                format!("vcpu {ids} runs on the sibling of another vCPU (CPU {cpus}): whole cores ran out"),
                format!("two vCPUs share one core's speed; write `smt isolate` to forbid it, or {widen}"),
            );
        }
        if let Some((ids, cpus)) = who(&layout.vcpus, |t| *t == Terms::NextNode) {
            gathered.step(
                "vcpus_on_other_node",
                format!("vcpu {ids} runs on another node (CPU {cpus}): {home} is full"),
                format!("the guest's memory is remote to it; {widen}"),
            );
        }
        if let Some((ids, cpus)) = who(&layout.iothreads, |t| matches!(t, Terms::BesideVcpu(_))) {
            gathered.step(
                "iothread_beside_vcpu",
                format!("iothread {ids} runs on the sibling of a vCPU (CPU {cpus}): no free core is left"),
                format!("both share one core's speed; {widen}"),
            );
        }
        if let Some((ids, cpus)) =
            who(&layout.iothreads, |t| matches!(t, Terms::SharesVcpu(_) | Terms::SharesCpu))
        {
            gathered.step(
                "iothread_shares_vcpu",
                format!("no CPU is left for iothread {ids} alone: CPU {cpus} is shared with other threads"),
                format!("I/O waits while the others run, and the other way round; {widen}"),
            );
        }
        if let Some((ids, cpus)) = who(&layout.vcpus, |t| *t == Terms::SharesCpu) {
            let count = profile.vcpus.count;
            gathered.step(
                "dense_host",
                format!(
                    "{count} vCPUs on {} usable CPUs ({usable}): vcpu {ids} take turns on CPU {cpus}",
                    usable.len()
                ),
                "measure nothing here that shall hold elsewhere: IOThreads gain little on a host this dense",
            );
        }
        if let (IoThreadCount::Fixed(_), Some(first)) = (&profile.iothreads.count, layout.iothreads.first()) {
            let same: BTreeSet<u32> = layout.iothreads.iter().map(|(_, seat)| seat.cpu).collect();
            if same.len() < layout.iothreads.len() && first.1.terms != Terms::SharesCpu {
                gathered.step(
                    "iothreads_share_cpu",
                    format!("{} IOThreads on {} CPUs: some take turns", layout.iothreads.len(), same.len()),
                    "fewer IOThreads would do the same work; write a smaller `iothreads`",
                );
            }
        }
    }

    /// Pins that the profile itself lays on one CPU.
    fn report_overlap(
        &self,
        vcpus: &[Place],
        iothreads: &[Place],
        emulator: &Place,
        profile: &Profile,
        gathered: &mut Gathered,
    ) {
        let said =
            |reason: &Reason| matches!(reason, Reason::ProfileSaid { .. } | Reason::WithEmulator { .. });
        let floats = |reason: &Reason| matches!(reason, Reason::Floats { .. });
        let named = (0..).zip(vcpus).map(|(id, p)| (format!("vcpu {id}"), p));
        let named = named.chain((0..).zip(iothreads).map(|(id, p)| (format!("iothread {id}"), p)));
        let named: Vec<(String, &Place)> = named
            .chain([("the emulator".to_owned(), emulator)])
            .filter(|(_, (_, reason))| !floats(reason))
            .collect();
        let shared: BTreeMap<u32, Vec<&str>> = self
            .usable
            .cpus
            .or(&self.topology.online)
            .iter()
            .map(|cpu| {
                let on = named.iter().filter(|(_, (cpus, _))| cpus.contains(cpu));
                let written = named.iter().any(|(_, (cpus, reason))| said(reason) && cpus.contains(cpu));
                let names: Vec<&str> = on.map(|(name, _)| name.as_str()).collect();
                (cpu, if written { names } else { Vec::new() })
            })
            .filter(|(_, names)| names.len() > 1)
            .collect();
        for (cpu, names) in shared {
            gathered.note(
                "pins_share_cpu",
                format!("CPU {cpu} of profile `{}` has {}", profile.name, names.join(", ")),
                "the profile pins them so; leave a pin out and vmprof finds another place",
            );
        }
    }
}
