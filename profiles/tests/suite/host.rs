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
    /// Cores per L3 cache, economy cores included; 0 for no L3.
    pub(crate) l3_cores: u32,
    pub(crate) free_2mib: u64,
    /// Whether an NVMe drive `nvmeIDn1` hangs here, with a file system on /srv/nID.
    pub(crate) nvme: bool,
    /// How many drives, where there are more than that one; then they are numbered through the host.
    pub(crate) drives: u32,
    /// Hardware queues of each drive; 0 for one per core.
    pub(crate) queues: u32,
    /// The socket; its own id where the description does not say.
    pub(crate) package: Option<u32>,
    /// Cores per cluster; 0 where the kernel lists none.
    pub(crate) cluster_cores: u32,
    /// Economy cores besides: one thread each, four to a cluster and its L2.
    pub(crate) efficiency: u32,
}

/// A made-up host.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostSpec {
    pub(crate) nodes: Vec<NodeSpec>,
    /// Siblings per core. CPU ids count through all cores first, then through all second siblings, as Linux does.
    pub(crate) threads: u32,
    /// Siblings have neighbouring ids instead, as on POWER and on hybrid chips.
    pub(crate) adjacent: bool,
    pub(crate) offline: CpuSet,
    pub(crate) isolated: CpuSet,
    pub(crate) affinity: Option<CpuSet>,
    pub(crate) arch: Option<&'static str>,
    /// What a cgroup (v2) leaves the caller.
    pub(crate) cgroup: Option<CpuSet>,
    /// Distances between the nodes in their order; empty for 10 and 21.
    pub(crate) distance: Vec<Vec<u32>>,
    /// One L3 for all of a package, over the nodes that it is split into.
    pub(crate) l3_by_package: bool,
}

pub(crate) fn node(id: u32, cores: u32) -> NodeSpec {
    NodeSpec { id, cores, memory_mib: 4096, l3_cores: cores, ..NodeSpec::default() }
}

pub(crate) fn set(text: &str) -> CpuSet {
    text.parse().unwrap()
}

/// The entries of a capture.
#[derive(Debug, Default)]
struct Entries {
    files: BTreeMap<String, String>,
    links: BTreeMap<String, String>,
    dirs: BTreeMap<String, Vec<String>>,
}

impl Entries {
    fn file(&mut self, path: String, text: impl ToString) {
        self.files.insert(path, format!("{}\n", text.to_string()));
    }
}

const CPU: &str = "/sys/devices/system/cpu";
const NODE: &str = "/sys/devices/system/node";

impl HostSpec {
    pub(crate) fn of(nodes: Vec<NodeSpec>) -> HostSpec {
        HostSpec { nodes, threads: 1, ..HostSpec::default() }
    }

    pub(crate) fn capture(&self) -> Capture {
        let mut entries = Entries::default();
        let cores = self.cores();
        let cpus: CpuSet = cores.iter().flatten().flatten().copied().collect();
        let online = cpus.minus(&self.offline);
        self.whole(&mut entries, &cpus, &online);
        let packages: Vec<u32> = self.nodes.iter().map(|n| n.package.unwrap_or(n.id)).collect();
        for (at, (node, own)) in self.nodes.iter().zip(&cores).enumerate() {
            self.node(&mut entries, at, own, &online);
            for (core, siblings) in own.iter().enumerate() {
                let siblings: CpuSet = siblings.iter().copied().collect();
                let group = |size: u32| -> CpuSet {
                    let size = size as usize;
                    own.iter().skip(core / size * size).take(size).flatten().copied().collect()
                };
                let economy = core >= node.cores as usize;
                let cluster = if economy {
                    let first = node.cores as usize + (core - node.cores as usize) / 4 * 4;
                    Some(own.iter().skip(first).take(4).flatten().copied().collect())
                } else {
                    (node.cluster_cores > 0).then(|| group(node.cluster_cores))
                };
                let l3 = if self.l3_by_package {
                    let same = cores.iter().zip(&packages).filter(|(_, package)| **package == packages[at]);
                    Some(same.flat_map(|(cores, _)| cores.iter().flatten().copied()).collect())
                } else {
                    (node.l3_cores > 0).then(|| group(node.l3_cores))
                };
                for cpu in siblings.and(&online).iter() {
                    let dir = format!("{CPU}/cpu{cpu}");
                    entries.file(format!("{dir}/topology/thread_siblings_list"), siblings.and(&online));
                    entries.file(format!("{dir}/topology/physical_package_id"), packages[at]);
                    entries.file(format!("{dir}/cache/index2/level"), 2);
                    let l2 = cluster.as_ref().filter(|_| economy).unwrap_or(&siblings);
                    entries.file(format!("{dir}/cache/index2/shared_cpu_list"), l2.and(&online));
                    if let Some(cluster) = &cluster {
                        entries.file(format!("{dir}/topology/cluster_cpus_list"), cluster.and(&online));
                    }
                    if let Some(l3) = &l3 {
                        let l3: &CpuSet = l3;
                        entries.file(format!("{dir}/cache/index3/level"), 3);
                        entries.file(format!("{dir}/cache/index3/shared_cpu_list"), l3.and(&online));
                    }
                }
            }
        }
        self.drives(&mut entries, &online);
        let Entries { files, links, dirs } = entries;
        let text =
            json!({ "schema": "vmprof.capture/1", "files": files, "links": links, "dirs": dirs }).to_string();
        Capture::from_json(&text).unwrap()
    }

    /// The CPUs of each core of each node.
    fn cores(&self) -> Vec<Vec<Vec<u32>>> {
        let all: u32 = self.nodes.iter().map(|n| n.cores).sum();
        let (mut fast, mut economy) = (0, all * self.threads);
        let mut nodes = Vec::new();
        for node in &self.nodes {
            let threads = |core: u32| {
                let id = |t: u32| if self.adjacent { core * self.threads + t } else { core + t * all };
                (0..self.threads).map(id).collect::<Vec<u32>>()
            };
            let mut cores: Vec<Vec<u32>> = (fast..fast + node.cores).map(threads).collect();
            cores.extend((economy..economy + node.efficiency).map(|cpu| vec![cpu]));
            fast += node.cores;
            economy += node.efficiency;
            nodes.push(cores);
        }
        nodes
    }

    /// What is said of the whole host and of the caller.
    fn whole(&self, entries: &mut Entries, cpus: &CpuSet, online: &CpuSet) {
        entries.file(format!("{CPU}/online"), online);
        entries.file(format!("{CPU}/isolated"), &self.isolated);
        if !self.offline.is_empty() {
            entries.file(format!("{CPU}/present"), cpus);
        }
        if let Some(arch) = self.arch {
            entries.file("/proc/sys/kernel/arch".into(), arch);
        }
        if let Some(affinity) = &self.affinity {
            entries
                .file("/proc/self/status".into(), format!("Name:\tvmprof\nCpus_allowed_list:\t{affinity}"));
        }
        let ids: CpuSet = self.nodes.iter().map(|n| n.id).collect();
        entries.file(format!("{NODE}/online"), &ids);
        let fast: u32 = self.nodes.iter().map(|n| n.cores).sum::<u32>() * self.threads;
        if cpus.last() >= Some(fast) {
            entries.file("/sys/devices/cpu_core/cpus".into(), (0..fast).collect::<CpuSet>().and(online));
            let economy: CpuSet = cpus.iter().filter(|cpu| *cpu >= fast).collect();
            entries.file("/sys/devices/cpu_atom/cpus".into(), economy.and(online));
        }
        if let Some(cgroup) = &self.cgroup {
            entries.file("/proc/self/cgroup".into(), "0::/machine.slice/ci.scope");
            let dir = "/sys/fs/cgroup/machine.slice";
            entries.file(format!("{dir}/cpuset.cpus.effective"), cgroup);
            entries.file(format!("{dir}/cpuset.mems.effective"), &ids);
        }
    }

    fn node(&self, entries: &mut Entries, at: usize, cores: &[Vec<u32>], online: &CpuSet) {
        let node = &self.nodes[at];
        let dir = format!("{NODE}/node{}", node.id);
        let all: CpuSet = cores.iter().flatten().copied().collect();
        entries.file(format!("{dir}/cpulist"), all.and(online));
        let far = (0..self.nodes.len()).map(|to| match self.distance.get(at) {
            Some(row) => row[to].to_string(),
            None => if to == at { "10" } else { "21" }.to_owned(),
        });
        entries.file(format!("{dir}/distance"), far.collect::<Vec<_>>().join(" "));
        let (id, kib) = (node.id, node.memory_mib * 1024);
        entries.file(
            format!("{dir}/meminfo"),
            format!("Node {id} MemTotal: {kib} kB\nNode {id} MemFree: {} kB", kib / 2),
        );
        entries.file(format!("{dir}/hugepages/hugepages-2048kB/free_hugepages"), node.free_2mib);
        entries.dirs.insert(format!("{dir}/hugepages"), vec!["hugepages-2048kB".into()]);
    }

    fn drives(&self, entries: &mut Entries, online: &CpuSet) {
        let mut mounts = vec!["20 1 0:5 / / rw - rootfs rootfs rw".to_owned()];
        if self.cgroup.is_some() {
            mounts.push("21 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw".to_owned());
        }
        let mut numbers = Vec::new();
        let mut block = Vec::new();
        for (at, node) in (0..).zip(&self.nodes) {
            let first = if node.drives > 1 { at * node.drives } else { node.id };
            for nth in 0..node.drives.max(u32::from(node.nvme)) {
                let (id, number) = (node.id, first + nth);
                let name = format!("nvme{number}n1");
                let pci = format!("/sys/devices/pci0000:{id:02x}/0000:{id:02x}:{nth:02x}.0");
                let dir = format!("{pci}/nvme/nvme{number}/{name}");
                entries.file(format!("{pci}/numa_node"), id);
                entries.file(format!("{dir}/dev"), format!("259:{number}"));
                for (file, text) in [
                    ("scheduler", "[none] mq-deadline"),
                    ("logical_block_size", "512"),
                    ("physical_block_size", "4096"),
                    ("rotational", "0"),
                    ("dma_alignment", "3"),
                    ("write_cache", "write back"),
                ] {
                    entries.file(format!("{dir}/queue/{file}"), text);
                }
                let queues = if node.queues > 0 { node.queues } else { node.cores.max(1) };
                for queue in 0..queues {
                    let served = (0..).zip(online.iter()).filter(|(cpu, _)| cpu % queues == queue);
                    // That file has blanks and no ranges.
                    let served: Vec<String> = served.map(|(_, cpu)| cpu.to_string()).collect();
                    entries.file(format!("{dir}/mq/{queue}/cpu_list"), served.join(", "));
                }
                entries.dirs.insert(format!("{dir}/mq"), (0..queues).map(|q| q.to_string()).collect());
                entries.links.insert(format!("/sys/block/{name}"), format!("../..{dir}"));
                entries.links.insert(format!("/sys/dev/block/259:{number}"), format!("../../..{dir}"));
                entries.links.insert(format!("/dev/disk/by-id/nvme-drive-{number}"), format!("../../{name}"));
                mounts.push(format!("3{number} 20 259:{number} / /srv/n{number} rw - ext4 /dev/{name} rw"));
                numbers.push(format!("259:{number}"));
                block.push(name);
            }
        }
        entries.file("/proc/self/mountinfo".into(), mounts.join("\n"));
        entries.dirs.insert("/sys/block".into(), block);
        entries.dirs.insert("/sys/dev/block".into(), numbers);
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
