use std::cell::RefCell;
use std::path::Path;

use tempfile::TempDir;
use vmprof_profiles::Source;
use vmprof_vmm::thread::ThreadError;

use super::*;
use crate::places::Places;
use crate::profile::Host;
use crate::run::record::{self, OwnRecord, Run};

const PROFILE: &str = "/- kdl-version 2\nprofile t { guest \"g.kdl\"; vcpu 1 { vcpupin none }; memory \"64MiB\"; \
                       iothreads 2 { iothreadpin none }; }";

struct Stage {
    tuned: Tuned,
    places: Places,
    _own: OwnRecord,
    _directory: TempDir,
}

/// A run whose vCPU is on CPU 0 and whose IOThreads are on 1 and 2, of four that it may use.
fn stage() -> Stage {
    let directory = TempDir::new().unwrap();
    let below = |name: &str| directory.path().join(name);
    let places =
        Places { store: below("store"), state: below("state"), runtime: below("run"), lab: below("lab") };
    let profile = vmprof_profiles::read_profile("t.kdl", PROFILE).unwrap().0;
    let host = Host::of(&Source::Live, &profile, None, vmprof_profiles::Ledger::default());
    let mut plan = host.plan(&profile).unwrap();
    plan.vcpus[0].cpus = CpuSet::of(0);
    let mut iothreads = Vec::new();
    for (id, iothread) in (0..).zip(&mut plan.iothreads) {
        iothread.cpus = CpuSet::of(id + 1);
        let named = IoThread::named(id, &iothread.name);
        iothreads.push(IoThread { cpus: vec![id + 1], ..named });
    }
    let planned = |(name, cpus): (String, CpuSet)| PlannedThread { name, cpus: cpus.to_string() };
    let threads: Vec<_> = plan.threads().into_iter().map(planned).collect();
    let own = OwnRecord::claim(&places, "t").unwrap();
    let held = pinned(&threads).to_string();
    let kept = Kept::new(own.write(Run::new("t", Path::new("t.kdl"), "kvm", held, vec![])).unwrap());
    let in_force = InForce { plan: plan.to_json(), threads, iothreads };
    let tuned = Tuned::new(in_force, "0-3".parse().unwrap(), kept);
    Stage { tuned, places, _own: own, _directory: directory }
}

impl Stage {
    fn held(&self) -> CpuSet {
        record::running(&self.places)[0].cpus.parse().unwrap()
    }

    /// The plan in force, the thread that `verify` looks for, and the IOThread, each with its CPUs.
    fn seen(&self) -> [String; 3] {
        let InForce { plan, threads, iothreads } = self.tuned.in_force();
        let plan = Plan::from_json(&plan).unwrap();
        let thread = threads.iter().find(|thread| thread.name == "IO iothread1").unwrap();
        let configured: CpuSet = iothreads[1].cpus.iter().copied().collect();
        [plan.iothreads[1].cpus.to_string(), thread.cpus.clone(), configured.to_string()]
    }
}

fn move_to(cpus: &str) -> IothreadSet {
    IothreadSet { id: "1".into(), cpuset: Some(cpus.into()), ..IothreadSet::default() }
}

#[test]
fn a_change_is_in_the_plan_the_threads_and_the_record_and_while_it_moves_both_places_are_held() {
    let stage = stage();
    assert_eq!(stage.held().to_string(), "0-2");
    let asked = IothreadSet { poll_max_ns: Some(5_000), latency: Some(true), ..move_to("3") };
    let told = RefCell::new(None);
    let retuned = stage.tuned.change(
        &asked,
        |_| false,
        |id, change| {
            assert_eq!(stage.held().to_string(), "0-3");
            assert_eq!(stage.seen(), ["2", "2", "2"], "not before it is done");
            told.replace(Some((id, change)));
            Ok(Unmoved(vec![7]))
        },
    );
    let retuned = retuned.unwrap();
    assert_eq!((retuned.id.as_str(), retuned.before.cpuset.as_str()), ("iothread1", "2"));
    assert_eq!((retuned.after.cpuset.as_str(), retuned.after.poll_max_ns), ("3", 5_000));
    assert!(retuned.after.latency && !retuned.before.latency);
    assert_eq!(retuned.unmoved_workers, [7]);
    let (id, change) = told.into_inner().unwrap();
    assert_eq!((id, change.place.unwrap()), (1, Place { cpus: vec![3], shares_cpus: false }));
    assert_eq!((change.polling.unwrap().max_ns, change.latency), (5_000, Some(true)));
    assert_eq!(stage.seen(), ["3", "3", "3"]);
    assert_eq!(stage.held().to_string(), "0-1,3");
    let plan = Plan::from_json(&stage.tuned.in_force().plan).unwrap();
    assert_eq!(plan.iothreads[1].poll_max_ns, 5_000);
    // Onto the vCPU's CPU, where it has to see who gives way.
    let shared = |_, change: Change| {
        assert!(change.place.unwrap().shares_cpus);
        Ok(Unmoved::default())
    };
    stage.tuned.change(&move_to("0,3"), |_| true, shared).unwrap();
    assert_eq!(stage.held().to_string(), "0-1", "one that has two CPUs holds none");
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_done_and_what_fails_leaves_all_as_it_was() {
    let stage = stage();
    let never = |_, _| -> Result<Unmoved, IoThreadError> { panic!("applied") };
    for (wrong, said) in [
        (move_to("4"), "CPU 4 is none that this VM's process may use, which are 0-3"),
        (move_to("2-9"), "CPU 4-9 is none"),
        (move_to(""), "at least one CPU"),
        (move_to("x"), "`x` is no CPU set"),
        (
            IothreadSet { id: "iothread7".into(), ..move_to("3") },
            "no IOThread `iothread7`, but iothread0, iothread1",
        ),
    ] {
        let error = stage.tuned.change(&wrong, |_| false, never).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
    // Nothing to do.
    let same = stage.tuned.change(&move_to("2"), |_| false, never).unwrap();
    assert_eq!(same.before, same.after);

    let refused = |_, _| {
        let source = ThreadError::Drifted { name: "IO iothread1".into(), asked: vec![3], found: vec![2] };
        Err(IoThreadError::Moved { name: "iothread1".into(), source })
    };
    let error = stage.tuned.change(&move_to("3"), |_| false, refused).unwrap_err();
    assert!(error.contains("stays where it was: thread `IO iothread1`"), "{error}");
    assert_eq!(stage.seen(), ["2", "2", "2"]);
    assert_eq!(stage.held().to_string(), "0-2");
}
