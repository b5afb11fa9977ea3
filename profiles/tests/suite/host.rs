//! Made-up hosts: a short description → a capture with the files that a kernel would show, read by the same parser
//! as a real one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;
use vmprof_profiles::{
    Capture, CpuSet, Ledger, Plan, Profile, Source, Storage, Topology, plan, read_profile,
};

/// One NUMA node of a made-up host.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodeSpec {
    pub(crate) id: u32,
    pub(crate) cores: u32,
    pub(crate) memory_mib: u64,
    /// Cores per L3 cache; 0 for no L3.
    pub(crate) l3_cores: u32,
    pub(crate) free_2mib: u64,
    /// Whether an NVMe drive `nvmeIDn1` hangs here, with a file system on /srv/nID.
    pub(crate) nvme: bool,
}

/// A made-up host.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostSpec {
    pub(crate) nodes: Vec<NodeSpec>,
    /// Siblings per core. CPU ids count through all cores first, then through all second siblings, as Linux does.
    pub(crate) threads: u32,
    pub(crate) offline: CpuSet,
    pub(crate) isolated: CpuSet,
    pub(crate) affinity: Option<CpuSet>,
}

pub(crate) fn node(id: u32, cores: u32) -> NodeSpec {
    NodeSpec { id, cores, memory_mib: 4096, l3_cores: cores, free_2mib: 0, nvme: false }
}

pub(crate) fn set(text: &str) -> CpuSet {
    text.parse().unwrap()
}

impl HostSpec {
    pub(crate) fn of(nodes: Vec<NodeSpec>) -> HostSpec {
        HostSpec { nodes, threads: 1, ..HostSpec::default() }
    }

    pub(crate) fn capture(&self) -> Capture {
        let mut files: BTreeMap<String, String> = BTreeMap::new();
        let mut links: BTreeMap<String, String> = BTreeMap::new();
        let mut dirs: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let cores: u32 = self.nodes.iter().map(|n| n.cores).sum();
        let cpus: CpuSet = (0..cores * self.threads).collect();
        let online = cpus.minus(&self.offline);
        let (cpu_dir, node_dir) = ("/sys/devices/system/cpu", "/sys/devices/system/node");
        let mut file = |path: String, text: String| files.insert(path, format!("{text}\n"));
        file(format!("{cpu_dir}/online"), online.to_string());
        file(format!("{cpu_dir}/isolated"), self.isolated.to_string());
        if let Some(affinity) = &self.affinity {
            file("/proc/self/status".into(), format!("Name:\tvmprof\nCpus_allowed_list:\t{affinity}"));
        }
        let ids: CpuSet = self.nodes.iter().map(|n| n.id).collect();
        file(format!("{node_dir}/online"), ids.to_string());
        let mut first = 0;
        let mut mounts = vec!["20 1 0:5 / / rw - rootfs rootfs rw".to_owned()];
        let mut numbers = Vec::new();
        let mut block = Vec::new();
        for node in &self.nodes {
            let own: Vec<u32> = (first..first + node.cores).collect();
            let of = |core: u32| (0..self.threads).map(move |t| core + t * cores);
            let all: CpuSet = own.iter().flat_map(|core| of(*core)).collect();
            let dir = format!("{node_dir}/node{}", node.id);
            file(format!("{dir}/cpulist"), all.and(&online).to_string());
            let far = self.nodes.iter().map(|other| if other.id == node.id { "10" } else { "21" });
            file(format!("{dir}/distance"), far.collect::<Vec<_>>().join(" "));
            let (id, kib) = (node.id, node.memory_mib * 1024);
            file(
                format!("{dir}/meminfo"),
                format!("Node {id} MemTotal: {kib} kB\nNode {id} MemFree: {} kB", kib / 2),
            );
            file(format!("{dir}/hugepages/hugepages-2048kB/free_hugepages"), node.free_2mib.to_string());
            dirs.insert(format!("{dir}/hugepages"), vec!["hugepages-2048kB".into()]);
            for (at, core) in (0..).zip(&own) {
                let siblings: CpuSet = of(*core).collect();
                let group = |size: u32| -> CpuSet {
                    let start = first + at / size * size;
                    (start..(start + size).min(first + node.cores)).flat_map(of).collect()
                };
                for cpu in of(*core).filter(|cpu| online.contains(*cpu)) {
                    let dir = format!("{cpu_dir}/cpu{cpu}");
                    file(format!("{dir}/topology/thread_siblings_list"), siblings.and(&online).to_string());
                    file(format!("{dir}/topology/physical_package_id"), node.id.to_string());
                    file(format!("{dir}/cache/index2/level"), "2".into());
                    file(format!("{dir}/cache/index2/shared_cpu_list"), siblings.and(&online).to_string());
                    if node.l3_cores > 0 {
                        let shared = group(node.l3_cores).and(&online);
                        file(format!("{dir}/cache/index3/level"), "3".into());
                        file(format!("{dir}/cache/index3/shared_cpu_list"), shared.to_string());
                    }
                }
            }
            if node.nvme {
                let name = format!("nvme{id}n1");
                let pci = format!("/sys/devices/pci0000:{id:02x}/0000:{id:02x}:00.0");
                let dir = format!("{pci}/nvme/nvme{id}/{name}");
                file(format!("{pci}/numa_node"), id.to_string());
                file(format!("{dir}/dev"), format!("259:{id}"));
                file(format!("{dir}/queue/scheduler"), "[none] mq-deadline".into());
                file(format!("{dir}/queue/logical_block_size"), "512".into());
                file(format!("{dir}/queue/physical_block_size"), "4096".into());
                file(format!("{dir}/queue/rotational"), "0".into());
                dirs.insert(format!("{dir}/mq"), (0..node.cores.max(1)).map(|q| q.to_string()).collect());
                links.insert(format!("/sys/block/{name}"), format!("../..{dir}"));
                links.insert(format!("/sys/dev/block/259:{id}"), format!("../../..{dir}"));
                mounts.push(format!("3{id} 20 259:{id} / /srv/n{id} rw - ext4 /dev/{name} rw"));
                numbers.push(format!("259:{id}"));
                block.push(name);
            }
            first += node.cores;
        }
        file("/proc/self/mountinfo".into(), mounts.join("\n"));
        dirs.insert("/sys/block".into(), block);
        dirs.insert("/sys/dev/block".into(), numbers);
        let text =
            json!({ "schema": "vmprof.capture/1", "files": files, "links": links, "dirs": dirs }).to_string();
        Capture::from_json(&text).unwrap()
    }

    pub(crate) fn source(&self) -> Source {
        Source::Capture(self.capture())
    }

    pub(crate) fn topology(&self) -> Topology {
        Topology::read(&self.source())
    }
}

/// The text of a file below the crate's directory.
pub(crate) fn text_of(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A profile that must be right.
pub(crate) fn profile(text: &str) -> Profile {
    match read_profile("test.kdl", text) {
        Ok((profile, _)) => profile,
        Err(problems) => panic!("{}", problems.iter().map(|p| format!("{p}\n")).collect::<String>()),
    }
}

/// A profile with these nodes besides the ones it must have.
pub(crate) fn with(nodes: &str) -> Profile {
    profile(&format!("profile test {{\n guest \"g.kdl\"\n memory \"1GiB\"\n{nodes}\n}}\n"))
}

/// The plan of a profile on a host, with nobody else there.
pub(crate) fn planned(profile: &Profile, source: &Source) -> Plan {
    let topology = Topology::read(source);
    let storage = Storage::read(source, profile, &topology, None);
    plan(profile, &topology, &storage, &Ledger::default())
        .unwrap_or_else(|error| panic!("{:?}", error.problems()))
}

/// The last words of the codes of a plan's diagnostics.
pub(crate) fn codes(plan: &Plan) -> Vec<&str> {
    plan.diagnostics.iter().map(|d| d.code.rsplit("::").next().unwrap_or_default()).collect()
}

/// The CPU lists of a plan's vCPUs, IOThreads and emulator.
pub(crate) fn layout(plan: &Plan) -> (String, String, String) {
    let join = |sets: Vec<String>| sets.join(" ");
    (
        join(plan.vcpus.iter().map(|v| v.cpus.to_string()).collect()),
        join(plan.iothreads.iter().map(|i| i.cpus.to_string()).collect()),
        plan.emulator.cpus.to_string(),
    )
}
