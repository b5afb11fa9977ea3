//! A host's topology as text and as JSON, for `vmprof host`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use vmprof_document::format_size;

use crate::ledger::Ledger;
use crate::topology::{BlockDevice, CoreKind, Cpu, CpuSet, Node, NodeSet, Topology};

use super::grid::grid;

/// The host for people: what there is, what the caller may use of it, and what other VMs hold.
pub fn host_text(topology: &Topology, ledger: &Ledger) -> String {
    let mut text = String::new();
    facts(&mut text, topology, ledger);
    let usable = usable(topology);
    let held = ledger.cpus();
    text.push_str(&grid(topology, 100, |cpu| {
        let economy = topology.cpus.get(&cpu).is_some_and(|c| c.kind == CoreKind::Efficiency);
        match (usable.contains(cpu), held.contains(cpu), topology.isolated.contains(cpu), economy) {
            (false, ..) => "-",
            (_, true, ..) => "x",
            (_, _, true, _) => "i",
            (.., true) => "E",
            _ => ".",
        }
        .to_owned()
    }));
    text.push_str("  . usable   i isolated   E economy core   - not usable here");
    text.push_str(if held.is_empty() { "\n" } else { "   x held by another VM\n" });
    groups(&mut text, topology);
    nodes(&mut text, topology);
    drives(&mut text, topology);
    let gaps = topology.gaps();
    if !gaps.is_empty() {
        text.push_str("\nunknown\n");
    }
    for gap in gaps {
        let _ = writeln!(text, "  {gap}");
    }
    text
}

/// The CPUs a VM may be planned on.
fn usable(topology: &Topology) -> CpuSet {
    let mut usable = topology.online.clone();
    for limit in [&topology.affinity, &topology.cgroup_cpus].into_iter().flatten() {
        usable = usable.and(limit);
    }
    usable
}

fn list(set: &CpuSet) -> String {
    if set.is_empty() { "none".to_owned() } else { set.to_string() }
}

fn facts(text: &mut String, topology: &Topology, ledger: &Ledger) {
    let mut line = |name: &str, value: String| _ = writeln!(text, "{name:<13} {value}");
    if let Some(arch) = &topology.arch {
        line("architecture", arch.clone());
    }
    line("CPUs online", topology.online.to_string());
    if !topology.offline.is_empty() {
        line("offline", topology.offline.to_string());
    }
    let unsaid = || "unknown, taken: all that are online".to_owned();
    line("usable", topology.affinity.as_ref().map_or_else(unsaid, list));
    if let Some(cgroup) = &topology.cgroup_cpus
        && *cgroup != topology.online
    {
        line("cgroup", cgroup.to_string());
    }
    let all: CpuSet = topology.nodes.keys().copied().collect();
    if let Some(nodes) = &topology.allowed_nodes
        && *nodes != all
    {
        line("memory nodes", nodes.to_string());
    }
    if let Some(memory) = &topology.unplaced {
        line("memory", format!("{}{}", amounts(memory), pages(memory)));
    }
    line("isolated", list(&topology.isolated));
    line("without tick", list(&topology.nohz_full));
    for held in &ledger.held {
        let process = held.pid.map_or(String::new(), |pid| format!(", process {pid}"));
        line("held", format!("{} by {}{process}", held.cpus, held.holder));
    }
    text.push('\n');
}

/// Packages, dies and clusters where they divide a host further than its nodes do, and the two kinds of core.
fn groups(text: &mut String, topology: &Topology) {
    let grouped = |by: GroupOf| -> BTreeMap<u32, CpuSet> {
        let mut groups: BTreeMap<u32, CpuSet> = BTreeMap::new();
        for (id, cpu) in &topology.cpus {
            if let Some(name) = by(cpu) {
                groups.entry(name).or_default().insert(*id);
            }
        }
        groups
    };
    // The same sets under another name tell nothing.
    let mut seen: BTreeSet<Vec<CpuSet>> = BTreeSet::new();
    seen.insert(topology.nodes.values().map(|n| n.cpus.clone()).filter(|c| !c.is_empty()).collect());
    seen.insert(grouped(|cpu| Some(cpu.core)).into_values().collect());
    let mut lines = Vec::new();
    let levels: [(&str, GroupOf); 4] = [
        ("package", |cpu| cpu.package),
        ("die", |cpu| cpu.die),
        ("cluster", |cpu| cpu.cluster),
        ("L2", |cpu| cpu.l2),
    ];
    for (name, by) in levels {
        let groups = grouped(by);
        if groups.len() < 2 || !seen.insert(groups.values().cloned().collect()) {
            continue;
        }
        let numbered = |(at, (id, cpus)): (usize, (&u32, &CpuSet))| {
            // Packages have numbers of their own; the others go by their lowest CPU, which the list begins with.
            let number = if name == "package" { *id } else { u32::try_from(at).unwrap_or(u32::MAX) };
            format!("{number}: {cpus}")
        };
        let shown: Vec<String> = groups.iter().enumerate().take(GROUPS).map(numbered).collect();
        let more = match groups.len().saturating_sub(GROUPS) {
            0 => String::new(),
            more => format!("  and {more} more"),
        };
        lines.push(format!("  {name:<8} {}{more}\n", shown.join("  ")));
    }
    let kind = |kind: CoreKind| -> CpuSet {
        topology.cpus.iter().filter(|(_, cpu)| cpu.kind == kind).map(|(id, _)| *id).collect()
    };
    let economy = kind(CoreKind::Efficiency);
    if !economy.is_empty() {
        let fast = kind(CoreKind::Performance);
        lines.push(format!("  {:<8} performance: {}  economy: {economy}\n", "cores", list(&fast)));
    }
    if !lines.is_empty() {
        text.push_str("\ngroups of CPUs\n");
        text.extend(lines);
    }
}

/// The name of a CPU's group on some level.
type GroupOf = fn(&Cpu) -> Option<u32>;

/// How many groups of one level are listed.
const GROUPS: usize = 8;

fn nodes(text: &mut String, topology: &Topology) {
    if !topology.nodes.is_empty() {
        text.push_str("\nnodes\n");
    }
    // Machines with GPUs keep dozens of empty nodes for memory that may come.
    let empty = |node: &Node| node.cpus.is_empty() && node.memory_bytes == Some(0);
    for (id, node) in topology.nodes.iter().filter(|(_, node)| !empty(node)) {
        let distance = distances(node);
        let _ = write!(text, "  node {id}  CPUs {}  memory {}", list(&node.cpus), amounts(node));
        if !distance.is_empty() {
            let _ = write!(text, "  distance {distance}");
        }
        let _ = writeln!(text, "{}", pages(node));
    }
    let empty: NodeSet = topology.nodes.iter().filter(|(_, node)| empty(node)).map(|(id, _)| *id).collect();
    match empty.len() {
        0 => {}
        1 => _ = writeln!(text, "  node {empty}  no CPUs, no memory"),
        _ => _ = writeln!(text, "  nodes {empty}  no CPUs, no memory"),
    }
}

/// `4096MiB (512MiB free)`.
fn amounts(node: &Node) -> String {
    let size = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |b| format!("{}MiB", b >> 20));
    format!("{} ({} free)", size(node.memory_bytes), size(node.free_bytes))
}

fn pages(node: &Node) -> String {
    let each = |(page, free): (&u64, &u64)| format!("  {free} free pages of {}", format_size(*page));
    node.free_hugepages.iter().map(each).collect()
}

/// `0:10 1-3:21`: nodes that are equally far stand together.
fn distances(node: &Node) -> String {
    let mut groups: Vec<(u32, NodeSet)> = Vec::new();
    for (to, far) in &node.distance {
        match groups.iter_mut().find(|(other, _)| other == far) {
            Some((_, nodes)) => nodes.insert(*to),
            None => groups.push((*far, NodeSet::of(*to))),
        }
    }
    let groups: Vec<String> = groups.iter().map(|(far, nodes)| format!("{nodes}:{far}")).collect();
    groups.join(" ")
}

fn drives(text: &mut String, topology: &Topology) {
    // Loop, ram and zram devices that hold nothing would hide the few that matter.
    let shown: Vec<_> = topology
        .block
        .iter()
        .filter(|(name, device)| {
            let idle = ["loop", "ram", "zram"].iter().any(|kind| name.starts_with(kind));
            !idle || device.backing_file.is_some()
        })
        .collect();
    if !shown.is_empty() {
        text.push_str("\nblock devices\n");
    }
    let number = |n: Option<u32>| n.map_or("unknown".to_owned(), |n| n.to_string());
    for (name, device) in shown {
        let blocks =
            format!("{}/{}", number(device.logical_block_bytes), number(device.physical_block_bytes));
        let kind = match device.rotational {
            Some(true) => "rotating",
            Some(false) => "solid state",
            None => "kind unknown",
        };
        let scheduler = device.scheduler.as_deref().unwrap_or("unknown");
        let _ = write!(
            text,
            "  {name}  node {}  {}{}  blocks {blocks}  scheduler {scheduler}  {kind}",
            number(device.node),
            match device.queues {
                Some(1) => "1 queue".to_owned(),
                queues => format!("{} queues", number(queues)),
            },
            queue_map(device)
        );
        match device.write_cache {
            Some(true) => text.push_str("  write cache"),
            Some(false) => text.push_str("  no write cache"),
            None => {}
        }
        if let Some(given) = &device.mapper_name {
            let _ = write!(text, "  is {given}");
        }
        if !device.below.is_empty() {
            let _ = write!(text, "  on {}", device.below.join(" "));
        }
        text.push('\n');
    }
}

/// How CPUs are spread over a device's queues, in a few words.
fn queue_map(device: &BlockDevice) -> String {
    let sizes: BTreeSet<usize> = device.queue_cpus.iter().map(CpuSet::len).filter(|len| *len > 0).collect();
    match (device.queue_cpus.len(), sizes.first(), sizes.last()) {
        (1, ..) | (_, None, _) | (_, _, None) => String::new(),
        (_, Some(1), Some(1)) => " (a CPU each)".to_owned(),
        (_, Some(least), Some(most)) if least == most => format!(" ({most} CPUs each)"),
        (_, Some(least), Some(most)) => format!(" ({least} to {most} CPUs each)"),
    }
}

/// The host for programs.
pub fn host_json(topology: &Topology, ledger: &Ledger) -> String {
    #[derive(serde::Serialize)]
    struct Host<'t> {
        schema: &'static str,
        #[serde(flatten)]
        topology: &'t Topology,
        gaps: Vec<String>,
        ledger: &'t Ledger,
    }
    let host = Host { schema: "vmprof.host/1", topology, gaps: topology.gaps(), ledger };
    let mut text = serde_json::to_string_pretty(&host).unwrap_or_default();
    text.push('\n');
    text
}
