//! Rule 1: the CPUs a VM may use, and explicit pins that this host cannot give.

use crate::ledger::Ledger;
use crate::profile::{EmulatorPin, Profile, ThreadPins, Written};
use crate::topology::{CpuSet, Topology};

use super::{Gathered, problem};

/// Online ∩ affinity ∩ the cgroup's CPUs: what this process may use at all.
pub(crate) fn allowed(topology: &Topology) -> CpuSet {
    let online = &topology.online;
    let by_affinity = topology.affinity.as_ref().map_or(online.clone(), |affinity| affinity.and(online));
    topology.cgroup_cpus.as_ref().map_or(by_affinity.clone(), |cgroup| cgroup.and(&by_affinity))
}

/// Allowed ∩ `cpuset`, minus what other VMs hold.
pub(super) fn usable(
    profile: &Profile,
    topology: &Topology,
    ledger: &Ledger,
    gathered: &mut Gathered,
) -> Option<CpuSet> {
    let allowed = allowed(topology);
    let held = ledger.cpus();
    let wish = profile.host.cpuset.as_ref();
    let asked = wish.map_or(allowed.clone(), |wish| wish.value.and(&allowed));
    let cpus = asked.minus(&held);
    pins(profile, topology, &allowed, ledger, gathered);
    if let Some(wish) = wish {
        let beyond = wish.value.minus(&allowed);
        if !beyond.is_empty() && !cpus.is_empty() {
            gathered.warn(
                "cpuset_beyond_host",
                format!("`cpuset \"{}\"` names CPU {beyond}, which vmprof may not use here", wish.value),
                format!("the plan uses {cpus}; `vmprof host` shows what there is"),
            );
        }
    }
    if !cpus.is_empty() {
        return Some(cpus);
    }
    let mut found = format!("online are {}", list(&topology.online));
    if let Some(affinity) = &topology.affinity {
        found.push_str(&format!(", this process may use {}", list(affinity)));
    }
    if let Some(cgroup) = &topology.cgroup_cpus {
        found.push_str(&format!(", its cgroup's cpuset is {}", list(cgroup)));
    }
    let mut refusal = if asked.is_empty() {
        problem("no_usable_cpu", format!("no CPU is left: {found}")).help(
            "widen `host { cpuset }`, or start vmprof with a wider affinity (`taskset`, the cgroup's cpuset)",
        )
    } else {
        let holders = ledger.holders(&asked).join("`, `");
        problem(
            "no_usable_cpu",
            format!("no CPU is left: {found}, and other VMs hold {}", list(&held.and(&asked))),
        )
        .help(format!("stop one of `{holders}`, or widen `host {{ cpuset }}`"))
    };
    if let Some(wish) = wish {
        refusal = refusal.at(wish.span, "asked here");
    }
    gathered.refuse(refusal);
    None
}

fn list(cpus: &CpuSet) -> String {
    if cpus.is_empty() { "none".to_owned() } else { cpus.to_string() }
}

/// Every explicit pin must be had as written.
fn pins(profile: &Profile, topology: &Topology, allowed: &CpuSet, ledger: &Ledger, gathered: &mut Gathered) {
    let mut check = |who: String, pin: &Written<CpuSet>| {
        let absent = pin.value.minus(&topology.online);
        let barred = pin.value.and(&topology.online).minus(allowed);
        let held = pin.value.and(&ledger.cpus());
        let (code, found, help) = if !absent.is_empty() {
            let have = format!("this host has CPUs {}", topology.online);
            (
                "no_such_cpu",
                format!("CPU {absent} is not there: {have}"),
                "`vmprof host` lists the CPUs you can use",
            )
        } else if !barred.is_empty() {
            let cgroup = topology.cgroup_cpus.as_ref().filter(|cgroup| !barred.is_subset(cgroup));
            let may = match cgroup {
                Some(cgroup) => format!("the cgroup's cpuset is {}", list(cgroup)),
                None => format!("this process may use {}", list(allowed)),
            };
            (
                "cpu_barred",
                format!("CPU {barred} is out of reach: {may}"),
                "start vmprof with a wider affinity (`taskset`, the cgroup's cpuset), or pin elsewhere",
            )
        } else if !held.is_empty() {
            let holders = ledger.holders(&held).join("`, `");
            ("cpu_held", format!("CPU {held} is held by `{holders}`"), "stop that VM, or pin elsewhere")
        } else {
            return;
        };
        gathered.refuse(
            problem(code, format!("{who} is pinned to {}: {found}", pin.value))
                .at(pin.span, "pinned here")
                .help(help),
        );
    };
    for (kind, pins) in [("vcpu", &profile.vcpus.pin), ("iothread", &profile.iothreads.pin)] {
        if let ThreadPins::Explicit(pins) = pins {
            pins.iter().for_each(|(id, pin)| check(format!("{kind} {id}"), pin));
        }
    }
    if let Some(sqpoll) = &profile.iothreads.sqpoll {
        check("sqpoll".to_owned(), &sqpoll.cpus);
    }
    if let EmulatorPin::Explicit(pin) = &profile.emulator {
        check("the emulator".to_owned(), pin);
    }
}
