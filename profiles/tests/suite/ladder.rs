//! The ladder, step by step: what fits is placed well, and what does not costs what the warning says.

use vmprof_profiles::{CpuSet, Held, Ledger, Storage, Topology, plan};

use crate::fixtures::source;
use crate::host::{HostSpec, NodeSpec, codes, layout, node, planned, set, with};

type Row = (
    &'static str,
    HostSpec,
    &'static str,
    (&'static str, &'static str, &'static str),
    &'static [&'static str],
);

fn smt(nodes: Vec<NodeSpec>) -> HostSpec {
    HostSpec { threads: 2, ..HostSpec::of(nodes) }
}

#[test]
fn each_step_is_taken_only_when_the_cheaper_ones_do_not_do() {
    let two = || HostSpec::of(vec![node(0, 4), node(1, 4)]);
    let rows: Vec<Row> = vec![
        ("room for all", two(), "vcpu 2\niothreads 1", ("1 2", "3", "0"), &[]),
        (
            "IOThread on the emulator's sibling",
            smt(vec![node(0, 3)]),
            "vcpu 2\niothreads 1",
            ("1 2", "3", "0"),
            &[],
        ),
        ("(a) emulator away", two(), "vcpu 2\niothreads 2", ("0 1", "2 3", "4"), &["emulator_on_other_node"]),
        (
            "(b) emulator shares",
            HostSpec::of(vec![node(0, 4)]),
            "vcpu 2\niothreads 2",
            ("0 1", "2 3", "2"),
            &["emulator_shares_iothread"],
        ),
        (
            "(c) fewer IOThreads",
            HostSpec::of(vec![node(0, 4)]),
            "vcpu 3\niothreads auto min=2",
            ("0 1 2", "3", "3"),
            &["emulator_shares_iothread", "fewer_iothreads"],
        ),
        (
            "(d) IOThreads away",
            two(),
            "vcpu 3\niothreads 2",
            ("0 1 2", "3 4", "5"),
            &["emulator_on_other_node", "iothread_on_other_node"],
        ),
        (
            "(e) siblings",
            smt(vec![node(0, 4)]),
            "vcpu 6\niothreads 1",
            ("1 2 3 5 6 7", "4", "0"),
            &["vcpus_on_siblings"],
        ),
        (
            "(e) spill",
            two(),
            "vcpu 6\niothreads 1",
            ("0 1 2 3 4 5", "6", "7"),
            &["emulator_on_other_node", "iothread_on_other_node", "vcpus_on_other_node"],
        ),
        (
            "(f) beside a vCPU",
            smt(vec![node(0, 2)]),
            "vcpu 3\niothreads 1",
            ("0 1 2", "3", "3"),
            &["emulator_shares_iothread", "vcpus_on_siblings", "iothread_beside_vcpu"],
        ),
        (
            "(f) on a vCPU",
            HostSpec::of(vec![node(0, 2)]),
            "vcpu 2\niothreads 1",
            ("0 1", "0", "0"),
            &["emulator_shares_iothread", "iothread_shares_vcpu"],
        ),
        (
            "(g) vCPUs take turns",
            HostSpec::of(vec![node(0, 2)]),
            "vcpu 3\niothreads 1",
            ("0 1 0", "1", "1"),
            &["emulator_shares_iothread", "iothread_shares_vcpu", "dense_host"],
        ),
        (
            "one CPU",
            HostSpec::of(vec![node(0, 1)]),
            "vcpu 1\niothreads 1",
            ("0", "0", "0"),
            &["emulator_shares_iothread", "iothread_shares_vcpu"],
        ),
    ];
    for (name, spec, nodes, wanted, warnings) in rows {
        let plan = planned(&with(nodes), &spec.source());
        let (vcpus, iothreads, emulator) = layout(&plan);
        assert_eq!((vcpus.as_str(), iothreads.as_str(), emulator.as_str()), wanted, "{name}");
        let steps: Vec<&str> = plan.ladder.iter().filter_map(|s| s.code.rsplit("::").next()).collect();
        assert_eq!(steps, warnings, "{name}");
        assert!(steps.iter().all(|step| codes(&plan).contains(step)), "{name}");
    }
}

#[test]
fn an_auto_count_is_the_least_of_four() {
    for (cores, nodes, count) in [
        (32, "vcpu 4\ndisk d { source file=d; }", 4),
        (32, "vcpu 4\niothreads auto max=3\ndisk d { source file=d; }", 3),
        (32, "vcpu 16\ndisk d { source file=d; }", 8),
        (7, "vcpu 4\ndisk d { source file=d; }", 2),
        (6, "vcpu 4\ndisk d { source file=d; queues 1; }", 1),
        (32, "vcpu 4", 1),
    ] {
        let plan = planned(&with(nodes), &HostSpec::of(vec![node(0, cores)]).source());
        assert_eq!(plan.iothreads.len(), count, "{cores} cores: {nodes}");
        assert!(codes(&plan).is_empty());
    }
}

#[test]
fn everything_goes_to_the_node_of_the_hottest_disk() {
    let nodes = "vcpu 2\niothreads 1\ndisk a { source file=\"/srv/n0/a\"; queues 1; }\ndisk b { source dev=\"/dev/nvme1n1\"; }";
    let plan = planned(&with(nodes), &source("two-nodes"));
    let on: Vec<Option<u32>> = plan
        .vcpus
        .iter()
        .map(|v| v.node)
        .chain(plan.iothreads.iter().map(|i| i.node))
        .chain([plan.emulator.node])
        .collect();
    assert_eq!(on, vec![Some(1); 4]);
    assert_eq!(plan.memory.nodes, Some(set("1")));
    assert_eq!(plan.disks.iter().map(|d| d.node).collect::<Vec<_>>(), [Some(0), Some(1)]);
}

#[test]
fn vcpus_stay_inside_one_cache_and_on_isolated_cores() {
    // Two caches of four: the emulator has a core in the first, so the four vCPUs get the second.
    let spec = HostSpec::of(vec![NodeSpec { l3_cores: 4, ..node(0, 8) }]);
    let (vcpus, iothreads, emulator) = layout(&planned(&with("vcpu 4\niothreads 2"), &spec.source()));
    assert_eq!((vcpus.as_str(), iothreads.as_str(), emulator.as_str()), ("4 5 6 7", "1 2", "0"));
    let spec = HostSpec { isolated: set("2-3,7"), ..spec };
    let (vcpus, iothreads, emulator) = layout(&planned(&with("vcpu 2\niothreads 1"), &spec.source()));
    assert_eq!((vcpus.as_str(), iothreads.as_str(), emulator.as_str()), ("2 3", "7", "0"));
}

#[test]
fn isolate_leaves_siblings_idle() {
    let spec = smt(vec![node(0, 4)]);
    let plan = planned(&with("host { smt isolate; }\nvcpu 6\niothreads 1"), &spec.source());
    let used = plan.threads().into_iter().fold(CpuSet::new(), |all, (_, cpus)| all.or(&cpus));
    assert!(used.is_subset(&set("0-3")), "{used}");
    assert!(codes(&plan).contains(&"dense_host"));
}

#[test]
fn a_pin_on_an_idle_sibling_takes_its_core() {
    let nodes = "host { smt isolate; }\nvcpu 2 { vcpupin { vcpu 0 cpuset=5; }; }\niothreads 1";
    let plan = planned(&with(nodes), &smt(vec![node(0, 4)]).source());
    let (vcpus, iothreads, emulator) = layout(&plan);
    assert_eq!((vcpus.as_str(), iothreads.as_str(), emulator.as_str()), ("5 2", "3", "0"));
}

#[test]
fn the_emulator_without_a_seat_says_so() {
    let nodes = "vcpu 2\niothreads 1 { iothreadpin none; }";
    for (spec, emulator) in [(smt(vec![node(0, 2)]), "2"), (HostSpec::of(vec![node(0, 2)]), "0")] {
        let plan = planned(&with(nodes), &spec.source());
        assert_eq!((layout(&plan).2.as_str(), codes(&plan)), (emulator, vec!["emulator_shares_core"]));
    }
}

#[test]
fn cpus_of_other_vms_are_left_alone() {
    let profile = with("vcpu 2\niothreads 1");
    let topology = HostSpec::of(vec![node(0, 8)]).topology();
    let ledger = Ledger { held: vec![Held { holder: "other".into(), cpus: set("0-3"), pid: None }] };
    let plan = plan(&profile, &topology, &Storage::default(), &ledger).unwrap();
    let (vcpus, iothreads, emulator) = layout(&plan);
    assert_eq!((vcpus.as_str(), iothreads.as_str(), emulator.as_str()), ("5 6", "7", "4"));
}

#[test]
fn unpinned_threads_float_over_all_usable_cpus() {
    let nodes = "host { cpuset \"1-5\"; }\nvcpu 2 { vcpupin none; }\nemulatorpin none\niothreads 2 { iothreadpin none; }";
    let plan = planned(&with(nodes), &source("lab"));
    assert!(plan.threads().iter().all(|(_, cpus)| *cpus == set("1-5")));
    let nodes = "vcpu 2\niothreads 2 { iothreadpin emulator; }";
    let plan = planned(&with(nodes), &source("lab"));
    assert!(plan.iothreads.iter().all(|i| i.cpus == plan.emulator.cpus));
}

#[test]
fn hugepages_are_taken_only_where_enough_are_free() {
    for (free, taken) in [(511, false), (512, true)] {
        let spec = HostSpec::of(vec![NodeSpec { free_2mib: free, ..node(0, 4) }]);
        let text = "profile t { guest g; vcpu 1; memory \"1GiB\" hugepages=auto; }";
        let plan = planned(&crate::host::profile(text), &spec.source());
        assert_eq!(plan.memory.hugepages.is_some(), taken, "{free}");
        assert!(plan.memory.because.contains(&free.to_string()), "{}", plan.memory.because);
    }
}

#[test]
fn memory_that_outgrows_its_node_goes_on_to_the_next() {
    let text = "profile t { guest g; vcpu 1; memory \"6GiB\"; }";
    let plan = planned(&crate::host::profile(text), &source("two-nodes"));
    assert_eq!(plan.memory.nodes, Some(set("0-1")));
    assert_eq!(codes(&plan), ["memory_on_other_node"]);
}

#[test]
fn free_memory_does_not_change_the_digest_and_cpus_do() {
    let profile = with("vcpu 1");
    let digest = |topology: &Topology| {
        plan(&profile, topology, &Storage::default(), &Ledger::default()).unwrap().digest
    };
    let topology = HostSpec::of(vec![node(0, 4)]).topology();
    let mut later = topology.clone();
    later.nodes.get_mut(&0).unwrap().free_bytes = Some(1);
    assert_eq!(digest(&topology), digest(&later));
    assert_ne!(digest(&topology), digest(&HostSpec::of(vec![node(0, 5)]).topology()));
}
