//! NUMA nodes: their CPUs, distances, memory and hugepages.

use std::collections::BTreeMap;

use super::source::{Below, Reader};
use super::{CpuSet, Node};

const NODE: &str = "/sys/devices/system/node";

/// Every node, and what made no sense about them.
pub(super) fn read(reader: &Reader<'_>, online: &CpuSet, doubts: &mut Vec<String>) -> BTreeMap<u32, Node> {
    let listed = reader.set(&format!("{NODE}/online")).filter(|s| !s.is_empty());
    let ids = listed.unwrap_or_else(|| {
        reader.list(NODE).iter().filter_map(|name| name.strip_prefix("node")?.parse::<u32>().ok()).collect()
    });
    let mut nodes = BTreeMap::new();
    let mut taken = CpuSet::new();
    let mut twice = CpuSet::new();
    for id in ids.iter() {
        let mut dir = Below::new(format!("{NODE}/node{id}"));
        let listed = cpus(reader, &mut dir);
        let meminfo = reader.read(dir.file("meminfo"));
        if listed.is_none() && meminfo.is_none() {
            continue;
        }
        let cpus = listed.unwrap_or_default().and(online);
        // A CPU lies on one node; a list that claims it again is nonsense.
        twice.extend_with(&cpus.and(&taken));
        let cpus = cpus.minus(&taken);
        taken.extend_with(&cpus);
        let meminfo = meminfo.unwrap_or_default();
        nodes.insert(
            id,
            Node {
                cpus,
                distance: distances(reader.read(dir.file("distance")).as_deref(), &ids),
                memory_bytes: kib(&meminfo, "MemTotal:"),
                free_bytes: kib(&meminfo, "MemFree:"),
                free_hugepages: hugepages(reader, dir.file("hugepages")),
            },
        );
    }
    if !twice.is_empty() {
        doubts.push(format!("which node CPUs {twice} are on (several name them)"));
    }
    nodes
}

/// The memory of a host without nodes, where anything tells it.
pub(super) fn unplaced(reader: &Reader<'_>) -> Option<Node> {
    let meminfo = reader.read("/proc/meminfo");
    let free_hugepages = hugepages(reader, "/sys/kernel/mm/hugepages");
    if meminfo.is_none() && free_hugepages.is_empty() {
        return None;
    }
    let meminfo = meminfo.unwrap_or_default();
    Some(Node {
        memory_bytes: kib(&meminfo, "MemTotal:"),
        free_bytes: kib(&meminfo, "MemFree:"),
        free_hugepages,
        ..Node::default()
    })
}

fn cpus(reader: &Reader<'_>, dir: &mut Below) -> Option<CpuSet> {
    reader.set(dir.file("cpulist")).or_else(|| reader.mask(dir.file("cpumap")))
}

/// The kernel lists the distances to all online nodes in order, without their ids: a list of another length tells
/// nothing.
fn distances(text: Option<&str>, ids: &CpuSet) -> BTreeMap<u32, u32> {
    let far: Option<Vec<u32>> = text.unwrap_or_default().split_whitespace().map(|d| d.parse().ok()).collect();
    let far = far.filter(|far| far.len() == ids.len()).unwrap_or_default();
    ids.iter().zip(far).collect()
}

fn hugepages(reader: &Reader<'_>, dir: &str) -> BTreeMap<u64, u64> {
    let size = |name: &str| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok();
    reader
        .list(dir)
        .iter()
        .filter_map(|name| {
            let size = size(name)?.checked_mul(1024)?;
            Some((size, reader.number(&format!("{dir}/{name}/free_hugepages"))?))
        })
        .collect()
}

/// The bytes of a line such as `Node 0 MemTotal: 16384 kB`.
fn kib(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find(|l| l.contains(key))?;
    let kib: u64 = line.split_once(key)?.1.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}
