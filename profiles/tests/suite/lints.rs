//! Remarks on plans that are right and had better be otherwise: for each a case that it is made for, and one next to it
//! that it is not.

use vmprof_profiles::{
    BlockDevice, DirectIoAlignment, Format, Held, Ledger, Plan, Profile, Storage, StoragePlace, Topology,
    plan,
};

use crate::host::{HostSpec, NodeSpec, codes, node, planned, set, with};
use crate::plans::written;

/// A host, a profile and the storage under it, to be changed a little.
struct Case {
    topology: Topology,
    profile: Profile,
    storage: Storage,
    ledger: Ledger,
}

impl Case {
    fn of(spec: &HostSpec, nodes: &str) -> Case {
        let profile = with(nodes);
        let topology = spec.topology();
        let disks = profile.disks.iter().map(|disk| (disk.name.value.clone(), place())).collect();
        Case { topology, profile, storage: Storage { disks }, ledger: Ledger::default() }
    }

    fn place(mut self, change: impl FnOnce(&mut StoragePlace)) -> Case {
        self.storage.disks.values_mut().for_each({
            let mut change = Some(change);
            move |place| change.take().into_iter().for_each(|change| change(place))
        });
        self
    }

    fn device(mut self, change: impl FnOnce(&mut BlockDevice)) -> Case {
        change(self.topology.block.get_mut("nvme0n1").unwrap());
        self
    }

    fn profile(mut self, change: impl FnOnce(&mut Profile)) -> Case {
        change(&mut self.profile);
        self
    }

    fn held(mut self, cpus: &str) -> Case {
        self.ledger.held.push(Held { holder: "other".into(), cpus: set(cpus), pid: None });
        self
    }

    fn plan(&self) -> Plan {
        plan(&self.profile, &self.topology, &self.storage, &self.ledger).unwrap()
    }
}

fn place() -> StoragePlace {
    StoragePlace {
        device: "nvme0n1".into(),
        node: Some(0),
        filesystem: Some("ext4".into()),
        looks_like: None,
        direct_io: Some(DirectIoAlignment { memory_bytes: 4, offset_bytes: 512 }),
    }
}

fn big() -> HostSpec {
    let nvme = |id| NodeSpec { nvme: true, ..node(id, 16) };
    HostSpec::of(vec![nvme(0), nvme(1)])
}

fn smt() -> HostSpec {
    HostSpec { threads: 2, ..HostSpec::of(vec![NodeSpec { nvme: true, ..node(0, 8) }]) }
}

const DISK: &str = "disk d { source file=\"/srv/n0/d\"; queues 4; }";

/// The code, a case that it is made for, and one that it is not.
fn rows() -> Vec<(&'static str, Case, Case)> {
    let host = |nodes: &str| Case::of(&big(), nodes);
    let disk = |nodes: &str| host(&format!("vcpu 4\niothreads 2\n{nodes}"));
    let cached =
        |cache: &str| disk(&format!("disk d {{ source file=\"/srv/n0/d\"; driver raw cache={cache}; }}"));
    let two = "vcpu 2\niothreads 2\n";
    let mounted = |cache: &str, at: &str| {
        let mount = Some(at.to_owned());
        cached(cache).profile(|profile| {
            let format = Format { filesystem: "ext4".into(), mount };
            profile.disks[0].format = Some(written(format));
        })
    };
    let on = |filesystem: &str, cache: &str| {
        let name = filesystem.to_owned();
        cached(cache).place(|place| {
            place.filesystem = Some(name);
            place.direct_io = None;
        })
    };
    let looped = |cache: &str| cached(cache).device(|device| device.backing_file = Some("/images/d".into()));
    let scheduler = |name: &str, line: &str| {
        disk(&format!("disk d {{ source file=\"/srv/n0/d\"; {line} }}"))
            .device(|device| device.scheduler = Some(name.to_owned()))
    };
    let blocks = |shown: u32, own: u32| {
        disk(DISK)
            .profile(|profile| profile.disks[0].logical_block_bytes = Some(shown))
            .device(|device| device.logical_block_bytes = Some(own))
    };
    vec![
        (
            "iothreads_for_light_load",
            host("vcpu 1\niothreads 2\ndisk d { source file=d; queues 1; }"),
            host("vcpu 2\niothreads 2\ndisk d { source file=d; queues 2; }"),
        ),
        (
            "crowded_host",
            Case::of(&smt(), &format!("vcpu 4\niothreads 2\n{DISK}")).held("4-7,12-15"),
            Case::of(&smt(), &format!("vcpu 4\niothreads 1\n{DISK}")).held("4-7,12-15"),
        ),
        (
            "idle_iothread",
            host(
                "vcpu 4\niothreads 3\ndisk d { source file=d; queues 4; iothread-vq-mapping { iothread 0; iothread 1; }; }",
            ),
            host(
                "vcpu 4\niothreads 2\ndisk d { source file=d; queues 4; iothread-vq-mapping { iothread 0; iothread 1; }; }",
            ),
        ),
        (
            "many_iothreads",
            host("vcpu 4\niothreads 9\ndisk d { source file=d; queues 9; }"),
            host("vcpu 4\niothreads 8\ndisk d { source file=d; queues 9; }"),
        ),
        (
            "vcpus_share_core",
            Case::of(&smt(), "vcpu 2 { vcpupin { vcpu 0 cpuset=1; vcpu 1 cpuset=9; }; }\niothreads 1"),
            Case::of(&smt(), "vcpu 2 { vcpupin { vcpu 0 cpuset=1; vcpu 1 cpuset=10; }; }\niothreads 1"),
        ),
        (
            "iothread_pin_beside_vcpu",
            Case::of(
                &smt(),
                "vcpu 1 { vcpupin { vcpu 0 cpuset=1; }; }\niothreads 1 { iothreadpin { iothread 0 cpuset=9; }; }",
            ),
            Case::of(
                &smt(),
                "vcpu 1 { vcpupin { vcpu 0 cpuset=1; }; }\niothreads 1 { iothreadpin { iothread 0 cpuset=10; }; }",
            ),
        ),
        (
            "floats_on_isolated",
            Case::of(&HostSpec { isolated: set("2-3"), ..smt() }, "vcpu 1\nemulatorpin none"),
            Case::of(
                &HostSpec { isolated: set("2-3"), ..smt() },
                "host { cpuset \"4-7\"; }\nvcpu 1\nemulatorpin none",
            ),
        ),
        (
            "polling_on_shared_cpu",
            Case::of(&HostSpec::of(vec![node(0, 1)]), "vcpu 1\niothreads 1 { poll-max-ns 1000; }"),
            Case::of(&HostSpec::of(vec![node(0, 1)]), "vcpu 1\niothreads 1 { poll-max-ns 0; }"),
        ),
        (
            "iopoll_on_shared_cpu",
            Case::of(
                &HostSpec::of(vec![node(0, 1)]),
                "vcpu 1\niothreads 1\ndisk d { source file=d; driver raw iopoll=on; }",
            ),
            Case::of(
                &HostSpec::of(vec![node(0, 1)]),
                "vcpu 1\niothreads 1\ndisk d { source file=d; driver raw iopoll=off; }",
            ),
        ),
        (
            "not_raw",
            disk(DISK).place(|place| place.looks_like = Some("qcow2".into())),
            disk(DISK).place(|place| place.looks_like = Some("raw".into())),
        ),
        (
            "iothread_far_from_disk",
            host(&format!("host {{ numa node=1; }}\n{two}{DISK}")),
            host(&format!("host {{ numa node=0; }}\n{two}{DISK}")),
        ),
        (
            "memory_far_from_disk",
            host(&format!("{two}{DISK}")).profile(|profile| {
                profile.memory.nodes = Some(written(set("1")));
            }),
            host(&format!("{two}{DISK}")),
        ),
        ("no_direct_io", on("tmpfs", "none"), on("xfs", "none")),
        (
            "no_direct_io",
            cached("directsync").place(|place| {
                place.direct_io = Some(DirectIoAlignment { memory_bytes: 0, offset_bytes: 0 });
            }),
            cached("directsync"),
        ),
        ("double_caching", on("zfs", "writeback"), on("ext4", "writeback")),
        ("double_caching", looped("writethrough"), looped("none")),
        (
            "page_cache_under_database",
            mounted("writeback", "/var/lib/postgresql"),
            mounted("writeback", "/srv/films"),
        ),
        (
            "page_cache_under_database",
            mounted("writethrough", "/var/lib/mysql"),
            mounted("none", "/var/lib/mysql"),
        ),
        ("scheduler_on_nvme", scheduler("bfq", ""), scheduler("bfq", "scheduler host=bfq;")),
        ("scheduler_on_nvme", scheduler("mq-deadline", ""), scheduler("none", "")),
        ("small_blocks", blocks(512, 4096), blocks(4096, 4096)),
        (
            "queues_beyond_hardware",
            disk(DISK).device(|device| device.queues = Some(2)),
            disk(DISK).device(|device| device.queues = Some(4)),
        ),
    ]
}

#[test]
fn each_lint_is_made_for_its_case_and_not_for_the_next() {
    for (at, (code, fires, silent)) in rows().into_iter().enumerate() {
        let (fires, silent) = (fires.plan(), silent.plan());
        assert!(codes(&fires).contains(&code), "row {at}, {code}: {:?}", codes(&fires));
        assert!(!codes(&silent).contains(&code), "row {at}, {code}: {:?}", codes(&silent));
        let remark = fires.diagnostics.iter().find(|d| d.code.ends_with(code)).unwrap();
        assert!(!remark.message.is_empty() && !remark.help.is_empty());
    }
}

#[test]
fn a_crowded_host_names_who_crowds_it() {
    let plan = Case::of(&smt(), &format!("vcpu 4\niothreads 2\n{DISK}")).held("4-7,12-15").plan();
    let remark = plan.diagnostics.iter().find(|d| d.code.ends_with("crowded_host")).unwrap();
    assert!(remark.message.contains("`other`") && remark.help.contains("3.1 %"), "{remark:?}");
}

#[test]
fn shipped_profiles_on_a_good_host_are_not_nagged() {
    for name in ["db", "hello"] {
        let text = crate::host::text_of(&format!("{name}.kdl"));
        let profile = crate::host::profile(&text);
        let disks = profile.disks.iter().map(|disk| (disk.name.value.clone(), place())).collect();
        let topology = big().topology();
        let plan = plan(&profile, &topology, &Storage { disks }, &Ledger::default()).unwrap();
        assert_eq!(codes(&plan), Vec::<&str>::new(), "{name}");
    }
}

#[test]
fn what_holds_of_many_disks_is_said_once() {
    let disks: String = (0..7)
        .map(|at| format!("disk d{at} {{ source file=d{at}; iothread-vq-mapping locality; }}\n"))
        .collect();
    let plan =
        planned(&with(&format!("vcpu 2\niothreads 2\n{disks}")), &HostSpec::of(vec![node(0, 8)]).source());
    assert_eq!(codes(&plan), ["locality_is_round_robin"]);
    let message = &plan.diagnostics[0].message;
    assert!(message.starts_with("disk `d0` asks for `locality`"), "{message}");
    assert!(message.ends_with("; likewise `d1`, `d2`, `d3`, `d4` and 2 more"), "{message}");
}
