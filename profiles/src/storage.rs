//! Which block device holds each disk of a profile. This is the reading step between a profile and its plan: the
//! planner gets the answers, not the paths.
//!
//! On this machine a path is followed through links, and a file that is not there yet lies where its nearest existing
//! directory does. For a captured host only absolute paths are looked up, in the captured mounts: nothing of the
//! machine that plans leaks in.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::Serialize;

use crate::profile::{DiskSource, Profile};
use crate::topology::source::{Reader, plain_path};
use crate::topology::{Source, Topology};

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
    /// The filesystem a file lies on, such as `ext4`; `None` for a device, and where unknown.
    pub filesystem: Option<String>,
    /// What the first bytes of a file say it is, such as `qcow2`; `None` for raw bytes, and where nobody can look.
    pub looks_like: Option<String>,
    /// How direct I/O on it must be aligned (statx STATX_DIOALIGN); `None` where unknown.
    pub direct_io: Option<DirectIoAlignment>,
}

/// What O_DIRECT asks of a request, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DirectIoAlignment {
    /// Of the memory.
    pub memory_bytes: u32,
    /// Of the offset and the length; 0 where direct I/O is not to be had.
    pub offset_bytes: u32,
}

impl Storage {
    /// Looks up every disk of `profile`. `disks_dir` is where a relative `file=` lies; it only counts on this machine.
    pub fn read(
        source: &Source,
        profile: &Profile,
        topology: &Topology,
        disks_dir: Option<&Path>,
    ) -> Storage {
        let mut disks = BTreeMap::new();
        if profile.disks.is_empty() {
            return Storage { disks };
        }
        let lookup = Lookup::new(Reader::new(source), topology);
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
            if let Some(place) = path.and_then(|path| lookup.locate(&path, DEPTH)) {
                disks.insert(disk.name.value.clone(), place);
            }
        }
        Storage { disks }
    }
}

/// A source's mounts and devices, read once for all disks.
struct Lookup<'a> {
    reader: Reader<'a>,
    topology: &'a Topology,
    mounts: Vec<Mount>,
    /// The directories of all devices and partitions by their last name, read when the first partition asks.
    dirs: OnceCell<BTreeMap<String, String>>,
}

/// One line of mountinfo.
struct Mount {
    point: String,
    numbers: String,
    source: String,
}

impl<'a> Lookup<'a> {
    fn new(reader: Reader<'a>, topology: &'a Topology) -> Self {
        let mounts = reader.read("/proc/self/mountinfo").unwrap_or_default();
        Lookup { reader, topology, mounts: mounts.lines().filter_map(mount).collect(), dirs: OnceCell::new() }
    }

    /// The device that `path` is, or that the file `path` lies on.
    fn locate(&self, path: &Path, depth: u32) -> Option<StoragePlace> {
        let depth = depth.checked_sub(1)?;
        let name = if self.reader.live() { self.live_device(path) } else { self.captured_device(path) }?;
        let device = self.topology.block.get(&name)?;
        // The node under a loop device is that of the device its file lies on.
        let below = || self.locate(Path::new(device.backing_file.as_deref()?), depth)?.node;
        Some(StoragePlace {
            node: device.node.or_else(below),
            device: name,
            filesystem: None,
            looks_like: None,
            direct_io: None,
        })
    }

    fn live_device(&self, path: &Path) -> Option<String> {
        let there = path.ancestors().find_map(|p| p.canonicalize().ok())?;
        let facts = there.metadata().ok()?;
        let number = if facts.file_type().is_block_device() { facts.rdev() } else { facts.dev() };
        // Linux keeps the low 8 bits of minor and 12 of major in the old places and the rest above them.
        let major = ((number >> 8) & 0xfff) | ((number >> 32) & !0xfff);
        let minor = (number & 0xff) | ((number >> 12) & !0xff & 0xffff_ffff);
        self.numbered(&format!("{major}:{minor}")).or_else(|| self.mounted(there.to_str()?))
    }

    fn captured_device(&self, path: &Path) -> Option<String> {
        let path = plain_path(path)?;
        match path.strip_prefix("/dev/") {
            Some(name) => self.named(name),
            None => self.mounted(&path),
        }
    }

    /// The device of the mount that `path` lies on, by its numbers, else by the name of what is mounted there (btrfs
    /// and its like have numbers of their own).
    fn mounted(&self, path: &str) -> Option<String> {
        let holds = |mount: &&Mount| below(path, &mount.point);
        // Of two mounts on one point the later one hides the earlier; max_by_key keeps the last of equals.
        let mount = self.mounts.iter().filter(holds).max_by_key(|mount| mount.point.len())?;
        self.numbered(&mount.numbers).or_else(|| self.named(mount.source.strip_prefix("/dev/")?))
    }

    fn numbered(&self, numbers: &str) -> Option<String> {
        self.whole(&self.reader.link(&format!("/sys/dev/block/{numbers}"))?)
    }

    fn named(&self, name: &str) -> Option<String> {
        if self.topology.block.contains_key(name) {
            return Some(name.to_owned());
        }
        // A partition: its numbers are linked from /sys/dev/block under its disk.
        let dirs = self.dirs.get_or_init(|| {
            let numbers = self.reader.list("/sys/dev/block");
            let dirs = numbers.iter().filter_map(|n| self.reader.link(&format!("/sys/dev/block/{n}")));
            dirs.filter_map(|dir| Some((dir.rsplit_once('/')?.1.to_owned(), dir))).collect()
        });
        self.whole(dirs.get(name)?)
    }

    /// The whole device of a directory that may be a partition's: partitions lie inside their disk's directory.
    fn whole(&self, dir: &str) -> Option<String> {
        let (up, name) = dir.rsplit_once('/')?;
        let (_, parent) = up.rsplit_once('/')?;
        [name, parent].into_iter().find(|n| self.topology.block.contains_key(*n)).map(str::to_owned)
    }
}

fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let numbers = left.nth(2)?.to_owned();
    let point = unescape(left.nth(1)?);
    let source = unescape(right.split(' ').nth(1)?);
    Some(Mount { point, numbers, source })
}

fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn below(path: &str, point: &str) -> bool {
    point == "/" || path == point || path.strip_prefix(point).is_some_and(|rest| rest.starts_with('/'))
}
