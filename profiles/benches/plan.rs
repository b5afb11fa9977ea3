//! What a plan costs on a large host: 1,024 CPUs in eight nodes with two siblings a core, and 64 disks on eight drives.
//! `cargo bench -p vmprof-profiles`. The whole way from the text of a capture file to the plan's JSON, its parts, the
//! same host when it is crowded, and the live /sys of this machine, which is another matter: its files cost system calls.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use vmprof_profiles::{Capture, Ledger, Profile, Source, Storage, Topology, plan, read_profile};

const NODES: u32 = 8;
const CORES_A_NODE: u32 = 64;
const DISKS: u32 = 64;

/// The capture file of the host.
fn capture() -> String {
    let cores = NODES * CORES_A_NODE;
    let (cpu_dir, node_dir) = ("/sys/devices/system/cpu", "/sys/devices/system/node");
    let mut files = serde_json::Map::new();
    let mut links = serde_json::Map::new();
    let mut dirs = serde_json::Map::new();
    let mut file = |path: String, text: String| files.insert(path, json!(format!("{text}\n")));
    file(format!("{cpu_dir}/online"), format!("0-{}", cores * 2 - 1));
    file(format!("{node_dir}/online"), format!("0-{}", NODES - 1));
    let mut mounts = vec!["20 1 0:5 / / rw - rootfs rootfs rw".to_owned()];
    let (mut blocks, mut numbers) = (Vec::new(), Vec::new());
    for node in 0..NODES {
        let (first, last) = (node * CORES_A_NODE, (node + 1) * CORES_A_NODE - 1);
        let dir = format!("{node_dir}/node{node}");
        file(format!("{dir}/cpulist"), format!("{first}-{last},{}-{}", first + cores, last + cores));
        file(format!("{dir}/meminfo"), format!("Node {node} MemTotal: 134217728 kB"));
        let far: Vec<&str> = (0..NODES).map(|other| if other == node { "10" } else { "21" }).collect();
        file(format!("{dir}/distance"), far.join(" "));
        for core in first..=last {
            let group = first + (core - first) / 8 * 8;
            for cpu in [core, core + cores] {
                let dir = format!("{cpu_dir}/cpu{cpu}");
                let siblings = format!("{core},{}", core + cores);
                let shared = format!("{group}-{},{}-{}", group + 7, group + cores, group + 7 + cores);
                file(format!("{dir}/topology/thread_siblings_list"), siblings.clone());
                file(format!("{dir}/topology/physical_package_id"), (node / 4).to_string());
                file(format!("{dir}/cache/index2/level"), "2".into());
                file(format!("{dir}/cache/index2/shared_cpu_list"), siblings);
                file(format!("{dir}/cache/index3/level"), "3".into());
                file(format!("{dir}/cache/index3/shared_cpu_list"), shared);
            }
        }
        let name = format!("nvme{node}n1");
        let pci = format!("/sys/devices/pci0000:{node:02x}/0000:{node:02x}:00.0");
        let dir = format!("{pci}/nvme/nvme{node}/{name}");
        file(format!("{pci}/numa_node"), node.to_string());
        file(format!("{dir}/dev"), format!("259:{node}"));
        file(format!("{dir}/queue/scheduler"), "[none] mq-deadline".into());
        links.insert(format!("/sys/block/{name}"), json!(format!("../..{dir}")));
        links.insert(format!("/sys/dev/block/259:{node}"), json!(format!("../../..{dir}")));
        mounts.push(format!("3{node} 20 259:{node} / /srv/n{node} rw - xfs /dev/{name} rw"));
        blocks.push(name);
        numbers.push(format!("259:{node}"));
    }
    file("/proc/self/mountinfo".into(), mounts.join("\n"));
    dirs.insert("/sys/block".into(), json!(blocks));
    dirs.insert("/sys/dev/block".into(), json!(numbers));
    json!({ "schema": "vmprof.capture/1", "files": files, "links": links, "dirs": dirs }).to_string()
}

fn profile_text(vcpus: u32) -> String {
    let disks = (0..DISKS)
        .map(|at| format!("disk d{at} {{ source file=\"/srv/n{}/d{at}\"; queues 16; }}\n", at % NODES));
    let disks: String = disks.collect();
    format!("profile wide {{\nguest g\nmemory \"64GiB\"\nvcpu {vcpus}\niothreads 8\n{disks}}}\n")
}

fn profile(text: &str) -> Profile {
    match read_profile("wide.kdl", text) {
        Ok((profile, _)) => profile,
        Err(problems) => panic!("{problems}"),
    }
}

fn benches(c: &mut Criterion) {
    let (capture, text) = (capture(), profile_text(48));
    let roomy = profile(&text);
    let crowded = profile(&profile_text(200));
    let source = Source::Capture(Capture::from_json(&capture).unwrap_or_default());
    let topology = Topology::read(&source);
    assert_eq!(topology.online.len(), 1024);
    let storage = Storage::read(&source, &roomy, &topology, None);
    assert_eq!(storage.disks.len(), DISKS as usize);
    let ledger = Ledger::default();
    let planned = |profile: &Profile| match plan(profile, &topology, &storage, &ledger) {
        Ok(plan) => plan,
        Err(refused) => panic!("{refused}"),
    };
    let mut group = c.benchmark_group("1024 CPUs, 64 disks");
    group.bench_function("capture text to plan JSON", |b| {
        b.iter(|| {
            let profile = profile(black_box(&text));
            let source = Source::Capture(Capture::from_json(black_box(&capture)).unwrap_or_default());
            let topology = Topology::read(&source);
            let storage = Storage::read(&source, &profile, &topology, None);
            plan(&profile, &topology, &storage, &ledger).map(|plan| plan.to_json())
        });
    });
    group.bench_function("profile", |b| b.iter(|| profile(black_box(&text))));
    group.bench_function("capture", |b| b.iter(|| Capture::from_json(black_box(&capture))));
    group.bench_function("topology", |b| b.iter(|| Topology::read(black_box(&source))));
    group.bench_function("storage", |b| b.iter(|| Storage::read(&source, &roomy, &topology, None)));
    group.bench_function("plan", |b| b.iter(|| planned(black_box(&roomy))));
    group.bench_function("plan on every step", |b| b.iter(|| planned(black_box(&crowded))));
    let plan = planned(&roomy);
    group.bench_function("JSON", |b| b.iter(|| black_box(&plan).to_json()));
    group.finish();
    c.bench_function("live topology", |b| b.iter(|| Topology::read(black_box(&Source::Live))));
}

criterion_group!(all, benches);
criterion_main!(all);
