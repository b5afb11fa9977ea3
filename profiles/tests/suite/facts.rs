//! Each fact of a topology from the files that hold it, and what is said of those that are missing or contradictory.

use std::collections::BTreeMap;

use serde_json::json;
use vmprof_profiles::{Capture, CoreKind, DirectIoAlignment, Ledger, Source, Storage, Topology};

use crate::fixtures;
use crate::host::{HostSpec, NodeSpec, node, planned, set, with};

const CPU: &str = "/sys/devices/system/cpu";
const NODE: &str = "/sys/devices/system/node";

/// A capture of files, written `path=text` with `CPU` and `NODE` for the long directories.
fn files(lines: &[&str]) -> Source {
    host(lines, &[], &[])
}

fn host(lines: &[&str], links: &[(&str, &str)], dirs: &[(&str, &[&str])]) -> Source {
    let files: BTreeMap<String, String> = lines
        .iter()
        .map(|line| {
            let (path, text) = line.split_once('=').unwrap();
            (path.replace("CPU/", &format!("{CPU}/")).replace("NODE/", &format!("{NODE}/")), text.to_owned())
        })
        .collect();
    let links: BTreeMap<&str, &str> = links.iter().copied().collect();
    let dirs: BTreeMap<&str, &[&str]> = dirs.iter().copied().collect();
    let text = json!({ "schema": "vmprof.capture/1", "files": files, "links": links, "dirs": dirs });
    Source::Capture(Capture::from_json(&text.to_string()).unwrap())
}

fn read(lines: &[&str]) -> Topology {
    Topology::read(&files(lines))
}

#[test]
fn dies_are_lists_or_numbers() {
    let listed = read(&[
        "CPU/online=0-7",
        "CPU/cpu0/topology/die_cpus_list=0-3",
        "CPU/cpu4/topology/die_cpus_list=4-7",
        "CPU/cpu0/topology/package_cpus_list=0-7",
        "CPU/cpu0/topology/physical_package_id=3",
    ]);
    assert_eq!(
        (listed.cpus[&2].die, listed.cpus[&7].die, listed.cpus[&7].package),
        (Some(0), Some(4), Some(3))
    );
    let numbered = read(&[
        "CPU/online=0-3",
        "CPU/cpu0/topology/die_id=0",
        "CPU/cpu0/topology/physical_package_id=0",
        "CPU/cpu1/topology/die_id=1",
        "CPU/cpu1/topology/physical_package_id=0",
        "CPU/cpu2/topology/die_id=0",
        "CPU/cpu2/topology/physical_package_id=1",
        "CPU/cpu3/topology/die_id=0",
        "CPU/cpu3/topology/physical_package_id=0",
    ]);
    let dies: Vec<_> = numbered.cpus.values().map(|cpu| cpu.die).collect();
    assert_eq!(dies, [Some(0), Some(1), Some(2), Some(0)]);
}

#[test]
fn old_kernels_have_masks_for_lists() {
    let topology = read(&[
        "CPU/online=0-35",
        "CPU/cpu0/topology/thread_siblings=00000001,00000001",
        "CPU/cpu0/cache/index1/level=1",
        "CPU/cpu0/cache/index2/level=2",
        "CPU/cpu0/cache/index2/shared_cpu_map=00000001,00000003",
        "NODE/online=0",
        "NODE/node0/cpumap=0000000f,ffffffff",
    ]);
    assert_eq!((topology.cpus[&32].core, topology.cpus[&32].l2, topology.cpus[&1].l2), (0, Some(0), Some(0)));
    assert_eq!(topology.nodes[&0].cpus, set("0-35"));
}

#[test]
fn offline_is_what_is_there_and_not_what_could_come() {
    let topology = read(&["CPU/online=0-1,4", "CPU/present=0-5", "CPU/offline=2-3,5-127"]);
    assert_eq!(topology.offline, set("2-3,5"));
    assert_eq!(read(&["CPU/online=0-1", "CPU/offline=2-3"]).offline, set("2-3"));
    assert!(read(&["CPU/online=0-1", "CPU/offline=\n"]).offline.is_empty());
}

#[test]
fn a_null_of_nohz_full_is_none() {
    let topology = read(&["CPU/online=0-7", "CPU/nohz_full=(null)\n", "CPU/isolated=2-3,99\n"]);
    assert!(topology.nohz_full.is_empty());
    assert_eq!(topology.isolated, set("2-3"));
}

#[test]
fn smt8_with_sparse_ids_and_offline_threads() {
    // A POWER machine of two cores, whose second one runs with four of its threads.
    let topology = read(&[
        "CPU/online=8-15,24-27",
        "CPU/present=8-15,24-31",
        "CPU/cpu8/topology/thread_siblings_list=8-15",
        "CPU/cpu24/topology/thread_siblings_list=24-27",
        "CPU/cpu8/topology/physical_package_id=0",
        "CPU/cpu24/topology/physical_package_id=-1",
        "/proc/cpuinfo=processor\t: 8\ncpu\t\t: POWER10, altivec supported\n\nmachine\t: PowerNV\n",
    ]);
    assert_eq!(topology.core_of(27), set("24-27"));
    assert_eq!(
        (topology.cpus.len(), topology.cpus[&15].core, topology.offline.clone()),
        (12, 8, set("28-31"))
    );
    assert_eq!((topology.cpus[&24].package, topology.arch.as_deref()), (None, Some("ppc64le")));
}

#[test]
fn machines_whose_kernels_say_little_are_planned_all_the_same() {
    // s390x has books and drawers above packages; a RISC-V board lists no cache at all.
    let mainframe = [
        "CPU/online=0-3",
        "CPU/cpu0/topology/thread_siblings_list=0-1",
        "CPU/cpu2/topology/thread_siblings_list=2-3",
        "CPU/cpu0/topology/book_siblings_list=0-3",
        "CPU/cpu0/topology/drawer_id=0",
        "CPU/cpu0/cache/index0/level=1",
        "CPU/cpu0/cache/index1/level=1",
        "CPU/cpu0/cache/index2/level=2",
        "CPU/cpu0/cache/index2/shared_cpu_list=0-1",
        "/proc/cpuinfo=vendor_id       : IBM/S390\n# processors    : 4\n",
    ];
    assert_eq!(read(&mainframe).arch.as_deref(), Some("s390x"));
    let board = ["CPU/online=0-3", "/proc/cpuinfo=processor\t: 0\nhart\t: 1\nisa\t: rv64imafdc\n"];
    assert_eq!(read(&board).arch.as_deref(), Some("riscv64"));
    assert!(read(&board).cpus.values().all(|cpu| cpu.l2.is_none() && cpu.l3.is_none()));
    for lines in [&mainframe[..], &board[..]] {
        assert_eq!(planned(&with("vcpu 2\niothreads 1"), &files(lines)).vcpus.len(), 2);
    }
}

#[test]
fn a_unified_first_level_cache_shifts_the_others() {
    let topology = read(&[
        "CPU/online=0-1",
        "CPU/cpu0/cache/index0/level=1",
        "CPU/cpu0/cache/index1/level=2",
        "CPU/cpu0/cache/index1/shared_cpu_list=0-1",
        "CPU/cpu0/cache/index2/level=3",
        "CPU/cpu0/cache/index2/shared_cpu_list=0-1",
    ]);
    assert_eq!((topology.cpus[&1].l2, topology.cpus[&1].l3), (Some(0), Some(0)));
}

#[test]
fn capacities_on_three_levels() {
    let topology = read(&[
        "CPU/online=0-3",
        "CPU/cpu0/cpu_capacity=160",
        "CPU/cpu1/cpu_capacity=498",
        "CPU/cpu2/cpu_capacity=900",
        "CPU/cpu3/cpu_capacity=1024",
    ]);
    let kinds: Vec<_> = topology.cpus.values().map(|cpu| (cpu.kind, cpu.capacity)).collect();
    use CoreKind::{Efficiency, Performance};
    let expected = [(Efficiency, 160), (Efficiency, 498), (Performance, 900), (Performance, 1024)];
    assert_eq!(kinds, expected.map(|(kind, capacity)| (kind, Some(capacity))));
}

#[test]
fn types_of_core_are_known_by_either_list() {
    let types = format!("{CPU}/types");
    let source = host(
        &["CPU/online=0-5", "CPU/types/intel_atom_0/cpulist=4-5", "CPU/types/intel_core_0/cpulist=0-3"],
        &[],
        &[(&types, &["intel_atom_0", "intel_core_0"])],
    );
    let economy = |topology: &Topology| -> Vec<u32> {
        let slow = topology.cpus.iter().filter(|(_, cpu)| cpu.kind == CoreKind::Efficiency);
        slow.map(|(id, _)| *id).collect()
    };
    assert_eq!(economy(&Topology::read(&source)), [4, 5]);
    let units = ["CPU/online=0-5", "/sys/devices/cpu_atom/cpus=2-3", "/sys/devices/cpu_lowpower/cpus=4"];
    assert_eq!(economy(&read(&units)), [2, 3, 4]);
}

#[test]
fn cpusets_of_both_versions() {
    let mounts = "/proc/self/mountinfo=";
    let v2 = "20 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
    let v1 = "31 1 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset";
    let part = "20 1 0:26 /docker/7 /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
    let old = "/sys/fs/cgroup/cpuset";
    for (mount, membership, file, found) in [
        (v2, "0::/a/b", "/sys/fs/cgroup/a/b/cpuset.cpus.effective=1-2\n", Some("1-2")),
        // No cpuset in the cgroup itself: the one above it is in force.
        (v2, "0::/a/b", "/sys/fs/cgroup/a/cpuset.cpus.effective=1-2\n", Some("1-2")),
        (v2, "0::/a/b", "/sys/fs/cgroup/cpuset.cpus.effective=0-3\n", Some("0-3")),
        (v2, "0::/", "/sys/fs/cgroup/cpuset.cpus.effective=0-3\n", Some("0-3")),
        // A wish is not what is in force.
        (v2, "0::/a", "/sys/fs/cgroup/a/cpuset.cpus=1-2\n", None),
        (part, "0::/docker/7/x", "/sys/fs/cgroup/x/cpuset.cpus.effective=3\n", Some("3")),
        (part, "0::/docker/7", "/sys/fs/cgroup/cpuset.cpus.effective=3\n", Some("3")),
        (v1, "4:cpu,cpuset:/vm\n0::/", &format!("{old}/vm/cpuset.effective_cpus=2\n"), Some("2")),
        (v1, "4:cpuset:/vm\n", &format!("{old}/vm/cpuset.cpus=0,3\n"), Some("0,3")),
        (v1, "4:cpu:/vm\n", &format!("{old}/vm/cpuset.cpus=0,3\n"), None),
        (v2, "", "/sys/fs/cgroup/cpuset.cpus.effective=3\n", None),
    ] {
        let topology = read(&[
            "CPU/online=0-3",
            &format!("{mounts}{mount}\n"),
            &format!("/proc/self/cgroup={membership}\n"),
            file,
        ]);
        assert_eq!(topology.cgroup_cpus, found.map(set), "{membership} {file}");
    }
}

#[test]
fn memory_may_come_from_the_nodes_that_both_masks_leave() {
    let lines = [
        "CPU/online=0-3",
        "NODE/online=0-2",
        "NODE/node0/cpulist=0-3",
        "NODE/node1/cpulist=",
        "NODE/node2/cpulist=",
        "/proc/self/status=Mems_allowed_list:\t0-1,7\nCpus_allowed_list:\t1-3\n",
        "/proc/self/cgroup=0::/\n",
        "/proc/self/mountinfo=20 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "/sys/fs/cgroup/cpuset.cpus.effective=0-3\n",
        "/sys/fs/cgroup/cpuset.mems.effective=1-2\n",
    ];
    assert_eq!(read(&lines).allowed_nodes, Some(set("1")));
    assert_eq!(read(&lines[..6]).allowed_nodes, Some(set("0-1")));
    assert_eq!(read(&lines[..5]).allowed_nodes, None);
}

#[test]
fn distances_are_those_of_the_online_nodes_in_order() {
    let lines = |distance: &str| -> Topology {
        let distance = format!("NODE/node8/distance={distance}");
        read(&[
            "CPU/online=0-1",
            "NODE/online=0,8",
            "NODE/node0/cpulist=0",
            "NODE/node8/cpulist=1",
            &distance,
        ])
    };
    assert_eq!(lines("40 10\n").nodes[&8].distance, [(0, 40), (8, 10)].into());
    for nonsense in ["", "40", "40 10 20", "40 ten", "40 -1"] {
        let topology = lines(nonsense);
        assert!(topology.nodes[&8].distance.is_empty(), "{nonsense}");
        assert!(topology.gaps().iter().any(|gap| gap.starts_with("how far")), "{:?}", topology.gaps());
    }
}

#[test]
fn what_is_missing_is_said() {
    let gaps = |lines: &[&str]| read(lines).gaps();
    let has = |gaps: &[String], text: &str| assert!(gaps.iter().any(|gap| gap.contains(text)), "{gaps:?}");
    let nothing = gaps(&[]);
    has(&nothing, "which CPUs there are");
    let bare = gaps(&["CPU/online=0-3"]);
    has(&bare, "which of CPUs 0-3 are threads of one core");
    has(&bare, "which caches CPUs 0-3 share");
    has(&bare, "which NUMA nodes there are");
    has(&gaps(&["CPU/present=0-3"]), "which CPUs are online");
    let partial = gaps(&[
        "CPU/online=0-3",
        "CPU/cpu0/cache/index3/level=3",
        "CPU/cpu0/cache/index3/shared_cpu_list=0-1",
        "NODE/online=0",
        "NODE/node0/cpulist=0-2",
    ]);
    has(&partial, "which L3 cache CPUs 2-3 share");
    has(&partial, "which node CPUs 3 are on");
    has(&partial, "how much memory node 0 has");
    for (name, spec) in fixtures::all() {
        assert!(spec.topology().gaps().is_empty(), "{name}: {:?}", spec.topology().gaps());
    }
}

#[test]
fn lists_that_contradict_each_other_leave_whole_cores_and_say_so() {
    let topology = read(&[
        "CPU/online=0-5",
        "CPU/cpu0/topology/thread_siblings_list=0-1",
        "CPU/cpu2/topology/thread_siblings_list=1-3",
        "CPU/cpu4/topology/thread_siblings_list=4-5",
        "CPU/cpu0/cache/index3/level=3",
        "CPU/cpu0/cache/index3/shared_cpu_list=0,3",
        "CPU/cpu2/cache/index3/level=3",
        "CPU/cpu2/cache/index3/shared_cpu_list=2-5",
        "CPU/cpu4/cache/index2/level=2",
        "CPU/cpu4/cache/index2/shared_cpu_list=0-1",
    ]);
    let cores: Vec<u32> = topology.cpus.values().map(|cpu| cpu.core).collect();
    assert_eq!(cores, [0, 0, 2, 2, 4, 4]);
    let caches: Vec<_> = topology.cpus.values().map(|cpu| cpu.l3).collect();
    assert_eq!(caches, [Some(0), Some(0), Some(2), Some(2), Some(2), Some(2)]);
    let gaps = topology.gaps().join("\n");
    assert!(gaps.contains("are threads of one core (the lists that name CPUs 1 contradict"), "{gaps}");
    assert!(gaps.contains("share an L3 cache (the lists that name CPUs 3 contradict"), "{gaps}");
    assert!(gaps.contains("share an L2 cache (the lists that name CPUs 4 contradict"), "{gaps}");
}

/// A drive with two paths to it, a mapped volume on a partition of it, and a file system on that.
fn storage_host() -> Source {
    let pci = "/sys/devices/pci0000:80/0000:80:01.0";
    let path = format!("{pci}/nvme/nvme3/nvme0c3n1");
    let subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    let head = format!("{subsystem}/nvme0n1");
    let dm = "/sys/devices/virtual/block/dm-0";
    let file = |dir: &str, name: &str, text: &str| format!("{dir}/{name}={text}");
    let lines = [
        "CPU/online=0-3".to_owned(),
        file(pci, "numa_node", "1"),
        file(&path, "mq/0/cpu_list", "0, 2\n"),
        file(&path, "mq/1/cpu_list", "1, 3\n"),
        file(&path, "mq/10/cpu_list", "\n"),
        file(&head, "queue/logical_block_size", "4096\n"),
        file(&head, "queue/dma_alignment", "511\n"),
        file(&head, "queue/write_cache", "write through\n"),
        file(dm, "queue/write_cache", "write back\n"),
        file(dm, "queue/dma_alignment", "4294967295\n"),
        file(dm, "dm/name", "vg-data\n"),
        "/proc/self/mountinfo=1 0 0:9 / / rw - overlay overlay rw,upperdir=/u\n\
         2 1 0:44 /@db /srv rw shared:7 - btrfs /dev/mapper/vg-data rw,subvol=/@db\n\
         3 1 253:0 / /vol rw - xfs /dev/mapper/vg-data rw\n"
            .to_owned(),
    ];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    host(
        &lines,
        &[
            ("/sys/block/nvme0n1", &format!("../..{head}")),
            ("/sys/block/nvme0c3n1", &format!("../..{path}")),
            ("/sys/block/dm-0", "../devices/virtual/block/dm-0"),
            (&format!("{dm}/slaves/nvme0n1p2"), &format!("{head}/nvme0n1p2")),
            (&format!("{subsystem}/nvme3"), &format!("{pci}/nvme/nvme3")),
            ("/sys/dev/block/259:2", &format!("../..{head}/nvme0n1p2")),
            ("/sys/dev/block/253:0", "../../devices/virtual/block/dm-0"),
            ("/dev/mapper/vg-data", "../dm-0"),
            ("/dev/disk/by-id/nvme-part2", "../../nvme0n1p2"),
            ("/dev/disk/by-id/circle", "circle"),
        ],
        &[
            ("/sys/block", &["dm-0", "nvme0c3n1", "nvme0n1"]),
            (&format!("{path}/mq"), &["0", "1", "10"]),
            (&format!("{dm}/slaves"), &["nvme0n1p2"]),
            (subsystem, &["nvme3", "nvme0n1"]),
            ("/sys/dev/block", &["253:0", "259:2"]),
        ],
    )
}

#[test]
fn queues_alignment_and_write_cache_of_drives() {
    let topology = Topology::read(&storage_host());
    // The single path of the namespace is no drive that anyone can open.
    assert_eq!(topology.block.keys().collect::<Vec<_>>(), ["dm-0", "nvme0n1"]);
    let drive = &topology.block["nvme0n1"];
    assert_eq!((drive.node, drive.queues), (Some(1), Some(3)));
    assert_eq!(drive.queue_cpus, [set("0,2"), set("1,3"), set("")]);
    assert_eq!((drive.dma_alignment_bytes, drive.write_cache), (Some(512), Some(false)));
    let volume = &topology.block["dm-0"];
    assert_eq!((volume.node, volume.write_cache, volume.dma_alignment_bytes), (Some(1), Some(true), None));
    assert_eq!(volume.mapper_name.as_deref(), Some("vg-data"));
}

#[test]
fn disks_are_found_by_every_name_and_with_their_file_system() {
    let source = storage_host();
    let topology = Topology::read(&source);
    let place = |what: &str| {
        let profile = with(&format!("vcpu 1\ndisk d {{ source {what}; }}"));
        Storage::read(&source, &profile, &topology, None).disks.remove("d")
    };
    for (what, device, filesystem) in [
        ("dev=\"/dev/disk/by-id/nvme-part2\"", "nvme0n1", None),
        ("dev=\"/dev/mapper/vg-data\"", "dm-0", None),
        ("file=\"/srv/db.raw\"", "dm-0", Some("btrfs")),
        ("file=\"/vol/db.raw\"", "dm-0", Some("xfs")),
    ] {
        let found = place(what).unwrap_or_else(|| panic!("{what}"));
        assert_eq!((found.device.as_str(), found.filesystem.as_deref()), (device, filesystem), "{what}");
        assert_eq!(found.node, Some(1), "{what}");
    }
    let direct = place("dev=\"/dev/nvme0n1\"").unwrap().direct_io;
    assert_eq!(direct, Some(DirectIoAlignment { memory_bytes: 512, offset_bytes: 4096 }));
    // An overlay's device is not to be known from its mount.
    for what in ["file=\"/home/x.raw\"", "dev=\"/dev/disk/by-id/circle\"", "dev=\"/dev/mapper/none\""] {
        assert_eq!(place(what), None, "{what}");
    }
}

#[test]
fn a_captured_tree_keeps_the_names_of_its_drives_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let drive = "sys/devices/pci0000:00/0000:00:01.0/nvme/nvme0/nvme0n1";
    std::fs::create_dir_all(root.join(drive)).unwrap();
    for dir in ["sys/block", "sys/dev/block", "proc/self", "dev/disk/by-id", "dev/mapper"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    for (link, target) in [
        ("sys/block/nvme0n1", format!("../../{drive}")),
        ("sys/dev/block/259:0", format!("../../../{drive}")),
        ("dev/disk/by-id/serial-1", "../../nvme0n1".to_owned()),
        ("dev/disk/by-id/gone", "../../sdz".to_owned()),
        ("dev/mapper/secret", "/etc/shadow".to_owned()),
    ] {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    let capture = Capture::take(&Source::Sysroot(root.to_owned()));
    let text = capture.to_json();
    assert!(text.contains("serial-1") && !text.contains("gone") && !text.contains("secret"), "{text}");
    let source = Source::Capture(capture);
    let profile = with("vcpu 1\ndisk d { source dev=\"/dev/disk/by-id/serial-1\"; }");
    let storage = Storage::read(&source, &profile, &Topology::read(&source), None);
    assert_eq!(storage.disks["d"].device, "nvme0n1");
}

#[test]
fn other_vms_are_found_by_their_threads_and_captured_by_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let proc = dir.path().join("proc");
    std::fs::create_dir_all(dir.path().join("sys/devices/system/cpu")).unwrap();
    std::fs::write(dir.path().join("sys/devices/system/cpu/online"), "0-7\n").unwrap();
    let process = |pid: u32, comm: &str, command: &str, threads: &[(&str, &str)]| {
        let own = proc.join(pid.to_string());
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join("comm"), format!("{comm}\n")).unwrap();
        std::fs::write(own.join("cmdline"), command).unwrap();
        for (at, (name, cpus)) in threads.iter().enumerate() {
            let task = own.join(format!("task/{}", pid as usize + at));
            std::fs::create_dir_all(&task).unwrap();
            std::fs::write(task.join("comm"), format!("{name}\n")).unwrap();
            std::fs::write(task.join("status"), format!("Name:\t{name}\nCpus_allowed_list:\t{cpus}\n"))
                .unwrap();
        }
    };
    process(
        100,
        "qemu-system-x86",
        "/usr/bin/qemu-system-x86_64\0-name\0guest=shop,debug-threads=on\0",
        &[("qemu-system-x86", "0-7"), ("CPU 0/KVM", "2"), ("CPU 1/KVM", "3"), ("IO iothread1", "4")],
    );
    // Renamed by its user: its command line still says what it is.
    process(
        200,
        "billing",
        "/opt/qemu-kvm\0-name\0process=billing\0",
        &[("billing", "0-7"), ("CPU 0/KVM", "5")],
    );
    process(
        300,
        "vmprof",
        "vmprof\0up\0ci.kdl\0--name\0ci\0",
        &[("CPU 0/KVM", "6"), ("IO iothread0", "0-7")],
    );
    process(400, "postgres", "postgres\0-D\0x\0", &[("CPU 0/KVM", "1")]);
    process(500, "qemu-img", "qemu-img\0convert\0", &[("worker", "1")]);
    process(600, "kworker/0:1", "", &[("kworker/0:1", "0")]);
    let source = Source::Sysroot(dir.path().to_owned());
    let ledger = Ledger::read(&source);
    let held: Vec<_> =
        ledger.held.iter().map(|h| (h.holder.as_str(), h.cpus.to_string(), h.pid.unwrap())).collect();
    let expected =
        [("shop", "2-4".to_owned(), 100), ("billing", "5".to_owned(), 200), ("ci", "6".to_owned(), 300)];
    assert_eq!(held, expected);
    let capture = Capture::take(&source);
    let text = capture.to_json();
    assert!(!text.contains("postgres") && !text.contains("debug-threads"), "{text}");
    let again = Source::Capture(Capture::from_json(&text).unwrap());
    assert_eq!(Ledger::read(&again), ledger);
    assert_eq!(Ledger::read(&fixtures::source("lab")), Ledger::default());
    std::fs::write(dir.path().join("sys/devices/system/cpu/online"), "0\n").unwrap();
    assert_eq!(Ledger::read(&source), Ledger::default());
}

#[test]
fn a_capture_of_the_previous_version_still_reads() {
    // It has lists of every CPU, and none of what is read since.
    let spec =
        HostSpec { threads: 2, ..HostSpec::of(vec![NodeSpec { nvme: true, ..node(0, 2) }, node(1, 2)]) };
    let old: serde_json::Value = serde_json::from_str(&spec.capture().to_json()).unwrap();
    let mut trimmed = old.clone();
    let files = trimmed["files"].as_object_mut().unwrap();
    files.retain(|path, _| !path.ends_with("/cpu_list") && !path.ends_with("write_cache"));
    let topology = Topology::read(&Source::from_file_text(&trimmed.to_string()).unwrap());
    assert_eq!(topology.cpus, spec.topology().cpus);
    assert_eq!(topology.block["nvme0n1"].queues, Some(2));
    assert!(topology.block["nvme0n1"].queue_cpus.is_empty());
}

#[test]
fn a_host_of_1024_cpus_and_64_drives_makes_a_small_capture() {
    let full = Source::Capture(fixtures::large().capture());
    let topology = Topology::read(&full);
    assert_eq!((topology.online.len(), topology.block.len(), topology.nodes.len()), (1024, 64, 8));
    assert_eq!(topology.block["nvme63n1"].node, Some(7));
    let profile = with("vcpu 16\niothreads 4\ndisk d { source dev=\"/dev/disk/by-id/nvme-drive-9\"; }");
    assert_eq!(planned(&profile, &full).disks[0].node, Some(1));
    assert!(fixtures::large().capture().to_json().len() < 4 << 20);
}
