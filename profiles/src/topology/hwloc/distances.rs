//! NUMA distances of an hwloc file: a named matrix since version 2, latencies relative to a base before.

use std::collections::BTreeMap;

use roxmltree::Node;

/// From a node to a node.
pub(super) type Distances = BTreeMap<u32, BTreeMap<u32, u32>>;

/// hwloc's kind of matrix: latencies, as opposed to bandwidths.
const LATENCY: u64 = 1 << 2;
/// More nodes than any machine has; a matrix is as large as the square of it.
const MOST_NODES: usize = 1024;

/// The latencies between NUMA nodes, whose ids stand in `nodes` in the file's order; `None` where the file has none
/// that make sense.
pub(super) fn distances(root: Node<'_, '_>, nodes: &[u32]) -> Option<Distances> {
    let elements = root.descendants().filter(|node| node.has_tag_name("distances2"));
    elements.filter_map(matrix).next().or_else(|| relative(root, nodes))
}

fn matrix(element: Node<'_, '_>) -> Option<Distances> {
    let of_nodes =
        element.attribute("type") == Some("NUMANode") && element.attribute("indexing") == Some("os");
    let kind: u64 = element.attribute("kind")?.parse().ok()?;
    if !of_nodes || kind & LATENCY == 0 {
        return None;
    }
    // Long lists come in several elements.
    let numbers = |tag: &str| -> Option<Vec<u32>> {
        let texts = element.children().filter(|node| node.has_tag_name(tag)).filter_map(|node| node.text());
        let most = MOST_NODES * MOST_NODES + 1;
        texts.flat_map(str::split_whitespace).take(most).map(|word| word.parse().ok()).collect()
    };
    square(&numbers("indexes")?, &numbers("u64values")?)
}

fn relative(root: Node<'_, '_>, nodes: &[u32]) -> Option<Distances> {
    let mut elements = root.descendants().filter(|node| node.has_tag_name("distances"));
    let element =
        elements.find(|e| e.attribute("nbobjs").and_then(|n| n.parse().ok()) == Some(nodes.len()))?;
    let base: f64 = element.attribute("latency_base")?.parse().ok()?;
    let values = element.children().filter(|node| node.has_tag_name("latency")).map(|node| {
        let value = node.attribute("value")?.parse::<f64>().ok()? * base;
        // Firmware's distances fit a byte; whatever else stands there is no distance.
        (0.0..=65_535.0).contains(&value).then(|| value.round() as u32)
    });
    square(nodes, &values.collect::<Option<Vec<u32>>>()?)
}

fn square(nodes: &[u32], values: &[u32]) -> Option<Distances> {
    let fits = !nodes.is_empty() && nodes.len() <= MOST_NODES && values.len() == nodes.len() * nodes.len();
    let row = |row: &[u32]| nodes.iter().copied().zip(row.iter().copied()).collect();
    fits.then(|| nodes.iter().copied().zip(values.chunks(nodes.len()).map(row)).collect())
}
