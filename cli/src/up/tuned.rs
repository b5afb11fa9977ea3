//! What is in force in a machine that runs: the plan, its threads and its IOThreads, as they were planned and as `iothread-set`
//! has changed them since.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmprof_profiles::{CpuSet, Plan};
use vmprof_vmm::config::IoThread;
use vmprof_vmm::iothread::{Change, IoThreadError, Place, Unmoved};

use crate::run::record::Kept;
use crate::run::retune::{IothreadSet, Retuned, Tuning};
use crate::verify::PlannedThread;

/// As whoever asks is told.
#[derive(Debug, Clone)]
pub struct InForce {
    /// JSON.
    pub plan: String,
    pub threads: Vec<PlannedThread>,
    pub iothreads: Vec<IoThread>,
}

#[derive(Debug)]
pub struct Tuned {
    /// Read by requests on several threads, written by the one that changes something.
    in_force: Mutex<InForce>,
    /// Held for a whole change: two would not know what the other found.
    changing: Mutex<()>,
    /// What the process might use when it began.
    allowed: CpuSet,
    kept: Kept,
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tuned {
    pub fn new(in_force: InForce, allowed: CpuSet, kept: Kept) -> Tuned {
        Tuned { in_force: Mutex::new(in_force), changing: Mutex::new(()), allowed, kept }
    }

    pub fn in_force(&self) -> InForce {
        lock(&self.in_force).clone()
    }

    /// Changes an IOThread: `apply` has the thread do it, and `takes_times` says whether one takes times. After an error all is
    /// as it was.
    pub fn change(
        &self,
        set: &IothreadSet,
        takes_times: impl Fn(u32) -> bool,
        apply: impl FnOnce(u32, Change) -> Result<Unmoved, IoThreadError>,
    ) -> Result<Retuned, String> {
        let _alone = lock(&self.changing);
        let InForce { plan, mut threads, mut iothreads } = self.in_force();
        let names: Vec<String> = iothreads.iter().map(|iothread| iothread.name.clone()).collect();
        let Some(iothread) = iothreads.iter_mut().find(|iothread| set.means(iothread.id, &iothread.name))
        else {
            return Err(format!("it has no IOThread `{}`, but {}", set.id, names.join(", ")));
        };
        let before = tuning(iothread, takes_times(iothread.id));
        let cpus = set.cpuset.as_deref().map(|text| self.usable(text)).transpose()?;
        let cpus = cpus.filter(|cpus| cpus.to_string() != before.cpuset);
        let change = Change {
            place: cpus.as_ref().map(|cpus| place(cpus, &threads)),
            polling: set.polling(iothread.polling),
            latency: set.latency.filter(|latency| *latency != before.latency),
        };
        if change == Change::default() {
            let (id, unmoved_workers) = (iothread.name.clone(), Vec::new());
            return Ok(Retuned { id, after: before.clone(), before, unmoved_workers });
        }

        if let Some(place) = &change.place {
            (iothread.cpus, iothread.shares_cpus) = (place.cpus.clone(), place.shares_cpus);
        }
        iothread.polling = change.polling.unwrap_or(iothread.polling);
        let (id, name) = (iothread.id, iothread.name.clone());
        let after = tuning(iothread, change.latency.unwrap_or(before.latency));
        let plan = planned(&plan, iothread, cpus.as_ref())?;
        if let Some(cpus) = &cpus {
            let title = format!("IO {name}");
            let own = threads.iter_mut().filter(|thread| thread.name == title);
            own.for_each(|thread| thread.cpus = cpus.to_string());
        }

        // Others plan around the CPUs of both places while it moves: at no moment may one of them seem free.
        let held: CpuSet = self.kept.run().cpus.parse().unwrap_or_default();
        let moves = cpus.is_some();
        let hold = |cpus: &CpuSet| match moves {
            true => self.kept.keeper().holds(cpus.to_string()),
            false => Ok(()),
        };
        hold(&held.or(&pinned(&threads)))
            .map_err(|error| format!("the run's record cannot be written: {error}"))?;
        let Unmoved(unmoved_workers) = apply(id, change).map_err(|error| {
            // Should that fail as well, others leave a CPU alone that they could have.
            let _ = hold(&held);
            with_causes(&error)
        })?;
        let _ = hold(&pinned(&threads));
        *lock(&self.in_force) = InForce { plan, threads, iothreads };
        Ok(Retuned { id: name, before, after, unmoved_workers })
    }

    fn usable(&self, text: &str) -> Result<CpuSet, String> {
        let asked: CpuSet = text.parse().map_err(|error| format!("`{text}` is no CPU set: {error}"))?;
        if asked.is_empty() {
            return Err("a CPU set has at least one CPU".to_owned());
        }
        let beyond = asked.minus(&self.allowed);
        match beyond.is_empty() {
            true => Ok(asked),
            false => Err(format!(
                "CPU {beyond} is none that this VM's process may use, which are {}",
                self.allowed
            )),
        }
    }
}

fn tuning(iothread: &IoThread, latency: bool) -> Tuning {
    Tuning {
        cpuset: iothread.cpus.iter().copied().collect::<CpuSet>().to_string(),
        poll_max_ns: iothread.polling.max_ns,
        poll_grow: iothread.polling.grow,
        poll_shrink: iothread.polling.shrink,
        latency,
    }
}

/// A vCPU that floats may run everywhere.
fn place(cpus: &CpuSet, threads: &[PlannedThread]) -> Place {
    let vcpus = threads.iter().filter(|thread| thread.name.starts_with("CPU "));
    let shares_cpus = vcpus
        .map(|vcpu| vcpu.cpus.parse().unwrap_or_default())
        .any(|vcpu: CpuSet| vcpu.is_empty() || vcpu.meets(cpus));
    Place { cpus: cpus.iter().collect(), shares_cpus }
}

/// The CPUs that threads have to themselves, as a run's record has them.
fn pinned(threads: &[PlannedThread]) -> CpuSet {
    let sets = threads.iter().map(|thread| thread.cpus.parse().unwrap_or_default());
    sets.filter(|cpus: &CpuSet| cpus.len() == 1).fold(CpuSet::new(), |all, cpus| all.or(&cpus))
}

/// The plan with the IOThread as it is now.
fn planned(plan: &str, iothread: &IoThread, moved: Option<&CpuSet>) -> Result<String, String> {
    let mut plan: Plan = Plan::from_json(plan).map_err(|error| error.to_string())?;
    if let Some(own) = plan.iothreads.iter_mut().find(|own| own.id == iothread.id) {
        own.poll_max_ns = iothread.polling.max_ns;
        (own.poll_grow, own.poll_shrink) = (iothread.polling.grow, iothread.polling.shrink);
        if let Some(cpus) = moved {
            (own.cpus, own.node) = (cpus.clone(), node_of(cpus));
            "moved there while it ran (iothread-set)".clone_into(&mut own.because);
            own.rejected = None;
        }
    }
    Ok(plan.to_json())
}

/// The node that has all of them, where there is one.
fn node_of(cpus: &CpuSet) -> Option<u32> {
    let nodes = fs::read_dir("/sys/devices/system/node").ok()?.flatten();
    nodes.into_iter().find_map(|node| {
        let number = node.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let list = fs::read_to_string(node.path().join("cpulist")).ok()?;
        let own: CpuSet = list.trim().parse().ok()?;
        cpus.is_subset(&own).then_some(number)
    })
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
