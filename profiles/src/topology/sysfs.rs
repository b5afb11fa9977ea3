//! The files of /sys and /proc that describe CPUs, caches, nodes and memory → [`Topology`]. Paths are named here and
//! nowhere else; what they mean for a plan is decided elsewhere.

use std::collections::BTreeMap;

use super::source::Reader;
use super::{CoreKind, Cpu, CpuSet, Node, Topology, block};

const CPU: &str = "/sys/devices/system/cpu";
const NODE: &str = "/sys/devices/system/node";

/// Reads the whole topology.
pub(crate) fn read(reader: &Reader<'_>) -> Topology {
    let online = online(reader);
    let nodes = nodes(reader, &online);
    let isolated = reader.set(&format!("{CPU}/isolated")).unwrap_or_default();
    let nohz_full = reader.set(&format!("{CPU}/nohz_full")).unwrap_or_default();
    let status = reader.read("/proc/self/status");
    let affinity = status
        .as_deref()
        .and_then(|s| field(s, "Cpus_allowed_list:"))
        .and_then(|l| l.parse().ok())
        .filter(|s: &CpuSet| !s.is_empty());
    let cpus = cpus(reader, &online, &nodes);
    Topology {
        arch: None,
        offline: CpuSet::new(),
        cgroup_cpus: None,
        allowed_nodes: None,
        isolated: isolated.and(&online),
        nohz_full: nohz_full.and(&online),
        affinity,
        cpus,
        nodes,
        block: block::read_all(reader),
        online,
    }
}

/// The online CPUs; where /sys does not say, what the caller may run on; where nothing says, CPU 0.
fn online(reader: &Reader<'_>) -> CpuSet {
    let listed = reader.set(&format!("{CPU}/online")).or_else(|| reader.set(&format!("{CPU}/present")));
    if let Some(set) = listed.filter(|s| !s.is_empty()) {
        return set;
    }
    let dirs: CpuSet = reader
        .list(CPU)
        .iter()
        .filter_map(|name| name.strip_prefix("cpu")?.parse::<u32>().ok())
        .filter(|cpu| reader.number::<u32>(&format!("{CPU}/cpu{cpu}/online")) != Some(0))
        .collect();
    if !dirs.is_empty() {
        return dirs;
    }
    reader
        .read("/proc/self/status")
        .as_deref()
        .and_then(|s| field(s, "Cpus_allowed_list:")?.parse().ok())
        .filter(|s: &CpuSet| !s.is_empty())
        .unwrap_or_else(|| CpuSet::of(0))
}

fn cpus(reader: &Reader<'_>, online: &CpuSet, nodes: &BTreeMap<u32, Node>) -> BTreeMap<u32, Cpu> {
    let node_of: BTreeMap<u32, u32> =
        nodes.iter().flat_map(|(id, node)| node.cpus.iter().map(move |cpu| (cpu, *id))).collect();
    let atoms = reader.set("/sys/devices/cpu_atom/cpus");
    // Hosts without the file on the first CPU have it nowhere.
    let capacity = |cpu: u32| reader.number::<u32>(&format!("{CPU}/cpu{cpu}/cpu_capacity"));
    let with_capacity = atoms.is_none() && online.first().is_some_and(|first| capacity(first).is_some());
    let mut capacities: BTreeMap<u32, u32> = BTreeMap::new();
    let mut found: BTreeMap<u32, Cpu> = BTreeMap::new();
    for cpu in online.iter() {
        // A core's files say the same for all its CPUs: each is read once, which on a large host is the difference
        // between thousands of files and half of them.
        if found.contains_key(&cpu) {
            continue;
        }
        let core = core(reader, cpu, online);
        let [l2, l3] = caches(reader, cpu, online);
        if let Some(capacity) = capacity(cpu).filter(|_| with_capacity) {
            capacities.insert(cpu, capacity);
        }
        for sibling in core.siblings.iter() {
            let economy = atoms.as_ref().is_some_and(|atoms| atoms.contains(sibling));
            let kind = if economy { CoreKind::Efficiency } else { CoreKind::Performance };
            let node = node_of.get(&sibling).copied();
            // Lists that contradict each other: the first to name a CPU has it.
            found.entry(sibling).or_insert(Cpu {
                package: core.package,
                die: None,
                cluster: None,
                core: cpu,
                l2,
                l3,
                node,
                kind,
            });
        }
    }
    let most = capacities.values().copied().max().unwrap_or(0);
    for cpu in found.values_mut() {
        // Firmware rounds capacities; clearly less than the best marks an economy core.
        if capacities.get(&cpu.core).is_some_and(|own| u64::from(*own) * 4 < u64::from(most) * 3) {
            cpu.kind = CoreKind::Efficiency;
        }
    }
    found
}

/// What a core's files say.
struct Core {
    siblings: CpuSet,
    package: Option<u32>,
}

fn core(reader: &Reader<'_>, cpu: u32, online: &CpuSet) -> Core {
    let dir = format!("{CPU}/cpu{cpu}/topology");
    let siblings = reader
        .set(&format!("{dir}/thread_siblings_list"))
        .or_else(|| reader.set(&format!("{dir}/core_cpus_list")))
        .unwrap_or_default()
        .and(online);
    let package = reader.number::<i64>(&format!("{dir}/physical_package_id"));
    // A list that does not name its own CPU is nonsense: then the CPU is a core of its own.
    let siblings = if siblings.contains(cpu) { siblings } else { CpuSet::of(cpu) };
    Core { siblings, package: package.and_then(|p| u32::try_from(p).ok()) }
}

/// The L2 and L3 caches of a CPU, each named by the lowest online CPU that shares it.
fn caches(reader: &Reader<'_>, cpu: u32, online: &CpuSet) -> [Option<u32>; 2] {
    let dir = format!("{CPU}/cpu{cpu}/cache");
    let mut own = [None, None];
    // Index 0 and 1 are the L1 caches on every kernel; L2 and L3 follow, and a missing number ends them.
    for index in 2..6 {
        let Some(level) = reader.number::<usize>(&format!("{dir}/index{index}/level")) else {
            // Without an L2 there can be an L3 all the same.
            if index == 2 { continue } else { break }
        };
        let shared =
            reader.set(&format!("{dir}/index{index}/shared_cpu_list")).unwrap_or_default().and(online);
        if (2..=3).contains(&level) && shared.contains(cpu) {
            own[level - 2] = shared.first();
        }
    }
    own
}

fn nodes(reader: &Reader<'_>, online: &CpuSet) -> BTreeMap<u32, Node> {
    let listed = reader.set(&format!("{NODE}/online")).filter(|s| !s.is_empty());
    let ids = listed.unwrap_or_else(|| {
        reader.list(NODE).iter().filter_map(|name| name.strip_prefix("node")?.parse::<u32>().ok()).collect()
    });
    let mut nodes = BTreeMap::new();
    let mut taken = CpuSet::new();
    for id in ids.iter() {
        let dir = format!("{NODE}/node{id}");
        let listed = reader.set(&format!("{dir}/cpulist"));
        let meminfo = reader.read(&format!("{dir}/meminfo"));
        if listed.is_none() && meminfo.is_none() {
            continue;
        }
        let cpus = listed.unwrap_or_default();
        // A CPU lies on one node; a list that claims it again is nonsense.
        let cpus = cpus.and(online).minus(&taken);
        taken = taken.or(&cpus);
        let distances = reader.read(&format!("{dir}/distance")).unwrap_or_default();
        let distance = ids.iter().zip(distances.split_whitespace().filter_map(|d| d.parse().ok())).collect();
        let meminfo = meminfo.unwrap_or_default();
        nodes.insert(
            id,
            Node {
                cpus,
                distance,
                memory_bytes: node_kib(&meminfo, "MemTotal:"),
                free_bytes: node_kib(&meminfo, "MemFree:"),
                free_hugepages: hugepages(reader, &format!("{dir}/hugepages")),
            },
        );
    }
    nodes
}

fn hugepages(reader: &Reader<'_>, dir: &str) -> BTreeMap<u64, u64> {
    let size = |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok();
    reader
        .list(dir)
        .iter()
        .filter_map(|name| {
            let free = reader.number(&format!("{dir}/{name}/free_hugepages"))?;
            Some((size(name)?.checked_mul(1024)?, free))
        })
        .collect()
}

/// The bytes of a line such as `Node 0 MemTotal: 16384 kB`.
fn node_kib(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find(|l| l.contains(key))?;
    let kib: u64 = line.split_once(key)?.1.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}
