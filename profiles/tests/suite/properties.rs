//! What holds for every plan, on hosts and profiles made at random.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use vmprof_profiles::{CpuSet, Held, Ledger, Plan, Profile, Storage, ThreadPins, Topology, plan};

use crate::host::{HostSpec, NodeSpec, codes, with};

fn hosts() -> impl Strategy<Value = HostSpec> {
    let node = (
        0u32..6,
        prop::sample::select(vec![0u32, 2, 3, 4]),
        any::<bool>(),
        prop::sample::select(vec![0u64, 512, 4096]),
    );
    let nodes = prop::collection::vec(node, 1..4);
    let some_cpus = || prop::collection::vec(0u32..24, 0..8).prop_map(CpuSet::from_iter);
    (nodes, 1u32..3, some_cpus(), some_cpus(), prop::option::of(some_cpus())).prop_map(
        |(nodes, threads, offline, isolated, affinity)| {
            let mut nodes: Vec<NodeSpec> = (0u32..)
                .zip(nodes)
                .map(|(id, (cores, l3_cores, nvme, memory_mib))| NodeSpec {
                    id: id * 2,
                    cores,
                    memory_mib,
                    l3_cores,
                    free_2mib: 0,
                    nvme,
                    ..NodeSpec::default()
                })
                .collect();
            // CPU 0 exists, is on and may be used, so that there is always something to plan on.
            nodes[0].cores += 1;
            let affinity = affinity.map(|a| a.or(&CpuSet::of(0)));
            let offline = offline.minus(&CpuSet::of(0));
            HostSpec { nodes, threads, offline, isolated, affinity, ..HostSpec::default() }
        },
    )
}

fn profiles() -> impl Strategy<Value = (Profile, String)> {
    let iothreads = prop::sample::select(vec!["1", "2", "3", "auto", "auto min=2 max=3", "auto max=16"]);
    let smt = prop::sample::select(vec!["prefer", "isolate"]);
    let pins =
        prop::sample::select(vec!["", "vcpupin auto;", "vcpupin none;", "vcpupin { vcpu 0 cpuset=0; };"]);
    let iopins = prop::sample::select(vec!["", "iothreadpin none;", "iothreadpin emulator;"]);
    let disks =
        prop::collection::vec((1u32..6, prop::sample::select(vec!["/srv/n0/a", "/srv/n2/b", "c"])), 0..3);
    (1u32..7, iothreads, smt, pins, iopins, disks).prop_map(|(vcpus, iothreads, smt, pins, iopins, disks)| {
        let disks: String = (0..)
            .zip(disks)
            .map(|(at, (queues, path))| {
                format!("disk d{at} {{ source file=\"{path}\"; queues {queues}; }}\n")
            })
            .collect();
        let text = format!(
            "host {{ smt {smt}; }}\nvcpu {vcpus} {{ {pins} }}\niothreads {iothreads} {{ {iopins} }}\n{disks}"
        );
        (with(&text), text)
    })
}

fn usable(topology: &Topology, ledger: &Ledger) -> CpuSet {
    let allowed = topology.affinity.clone().unwrap_or_else(|| topology.online.clone());
    allowed.and(&topology.online).minus(&ledger.cpus())
}

/// No CPU has two pinned threads unless a diagnostic of the right kind says so.
fn sharing_is_said(
    plan: &Plan,
    profile: &Profile,
    threads: &[(String, CpuSet)],
) -> Result<(), TestCaseError> {
    let floats = |name: &str| {
        let pin = if name.starts_with("CPU ") { &profile.vcpus.pin } else { &profile.iothreads.pin };
        name != "vmprof" && matches!(pin, ThreadPins::Float { .. })
    };
    let mut on: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for (name, cpus) in threads.iter().filter(|(name, _)| !floats(name)) {
        cpus.iter().for_each(|cpu| on.entry(cpu).or_default().push(name));
    }
    for (cpu, names) in on.iter().filter(|(_, names)| names.len() > 1) {
        let count = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
        let (vcpus, iothreads, emulator) = (count("CPU "), count("IO "), count("vmprof"));
        let mut wanted: Vec<&[&str]> = Vec::new();
        if vcpus > 1 {
            wanted.push(&["dense_host", "pins_share_cpu"]);
        }
        if iothreads > 0 && vcpus + iothreads > 1 {
            wanted.push(&["iothread_shares_vcpu", "pins_share_cpu"]);
        }
        if emulator > 0 {
            wanted.push(&["emulator_shares_iothread", "emulator_shares_core", "pins_share_cpu"]);
        }
        for said in wanted {
            prop_assert!(
                codes(plan).iter().any(|c| said.contains(c)),
                "CPU {cpu}: {names:?}, {:?}",
                codes(plan)
            );
        }
    }
    Ok(())
}

fn check(plan: &Plan, profile: &Profile, topology: &Topology, ledger: &Ledger) -> Result<(), TestCaseError> {
    let usable = usable(topology, ledger);
    let threads = plan.threads();
    for (name, cpus) in &threads {
        prop_assert!(!cpus.is_empty(), "{name} has nowhere to run");
        prop_assert!(cpus.is_subset(&usable), "{name} on {cpus}, usable {usable}");
    }
    prop_assert_eq!(plan.vcpus.len(), profile.vcpus.count as usize);
    prop_assert!(!plan.iothreads.is_empty());
    for disk in &plan.disks {
        let vqs: Vec<u32> = disk.virtqueues.iter().map(|v| v.vq).collect();
        prop_assert_eq!(vqs, (0..disk.queues).collect::<Vec<_>>());
        prop_assert!(disk.virtqueues.iter().all(|v| (v.iothread as usize) < plan.iothreads.len()));
    }
    sharing_is_said(plan, profile, &threads)?;
    // Rule 5: an IOThread shares a core with a vCPU only when a diagnostic says that none was left.
    let core = |cpus: &CpuSet| cpus.first().and_then(|cpu| topology.cpus.get(&cpu)).map(|c| c.core);
    let one = |cpus: &CpuSet| cpus.len() == 1;
    let float = |pins: &ThreadPins| matches!(pins, ThreadPins::Float { .. });
    if !float(&profile.vcpus.pin) && !float(&profile.iothreads.pin) {
        let vcpus: BTreeSet<_> = plan.vcpus.iter().filter(|v| one(&v.cpus)).map(|v| core(&v.cpus)).collect();
        if plan.iothreads.iter().filter(|i| one(&i.cpus)).any(|i| vcpus.contains(&core(&i.cpus))) {
            let said =
                ["iothread_beside_vcpu", "iothread_shares_vcpu", "pins_share_cpu", "emulator_shares_core"];
            prop_assert!(codes(plan).iter().any(|code| said.contains(code)), "{:?} {threads:?}", codes(plan));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_keeps_the_rules(spec in hosts(), (profile, text) in profiles(), held in prop::option::of(1u32..6)) {
        let source = spec.source();
        let topology = Topology::read(&source);
        let storage = Storage::read(&source, &profile, &topology, None);
        let held = held.map(|cpu| Held { holder: "other".into(), cpus: CpuSet::of(cpu), pid: None });
        let ledger = Ledger { held: held.into_iter().collect() };
        match plan(&profile, &topology, &storage, &ledger) {
            Ok(first) => {
                check(&first, &profile, &topology, &ledger)?;
                let again = plan(&profile, &Topology::read(&source), &storage, &ledger).unwrap();
                prop_assert_eq!(first.to_json(), again.to_json());
                prop_assert_eq!(Plan::from_json(&first.to_json()).unwrap(), first);
            }
            Err(refused) => prop_assert!(usable(&topology, &ledger).is_empty(), "{text}: {refused:?}"),
        }
    }

    #[test]
    fn round_robin_gives_entry_k_of_n_the_queues_k_and_so_on(queues in 1u32..40, iothreads in 1u32..9) {
        let profile = with(&format!("vcpu 1\niothreads {iothreads}\ndisk d {{ source file=d; queues {queues}; }}"));
        let spec = HostSpec::of(vec![crate::host::node(0, 16)]);
        let plan = crate::host::planned(&profile, &spec.source());
        prop_assert!(plan.disks[0].virtqueues.iter().all(|v| v.iothread == v.vq % iothreads));
    }

    #[test]
    fn cpu_lists_survive_printing(ids in prop::collection::btree_set(0u32..3000, 0..60)) {
        let set: CpuSet = ids.iter().copied().collect();
        prop_assert_eq!(set.to_string().parse::<CpuSet>().unwrap(), set.clone());
        prop_assert_eq!(set.iter().collect::<BTreeSet<_>>(), ids);
    }
}
