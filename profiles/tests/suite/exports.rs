//! Plans in the words of QEMU and libvirt, as people get them. That the real programs take these words is shown by the
//! end-to-end tests.

use std::path::PathBuf;

use insta::assert_snapshot;
use vmprof_profiles::export::{BootFiles, Exported, libvirt, qemu};
use vmprof_profiles::{
    Aio, ErrorPolicy, Format, Forward, MemoryMode, NetBackend, NetPlan, PageSize, Plan, Protocol, Virtqueue,
};

use crate::fixtures::source;
use crate::host::{planned, profile, text_of, with};

fn plan_of(host: &str, file: &str) -> Plan {
    planned(&profile(&text_of(file)), &source(host))
}

fn disks_dir() -> BootFiles {
    BootFiles { disks_dir: Some(PathBuf::from("/var/disks")), ..BootFiles::default() }
}

fn built() -> BootFiles {
    BootFiles {
        kernel: Some("/store/kernel".into()),
        initramfs: Some("/store/initramfs".into()),
        root: Some("/store/root.squashfs".into()),
        cmdline: Some("console=ttyS0 panic=-1".to_owned()),
        ..disks_dir()
    }
}

/// What is printed on both streams.
fn shown(exported: &Exported) -> String {
    let mut text = exported.text.clone();
    for warning in &exported.warnings {
        text.push_str(&format!(
            "\n{}: {}\n  {}\n",
            warning.code,
            warning.message,
            warning.help.replace('\n', "\n  ")
        ));
    }
    text
}

fn codes(exported: &Exported) -> Vec<&str> {
    exported.warnings.iter().map(|w| w.code.rsplit("::").next().unwrap()).collect()
}

/// A plan that says everything a plan can say.
fn everything() -> Plan {
    let mut plan = planned(
        &with(
            "vcpu 4\niothreads 2\ndisk \"0data\" { source file=\"it's.raw\" size=\"1GiB\"; driver raw cache=unsafe; queues 2 size=2; \
             scheduler host=none guest=mq-deadline; }\ndisk logs { source dev=\"/dev/nvme0n1\"; driver raw aio=native; queues 3; }",
        ),
        &source("two-nodes"),
    );
    plan.guest.threads_per_core = 2;
    plan.memory.hugepages = Some(PageSize::Gib1);
    plan.memory.mode = MemoryMode::Preferred;
    plan.memory.nodes = Some("0-1".parse().unwrap());
    (plan.iothreads[1].poll_grow, plan.iothreads[1].poll_shrink) = (3, 2);
    let disk = &mut plan.disks[0];
    disk.discard = true;
    disk.packed = true;
    disk.iopoll = true;
    disk.aio_fallback = Some(Aio::Threads);
    disk.rerror = ErrorPolicy::Stop;
    disk.werror = ErrorPolicy::Enospc;
    disk.logical_block_bytes = Some(4096);
    disk.physical_block_bytes = Some(16384);
    disk.format = Some(Format { filesystem: "ext4".into(), mount: Some("/srv".into()) });
    let net = |name: &str, backend, queues, queue_size, mac: Option<&str>| NetPlan {
        name: name.into(),
        backend,
        queues,
        queue_size,
        mac: mac.map(str::to_owned),
        virtqueues: vec![Virtqueue { vq: 0, iothread: 1 }],
        because: String::new(),
    };
    let forward = |protocol, host, guest| Forward { protocol, host, guest };
    let forwards = vec![
        forward(Protocol::Tcp, 2222, 22),
        forward(Protocol::Tcp, 8080, 80),
        forward(Protocol::Udp, 5353, 53),
    ];
    plan.nets = vec![
        net("net0", NetBackend::Passt { forwards }, 2, 256, None),
        net("net1", NetBackend::Tap { name: "tap7".into() }, 2, 512, Some("52:54:00:00:00:07")),
    ];
    plan
}

#[test]
fn a_database_for_qemu_and_libvirt() {
    let plan = plan_of("lab", "db.kdl");
    assert_snapshot!("export-db-qemu", shown(&qemu(&plan, &disks_dir())));
    assert_snapshot!("export-db-libvirt", shown(&libvirt(&plan, &disks_dir())));
}

#[test]
fn a_built_guest_is_booted_directly() {
    let plan = plan_of("two-cpus", "hello.kdl");
    assert_snapshot!("export-hello-built-qemu", shown(&qemu(&plan, &built())));
    assert_snapshot!("export-hello-built-libvirt", shown(&libvirt(&plan, &built())));
}

#[test]
fn two_disks_with_modes_of_their_own() {
    let plan = plan_of("smt2", "fixtures/profiles/far-drive.kdl");
    assert_snapshot!("export-far-drive-qemu", shown(&qemu(&plan, &disks_dir())));
    assert_snapshot!("export-far-drive-libvirt", shown(&libvirt(&plan, &disks_dir())));
}

#[test]
fn an_exact_mapping_and_pins() {
    let plan = plan_of("lab", "fixtures/profiles/pinned.kdl");
    assert_snapshot!("export-pinned-qemu", shown(&qemu(&plan, &BootFiles::default())));
    assert_snapshot!("export-pinned-libvirt", shown(&libvirt(&plan, &BootFiles::default())));
}

#[test]
fn everything_that_a_plan_can_say() {
    let plan = everything();
    assert_snapshot!("export-everything-qemu", shown(&qemu(&plan, &disks_dir())));
    assert_snapshot!("export-everything-libvirt", shown(&libvirt(&plan, &disks_dir())));
}

#[test]
fn without_a_build_the_boot_files_are_missing_and_a_warning_says_so() {
    let plan = plan_of("lab", "db.kdl");
    for export in [qemu, libvirt] {
        let without = export(&plan, &disks_dir());
        let with = export(&plan, &built());
        for word in ["kernel", "initr", "vmprof-root", "panic=-1"] {
            assert!(!without.text.contains(word) && with.text.contains(word), "{word}\n{}", with.text);
        }
        assert!(codes(&without).contains(&"not_built") && !codes(&with).contains(&"not_built"));
        assert!(codes(&with).contains(&"first_process"));
        // To build here and export again would change nothing where the plan is for another host.
        let told = |files: &BootFiles| shown(&export(&plan, files)).contains("export there");
        assert!(told(&BootFiles::default()) && !told(&disks_dir()));
    }
}

#[test]
fn a_relative_file_of_a_captured_host_is_said_to_lie_nowhere_known() {
    let plan = plan_of("lab", "db.kdl");
    for (export, path) in [
        (qemu as fn(&Plan, &BootFiles) -> Exported, "\"./db-data.raw\""),
        (libvirt, "/var/lib/libvirt/images/db/db-data.raw"),
    ] {
        let exported = export(&plan, &BootFiles::default());
        assert!(
            exported.text.contains(path) && codes(&exported).contains(&"relative_file"),
            "{}",
            shown(&exported)
        );
        assert!(!codes(&export(&plan, &disks_dir())).contains(&"relative_file"));
    }
}

#[test]
fn every_warning_has_a_next_step_and_a_code_of_this_area() {
    for export in [qemu, libvirt] {
        for warning in export(&everything(), &BootFiles::default()).warnings {
            assert!(warning.code.starts_with("vmprof::export::"), "{}", warning.code);
            assert!(!warning.help.is_empty() && !warning.message.is_empty(), "{}", warning.code);
        }
    }
}

#[test]
fn a_thread_that_may_run_on_every_cpu_has_no_pin() {
    let all = "vcpu 2 { vcpupin none; }\nemulatorpin none\niothreads 1 { iothreadpin none; }";
    let some = all.replace("emulatorpin none", "emulatorpin cpuset=\"1\"");
    let plan = |nodes: &str| planned(&with(nodes), &source("two-cpus"));
    let (floating, held) = (plan(all), plan(&some));
    assert!(!codes(&qemu(&floating, &disks_dir())).contains(&"qemu_pins"));
    assert!(!libvirt(&floating, &disks_dir()).text.contains("cputune"));
    let recipe = shown(&qemu(&held, &disks_dir()));
    assert!(recipe.contains("taskset -c 1") && !recipe.contains("pin 'CPU 0/KVM'"), "{recipe}");
    let domain = libvirt(&held, &disks_dir()).text;
    assert!(domain.contains("<emulatorpin cpuset=\"1\"/>") && !domain.contains("vcpupin"), "{domain}");
}

#[test]
fn a_path_that_no_xml_can_hold_is_a_warning_and_the_document_is_still_one() {
    let mut plan = everything();
    plan.disks[0].source =
        vmprof_profiles::DiskSource::File { path: "/srv/a\u{1}\n\tb.raw".into(), bytes: None };
    let domain = libvirt(&plan, &disks_dir());
    assert!(codes(&domain).contains(&"not_in_xml"), "{}", shown(&domain));
    let document = roxmltree::Document::parse(&domain.text).unwrap();
    let source = document.descendants().find_map(|node| node.attribute("file")).unwrap();
    assert_eq!(source, "/srv/a\u{fffd}\n\tb.raw");
    assert!(!codes(&libvirt(&everything(), &disks_dir())).contains(&"not_in_xml"));
}

/// What a shell makes of the command.
fn words(command: &str) -> Vec<String> {
    let (program, rest) = command.split_once(' ').unwrap();
    assert_eq!(program, "qemu-system-x86_64");
    let output =
        std::process::Command::new("sh").args(["-c", &format!("printf '%s\\0' {rest}")]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    said.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

#[test]
fn the_command_is_one_command_whose_json_is_whole_whatever_a_path_is_called() {
    let mut plan = everything();
    plan.disks[0].source =
        vmprof_profiles::DiskSource::File { path: "/a b/it's \"$HOME\" `x`\\n.raw".into(), bytes: None };
    let words = words(&qemu(&plan, &built()).text);
    let jsons: Vec<serde_json::Value> = words
        .iter()
        .filter(|word| word.starts_with('{'))
        .map(|word| serde_json::from_str(word).unwrap())
        .collect();
    assert!(jsons.iter().any(|json| json["filename"] == "/a b/it's \"$HOME\" `x`\\n.raw"));
    let mapping =
        jsons.iter().find(|json| json["id"] == "logs" && json["driver"] == "virtio-blk-pci").unwrap();
    assert_eq!(
        mapping["iothread-vq-mapping"],
        serde_json::json!([{ "iothread": "iothread0", "vqs": [0, 2] }, { "iothread": "iothread1", "vqs": [1] }])
    );
}
