//! What kernels and firmware of real machines do: lists that end in a NUL, hosts without NUMA, nodes by the dozen that
//! hold nothing, old cpusets, numbers of cores beyond any count.

use std::fmt::Write;

use vmprof_profiles::view::host_text;
use vmprof_profiles::{Ledger, Source, Topology};

use crate::host::{planned, profile, set, text_of, with};
use crate::topology::made;

const CPU: &str = "/sys/devices/system/cpu";
const NODE: &str = "/sys/devices/system/node";

#[test]
fn lists_and_masks_that_end_in_a_nul_are_read() {
    let topology = Topology::read(&made(
        &[
            (&format!("{CPU}/online"), "0-3\n"),
            (&format!("{CPU}/cpu0/topology/thread_siblings_list"), "0-1\n\0"),
            (&format!("{CPU}/cpu2/topology/thread_siblings"), "0000000c\n\0"),
            (&format!("{NODE}/online"), "0-1\n"),
            (&format!("{NODE}/node0/cpulist"), "0-1\n\0"),
            (&format!("{NODE}/node1/cpumap"), "c\n\0"),
        ],
        &[],
        &[],
    ));
    assert_eq!((&topology.nodes[&0].cpus, &topology.nodes[&1].cpus), (&set("0-1"), &set("2-3")));
    assert_eq!((topology.core_of(1), topology.core_of(3)), (set("0-1"), set("2-3")));
}

#[test]
fn a_host_without_numa_has_memory_and_hugepages_all_the_same() {
    let pages = "/sys/kernel/mm/hugepages";
    let source = made(
        &[
            (&format!("{CPU}/online"), "0-3\n"),
            ("/proc/meminfo", "MemTotal:  2097152 kB\nMemFree:  1048576 kB\n"),
            (&format!("{pages}/hugepages-2048kB/free_hugepages"), "600\n"),
        ],
        &[],
        &[(pages, &["hugepages-2048kB"])],
    );
    let topology = Topology::read(&source);
    assert_eq!((topology.memory_bytes(), topology.nodes.len()), (Some(2 << 30), 0));
    let text = host_text(&topology, &Ledger::default());
    assert!(text.contains("memory        2048MiB (1024MiB free)  600 free pages of 2MiB\n"), "{text}");
    let huge = profile("profile p {\n guest \"g.kdl\"\n memory \"1GiB\" hugepages=\"2MiB\"\n vcpu 1\n}\n");
    let plan = planned(&huge, &source);
    assert_eq!(plan.memory.hugepages.map(|size| size.bytes()), Some(2 << 20));
    assert_eq!(plan.memory.nodes, None);
}

#[test]
fn empty_nodes_and_equal_distances_take_one_line() {
    let mut files =
        vec![(format!("{CPU}/online"), "0-1\n".to_owned()), (format!("{NODE}/online"), "0-39\n".to_owned())];
    for id in 0..40 {
        let (cpus, memory) = if id == 0 { ("0-1", 4 << 20) } else { ("", 0) };
        files.push((format!("{NODE}/node{id}/cpulist"), format!("{cpus}\n")));
        files.push((format!("{NODE}/node{id}/meminfo"), format!("Node {id} MemTotal: {memory} kB\n")));
        let mut distance = String::new();
        for other in 0..40 {
            let _ = write!(distance, "{} ", if other == id { 10 } else { 80 });
        }
        files.push((format!("{NODE}/node{id}/distance"), distance));
    }
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let source = made(&files, &[], &[]);
    let text = host_text(&Topology::read(&source), &Ledger::default());
    assert!(text.contains("\nnodes 1-39  no CPUs\n"), "{text}");
    assert!(text.contains("memory 4096MiB (unknown free)  distance 0:10 1-39:80\n"), "{text}");
    assert!(text.contains("\n  nodes 1-39  no CPUs, no memory\n"), "{text}");
    assert!(text.lines().count() < 24, "{text}");
    assert_eq!(planned(&with("vcpu 1"), &source).memory.nodes, Some(set("0")));
}

/// What the caller may use by a cgroup's files, with the mount in the older table of mounts.
fn by_cpuset(mounts: &str, files: &[(&str, &str)]) -> Topology {
    let online = format!("{CPU}/online");
    let nodes = format!("{NODE}/online");
    let meminfo: Vec<String> = (0..2).map(|id| format!("{NODE}/node{id}/meminfo")).collect();
    let mut all = vec![
        (online.as_str(), "0-7\n"),
        (nodes.as_str(), "0-1\n"),
        ("/proc/self/cpuset", "/job/step\n"),
        ("/proc/mounts", mounts),
    ];
    all.extend(meminfo.iter().map(|path| (path.as_str(), "MemTotal: 1024 kB\n")));
    all.extend(files);
    Topology::read(&made(&all, &[], &[]))
}

#[test]
fn a_cpuset_is_found_without_mountinfo_in_each_of_its_three_forms() {
    for (mounts, files) in [
        (
            "none /dev/cpuset cpuset rw 0 0\n",
            [("/dev/cpuset/job/step/cpus", "2-3\n"), ("/dev/cpuset/job/step/mems", "1\n")],
        ),
        (
            "unified /cg2 cgroup2 rw 0 0\nnone /dev/cpuset cgroup rw,cpuset,noprefix 0 0\n",
            [("/dev/cpuset/job/cpus", "2-3\n"), ("/dev/cpuset/job/mems", "1\n")],
        ),
        (
            "memory /cg/memory cgroup rw,memory 0 0\nnone /cg/unified cgroup2 rw 0 0\n",
            [
                ("/cg/unified/job/step/cpuset.cpus.effective", "2-3\n"),
                ("/cg/unified/job/step/cpuset.mems.effective", "1\n"),
            ],
        ),
    ] {
        let topology = by_cpuset(mounts, &files);
        assert_eq!(topology.cgroup_cpus, Some(set("2-3")), "{mounts}");
        assert_eq!(topology.allowed_nodes, Some(set("1")), "{mounts}");
    }
    // Where nothing is mounted, nothing is known.
    assert_eq!(by_cpuset("proc /proc proc rw 0 0\n", &[]).cgroup_cpus, None);
}

#[test]
fn the_firmwares_numbers_of_cores_and_packages_may_be_any() {
    let text = text_of("fixtures/hwloc/epyc.xml");
    let numbered = text.replace("type=\"Core\" os_index=\"1\"", "type=\"Core\" os_index=\"196611\"");
    assert_ne!(numbered, text);
    let read = |text: &str| Topology::read(&Source::from_file_text(text).unwrap());
    assert_eq!(read(&numbered), read(&text));
    let cpu = text.replace("type=\"PU\" os_index=\"1\"", "type=\"PU\" os_index=\"196611\"");
    assert!(cpu != text && Source::from_file_text(&cpu).is_err());
}
