//! Any tree of /sys and /proc reads as some topology and plans or is refused: nothing panics, nothing hangs.
//!
//! The input is either a capture's text, as the seeds are, or, when it does not begin like JSON, a recipe for one:
//! entries at the paths that are read, with texts that nearly make sense.

#![no_main]

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use vmprof_profiles::{Capture, Ledger, Profile, Source, Storage, Topology, plan, read_profile, view};

const CPU: &str = "/sys/devices/system/cpu";
const NODE: &str = "/sys/devices/system/node";
const PCI: &str = "/sys/devices/pci0000:00/0000:00:01.0";

/// Files of one CPU.
const OF_CPU: &[&str] = &[
    "online",
    "cpu_capacity",
    "topology/thread_siblings_list",
    "topology/thread_siblings",
    "topology/core_cpus_list",
    "topology/package_cpus_list",
    "topology/core_siblings_list",
    "topology/die_cpus_list",
    "topology/die_id",
    "topology/cluster_cpus_list",
    "topology/physical_package_id",
    "cache/index1/level",
    "cache/index2/level",
    "cache/index2/shared_cpu_list",
    "cache/index2/shared_cpu_map",
    "cache/index3/level",
    "cache/index3/shared_cpu_list",
];

/// Files of one node.
const OF_NODE: &[&str] =
    &["cpulist", "cpumap", "distance", "meminfo", "hugepages/hugepages-2048kB/free_hugepages"];

/// Files of one drive.
const OF_DRIVE: &[&str] = &[
    "dev",
    "queue/logical_block_size",
    "queue/physical_block_size",
    "queue/scheduler",
    "queue/rotational",
    "queue/dma_alignment",
    "queue/write_cache",
    "mq/0/cpu_list",
    "mq/1/cpu_list",
    "loop/backing_file",
    "dm/name",
];

/// Files of the whole host.
const OF_HOST: &[&str] = &[
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/cpu/present",
    "/sys/devices/system/cpu/offline",
    "/sys/devices/system/cpu/isolated",
    "/sys/devices/system/cpu/nohz_full",
    "/sys/devices/system/cpu/types/intel_atom_0/cpulist",
    "/sys/devices/cpu_atom/cpus",
    "/sys/devices/cpu_lowpower/cpus",
    "/sys/devices/system/node/online",
    "/proc/self/status",
    "/proc/self/cgroup",
    "/proc/self/mountinfo",
    "/proc/cpuinfo",
    "/proc/sys/kernel/arch",
    "/sys/fs/cgroup/a/cpuset.cpus.effective",
    "/sys/fs/cgroup/cpuset.cpus",
];

/// Texts that some kernel prints somewhere.
const TEXTS: &[&str] = &[
    "",
    "\n",
    "(null)\n",
    "0\n",
    "1\n",
    "-1\n",
    "2\n",
    "3\n",
    "65535\n",
    "18446744073709551615\n",
    "00000000,0000000f\n",
    "write back\n",
    "[none] mq-deadline\n",
    "259:0\n",
    "10 21\n",
    "10 12 21 21\n",
    "0::/a/b\n",
    "3:cpuset:/\n",
    "Node 0 MemTotal: 4194304 kB\nNode 0 MemFree: 1 kB\n",
    "Cpus_allowed_list:\t0-3\nMems_allowed_list:\t0-1\n",
    "1 0 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n2 1 0:2 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    "1 0 0:9 / /sys/fs/cgroup rw - cgroup cgroup rw,cpuset\n3 1 7:0 / /vol rw - xfs /dev/mapper/v rw\n",
    "/vol/disk.img\n",
    "v\n",
];

fn text(u: &mut Unstructured<'_>) -> Result<String> {
    Ok(match u.int_in_range(0..=3)? {
        0 => (*u.choose(TEXTS)?).to_owned(),
        1 => {
            let (first, more) = (u.int_in_range(0..=20u32)?, u.int_in_range(0..=20u32)?);
            format!("{first}-{}\n", first + more)
        }
        2 => {
            let mut list = Vec::new();
            for _ in 0..u.int_in_range(1..=4u8)? {
                list.push(u.int_in_range(0..=70u32)?.to_string());
            }
            list.join(",")
        }
        _ => String::arbitrary(u)?.chars().take(64).collect(),
    })
}

fn drive_dir(u: &mut Unstructured<'_>) -> Result<(String, String)> {
    let at = u.int_in_range(0..=2u8)?;
    Ok(match u.int_in_range(0..=4u8)? {
        0 => (format!("nvme{at}n1"), format!("{PCI}/nvme/nvme{at}/nvme{at}n1")),
        1 => (format!("nvme{at}n1"), format!("/sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme{at}n1")),
        2 => (format!("dm-{at}"), format!("/sys/devices/virtual/block/dm-{at}")),
        3 => (format!("loop{at}"), format!("/sys/devices/virtual/block/loop{at}")),
        _ => (format!("nvme{at}c{at}n1"), format!("{PCI}/nvme/nvme{at}/nvme{at}c{at}n1")),
    })
}

fn made(u: &mut Unstructured<'_>) -> Result<String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut links: BTreeMap<String, String> = BTreeMap::new();
    let mut dirs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    while !u.is_empty() && files.len() + links.len() < 400 {
        match u.int_in_range(0..=6u8)? {
            0 | 1 => {
                let path = format!("{CPU}/cpu{}/{}", u.int_in_range(0..=12u8)?, u.choose(OF_CPU)?);
                files.insert(path, text(u)?);
            }
            2 => {
                let node = u.int_in_range(0..=4u8)?;
                files.insert(format!("{NODE}/node{node}/{}", u.choose(OF_NODE)?), text(u)?);
                dirs.insert(format!("{NODE}/node{node}/hugepages"), vec!["hugepages-2048kB".into()]);
            }
            3 => _ = files.insert((*u.choose(OF_HOST)?).to_owned(), text(u)?),
            4 => {
                let (name, dir) = drive_dir(u)?;
                files.insert(format!("{dir}/{}", u.choose(OF_DRIVE)?), text(u)?);
                files.insert(format!("{PCI}/numa_node"), text(u)?);
                links.insert(format!("/sys/block/{name}"), format!("../..{dir}"));
                dirs.entry("/sys/block".into()).or_default().push(name);
                dirs.entry(format!("{dir}/mq")).or_default().push(u.int_in_range(0..=3u8)?.to_string());
            }
            5 => {
                let ((_, dir), (below, target)) = (drive_dir(u)?, drive_dir(u)?);
                dirs.entry(format!("{dir}/slaves")).or_default().push(below.clone());
                links.insert(format!("{dir}/slaves/{below}"), target.clone());
                links.insert("/dev/disk/by-id/d".into(), format!("../../{below}"));
                let numbers = format!("259:{}", u.int_in_range(0..=3u8)?);
                links.insert(format!("/sys/dev/block/{numbers}"), target);
                dirs.entry("/sys/dev/block".into()).or_default().push(numbers);
            }
            _ => _ = links.insert(text(u)?, text(u)?),
        }
    }
    Ok(serde_json::json!({
        "schema": "vmprof.capture/1", "files": files, "links": links, "dirs": dirs
    })
    .to_string())
}

const PROFILES: [&str; 2] = [
    r#"profile a { guest "g.kdl"; vcpu 4; memory "1GiB" hugepages=auto; iothreads auto
        disk d { source file="/vol/d.raw"; queues auto; } }"#,
    r#"profile b { guest "g.kdl"; vcpu 2; memory "64MiB"; iothreads 2; host { smt isolate; }
        disk d { source dev="/dev/disk/by-id/d"; }
        disk e { source dev="/dev/nvme0n1p1"; iothread-vq-mapping round-robin; } }"#,
];

fn profile(text: &str) -> Profile {
    match read_profile("fuzz.kdl", text) {
        Ok((profile, _)) => profile,
        Err(problems) => panic!("{:?}", problems.iter().map(|p| p.to_string()).collect::<Vec<_>>()),
    }
}

fuzz_target!(|data: &[u8]| {
    let json = match std::str::from_utf8(data) {
        Ok(text) if text.starts_with('{') => text.to_owned(),
        _ => match made(&mut Unstructured::new(data)) {
            Ok(text) => text,
            Err(_) => return,
        },
    };
    let Ok(source) = Source::from_file_text(&json) else { return };
    let topology = Topology::read(&source);
    check(&topology);
    let ledger = Ledger::read(&source);
    let Source::Capture(capture) = &source else { return };
    assert_eq!(Capture::from_json(&capture.to_json()).ok().as_ref(), Some(capture));
    view::host_text(&topology, &ledger);
    view::host_json(&topology, &ledger);
    for text in PROFILES {
        let profile = profile(text);
        let storage = Storage::read(&source, &profile, &topology, None);
        let _ = plan(&profile, &topology, &storage, &ledger);
    }
});

/// What holds for every topology, however odd its source.
fn check(topology: &Topology) {
    assert!(!topology.online.is_empty());
    assert_eq!(topology.cpus.len(), topology.online.len());
    for (id, cpu) in &topology.cpus {
        let named = |name: Option<u32>, of: fn(&vmprof_profiles::Cpu) -> Option<u32>| {
            // A group bears the name of its lowest CPU.
            let Some(name) = name else { return };
            assert!(name <= *id && topology.cpus.get(&name).and_then(of) == Some(name), "{id}");
        };
        named(Some(cpu.core), |c| Some(c.core));
        named(cpu.l2, |c| c.l2);
        named(cpu.l3, |c| c.l3);
        named(cpu.die, |c| c.die);
        named(cpu.cluster, |c| c.cluster);
        if let Some(node) = cpu.node {
            assert!(topology.nodes.get(&node).is_some_and(|node| node.cpus.contains(*id)));
        }
    }
}
