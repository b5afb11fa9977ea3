//! The host as a grid: a block per node, a group per L3 cache, a column per core, a row per sibling.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::topology::Topology;

/// A node or a cache by its id; the unknown one comes last.
type Group = (bool, Option<u32>);
/// The CPUs of each core.
type Cores = BTreeMap<u32, Vec<u32>>;

/// Draws every online CPU as its id and its mark, wrapping groups so that lines stay within `width` columns.
pub(super) fn grid(topology: &Topology, width: usize, mark: impl Fn(u32) -> String) -> String {
    let mut places: BTreeMap<Group, BTreeMap<Group, Cores>> = BTreeMap::new();
    for (id, cpu) in &topology.cpus {
        let node = places.entry((cpu.node.is_none(), cpu.node)).or_default();
        let cache = node.entry((cpu.l3.is_none(), cpu.l3)).or_default();
        cache.entry(cpu.core).or_default().push(*id);
    }
    // CPU-less nodes are there too: their memory can be.
    for id in topology.nodes.keys() {
        places.entry((false, Some(*id))).or_default();
    }
    let id_width = topology.online.last().unwrap_or(0).to_string().len();
    let mark_width = topology.cpus.keys().map(|id| mark(*id).chars().count()).max().unwrap_or(1);
    let cell = id_width + 1 + mark_width;
    let per_line = (width.saturating_sub(8) / (cell + 2)).max(1);
    let mut text = String::new();
    for ((_, node), caches) in &places {
        let name = node.map_or("node ?".to_owned(), |n| format!("node {n}"));
        if caches.is_empty() {
            let _ = writeln!(text, "{name}  no CPUs");
            continue;
        }
        for (at, ((_, l3), cores)) in caches.iter().enumerate() {
            let head = match (at, l3) {
                (0, Some(_)) => format!("{name}  L3 #{at}"),
                (0, None) => name.clone(),
                (_, Some(_)) => format!("{:w$}  L3 #{at}", "", w = name.len()),
                (_, None) => format!("{:w$}  no L3", "", w = name.len()),
            };
            let _ = writeln!(text, "{head}");
            let columns: Vec<&Vec<u32>> = cores.values().collect();
            for line in columns.chunks(per_line) {
                let deepest = line.iter().map(|core| core.len()).max().unwrap_or(0);
                for row in 0..deepest {
                    let cells = line.iter().map(|core| match core.get(row) {
                        Some(cpu) => format!("{cpu:>id_width$} {:<mark_width$}", mark(*cpu)),
                        None => " ".repeat(cell),
                    });
                    let cells: Vec<String> = cells.collect();
                    let _ = writeln!(text, "    {}", cells.join("  ").trim_end());
                }
            }
        }
    }
    text
}
