//! Which block device holds each disk of a profile. This is the reading step between a profile and its plan: the
//! planner gets the answers, not the paths.
//!
//! On this machine a path is followed through links, and a file that is not there yet lies where its nearest existing
//! directory does. For a captured host only absolute paths are looked up, in the captured mounts: nothing of the
//! machine that plans leaks in.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::Serialize;

use crate::profile::{DiskSource, Profile};
use crate::topology::source::{Reader, plain_path};
use crate::topology::{BlockDevice, Source, Topology};

/// How often a file system on a loop device on a file is followed.
const DEPTH: u32 = 8;

/// The storage under each disk of a profile, by the disk's name. A disk that is missing here lies nowhere known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Storage {
    /// Disk name → where it lies.
    pub disks: BTreeMap<String, StoragePlace>,
}

/// The whole block device that holds a disk, and the node its controller is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoragePlace {
    /// Kernel name, such as `nvme0n1`.
    pub device: String,
    /// The node of its controller, where known.
    pub node: Option<u32>,
}

impl Storage {
    /// Looks up every disk of `profile`. `disks_dir` is where a relative `file=` lies; it only counts on this machine.
    pub fn read(
        source: &Source,
        profile: &Profile,
        topology: &Topology,
        disks_dir: Option<&Path>,
    ) -> Storage {
        let reader = Reader::new(source);
        let mut disks = BTreeMap::new();
        for disk in &profile.disks {
            let path = match &disk.source {
                DiskSource::Device { path } => Some(Path::new(path).to_owned()),
                DiskSource::File { path, .. } if Path::new(path).is_absolute() => {
                    Some(Path::new(path).to_owned())
                }
                DiskSource::File { path, .. } => {
                    disks_dir.filter(|_| source.is_live()).map(|dir| dir.join(path))
                }
            };
            let place = path.and_then(|path| locate(&reader, topology, &path, DEPTH));
            if let Some(place) = place {
                disks.insert(disk.name.value.clone(), place);
            }
        }
        Storage { disks }
    }
}

/// The device that `path` is, or that the file `path` lies on.
fn locate(reader: &Reader<'_>, topology: &Topology, path: &Path, depth: u32) -> Option<StoragePlace> {
    let depth = depth.checked_sub(1)?;
    let name = if reader.live() {
        live_device(reader, topology, path)
    } else {
        captured_device(reader, topology, path)
    }?;
    let device = topology.block.get(&name)?;
    let node = device.node.or_else(|| loop_node(reader, topology, device, depth));
    Some(StoragePlace { device: name, node })
}

/// The node under a loop device: that of the device its file lies on.
fn loop_node(reader: &Reader<'_>, topology: &Topology, device: &BlockDevice, depth: u32) -> Option<u32> {
    locate(reader, topology, Path::new(device.backing_file.as_deref()?), depth)?.node
}

fn live_device(reader: &Reader<'_>, topology: &Topology, path: &Path) -> Option<String> {
    let there = path.ancestors().find_map(|p| p.canonicalize().ok())?;
    let facts = there.metadata().ok()?;
    let number = if facts.file_type().is_block_device() { facts.rdev() } else { facts.dev() };
    // Linux keeps the low 8 bits of minor and 12 of major in the old places and the rest above them.
    let major = ((number >> 8) & 0xfff) | ((number >> 32) & !0xfff);
    let minor = (number & 0xff) | ((number >> 12) & !0xff & 0xffff_ffff);
    numbered_device(reader, &format!("{major}:{minor}"))
        .or_else(|| mounted_device(reader, topology, there.to_str()?))
}

fn captured_device(reader: &Reader<'_>, topology: &Topology, path: &Path) -> Option<String> {
    let path = plain_path(path)?;
    if let Some(name) = path.strip_prefix("/dev/") {
        return named_device(reader, topology, name);
    }
    mounted_device(reader, topology, &path)
}

/// The device of the mount that `path` lies on, by its numbers, else by the name of what is mounted there (btrfs and
/// its like have numbers of their own).
fn mounted_device(reader: &Reader<'_>, topology: &Topology, path: &str) -> Option<String> {
    let mounts = reader.read("/proc/self/mountinfo")?;
    let (numbers, source) = mounts
        .lines()
        .filter_map(mount)
        .filter(|(point, ..)| below(path, point))
        // Of two mounts on one point the later one hides the earlier; max_by_key keeps the last of equals.
        .max_by_key(|(point, ..)| point.len())
        .map(|(_, numbers, source)| (numbers, source))?;
    numbered_device(reader, &numbers)
        .or_else(|| named_device(reader, topology, source.strip_prefix("/dev/")?))
}

/// Mount point, device numbers and source of one line of mountinfo.
fn mount(line: &str) -> Option<(String, String, String)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let numbers = left.nth(2)?;
    let point = left.nth(1)?;
    let source = right.split(' ').nth(1)?;
    Some((unescape(point), numbers.to_owned(), unescape(source)))
}

fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn below(path: &str, point: &str) -> bool {
    point == "/" || path == point || path.strip_prefix(point).is_some_and(|rest| rest.starts_with('/'))
}

fn numbered_device(reader: &Reader<'_>, numbers: &str) -> Option<String> {
    whole_device(reader, &reader.link(&format!("/sys/dev/block/{numbers}"))?)
}

fn named_device(reader: &Reader<'_>, topology: &Topology, name: &str) -> Option<String> {
    if topology.block.contains_key(name) {
        return Some(name.to_owned());
    }
    // A partition: its numbers are linked from /sys/dev/block under its disk.
    let end = format!("/{name}");
    reader
        .list("/sys/dev/block")
        .iter()
        .filter_map(|numbers| reader.link(&format!("/sys/dev/block/{numbers}")))
        .find(|dir| dir.ends_with(&end))
        .and_then(|dir| whole_device(reader, &dir))
}

/// The whole device of a directory that may be a partition's: partitions lie inside their disk's directory.
fn whole_device(reader: &Reader<'_>, dir: &str) -> Option<String> {
    let (up, name) = dir.rsplit_once('/')?;
    let (_, parent) = up.rsplit_once('/')?;
    let whole = reader.list("/sys/block");
    [name, parent].into_iter().find(|n| whole.iter().any(|w| w == n)).map(str::to_owned)
}
