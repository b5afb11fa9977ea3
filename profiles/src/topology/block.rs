//! Block devices: where in the machine each one hangs, and what its queues are like.
//!
//! A device's node is that of the nearest ancestor in sysfs that has one: the PCI function. Stacked devices (dm, md)
//! take the node of the devices below them when those agree, a partition that of its disk, an NVMe namespace with
//! several paths that of its controllers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::CpuSet;
use super::source::Reader;

/// How deep stacks of dm, md and loop are followed.
const DEPTH: u32 = 8;

/// One whole block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BlockDevice {
    /// The NUMA node of its controller; `None` where the firmware does not say.
    pub node: Option<u32>,
    /// The unit of addressing, bytes.
    pub logical_block_bytes: Option<u32>,
    /// The unit that is written without a read before it, bytes.
    pub physical_block_bytes: Option<u32>,
    /// Whether it has moving parts.
    pub rotational: Option<bool>,
    /// The scheduler in force, such as `none`.
    pub scheduler: Option<String>,
    /// Hardware queues.
    pub queues: Option<u32>,
    /// The CPUs that submit to each hardware queue, by the queue's number; empty where unknown.
    pub queue_cpus: Vec<CpuSet>,
    /// How memory must be aligned for direct I/O, bytes.
    pub dma_alignment_bytes: Option<u32>,
    /// Whether it has a volatile write cache.
    pub write_cache: Option<bool>,
    /// The device numbers, `259:0`.
    pub numbers: Option<String>,
    /// The devices it is stacked on.
    pub below: Vec<String>,
    /// The file behind a loop device.
    pub backing_file: Option<String>,
}

/// Every whole block device that /sys/block lists.
pub(crate) fn read_all(reader: &Reader<'_>) -> BTreeMap<String, BlockDevice> {
    let mut known = BTreeMap::new();
    let names = reader.list("/sys/block");
    names.into_iter().map(|name| (name.clone(), read(reader, &name, &mut known))).collect()
}

fn read(reader: &Reader<'_>, name: &str, known: &mut Known) -> BlockDevice {
    let dir = device_dir(reader, name);
    let queue = format!("{dir}/queue");
    BlockDevice {
        node: node(reader, &dir, DEPTH, known),
        logical_block_bytes: reader.number(&format!("{queue}/logical_block_size")),
        physical_block_bytes: reader.number(&format!("{queue}/physical_block_size")),
        rotational: reader.number::<u8>(&format!("{queue}/rotational")).map(|n| n != 0),
        scheduler: reader.read(&format!("{queue}/scheduler")).and_then(|s| scheduler(&s)),
        queues: u32::try_from(reader.list(&format!("{dir}/mq")).len()).ok().filter(|n| *n > 0),
        queue_cpus: Vec::new(),
        dma_alignment_bytes: None,
        write_cache: None,
        numbers: reader.word(&format!("{dir}/dev")),
        below: reader.list(&format!("{dir}/slaves")),
        backing_file: reader.word(&format!("{dir}/loop/backing_file")),
    }
}

/// The device's own directory below /sys/devices.
fn device_dir(reader: &Reader<'_>, name: &str) -> String {
    let listed = format!("/sys/block/{name}");
    reader.link(&listed).unwrap_or(listed)
}

/// The scheduler in brackets of `[none] mq-deadline`, or the only word.
fn scheduler(text: &str) -> Option<String> {
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(word, _)| word);
    let mut words = text.split_whitespace();
    inside.or_else(|| words.next().filter(|_| words.next().is_none())).map(str::to_owned)
}

/// The nodes of the directories looked at so far. Each is looked at once, or stacks that name each other in circles
/// would take forever; a directory that is being looked at counts as unknown.
type Known = BTreeMap<String, Option<u32>>;

fn node(reader: &Reader<'_>, dir: &str, depth: u32, known: &mut Known) -> Option<u32> {
    if let Some(node) = known.get(dir) {
        return *node;
    }
    known.insert(dir.to_owned(), None);
    let node = look_up(reader, dir, depth, known);
    known.insert(dir.to_owned(), node);
    node
}

fn look_up(reader: &Reader<'_>, dir: &str, depth: u32, known: &mut Known) -> Option<u32> {
    let depth = depth.checked_sub(1)?;
    if let Some(node) = ancestor_node(reader, dir) {
        return Some(node);
    }
    let mut below: Vec<String> = reader
        .list(&format!("{dir}/slaves"))
        .iter()
        .filter_map(|name| reader.link(&format!("{dir}/slaves/{name}")))
        .collect();
    if let Some(subsystem) =
        dir.rsplit_once('/').map(|(up, _)| up).filter(|up| up.contains("/nvme-subsystem/"))
    {
        let paths = reader.list(subsystem);
        let controllers = paths.iter().filter(|n| n.starts_with("nvme") && n[4..].parse::<u32>().is_ok());
        below.extend(controllers.filter_map(|name| reader.link(&format!("{subsystem}/{name}"))));
    }
    let mut nodes = below.iter().map(|dir| node(reader, dir, depth, known));
    let first = nodes.next()??;
    // Parts on several nodes have no node in common; then it is unknown rather than half right.
    nodes.all(|other| other == Some(first)).then_some(first)
}

fn ancestor_node(reader: &Reader<'_>, dir: &str) -> Option<u32> {
    let mut at = dir;
    while at.starts_with("/sys/devices/") && at.len() > "/sys/devices/".len() {
        if let Some(node) = reader.number::<i64>(&format!("{at}/numa_node"))
            && let Ok(node) = u32::try_from(node)
        {
            return Some(node);
        }
        at = at.rsplit_once('/')?.0;
    }
    None
}
