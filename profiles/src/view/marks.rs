//! Who is on which CPU, as marks: `v0` a vCPU, `i0` an IOThread, `e` the emulator, and the marks of CPUs without threads.
//! The marks differ without colour; colours repeat what they say.

use std::collections::BTreeMap;

use crate::plan::Plan;
use crate::topology::CpuSet;

use super::Backdrop;

/// A thread of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Vcpu(u32),
    IoThread(u32),
    Emulator,
}

/// What a CPU without threads of this VM is to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Idle {
    Free,
    /// Free, and isolated by the host.
    Isolated,
    /// Held by another VM.
    Held,
    /// Outside the caller's affinity or cgroup, or the profile's cpuset.
    NotUsable,
}

impl Idle {
    pub(super) fn mark(self) -> &'static str {
        match self {
            Idle::Free => ".",
            Idle::Isolated => ":",
            Idle::Held => "x",
            Idle::NotUsable => "-",
        }
    }

    /// As in "3 cores free".
    pub(super) fn words(self) -> &'static str {
        match self {
            Idle::Free => "free",
            Idle::Isolated => "isolated and free",
            Idle::Held => "held by another VM",
            Idle::NotUsable => "not usable",
        }
    }

    pub(super) fn paint(self) -> &'static str {
        match self {
            Idle::Free => "2",
            Idle::Isolated => "2;36",
            Idle::Held => "31",
            Idle::NotUsable => "2;31",
        }
    }
}

/// Colours of IOThreads, in turn: each has a hue of its own as far as a terminal has hues.
const HUES: [&str; 6] = ["1;36", "1;35", "1;33", "1;34", "1;91", "1;96"];

impl Who {
    pub(super) fn paint(self) -> &'static str {
        match self {
            Who::Vcpu(_) => "32",
            Who::IoThread(id) => HUES[id as usize % HUES.len()],
            Who::Emulator => "1;37",
        }
    }
}

/// The marks of every CPU of a host.
pub(super) struct Marks {
    threads: BTreeMap<u32, Vec<Who>>,
    allowed: CpuSet,
    held: CpuSet,
    isolated: CpuSet,
}

/// One CPU's mark.
pub(super) enum Mark<'m> {
    Threads(&'m [Who]),
    Idle(Idle),
}

impl Marks {
    pub(super) fn of(plan: &Plan, on: Backdrop<'_>) -> Marks {
        let (allowed, held) = (on.allowed(), on.ledger.cpus());
        let usable = allowed.minus(&held);
        let mut threads: BTreeMap<u32, Vec<Who>> = BTreeMap::new();
        // Threads that float over everything are on every CPU and say nothing about any.
        let mut put = |cpus: &CpuSet, who: Who| {
            if cpus.len() == 1 || *cpus != usable {
                cpus.iter().for_each(|cpu| threads.entry(cpu).or_default().push(who));
            }
        };
        plan.vcpus.iter().for_each(|v| put(&v.cpus, Who::Vcpu(v.id)));
        plan.iothreads.iter().for_each(|i| put(&i.cpus, Who::IoThread(i.id)));
        put(&plan.emulator.cpus, Who::Emulator);
        Marks { threads, allowed, held, isolated: on.topology.isolated.clone() }
    }

    pub(super) fn of_cpu(&self, cpu: u32) -> Mark<'_> {
        match self.threads.get(&cpu) {
            Some(threads) => Mark::Threads(threads),
            None if !self.allowed.contains(cpu) => Mark::Idle(Idle::NotUsable),
            None if self.held.contains(cpu) => Mark::Idle(Idle::Held),
            None if self.isolated.contains(cpu) => Mark::Idle(Idle::Isolated),
            None => Mark::Idle(Idle::Free),
        }
    }
}

/// A mark longer than this would widen every cell; then the threads are counted instead of named.
const LONGEST: usize = 10;

/// `v0+e`, `v0-3+i1`, and for too many to name `12v+2i+e`.
pub(super) fn names(threads: &[Who]) -> String {
    let ids = |pick: fn(&Who) -> Option<u32>| threads.iter().filter_map(pick).collect::<CpuSet>();
    let vcpus = ids(|who| if let Who::Vcpu(id) = who { Some(*id) } else { None });
    let iothreads = ids(|who| if let Who::IoThread(id) = who { Some(*id) } else { None });
    let emulator = threads.contains(&Who::Emulator).then(|| "e".to_owned());
    let join = |vcpus: Option<String>, iothreads: Option<String>| {
        let parts: Vec<String> = [vcpus, iothreads, emulator.clone()].into_iter().flatten().collect();
        parts.join("+")
    };
    let some = |set: &CpuSet, text: String| (!set.is_empty()).then_some(text);
    let named = join(some(&vcpus, format!("v{vcpus}")), some(&iothreads, format!("i{iothreads}")));
    match named.chars().count() <= LONGEST {
        true => named,
        false => {
            let (v, i) = (vcpus.len(), iothreads.len());
            join(some(&vcpus, format!("{v}v")), some(&iothreads, format!("{i}i")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_named_while_they_fit_and_counted_beyond() {
        assert_eq!(names(&[Who::Vcpu(0)]), "v0");
        assert_eq!(names(&[Who::Vcpu(0), Who::IoThread(1), Who::Emulator]), "v0+i1+e");
        assert_eq!(names(&(0..96).map(Who::Vcpu).collect::<Vec<_>>()), "v0-95");
        let odd: Vec<Who> = (0..40).step_by(3).map(Who::Vcpu).chain([Who::Emulator]).collect();
        assert_eq!(names(&odd), "14v+e");
    }
}
