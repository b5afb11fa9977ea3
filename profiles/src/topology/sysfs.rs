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
    let affinity =
        status.as_deref().and_then(|s| field(s, "Cpus_allowed_list:")).and_then(|l| l.parse().ok());
    let cpus = cpus(reader, &online, &nodes);
    Topology {
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
    // A core's files and a cache's files say the same for all their CPUs: each is read once, which on a large host
    // is the difference between one and many thousand files.
    let mut cores: BTreeMap<u32, (u32, Option<u32>)> = BTreeMap::new();
    let mut caches: BTreeMap<u32, [Option<u32>; 2]> = BTreeMap::new();
    let node_of: BTreeMap<u32, u32> =
        nodes.iter().flat_map(|(id, node)| node.cpus.iter().map(move |cpu| (cpu, *id))).collect();
    let kinds = kinds(reader, online);
    let mut found = BTreeMap::new();
    for cpu in online.iter() {
        let (core, package) = *cores.get(&cpu).unwrap_or(&(cpu, None));
        let (core, package) = if cores.contains_key(&cpu) {
            (core, package)
        } else {
            let dir = format!("{CPU}/cpu{cpu}/topology");
            let siblings = reader
                .set(&format!("{dir}/thread_siblings_list"))
                .or_else(|| reader.set(&format!("{dir}/core_cpus_list")))
                .unwrap_or_default()
                .and(online);
            let package = reader
                .number::<i64>(&format!("{dir}/physical_package_id"))
                .and_then(|p| u32::try_from(p).ok());
            // A list that does not name its own CPU is nonsense: then the CPU is a core of its own.
            let siblings = if siblings.contains(cpu) { siblings } else { CpuSet::of(cpu) };
            let core = siblings.iter().find(|s| !cores.contains_key(s)).unwrap_or(cpu);
            for sibling in siblings.iter() {
                cores.entry(sibling).or_insert((core, package));
            }
            (core, package)
        };
        if !caches.contains_key(&cpu) {
            cache(reader, cpu, online, &mut caches);
        }
        let [l2, l3] = caches.get(&cpu).copied().unwrap_or_default();
        let kind = kinds.get(&cpu).copied().unwrap_or(CoreKind::Performance);
        found.insert(cpu, Cpu { package, core, l2, l3, node: node_of.get(&cpu).copied(), kind });
    }
    found
}

/// Reads the caches of one CPU and notes them for all CPUs of its core, and the L3 for all that share it.
fn cache(reader: &Reader<'_>, cpu: u32, online: &CpuSet, caches: &mut BTreeMap<u32, [Option<u32>; 2]>) {
    let dir = format!("{CPU}/cpu{cpu}/cache");
    let mut own = [None, None];
    // Index 0 and 1 are the L1 caches on every kernel; L2 and L3 follow, and a missing number ends them.
    for index in 2..6 {
        let Some(level) = reader.number::<usize>(&format!("{dir}/index{index}/level")) else { break };
        let shared =
            reader.set(&format!("{dir}/index{index}/shared_cpu_list")).unwrap_or_default().and(online);
        if (2..=3).contains(&level) && shared.contains(cpu) {
            own[level - 2] = shared.first();
        }
    }
    caches.insert(cpu, own);
}

/// Which CPUs are of the economical kind: what the kernel names so, else those of clearly less capacity.
fn kinds(reader: &Reader<'_>, online: &CpuSet) -> BTreeMap<u32, CoreKind> {
    if let Some(atoms) = reader.set("/sys/devices/cpu_atom/cpus") {
        return atoms.iter().map(|cpu| (cpu, CoreKind::Efficiency)).collect();
    }
    // Hosts without the file on the first CPU have it nowhere.
    let Some(first) = online.first() else { return BTreeMap::new() };
    let capacity = |cpu: u32| reader.number::<u32>(&format!("{CPU}/cpu{cpu}/cpu_capacity"));
    if capacity(first).is_none() {
        return BTreeMap::new();
    }
    let all: BTreeMap<u32, u32> = online.iter().filter_map(|cpu| Some((cpu, capacity(cpu)?))).collect();
    let most = all.values().copied().max().unwrap_or(0);
    all.into_iter()
        .filter(|(_, capacity)| u64::from(*capacity) * 4 < u64::from(most) * 3)
        .map(|(cpu, _)| (cpu, CoreKind::Efficiency))
        .collect()
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
        let Some(cpus) = reader.set(&format!("{dir}/cpulist")) else { continue };
        // A CPU lies on one node; a list that claims it again is nonsense.
        let cpus = cpus.and(online).minus(&taken);
        taken = taken.or(&cpus);
        let distances = reader.read(&format!("{dir}/distance")).unwrap_or_default();
        let distance = ids.iter().zip(distances.split_whitespace().filter_map(|d| d.parse().ok())).collect();
        let meminfo = reader.read(&format!("{dir}/meminfo")).unwrap_or_default();
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
