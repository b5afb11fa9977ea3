//! A host's topology as text and as JSON, for `vmprof host`.

use std::fmt::Write;

use vmprof_document::format_size;

use crate::topology::{CoreKind, Topology};

use super::grid::grid;

/// The host for people.
pub fn host_text(topology: &Topology) -> String {
    let mut text = String::new();
    let unknown =
        |set: &crate::topology::CpuSet| if set.is_empty() { "none".to_owned() } else { set.to_string() };
    let _ = writeln!(text, "CPUs online   {}", topology.online);
    let affinity = topology.affinity.as_ref().map_or("unknown".to_owned(), unknown);
    let _ = writeln!(text, "usable        {affinity}");
    let _ = writeln!(text, "isolated      {}", unknown(&topology.isolated));
    let _ = writeln!(text, "without tick  {}\n", unknown(&topology.nohz_full));
    let usable = topology.affinity.as_ref().unwrap_or(&topology.online);
    text.push_str(&grid(topology, 100, |cpu| {
        let economy = topology.cpus.get(&cpu).is_some_and(|c| c.kind == CoreKind::Efficiency);
        match (usable.contains(cpu), topology.isolated.contains(cpu), economy) {
            (false, ..) => "-",
            (_, true, _) => "i",
            (.., true) => "E",
            _ => ".",
        }
        .to_owned()
    }));
    text.push_str("  . usable   i isolated   E economy core   - not usable here\n");
    if !topology.nodes.is_empty() {
        text.push_str("\nnodes\n");
    }
    let size = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |b| format!("{}MiB", b >> 20));
    for (id, node) in &topology.nodes {
        let distance: Vec<String> = node.distance.iter().map(|(to, far)| format!("{to}:{far}")).collect();
        let _ = write!(
            text,
            "  node {id}  CPUs {}  memory {} ({} free)",
            unknown(&node.cpus),
            size(node.memory_bytes),
            size(node.free_bytes)
        );
        let _ = write!(text, "  distance {}", distance.join(" "));
        for (page, free) in &node.free_hugepages {
            let _ = write!(text, "  {free} free pages of {}", format_size(*page));
        }
        text.push('\n');
    }
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
    for (name, device) in shown {
        let number = |n: Option<u32>| n.map_or("unknown".to_owned(), |n| n.to_string());
        let blocks =
            format!("{}/{}", number(device.logical_block_bytes), number(device.physical_block_bytes));
        let kind = match device.rotational {
            Some(true) => "rotating",
            Some(false) => "solid state",
            None => "kind unknown",
        };
        let scheduler = device.scheduler.as_deref().unwrap_or("unknown");
        let _ = writeln!(
            text,
            "  {name}  node {}  {} queues  blocks {blocks}  scheduler {scheduler}  {kind}",
            number(device.node),
            number(device.queues)
        );
    }
    text
}

/// The host for programs.
pub fn host_json(topology: &Topology) -> String {
    #[derive(serde::Serialize)]
    struct Host<'t> {
        schema: &'static str,
        #[serde(flatten)]
        topology: &'t Topology,
    }
    let mut text =
        serde_json::to_string_pretty(&Host { schema: "vmprof.host/1", topology }).unwrap_or_default();
    text.push('\n');
    text
}
