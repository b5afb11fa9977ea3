//! Hosts as they are read: odd ones, captured ones, and this one.

use std::collections::BTreeMap;

use serde_json::json;
use vmprof_profiles::{Capture, CoreKind, Source, Storage, Topology};

use crate::fixtures::{self, source};
use crate::host::{HostSpec, NodeSpec, node, planned, profile, set, text_of, with};

pub(crate) fn made(files: &[(&str, &str)], links: &[(&str, &str)], dirs: &[(&str, &[&str])]) -> Source {
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let dirs: BTreeMap<&str, &[&str]> = dirs.iter().copied().collect();
    let text =
        json!({ "schema": "vmprof.capture/1", "files": map(files), "links": map(links), "dirs": dirs });
    Source::Capture(Capture::from_json(&text.to_string()).unwrap())
}

#[test]
fn a_captured_tree_and_a_capture_of_it_are_one_host() {
    let dir = tempfile::tempdir().unwrap();
    for (name, spec) in fixtures::all() {
        let root = dir.path().join(name);
        let capture: serde_json::Value = serde_json::from_str(&spec.capture().to_json()).unwrap();
        for (path, text) in capture["files"].as_object().unwrap() {
            let path = root.join(&path[1..]);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text.as_str().unwrap()).unwrap();
        }
        for (path, names) in capture["dirs"].as_object().unwrap() {
            for name in names.as_array().unwrap() {
                // Links come after: those of /sys/block and /sys/dev/block are no directories.
                if !path.starts_with("/sys/block") && !path.starts_with("/sys/dev/") {
                    std::fs::create_dir_all(root.join(&path[1..]).join(name.as_str().unwrap())).unwrap();
                }
            }
        }
        for (path, target) in capture["links"].as_object().unwrap() {
            let path = root.join(&path[1..]);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(target.as_str().unwrap(), path).unwrap();
        }
        let tree = Source::Sysroot(root);
        let captured = Source::Capture(Capture::take(&tree));
        assert_eq!(Topology::read(&tree), spec.topology(), "{name}");
        assert_eq!(Topology::read(&captured), spec.topology(), "{name}");
        let far = profile(&text_of("fixtures/profiles/far-drive.kdl"));
        let found = |source: &Source| Storage::read(source, &far, &spec.topology(), None);
        assert_eq!(found(&tree), found(&spec.source()), "{name}");
        assert_eq!(found(&captured), found(&tree), "{name}");
    }
}

#[test]
fn this_machine_reads_the_same_live_and_captured() {
    let live = Topology::read(&Source::Live);
    let captured = Topology::read(&Source::Capture(Capture::take(&Source::Live)));
    assert!(!live.online.is_empty());
    assert_eq!(
        (&live.cpus, &live.block, &live.affinity),
        (&captured.cpus, &captured.block, &captured.affinity)
    );
    assert_eq!(live.nodes.keys().collect::<Vec<_>>(), captured.nodes.keys().collect::<Vec<_>>());
}

#[test]
fn nothing_at_all_is_a_host_of_one_cpu() {
    let source = made(&[], &[], &[]);
    let topology = Topology::read(&source);
    assert_eq!(topology.online, set("0"));
    assert!(topology.nodes.is_empty() && topology.affinity.is_none());
    let plan = planned(&profile(&text_of("db.kdl")), &source);
    assert_eq!((plan.host.cpus, plan.host.nodes, plan.vcpus[0].node), (1, 1, None));
    assert_eq!(plan.memory.nodes, None);
}

#[test]
fn nonsense_files_are_unknown_facts() {
    let cpu = "/sys/devices/system/cpu";
    let node = "/sys/devices/system/node";
    let source = made(
        &[
            (&format!("{cpu}/online"), "0-3\n"),
            (&format!("{cpu}/isolated"), "(null)\n"),
            (&format!("{cpu}/cpu0/topology/thread_siblings_list"), "7-9\n"),
            (&format!("{cpu}/cpu1/topology/thread_siblings_list"), "banana\n"),
            (&format!("{cpu}/cpu1/cache/index2/level"), "-5\n"),
            (&format!("{cpu}/cpu2/cache/index2/level"), "3\n"),
            (&format!("{cpu}/cpu2/cache/index2/shared_cpu_list"), "0\n"),
            (&format!("{node}/online"), "0-1,9\n"),
            (&format!("{node}/node0/cpulist"), "0-99\n"),
            (&format!("{node}/node0/distance"), "ten\n"),
            (&format!("{node}/node0/meminfo"), "Node 0 MemTotal: lots kB\n"),
            (&format!("{node}/node1/cpulist"), "0-1\n"),
            ("/proc/self/status", "Cpus_allowed_list:\tall\n"),
        ],
        &[("/sys/block/loopy", "loopy")],
        &[("/sys/block", &["loopy", "gone"])],
    );
    let topology = Topology::read(&source);
    assert_eq!(topology.cpus.len(), 4);
    assert!(topology.cpus.iter().all(|(id, cpu)| cpu.core == *id && cpu.l3.is_none() && cpu.node == Some(0)));
    assert_eq!(topology.nodes[&0].memory_bytes, None);
    assert!(topology.nodes[&1].cpus.is_empty() && !topology.nodes.contains_key(&9));
    assert!(topology.affinity.is_none() && topology.block.contains_key("gone"));
    planned(&with("vcpu 2"), &source);
}

#[test]
fn the_node_of_a_drive_is_found_under_partitions_and_stacks() {
    let pci = "/sys/devices/pci0000:80/0000:80:01.0";
    let drive = format!("{pci}/nvme/nvme0/nvme0n1");
    let (md, dm) = ("/sys/devices/virtual/block/md0", "/sys/devices/virtual/block/dm-0");
    let lone = "/sys/devices/virtual/block/loop3";
    let source = made(
        &[
            (&format!("{pci}/numa_node"), "3\n"),
            ("/sys/devices/pci0000:80/numa_node", "-1\n"),
            (&format!("{lone}/loop/backing_file"), "/vol/x.img\n"),
            (
                "/proc/self/mountinfo",
                "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 253:0 / /vol rw - xfs /dev/mapper/v rw\n\
                 3 1 0:44 / /tree\\040a rw shared:7 - btrfs /dev/nvme0n1p1 rw\n",
            ),
        ],
        &[
            ("/sys/block/nvme0n1", &format!("../..{drive}")),
            ("/sys/block/md0", "../devices/virtual/block/md0"),
            ("/sys/block/dm-0", "../devices/virtual/block/dm-0"),
            ("/sys/block/loop3", "../devices/virtual/block/loop3"),
            (&format!("{md}/slaves/nvme0n1p1"), &format!("{drive}/nvme0n1p1")),
            (&format!("{dm}/slaves/md0"), "../../md0"),
            ("/sys/dev/block/253:0", "../../devices/virtual/block/dm-0"),
            ("/sys/dev/block/259:1", &format!("../..{drive}/nvme0n1p1")),
        ],
        &[
            ("/sys/block", &["dm-0", "loop3", "md0", "nvme0n1"]),
            (&format!("{md}/slaves"), &["nvme0n1p1"]),
            (&format!("{dm}/slaves"), &["md0"]),
            ("/sys/dev/block", &["253:0", "259:1"]),
        ],
    );
    let topology = Topology::read(&source);
    let node = |name: &str| topology.block[name].node;
    assert_eq!(
        (node("nvme0n1"), node("md0"), node("dm-0"), node("loop3")),
        (Some(3), Some(3), Some(3), None)
    );
    for (path, device) in [
        ("file=\"/vol/deep/er.raw\"", "dm-0"),
        ("file=\"/tree a/x.raw\"", "nvme0n1"),
        ("dev=\"/dev/nvme0n1p1\"", "nvme0n1"),
        ("dev=\"/dev/dm-0\"", "dm-0"),
        ("dev=\"/dev/loop3\"", "loop3"),
    ] {
        let profile = with(&format!("vcpu 1\ndisk d {{ source {path}; }}"));
        let storage = Storage::read(&source, &profile, &topology, None);
        let place = storage.disks.get("d").unwrap_or_else(|| panic!("{path}"));
        assert_eq!((place.device.as_str(), place.node), (device, Some(3)), "{path}");
    }
    for path in ["file=\"/elsewhere.raw\"", "file=\"relative.raw\"", "dev=\"/dev/sdz\""] {
        let profile = with(&format!("vcpu 1\ndisk d {{ source {path}; }}"));
        let disks_dir = std::path::Path::new("/");
        assert!(Storage::read(&source, &profile, &topology, Some(disks_dir)).disks.is_empty(), "{path}");
    }
}

#[test]
fn economy_cores_come_last() {
    let cpu = "/sys/devices/system/cpu";
    let files = [
        (format!("{cpu}/online"), "0-5\n".to_owned()),
        ("/sys/devices/cpu_atom/cpus".to_owned(), "0-2\n".to_owned()),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    let source = made(&files, &[], &[]);
    assert_eq!(Topology::read(&source).cpus[&1].kind, CoreKind::Efficiency);
    let plan = planned(&with("vcpu 2\niothreads 1"), &source);
    assert!(plan.vcpus.iter().all(|v| v.cpus.is_subset(&set("3-5"))), "{:?}", plan.vcpus);
}

#[test]
fn hosts_beyond_1024_cpus_are_read_whole() {
    let spec = HostSpec {
        threads: 2,
        ..HostSpec::of((0..8).map(|id| NodeSpec { l3_cores: 8, ..node(id, 128) }).collect())
    };
    let topology = spec.topology();
    assert_eq!((topology.online.len(), topology.cpus[&2047].core), (2048, 1023));
    let plan = planned(&with("vcpu 200\niothreads 8"), &spec.source());
    let (all, _) = plan.vcpus.iter().fold((set(""), 0), |(all, n), v| (all.or(&v.cpus), n + 1));
    assert_eq!(all.len(), 200);
}

#[test]
fn a_file_that_is_no_capture_is_refused() {
    for text in ["", "{}", "[]", "{\"schema\":\"vmprof.capture/2\",\"files\":{},\"links\":{},\"dirs\":{}}"] {
        assert!(Capture::from_json(text).is_err(), "{text}");
    }
    assert!(matches!(source("lab"), Source::Capture(_)));
}

#[test]
fn enormous_numbers_do_not_overflow() {
    let node = "/sys/devices/system/node";
    let most = format!("Node 0 MemTotal: {} kB\n", u64::MAX / 1024);
    let source = made(
        &[
            ("/sys/devices/system/cpu/online", "0-1\n"),
            (&format!("{node}/online"), "0-1\n"),
            (&format!("{node}/node0/cpulist"), "0\n"),
            (&format!("{node}/node1/cpulist"), "1\n"),
            (&format!("{node}/node0/meminfo"), &most),
            (&format!("{node}/node1/meminfo"), &most),
            (&format!("{node}/node0/hugepages/hugepages-2048kB/free_hugepages"), "18446744073709551615\n"),
            (&format!("{node}/node1/hugepages/hugepages-2048kB/free_hugepages"), "18446744073709551615\n"),
            ("/proc/self/status", "Cpus_allowed_list:\t\n"),
        ],
        &[],
        &[
            (&format!("{node}/node0/hugepages"), &["hugepages-2048kB"]),
            (&format!("{node}/node1/hugepages"), &["hugepages-2048kB"]),
        ],
    );
    assert_eq!(Topology::read(&source).affinity, None);
    let text = "profile t { guest g; vcpu 2; memory \"16777215TiB\" hugepages=auto; }";
    assert_eq!(planned(&profile(text), &source).memory.bytes, 16_777_215 << 40);
}

#[test]
fn stacks_that_name_each_other_in_circles_end() {
    let names: Vec<String> = (0..40).map(|at| format!("dm-{at}")).collect();
    let at = |name: &str| format!("/sys/devices/virtual/block/{name}");
    let mut links = Vec::new();
    let mut dirs = vec![("/sys/block".to_owned(), names.clone())];
    for name in &names {
        links.push((format!("/sys/block/{name}"), at(name)));
        dirs.push((format!("{}/slaves", at(name)), names.clone()));
        links.extend(names.iter().map(|below| (format!("{}/slaves/{below}", at(name)), at(below))));
    }
    let links: BTreeMap<String, String> = links.into_iter().collect();
    let dirs: BTreeMap<String, Vec<String>> = dirs.into_iter().collect();
    let text = json!({ "schema": "vmprof.capture/1", "files": {}, "links": links, "dirs": dirs });
    let source = Source::Capture(Capture::from_json(&text.to_string()).unwrap());
    assert!(Topology::read(&source).block.values().all(|device| device.node.is_none()));
}

#[test]
fn a_drive_on_a_node_that_the_host_does_not_list_is_on_an_unknown_one() {
    let drive = "/sys/devices/pci0/nvme/nvme0/nvme0n1";
    let source = made(
        &[("/sys/devices/system/cpu/online", "0-3\n"), ("/sys/devices/pci0/numa_node", "7\n")],
        &[("/sys/block/nvme0n1", drive)],
        &[("/sys/block", &["nvme0n1"])],
    );
    let profile = with("vcpu 1\nstrict\ndisk d { source dev=\"/dev/nvme0n1\"; }");
    let plan = planned(&profile, &source);
    assert_eq!((plan.disks[0].node, &plan.memory.nodes), (None, &None));
    assert_eq!(crate::host::codes(&plan), ["unknown_topology"]);
}

#[test]
fn fast_cores_are_for_vcpus_also_where_slow_ones_have_a_cache_of_their_own() {
    let cpu = "/sys/devices/system/cpu";
    let mut files = vec![
        (format!("{cpu}/online"), "0-7\n".to_owned()),
        ("/sys/devices/cpu_atom/cpus".to_owned(), "4-7\n".to_owned()),
    ];
    for id in 0..8 {
        // Cores 0 to 5 share an L3; 6 and 7 have none.
        if id < 6 {
            files.push((format!("{cpu}/cpu{id}/cache/index3/level"), "3\n".to_owned()));
            files.push((format!("{cpu}/cpu{id}/cache/index3/shared_cpu_list"), "0-5\n".to_owned()));
        }
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    let plan = planned(&with("vcpu 2\niothreads 2"), &made(&files, &[], &[]));
    assert_eq!(crate::host::layout(&plan), ("0 1".into(), "2 3".into(), "4".into()));
}
