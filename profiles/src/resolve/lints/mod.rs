//! Remarks on plans that are right and had better be otherwise, or that look like a slip. None of them changes the plan,
//! and `strict` lets them pass. Here those about threads; those about disks are in [`disks`].

mod alike;
mod disks;

use crate::ledger::Ledger;
use crate::plan::{Diagnostic, IoThreadPlan, Plan, Severity};
use crate::profile::{EmulatorPin, Profile, Smt, ThreadPins};
use crate::storage::Storage;
use crate::topology::{CpuSet, Topology};

pub(super) use alike::said_once;

use super::AREA;
use super::demand::ENOUGH_IOTHREADS;
use super::report::DENSE_GAIN;

/// All remarks, those about threads first, then disk by disk.
pub(super) fn lints(
    profile: &Profile,
    topology: &Topology,
    storage: &Storage,
    ledger: &Ledger,
    plan: &Plan,
) -> Vec<Diagnostic> {
    let view = View { profile, topology, storage, ledger, plan };
    let threads = [
        view.unknown_topology(),
        view.light_load(),
        view.crowded_host(),
        view.idle_iothread(),
        view.many_iothreads(),
        view.vcpus_share_core(),
        view.iothread_pin_beside_vcpu(),
        view.floats_on_isolated(),
        view.polling_on_shared_cpu(),
        view.iopoll_on_shared_cpu(),
    ];
    threads.into_iter().flatten().chain(disks::lints(&view)).collect()
}

/// What a lint looks at.
struct View<'a> {
    profile: &'a Profile,
    topology: &'a Topology,
    storage: &'a Storage,
    ledger: &'a Ledger,
    plan: &'a Plan,
}

fn warning(code: &str, message: String, help: impl Into<String>) -> Diagnostic {
    remark(Severity::Warning, code, message, help)
}

fn note(code: &str, message: String, help: impl Into<String>) -> Diagnostic {
    remark(Severity::Note, code, message, help)
}

fn remark(severity: Severity, code: &str, message: String, help: impl Into<String>) -> Diagnostic {
    Diagnostic { severity, code: format!("{AREA}::{code}"), message, help: help.into() }
}

/// The core that all these CPUs are on, by its name.
fn one_core(topology: &Topology, cpus: &CpuSet) -> Option<u32> {
    let mut cores = cpus.iter().map(|cpu| topology.cpus.get(&cpu).map(|cpu| cpu.core));
    let first = cores.next()??;
    cores.all(|core| core == Some(first)).then_some(first)
}

impl View<'_> {
    /// Whether the plan took this step.
    fn took(&self, step: &str) -> bool {
        self.plan.ladder.iter().any(|taken| taken.step == step)
    }

    /// Facts that the planner did without.
    fn unknown_topology(&self) -> Option<Diagnostic> {
        let gaps = self.topology.gaps();
        (!gaps.is_empty()).then(|| {
            note(
                "unknown_topology",
                format!("this host does not tell {}", gaps.join("; ")),
                "the plan does without; a live host or a whole capture (`vmprof host --capture`) tells more",
            )
        })
    }

    /// IOThreads beyond what one vCPU with single queues can keep busy.
    fn light_load(&self) -> Option<Diagnostic> {
        let count = self.plan.iothreads.len();
        let light = self.profile.vcpus.count == 1 && self.plan.disks.iter().all(|disk| disk.queues <= 1);
        let busy = self.plan.disks.len().max(1);
        (light && count > 1 && self.profile.nets.is_empty()).then(|| {
            note(
                "iothreads_for_light_load",
                format!("{count} IOThreads for 1 vCPU and {busy} disk(s) of one virtqueue: one would do"),
                "IOThreads pay where several vCPUs submit at once; write `iothreads 1`, and give the CPUs back",
            )
        })
    }

    /// More vCPUs than cores, those of other VMs counted.
    fn crowded_host(&self) -> Option<Diagnostic> {
        let held = self.ledger.cpus();
        let mut cores: Vec<u32> = self.topology.cpus.values().map(|cpu| cpu.core).collect();
        cores.sort_unstable();
        cores.dedup();
        let (cores, vcpus) = (cores.len(), self.plan.vcpus.len());
        let crowded = vcpus + held.len() > cores && self.plan.iothreads.len() > 1 && !self.took("g");
        crowded.then(|| {
            let others = if held.is_empty() {
                String::new()
            } else {
                let mut names = self.ledger.holders(&held);
                names.sort_unstable();
                names.dedup();
                format!(" beside the {} CPUs that `{}` hold", held.len(), names.join("`, `"))
            };
            note(
                "crowded_host",
                format!("{vcpus} vCPUs{others} on a host of {cores} cores"),
                format!("more than one IOThread may gain nothing here: {DENSE_GAIN}; measure, or write `iothreads 1`"),
            )
        })
    }

    /// IOThreads that serve nothing. The first also serves the disks that vmprof brings itself.
    fn idle_iothread(&self) -> Option<Diagnostic> {
        let told = |code: &str| self.profile.warnings.iter().any(|warning| warning.code().ends_with(code));
        if told("more_iothreads_than_queues") || self.plan.iothreads.len() < 2 {
            return None;
        }
        let disks = self.plan.disks.iter().flat_map(|disk| &disk.virtqueues);
        let nets = self.plan.nets.iter().flat_map(|net| &net.virtqueues);
        let busy: CpuSet = disks.chain(nets).map(|queue| queue.iothread).collect();
        let idle: CpuSet =
            self.plan.iothreads.iter().map(|i| i.id).filter(|id| *id > 0 && !busy.contains(*id)).collect();
        (!idle.is_empty()).then(|| {
            note(
                "idle_iothread",
                format!("iothread {idle} serves no virtqueue"),
                "map queues to it, give a disk more queues, or ask for fewer IOThreads",
            )
        })
    }

    /// More IOThreads than any drive needs.
    fn many_iothreads(&self) -> Option<Diagnostic> {
        let count = self.plan.iothreads.len();
        (count > ENOUGH_IOTHREADS as usize).then(|| {
            note(
                "many_iothreads",
                format!(
                    "{count} IOThreads: 4 to {ENOUGH_IOTHREADS} usually saturate a drive, and more can hurt"
                ),
                format!("measure with `iothreads {ENOUGH_IOTHREADS}` before you keep them"),
            )
        })
    }

    /// Pins that put two vCPUs on one core, unless that is what the profile requires.
    fn vcpus_share_core(&self) -> Option<Diagnostic> {
        let ThreadPins::Explicit(pins) = &self.profile.vcpus.pin else { return None };
        if self.profile.host.smt == Smt::Require {
            return None;
        }
        let mut cores: Vec<(u32, u32, &CpuSet)> = pins
            .iter()
            .filter_map(|(id, pin)| Some((one_core(self.topology, &pin.value)?, *id, &pin.value)))
            .collect();
        cores.sort_by_key(|(core, id, _)| (*core, *id));
        let two = cores.windows(2).find_map(|two| match two {
            [(a, first, one), (b, second, other)] if a == b && !one.meets(other) => Some((first, second, *a)),
            _ => None,
        });
        let (first, second, core) = two?;
        Some(warning(
            "vcpus_share_core",
            format!(
                "the profile's pins put vcpu {first} and vcpu {second} on one core (CPUs {})",
                self.topology.core_of(core)
            ),
            "two vCPUs share one core's speed; pin them to two cores, or write `smt require` if the guest shall know",
        ))
    }

    /// A pinned IOThread on a vCPU's core.
    fn iothread_pin_beside_vcpu(&self) -> Option<Diagnostic> {
        let ThreadPins::Explicit(pins) = &self.profile.iothreads.pin else { return None };
        let vcpus: Vec<(u32, u32, &CpuSet)> = self
            .plan
            .vcpus
            .iter()
            .filter_map(|vcpu| Some((one_core(self.topology, &vcpu.cpus)?, vcpu.id, &vcpu.cpus)))
            .collect();
        let found = pins.iter().find_map(|(id, pin)| {
            let cores: Vec<u32> =
                pin.value.iter().filter_map(|cpu| self.topology.cpus.get(&cpu)).map(|cpu| cpu.core).collect();
            let beside = vcpus.iter().find(|(core, _, cpus)| cores.contains(core) && !cpus.meets(&pin.value));
            beside.map(|(_, vcpu, cpus)| (*id, &pin.value, *vcpu, *cpus))
        });
        let (iothread, cpus, vcpu, on) = found?;
        Some(warning(
            "iothread_pin_beside_vcpu",
            format!("iothread {iothread} is pinned to CPU {cpus}, on the core of vcpu {vcpu} (CPU {on})"),
            "both share one core's speed; pin it to another core, or leave the pin out",
        ))
    }

    /// Threads left to the scheduler on CPUs that it leaves alone.
    fn floats_on_isolated(&self) -> Option<Diagnostic> {
        let float = |pins: &ThreadPins| matches!(pins, ThreadPins::Float { .. });
        let emulator = matches!(self.profile.emulator, EmulatorPin::Float { .. });
        let (who, cpus) = if float(&self.profile.vcpus.pin) {
            ("the vCPUs float", &self.plan.vcpus.first()?.cpus)
        } else if float(&self.profile.iothreads.pin) {
            ("the IOThreads float", &self.plan.iothreads.first()?.cpus)
        } else if emulator {
            ("the emulator thread floats", &self.plan.emulator.cpus)
        } else {
            return None;
        };
        let isolated = cpus.and(&self.topology.isolated);
        (!isolated.is_empty()).then(|| {
            warning(
                "floats_on_isolated",
                format!("{who} over CPUs {cpus}, of which {isolated} are isolated (isolcpus)"),
                "the scheduler moves nothing off or onto isolated CPUs; pin, or leave them out with `host { cpuset }`",
            )
        })
    }

    /// A polling window that the profile writes where the CPU is shared.
    fn polling_on_shared_cpu(&self) -> Option<Diagnostic> {
        let window = self.profile.iothreads.poll_max_ns.filter(|ns| *ns > 0)?;
        let shares = |cpus: &CpuSet| self.plan.vcpus.iter().find(|vcpu| vcpu.cpus.meets(cpus));
        let (iothread, vcpu) =
            self.plan.iothreads.iter().find_map(|iothread| Some((iothread, shares(&iothread.cpus)?)))?;
        Some(warning(
            "polling_on_shared_cpu",
            format!(
                "{} polls for up to {window} ns on CPU {}, which it shares with vcpu {}",
                iothread.name, iothread.cpus, vcpu.id
            ),
            "polling takes the time from the vCPU that it waits for; write `poll-max-ns 0`, or leave it out",
        ))
    }

    /// An IOThread that looks at drives has its CPU busy whenever it has requests.
    fn iopoll_on_shared_cpu(&self) -> Option<Diagnostic> {
        let looks = self.plan.disks.iter().filter(|disk| disk.iopoll).find_map(|disk| {
            let serves =
                |iothread: &&IoThreadPlan| disk.virtqueues.iter().any(|vq| vq.iothread == iothread.id);
            let shares = |iothread: &IoThreadPlan| {
                let vcpu = self.plan.vcpus.iter().find(|vcpu| vcpu.cpus.meets(&iothread.cpus))?;
                Some((disk, iothread.name.clone(), iothread.cpus.clone(), vcpu.id))
            };
            self.plan.iothreads.iter().filter(serves).find_map(shares)
        });
        let (disk, iothread, cpus, vcpu) = looks?;
        Some(warning(
            "iopoll_on_shared_cpu",
            format!(
                "disk `{}`: {iothread} looks at its drive (iopoll) on CPU {cpus}, which it shares with vcpu {vcpu}",
                disk.name
            ),
            "while requests are in flight it takes that CPU from the vCPU; remove `iopoll`, or give the IOThread a CPU of its own",
        ))
    }
}
