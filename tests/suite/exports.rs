//! Exports, shown to the programs they are for: QEMU starts the exported command and is asked what it made of it; libvirt's
//! own schema judges the domain XML. Both programs are realised into the tests' store, so no machine needs them installed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use vmprof_profiles::export::{BootFiles, libvirt, qemu};
use vmprof_profiles::{
    Aio, EmulatorPin, ErrorPolicy, Forward, HostWish, Hugepages, Ledger, MemoryMode, NetBackend, NetPlan,
    PageSize, Plan, Profile, Protocol, Source, Storage, ThreadPins, Topology, Virtqueue, plan, read_profile,
};
use vmprof_tests::libvirt_schema::{is_valid, valid};
use vmprof_tests::qemu::Machine;
use vmprof_tests::{checkout, finish};

/// The plan of a profile with these nodes on this very machine: its nodes are the ones QEMU can bind memory to.
fn planned(nodes: &str) -> Plan {
    let text = format!("profile trial {{\n guest \"g.kdl\"\n memory \"64MiB\"\n{nodes}\n}}\n");
    let (profile, _) = read_profile("trial.kdl", &text).expect("the profile is right");
    resolved(&profile)
}

fn resolved(profile: &Profile) -> Plan {
    let source = Source::Live;
    let topology = Topology::read(&source);
    let storage = Storage::read(&source, profile, &topology, None);
    plan(profile, &topology, &storage, &Ledger::default()).expect("the profile can be planned here")
}

/// Everything that QEMU can be asked about, against the plan.
fn assert_agreement(machine: &mut Machine, plan: &Plan) {
    let threads = machine.ask("query-iothreads", json!({}));
    let mut said: Vec<(String, u64)> = threads
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["id"].as_str().unwrap().to_owned(), t["poll-max-ns"].as_u64().unwrap()))
        .collect();
    let planned: Vec<(String, u64)> =
        plan.iothreads.iter().map(|i| (i.name.clone(), i.poll_max_ns)).collect();
    // QEMU lists them in an order of its own.
    said.sort();
    assert_eq!(said, planned);
    for thread in threads.as_array().unwrap() {
        let plan = plan.iothreads.iter().find(|i| thread["id"] == *i.name).unwrap();
        for (factor, said) in [(plan.poll_grow, "poll-grow"), (plan.poll_shrink, "poll-shrink")] {
            // What is built in is QEMU's own: 0 in old ones, 2 in 11.1.
            assert!(factor == 0 || thread[said] == factor, "{}: {said}: {thread}", plan.name);
        }
        let comm = format!("/proc/{}/task/{}/comm", machine.pid(), thread["thread-id"]);
        let name = std::fs::read_to_string(comm).unwrap();
        assert_eq!(name.trim_end(), format!("IO {}", thread["id"].as_str().unwrap()));
    }
    assert_eq!(machine.ask("query-cpus-fast", json!({})).as_array().unwrap().len(), plan.vcpus.len());

    let memory = machine.ask("query-memdev", json!({}))[0].clone();
    assert_eq!(memory["size"], plan.memory.bytes);
    if let Some(nodes) = &plan.memory.nodes {
        assert_eq!(
            (&memory["policy"], &memory["host-nodes"]),
            (&json!("bind"), &json!(nodes.iter().collect::<Vec<_>>()))
        );
    }

    let nodes = machine.ask("query-named-block-nodes", json!({}));
    for disk in &plan.disks {
        let mut wanted: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for queue in &disk.virtqueues {
            wanted.entry(plan.iothreads[queue.iothread as usize].name.clone()).or_default().push(queue.vq);
        }
        let wanted: Vec<Value> =
            wanted.into_iter().map(|(iothread, vqs)| json!({ "iothread": iothread, "vqs": vqs })).collect();
        let name = &disk.name;
        assert_eq!(machine.property(name, "iothread-vq-mapping"), json!(wanted));
        for (property, value) in [
            ("num-queues", json!(disk.queues)),
            ("queue-size", json!(disk.queue_size)),
            ("serial", json!(name)),
            ("write-cache", json!(if disk.write_cache { "on" } else { "off" })),
            ("rerror", json!(disk.rerror.word())),
            ("werror", json!(disk.werror.word())),
        ] {
            assert_eq!(machine.property(name, property), value, "{name}: {property}");
        }
        for (property, bytes) in [
            ("logical_block_size", disk.logical_block_bytes),
            ("physical_block_size", disk.physical_block_bytes),
        ] {
            if let Some(bytes) = bytes {
                assert_eq!(machine.property(name, property), json!(bytes), "{name}: {property}");
            }
        }
        let node = nodes.as_array().unwrap().iter().find(|node| node["node-name"] == **name).unwrap();
        assert_eq!(node["cache"]["direct"], disk.direct, "{name}");
        assert_eq!(node["cache"]["no-flush"], disk.cache.word() == "unsafe", "{name}");
        assert_eq!(node["ro"], disk.readonly, "{name}");
    }
}

fn empty_files(directory: &Path, names: &[&str]) {
    for name in names {
        std::fs::File::create(directory.join(name)).unwrap().set_len(16 << 20).unwrap();
    }
}

fn files(directory: &Path) -> BootFiles {
    BootFiles { disks_dir: Some(directory.to_owned()), ..BootFiles::default() }
}

#[test]
fn qemu_starts_the_exported_command_and_has_made_of_it_what_the_plan_says() {
    let directory = tempfile::tempdir().unwrap();
    empty_files(directory.path(), &["a database's.raw", "logs.raw", "old.raw", "scratch.raw", "image.raw"]);
    let database = "vcpu 4\niothreads 2\ndisk data { source file=\"a database's.raw\"; driver raw cache=none aio=io_uring; queues 4; }";
    let mixed = "vcpu 3\niothreads 3 { poll-max-ns 0 }
        disk logs { source file=\"logs.raw\"; driver raw cache=directsync aio=native; queues 1 size=1024; }
        disk old { source file=\"old.raw\"; driver raw cache=writethrough aio=threads; readonly; queues 2; }
        disk scratch { source file=\"scratch.raw\"; driver raw cache=unsafe; queues 6; }
        disk image { source file=\"image.raw\"; driver raw cache=writeback; }";
    let exact = "vcpu 2\niothreads 2 { poll-max-ns 12345; poll-grow 3; poll-shrink 4; }
        disk data { source file=\"logs.raw\"; queues 4; iothread-vq-mapping { iothread 1 vqs=\"0,3\"; iothread 0 vqs=\"1-2\"; } }";
    let mut sizes = planned(mixed);
    sizes.disks[0].logical_block_bytes = Some(4096);
    sizes.disks[0].physical_block_bytes = Some(16384);
    sizes.disks[2].discard = true;
    sizes.disks[2].rerror = ErrorPolicy::Stop;
    sizes.disks[2].werror = ErrorPolicy::Enospc;
    sizes.disks[3].rerror = ErrorPolicy::Ignore;
    sizes.disks[3].werror = ErrorPolicy::Stop;
    for plan in [planned(database), planned(mixed), planned(exact), sizes] {
        let exported = qemu(&plan, &files(directory.path()));
        let mut machine = Machine::start(&exported.text, directory.path());
        assert_agreement(&mut machine, &plan);
        machine.quit();
    }
}

#[test]
fn qemu_has_a_place_for_each_of_many_disks_and_for_boot_files() {
    let directory = tempfile::tempdir().unwrap();
    let mut nodes = "vcpu 1\niothreads 2\n".to_owned();
    for index in 0..40 {
        let name = format!("d{index}.raw");
        empty_files(directory.path(), &[&name]);
        nodes.push_str(&format!("disk d{index} {{ source file=\"{name}\"; queues 2; }}\n"));
    }
    empty_files(directory.path(), &["kernel", "initramfs", "root"]);
    let boot = |name: &str| Some(directory.path().join(name));
    // A kernel is more than zeroes; only its header is looked at before the guest runs.
    let mut header = vec![0; 1 << 20];
    header[0x1f1] = 1;
    header[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    header[0x202..0x208].copy_from_slice(b"HdrS\x0c\x02");
    header[0x211] = 1;
    // The highest address an initramfs may end at.
    header[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    std::fs::write(directory.path().join("kernel"), header).unwrap();
    let files = BootFiles {
        kernel: boot("kernel"),
        initramfs: boot("initramfs"),
        root: boot("root"),
        cmdline: Some("console=ttyS0 panic=-1 quiet".to_owned()),
        ..files(directory.path())
    };
    let plan = planned(&nodes);
    let mut machine = Machine::start(&qemu(&plan, &files).text, directory.path());
    assert_agreement(&mut machine, &plan);
    let root = machine.property("vmprof-root", "iothread-vq-mapping");
    assert_eq!(root, json!([{ "iothread": "iothread0", "vqs": [0] }]));
    machine.quit();
}

#[test]
fn the_pins_that_the_warning_gives_are_the_plans_once_they_are_run() {
    let directory = tempfile::tempdir().unwrap();
    empty_files(directory.path(), &["d.raw"]);
    let plan = planned("vcpu 1\niothreads 2\ndisk d { source file=\"d.raw\"; queues 2; }");
    let exported = qemu(&plan, &files(directory.path()));
    let machine = Machine::start(&exported.text, directory.path());
    let pins = exported.warnings.iter().find(|w| w.code == "vmprof::export::qemu_pins").unwrap();
    let script: Vec<&str> = pins.help.lines().skip(1).collect();
    let pid = machine.pid();
    finish(Command::new("sh").args(["-c", &script.join("\n")]).env("PID", pid.to_string()));
    let mut seen = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        // A thread of QEMU's pool may have ended since it was listed.
        let Ok(name) = std::fs::read_to_string(task.path().join("comm")) else { continue };
        // A vCPU is called `CPU 0/KVM` only where KVM runs it; here it is the emulator's.
        let Some(thread) = plan.iothreads.iter().find(|i| name.trim_end() == format!("IO {}", i.name)) else {
            continue;
        };
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
        assert_eq!(allowed.trim(), thread.cpus.to_string(), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 2);
    machine.quit();
}

/// A plan that says everything that a plan can say.
fn everything() -> Plan {
    let mut plan = planned(
        "vcpu 4\niothreads 2\ndisk \"0.data_x-1\" { source file=\"it's <&>.raw\" size=\"1GiB\"; driver raw cache=unsafe; queues 2 size=2; }
         disk logs { source dev=\"/dev/nvme0n1\"; driver raw aio=native; queues 3; readonly; }",
    );
    plan.guest.threads_per_core = 2;
    plan.memory.hugepages = Some(PageSize::Mib2);
    plan.memory.nodes = Some("0-1".parse().unwrap());
    let disk = &mut plan.disks[0];
    (disk.discard, disk.aio_fallback) = (true, Some(Aio::Threads));
    (disk.rerror, disk.werror) = (ErrorPolicy::Stop, ErrorPolicy::Enospc);
    (disk.logical_block_bytes, disk.physical_block_bytes) = (Some(4096), Some(16384));
    let net = |name: &str, backend, mac: Option<&str>| NetPlan {
        name: name.into(),
        backend,
        queues: 2,
        queue_size: 512,
        mac: mac.map(str::to_owned),
        virtqueues: vec![Virtqueue { vq: 0, iothread: 1 }],
        because: String::new(),
    };
    let forwards = vec![
        Forward { protocol: Protocol::Tcp, host: 2222, guest: 22 },
        Forward { protocol: Protocol::Udp, host: 5353, guest: 53 },
    ];
    plan.nets = vec![
        net("net0", NetBackend::Passt { forwards }, None),
        net("net1", NetBackend::Tap { name: "tap7".into() }, Some("52:54:00:00:00:07")),
    ];
    plan
}

#[test]
fn libvirts_schema_takes_every_exported_domain() {
    let directory = tempfile::tempdir().unwrap();
    let files = BootFiles {
        kernel: Some("/store/kernel".into()),
        initramfs: Some("/store/initramfs".into()),
        root: Some("/store/root.squashfs".into()),
        cmdline: Some("console=ttyS0 a=\"<&>\"".to_owned()),
        disks_dir: Some(directory.path().to_owned()),
    };
    let mut plans = vec![everything(), planned("vcpu 1\niothreads 1")];
    for mode in [MemoryMode::Strict, MemoryMode::Preferred, MemoryMode::Interleave] {
        let mut plan = everything();
        plan.memory.mode = mode;
        plan.memory.hugepages = Some(PageSize::Gib1);
        plans.push(plan);
    }
    let many: String = (0..30).map(|d| format!("disk d{d} {{ source file=\"/srv/{d}\"; }}\n")).collect();
    plans.push(planned(&format!("vcpu 2\n{many}")));
    for plan in &plans {
        is_valid(&libvirt(plan, &files).text);
        is_valid(&libvirt(plan, &BootFiles::default()).text);
    }
}

#[test]
fn a_domain_that_was_imported_and_exported_again_is_still_one() {
    for entry in std::fs::read_dir(checkout().join("profiles/fixtures/domains")).unwrap().flatten() {
        let xml = std::fs::read_to_string(entry.path()).unwrap();
        // What the imports are tested with are domains that libvirt would take.
        is_valid(&xml);
        let imported =
            vmprof_profiles::import::libvirt("domain.xml", &xml).expect("the domain can be imported");
        // The pins, nodes and siblings are those of another host.
        let (mut profile, _) = read_profile("imported.kdl", &imported.profile).expect("an import reads");
        profile.host = HostWish::default();
        profile.vcpus.pin = ThreadPins::Auto;
        profile.emulator = EmulatorPin::Auto;
        profile.iothreads.pin = ThreadPins::Auto;
        (profile.memory.nodes, profile.memory.hugepages) = (None, Hugepages::None);
        is_valid(&libvirt(&resolved(&profile), &BootFiles::default()).text);
    }
}

#[test]
fn the_schema_is_one_that_knows_virtqueue_mappings_and_says_no() {
    let domain = libvirt(&everything(), &BootFiles::default()).text;
    for (right, wrong) in [
        ("<queue id=\"0\"/>", "<virtqueue id=\"0\"/>"),
        ("<poll max=\"", "<poll most=\""),
        ("cache=\"unsafe\"", "cache=\"sometimes\""),
        ("<emulatorpin cpuset=\"", "<emulatorpin cpuset=\"all"),
    ] {
        assert!(domain.contains(right), "{right}");
        assert!(valid(&domain.replacen(right, wrong, 1)).is_err(), "{wrong}");
    }
}
