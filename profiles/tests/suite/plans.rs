//! What a plan says beyond where threads sit: pairs, locality, memory, network queues, alternatives, and whether a saved
//! one can still be obeyed.

use vmprof_profiles::{
    CpuSet, Held, Ledger, Line, Mapping, MemoryMode, Net, NetBackend, Plan, Profile, Smt, Storage, Topology,
    Written, host_digest, plan,
};

use crate::host::{HostSpec, NodeSpec, codes, layout, node, set, with};

fn smt(nodes: Vec<NodeSpec>) -> HostSpec {
    HostSpec { threads: 2, ..HostSpec::of(nodes) }
}

fn planned(profile: &Profile, topology: &Topology) -> Plan {
    plan(profile, topology, &Storage::default(), &Ledger::default()).unwrap_or_else(|e| panic!("{e:?}"))
}

fn refused(profile: &Profile, topology: &Topology) -> Vec<(String, String)> {
    let refused = plan(profile, topology, &Storage::default(), &Ledger::default()).unwrap_err();
    let last = |code: &str| code.rsplit("::").next().unwrap_or_default().to_owned();
    refused.problems().iter().map(|p| (last(p.code()), p.message().to_owned())).collect()
}

fn line(number: u32) -> Line {
    Line { number, file: None }
}

/// A value as if a profile had it, for what the language cannot say beside the rest of a test's profile.
pub(crate) fn written<T>(value: T) -> Written<T> {
    Written { value, span: (0, 0).into(), line: line(3) }
}

fn requiring(nodes: &str) -> Profile {
    let mut profile = with(nodes);
    profile.host.smt = Smt::Require;
    profile
}

#[test]
fn require_pairs_the_guests_threads_on_siblings() {
    let topology = smt(vec![node(0, 4)]).topology();
    let plan = planned(&requiring("vcpu 4\niothreads 1"), &topology);
    assert_eq!(layout(&plan).0, "1 5 2 6");
    assert_eq!((plan.guest.threads_per_core, plan.ladder.len()), (2, 0));
    assert!(plan.vcpus[1].because.contains("vcpu 0-1"), "{}", plan.vcpus[1].because);
    assert_eq!(planned(&with("vcpu 4\niothreads 1"), &topology).guest.threads_per_core, 1);
    // The pair of a pinned vCPU goes beside it.
    let pinned = requiring("vcpu 4 { vcpupin { vcpu 2 cpuset=7; }; }\niothreads 1");
    let plan = planned(&pinned, &topology);
    assert_eq!((plan.vcpus[2].cpus.clone(), plan.vcpus[3].cpus.clone()), (set("7"), set("3")));
}

#[test]
fn require_is_refused_where_siblings_cannot_be_had() {
    let four = smt(vec![node(0, 4)]).topology();
    let single = HostSpec::of(vec![node(0, 8)]).topology();
    // What the profile pins itself is kept as written, and said.
    let pins = "vcpu 2 { vcpupin { vcpu 0 cpuset=0; vcpu 1 cpuset=1; }; }";
    for topology in [&four, &single] {
        let plan = planned(&requiring(pins), topology);
        assert_eq!((plan.guest.threads_per_core, codes(&plan)), (2, vec!["pins_part_siblings"]));
    }
    for (nodes, topology) in
        [("vcpu 2", &single), ("vcpu 3", &four), ("vcpu 10", &four), ("vcpu 2 { vcpupin none; }", &four)]
    {
        let problems = refused(&requiring(nodes), topology);
        assert!(problems.iter().all(|(code, _)| code == "no_siblings"), "{nodes}: {problems:?}");
    }
}

#[test]
fn locality_keeps_queues_in_the_cache_of_their_vcpu() {
    // Two caches of four cores; vCPUs and an IOThread in each.
    let topology = HostSpec::of(vec![NodeSpec { l3_cores: 4, ..node(0, 8) }]).topology();
    let pins = |iothreads: &str| {
        let mut profile = with(&format!(
            "vcpu 4 {{ vcpupin {{ vcpu 0 cpuset=0; vcpu 1 cpuset=4; vcpu 2 cpuset=1; vcpu 3 cpuset=5; }}; }}\n{iothreads}\ndisk d {{ source file=d; queues 6; }}"
        ));
        profile.disks[0].mapping = Mapping::Locality;
        profile
    };
    let by = |plan: &Plan| plan.disks[0].virtqueues.iter().map(|v| v.iothread).collect::<Vec<_>>();
    let split = pins("iothreads 2 { iothreadpin { iothread 0 cpuset=6; iothread 1 cpuset=2; }; }");
    let near = planned(&split, &topology);
    // Queue q is vCPU q mod 4's; the even ones are in the first cache, as iothread 1 is.
    assert_eq!(by(&near), [1, 0, 1, 0, 1, 0]);
    assert!(near.disks[0].because.contains("6 in the cache of their vCPU"), "{}", near.disks[0].because);
    let rejected = near.disks[0].rejected.clone().unwrap();
    assert_eq!(rejected.instead, "round robin");
    assert!(rejected.because.contains("virtqueue 0-5"), "{rejected:?}");
    // Both in one cache: the vCPUs there are as near to one as to the other, and so are those that are not.
    let same = pins("iothreads 2 { iothreadpin { iothread 0 cpuset=2; iothread 1 cpuset=3; }; }");
    let same = planned(&same, &topology);
    assert_eq!(by(&same), [0, 1, 0, 1, 0, 1]);
    assert!(codes(&same).contains(&"locality_is_round_robin"));
    // Left to the planner, IOThreads go to the caches of the vCPUs.
    let placed = planned(&pins("iothreads 2"), &topology);
    let caches: Vec<Option<u32>> =
        placed.iothreads.iter().map(|i| topology.cpus[&i.cpus.first().unwrap()].l3).collect();
    assert_eq!(caches.iter().collect::<std::collections::BTreeSet<_>>().len(), 2, "{caches:?}");
}

#[test]
fn locality_without_places_is_round_robin_and_says_so() {
    let topology = HostSpec::of(vec![node(0, 8)]).topology();
    for nodes in ["vcpu 2 { vcpupin none; }\niothreads 2", "vcpu 2\niothreads 2"] {
        let mut profile = with(&format!("{nodes}\ndisk d {{ source file=d; queues 4; }}"));
        profile.disks[0].mapping = Mapping::Locality;
        let plan = planned(&profile, &topology);
        let by: Vec<u32> = plan.disks[0].virtqueues.iter().map(|v| v.iothread).collect();
        assert_eq!(by, [0, 1, 0, 1], "{nodes}");
        assert!(codes(&plan).contains(&"locality_is_round_robin"), "{nodes}");
    }
}

fn memory(nodes: &str, mode: MemoryMode, bytes: u64) -> Profile {
    let mut profile = with("vcpu 1");
    profile.memory.bytes.value = bytes;
    profile.memory.mode = mode;
    profile.memory.nodes = (!nodes.is_empty()).then(|| written(set(nodes)));
    profile
}

#[test]
fn memory_goes_where_the_profile_says_or_not_at_all() {
    let host = HostSpec::of(vec![node(0, 4), node(1, 4), NodeSpec { memory_mib: 0, ..node(2, 2) }]);
    let topology = host.topology();
    let (gib, large) = (1u64 << 30, 6u64 << 30);
    for (nodes, mode, bytes, placed) in [
        ("1", MemoryMode::Strict, gib, "1"),
        ("0-1", MemoryMode::Strict, large, "0-1"),
        ("1", MemoryMode::Preferred, large, "1"),
        ("0-1", MemoryMode::Interleave, gib, "0-1"),
        ("", MemoryMode::Interleave, gib, "0-1"),
        ("", MemoryMode::Strict, large, "0-1"),
    ] {
        let plan = planned(&memory(nodes, mode, bytes), &topology);
        assert_eq!((plan.memory.nodes, plan.memory.mode), (Some(set(placed)), mode), "{nodes} {mode:?}");
    }
    let overflows = planned(&memory("1", MemoryMode::Preferred, large), &topology);
    assert_eq!((codes(&overflows), overflows.ladder.len()), (vec!["memory_overflows"], 0));
    for (nodes, bytes, code) in
        [("7", gib, "no_such_memory_node"), ("2", gib, "no_such_memory_node"), ("0", large, "memory_binding")]
    {
        let problems = refused(&memory(nodes, MemoryMode::Strict, bytes), &topology);
        assert_eq!(
            problems.iter().map(|p| p.0.as_str()).collect::<Vec<_>>(),
            [code],
            "{nodes}: {problems:?}"
        );
    }
    let topology = Topology { allowed_nodes: Some(set("0")), ..topology };
    let problems = refused(&memory("1", MemoryMode::Strict, gib), &topology);
    assert!(problems[0].1.contains("cpuset.mems"), "{problems:?}");
}

#[test]
fn a_cgroup_that_leaves_no_cpu_is_named() {
    let topology = HostSpec::of(vec![node(0, 4)]).topology();
    let topology = Topology { affinity: Some(set("0-3")), cgroup_cpus: Some(set("2-3")), ..topology };
    let plan = planned(&with("vcpu 1\niothreads 1"), &topology);
    assert!(plan.threads().iter().all(|(_, cpus)| cpus.is_subset(&set("2-3"))));
    let barred = refused(&with("vcpu 1 { vcpupin { vcpu 0 cpuset=0; }; }"), &topology);
    assert_eq!(barred[0].0, "cpu_barred");
    assert!(barred[0].1.contains("the cgroup's cpuset is 2-3"), "{barred:?}");
    let nothing = refused(&with("host { cpuset \"0-1\"; }\nvcpu 1"), &topology);
    assert!(nothing[0].1.contains("its cgroup's cpuset is 2-3"), "{nothing:?}");
}

#[test]
fn the_queues_of_a_network_device_are_in_the_order_of_the_standard() {
    let mut profile = with("vcpu 2\niothreads 2");
    profile.nets = vec![Net {
        backend: written(NetBackend::Passt { forwards: Vec::new() }),
        queues: 3,
        queues_line: Some(line(9)),
        queue_size: 256,
        mac: None,
    }];
    let plan = planned(&profile, &HostSpec::of(vec![node(0, 8)]).topology());
    let net = &plan.nets[0];
    let served: Vec<(u32, u32)> = net.virtqueues.iter().map(|v| (v.vq, v.iothread)).collect();
    assert_eq!(served, [(0, 0), (1, 0), (2, 1), (3, 1), (4, 0), (5, 0), (6, 0)]);
    assert_eq!(net.name, "net0");
    assert!(net.because.contains("line 9"), "{}", net.because);
}

#[test]
fn what_could_have_been_instead_is_said_with_the_fact_that_decided() {
    let said = |rejected: &Option<vmprof_profiles::Rejected>| {
        rejected.as_ref().map(|r| format!("{}: {}", r.instead, r.because)).unwrap_or_default()
    };
    let plan = planned(&with("vcpu 3\niothreads 1"), &smt(vec![node(0, 4)]).topology());
    assert_eq!(layout(&plan).0, "1 2 3");
    assert_eq!(said(&plan.vcpus[0].rejected), "CPU 6: it is the sibling of CPU 2, where vcpu 1 runs");
    assert_eq!(said(&plan.vcpus[1].rejected), "CPU 5: it is the sibling of CPU 1, where vcpu 0 runs");
    let plan = planned(&with("vcpu 2\niothreads 2"), &HostSpec::of(vec![node(0, 5), node(1, 5)]).topology());
    assert_eq!(
        said(&plan.iothreads[0].rejected),
        "CPU 5 (node 1): node 1 is 21 away from node 0, where the VM lives"
    );
    // Free cores as good as its own are no news; what lies beside a vCPU is, at home and for who had to leave.
    let plan_of = |cores: u32| {
        planned(&with("vcpu 2\niothreads 1"), &smt(vec![node(0, cores), node(1, cores)]).topology())
    };
    let (roomy, full) = (plan_of(8), plan_of(2));
    assert_eq!(layout(&roomy), ("1 2".into(), "3".into(), "0".into()));
    assert_eq!(said(&roomy.iothreads[0].rejected), "CPU 17: it is the sibling of CPU 1, where vcpu 0 runs");
    assert_eq!(said(&roomy.emulator.rejected), "CPU 17: it is the sibling of CPU 1, where vcpu 0 runs");
    assert_eq!(layout(&full), ("0 1".into(), "2".into(), "3".into()));
    assert_eq!(said(&full.iothreads[0].rejected), "CPU 4: it is the sibling of CPU 0, where vcpu 0 runs");
    assert_eq!(full.iothreads[0].because, "node 1 is the nearest with room: node 0 has no free core left");
    let alone = planned(&with("vcpu 1\niothreads 1"), &HostSpec::of(vec![node(0, 4)]).topology());
    assert_eq!(said(&alone.vcpus[0].rejected), "CPU 3: it is as good, and CPU 1 comes first");
    assert_eq!(said(&plan.home.rejected), "node 1: it is no roomier, and node 0 comes first");
    let disk = "vcpu 4\niothreads auto\ndisk data { source file=d; queues 4; }";
    let plan = planned(&with(disk), &HostSpec::of(vec![node(0, 16)]).topology());
    assert_eq!(
        said(&plan.iothread_count.rejected),
        "5: disk `data` has 4 virtqueues: IOThread 4 would serve none"
    );
    let plan = planned(&with("vcpu 1\niothreads 1"), &HostSpec::of(vec![node(0, 1)]).topology());
    assert!(plan.vcpus[0].rejected.is_none() && plan.home.rejected.is_none());
}

#[test]
fn an_emulator_pinned_to_the_whole_host_takes_nothing_from_the_others() {
    let topology = smt(vec![node(0, 8)]).topology();
    let all = planned(&with("vcpu 2\niothreads 1\nemulatorpin cpuset=\"0-15\""), &topology);
    assert_eq!((layout(&all).0.as_str(), layout(&all).1.as_str()), ("0 1", "2"));
    assert_eq!((all.ladder.len(), all.emulator.cpus.to_string()), (0, "0-15".to_owned()));
    assert!(codes(&all).iter().all(|code| *code == "pins_share_cpu"), "{:?}", codes(&all));
    // Where there is room beside its CPUs the others keep off them.
    let some = planned(&with("vcpu 2\niothreads 1\nemulatorpin cpuset=\"0-3,8-11\""), &topology);
    assert_eq!((layout(&some).0.as_str(), codes(&some).len()), ("4 5", 0));
    let pairs = requiring("vcpu 4 { vcpupin { vcpu 0 cpuset=0; }; }\nemulatorpin cpuset=\"0-15\"");
    assert_eq!(layout(&planned(&pairs, &topology)).0, "0 8 1 9");
}

#[test]
fn vcpus_that_the_profile_pins_draw_memory_to_their_node() {
    let topology = HostSpec::of(vec![node(0, 8), node(1, 4)]).topology();
    let pins = "vcpu 2 { vcpupin { vcpu 0 cpuset=9; vcpu 1 cpuset=10; }; }\niothreads 1";
    let plan = planned(&with(pins), &topology);
    assert_eq!(
        (plan.home.node, plan.memory.nodes, plan.iothreads[0].node),
        (Some(1), Some(set("1")), Some(1))
    );
}

fn small() -> (Plan, Topology) {
    let topology = HostSpec::of(vec![node(0, 8)]).topology();
    (planned(&with("vcpu 2\niothreads 2\ndisk d { source file=d; queues 4; }"), &topology), topology)
}

#[test]
fn a_fresh_plan_can_be_obeyed() {
    let (plan, topology) = small();
    assert_eq!(plan.check(&topology, &Ledger::default()), Ok(()));
}

type Edit = fn(&mut Plan);

#[test]
fn a_plan_that_was_edited_badly_is_refused_with_what_is_wrong() {
    let rows: Vec<(&str, Edit)> = vec![
        ("thread_without_cpu", |p| p.vcpus[0].cpus = CpuSet::new()),
        ("no_such_cpu", |p| p.vcpus[1].cpus = set("40")),
        ("cpu_held", |p| p.emulator.cpus = set("7")),
        ("ids_out_of_order", |p| p.vcpus.swap(0, 1)),
        ("wrong_name", |p| p.iothreads[1].name = "fast".into()),
        ("empty_plan", |p| p.iothreads.clear()),
        ("duplicate_disk", |p| {
            let again = p.disks[0].clone();
            p.disks.push(again);
        }),
        ("bad_queues", |p| p.disks[0].queue_size = 100),
        ("bad_queues", |p| p.disks[0].queues = 0),
        ("bad_mapping", |p| p.disks[0].virtqueues.truncate(3)),
        ("bad_mapping", |p| p.disks[0].virtqueues[1].vq = 0),
        ("bad_mapping", |p| p.disks[0].virtqueues[1].vq = 4_000_000),
        ("bad_mapping", |p| p.disks[0].virtqueues.swap(1, 2)),
        ("out_of_range", |p| p.memory.bytes = 0),
        ("out_of_range", |p| p.memory.bytes += 1),
        ("out_of_range", |p| p.guest.threads_per_core = 0),
        ("out_of_range", |p| p.guest.threads_per_core = 3),
        ("out_of_range", |p| p.disks[0].logical_block_bytes = Some(513)),
        ("out_of_range", |p| p.disks[0].physical_block_bytes = Some(1 << 17)),
        ("out_of_range", |p| {
            let last = p.vcpus[0].clone();
            p.vcpus = (0..255).map(|id| vmprof_profiles::VcpuPlan { id, ..last.clone() }).collect();
        }),
        ("contradiction", |p| {
            p.disks[0].logical_block_bytes = Some(4096);
            p.disks[0].physical_block_bytes = Some(512);
        }),
        ("contradiction", |p| {
            p.guest.threads_per_core = 2;
            p.vcpus.truncate(1);
        }),
        ("contradiction", |p| p.disks[0].direct = !p.disks[0].direct),
        ("contradiction", |p| p.disks[0].write_cache = false),
        ("contradiction", |p| p.disks[0].cache = vmprof_profiles::CacheMode::Writethrough),
        ("contradiction", |p| p.disks[0].node = Some(7)),
        ("contradiction", |p| p.home.node = Some(1)),
        ("contradiction", |p| p.iothread_count.count = 1),
        ("no_such_iothread", |p| p.disks[0].virtqueues[1].iothread = 2),
        ("no_such_memory_node", |p| p.memory.nodes = Some(set("3"))),
        ("no_hugepages", |p| p.memory.hugepages = Some(vmprof_profiles::PageSize::Mib2)),
    ];
    let ledger = Ledger { held: vec![Held { holder: "other".into(), cpus: set("7"), pid: None }] };
    for (code, edit) in rows {
        let (mut plan, topology) = small();
        edit(&mut plan);
        let faults = plan.check(&topology, &ledger).unwrap_err();
        assert!(faults.iter().any(|f| f.code() == format!("vmprof::plan::{code}")), "{code}: {faults:?}");
    }
}

#[test]
fn affinity_that_shrank_and_memory_that_is_too_small_are_noticed() {
    let (mut plan, topology) = small();
    let less = Topology { affinity: Some(set("0-1")), ..topology.clone() };
    let faults = plan.check(&less, &Ledger::default()).unwrap_err();
    assert!(faults.iter().all(|f| f.code().ends_with("cpu_barred")), "{faults:?}");
    let two = HostSpec::of(vec![node(0, 8), node(1, 1)]).topology();
    plan.memory.bytes = 6 << 30;
    let faults = plan.check(&two, &Ledger::default()).unwrap_err();
    assert!(faults.iter().all(|f| f.code().ends_with("memory_binding")), "{faults:?}");
}

#[test]
fn the_hosts_digest_stays_when_others_come_and_go() {
    let profile = with("vcpu 1");
    let topology = HostSpec::of(vec![node(0, 4)]).topology();
    let storage = Storage::default();
    let held = Ledger { held: vec![Held { holder: "other".into(), cpus: set("3"), pid: None }] };
    let alone = plan(&profile, &topology, &storage, &Ledger::default()).unwrap();
    let beside = plan(&profile, &topology, &storage, &held).unwrap();
    assert_eq!(alone.host.digest, beside.host.digest);
    assert_ne!(alone.digest, beside.digest);
    assert_eq!(alone.host.digest, host_digest(&topology, &storage));
    let mut later = topology.clone();
    let first = later.nodes.get_mut(&0).unwrap();
    first.free_hugepages.insert(2 << 20, 7);
    first.free_bytes = Some(1);
    later.affinity = Some(set("0-2"));
    assert_eq!(host_digest(&later, &storage), alone.host.digest);
    let larger = HostSpec::of(vec![node(0, 5)]).topology();
    assert_ne!(host_digest(&larger, &storage), alone.host.digest);
}
