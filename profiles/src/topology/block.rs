//! Block devices: where in the machine each one hangs, and what its queues are like.
//!
//! A device's node is that of the nearest ancestor in sysfs that has one: the PCI function. Stacked devices (dm, md)
//! take the node of the devices below them when those agree, a partition that of its disk, an NVMe namespace with
//! several paths that of its controllers.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::CpuSet;
use super::source::{Below, Reader};

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
    /// The name of a device-mapper device, `vg-data` for `/dev/mapper/vg-data`.
    pub mapper_name: Option<String>,
}

/// Every whole block device that /sys/block lists. The hidden devices that are single paths of an NVMe namespace
/// (`nvme0c1n1`) are not among them: nobody can open those.
pub(crate) fn read_all(reader: &Reader<'_>) -> BTreeMap<String, BlockDevice> {
    let mut known = BTreeMap::new();
    let names = reader.list("/sys/block");
    let mut paths: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in &names {
        if let Some(head) = head_of_path(name) {
            paths.entry(head).or_default().push(name);
        }
    }
    let whole = names.iter().filter(|name| head_of_path(name).is_none());
    whole
        .map(|name| {
            let paths = paths.get(name.as_ref()).map_or(&[][..], Vec::as_slice);
            (name.to_string(), read(reader, name, paths, &mut known))
        })
        .collect()
}

/// `nvme0n1` for its path `nvme0c3n1`, `None` for everything else.
fn head_of_path(name: &str) -> Option<String> {
    let (subsystem, rest) = name.strip_prefix("nvme")?.split_once('c')?;
    let (controller, namespace) = rest.split_once('n')?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    [subsystem, controller, namespace].into_iter().all(number).then(|| format!("nvme{subsystem}n{namespace}"))
}

fn read(reader: &Reader<'_>, name: &str, paths: &[&str], known: &mut Known) -> BlockDevice {
    let dir = device_dir(reader, name);
    let mut queue = Below::new(format!("{dir}/queue"));
    let mut queue_cpus = queue_cpus(reader, &dir);
    // The head of an NVMe multipath has no queues of its own: they are its paths'.
    if queue_cpus.is_empty()
        && let Some(path) = paths.first()
    {
        queue_cpus = self::queue_cpus(reader, &device_dir(reader, path));
    }
    BlockDevice {
        node: node(reader, &dir, DEPTH, known),
        logical_block_bytes: reader.number(queue.file("logical_block_size")),
        physical_block_bytes: reader.number(queue.file("physical_block_size")),
        rotational: reader.number::<u8>(queue.file("rotational")).map(|n| n != 0),
        scheduler: reader.read(queue.file("scheduler")).and_then(|s| scheduler(&s)),
        queues: u32::try_from(queue_cpus.len()).ok().filter(|n| *n > 0),
        queue_cpus: if queue_cpus.iter().all(CpuSet::is_empty) { Vec::new() } else { queue_cpus },
        // The file holds a mask: 511 means multiples of 512.
        dma_alignment_bytes: reader.number::<u32>(queue.file("dma_alignment")).and_then(|m| m.checked_add(1)),
        write_cache: reader.read(queue.file("write_cache")).and_then(|s| write_cache(&s)),
        numbers: reader.word(&format!("{dir}/dev")),
        below: reader.list(&format!("{dir}/slaves")).into_iter().map(String::from).collect(),
        backing_file: reader.word(&format!("{dir}/loop/backing_file")),
        mapper_name: reader.word(&format!("{dir}/dm/name")),
    }
}

/// The CPUs of each hardware queue; empty sets where only the number of queues is known.
fn queue_cpus(reader: &Reader<'_>, dir: &str) -> Vec<CpuSet> {
    let mut mq = Below::new(format!("{dir}/mq"));
    let names = reader.list(mq.dir());
    // In the directory's order, which is also that of a capture's paths; then by number.
    let mut queues: Vec<(u32, CpuSet)> = Vec::with_capacity(names.len());
    let mut path = String::new();
    for name in names {
        if let Ok(number) = name.parse() {
            path.clear();
            let _ = write!(path, "{name}/cpu_list");
            queues.push((number, reader.set(mq.file(&path)).unwrap_or_default()));
        }
    }
    queues.sort_by_key(|(number, _)| *number);
    queues.into_iter().map(|(_, cpus)| cpus).collect()
}

fn write_cache(text: &str) -> Option<bool> {
    match text.trim() {
        "write back" => Some(true),
        "write through" => Some(false),
        _ => None,
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
    if let Some(subsystem) = subsystem(dir) {
        let paths = reader.list(subsystem);
        let number = |name: &str| name.strip_prefix("nvme").is_some_and(|n| n.parse::<u32>().is_ok());
        let controllers = paths.iter().filter(|name| number(name));
        below.extend(controllers.filter_map(|name| reader.link(&format!("{subsystem}/{name}"))));
    }
    let mut nodes = below.iter().map(|dir| node(reader, dir, depth, known));
    let first = nodes.next()??;
    // Parts on several nodes have no node in common; then it is unknown rather than half right.
    nodes.all(|other| other == Some(first)).then_some(first)
}

/// The directory of the NVMe subsystem that a namespace, or a partition of one, lies in; its controllers are linked
/// from there.
fn subsystem(dir: &str) -> Option<&str> {
    let marker = "/nvme-subsystem/";
    let start = dir.find(marker)? + marker.len();
    let end = start + dir.get(start..)?.find('/')?;
    dir.get(..end)
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
