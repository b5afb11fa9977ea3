//! Which block device holds each disk of a profile. This is the reading step between a profile and its plan: the
//! planner gets the answers, not the paths.
//!
//! On this machine a path is followed through links, and a file that is not there yet lies where its nearest existing
//! directory does. For a captured host only absolute paths are looked up, in the captured mounts and among the
//! captured names below /dev: nothing of the machine that plans leaks in. A file on an overlay, on the network or in
//! memory lies on no device that is known.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;

use crate::profile::{DiskSource, Profile};
use crate::topology::devices::kernel_name;
use crate::topology::mounts::{Mount, below, mounts};
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

impl<'a> Lookup<'a> {
    fn new(reader: Reader<'a>, topology: &'a Topology) -> Self {
        let mounts = mounts(&reader.read("/proc/self/mountinfo").unwrap_or_default());
        Lookup { reader, topology, mounts, dirs: OnceCell::new() }
    }

    /// The device that `path` is, or that the file `path` lies on.
    fn locate(&self, path: &Path, depth: u32) -> Option<StoragePlace> {
        let depth = depth.checked_sub(1)?;
        let found = if self.reader.live() { self.live(path) } else { self.captured(path) }?;
        let device = self.topology.block.get(&found.name)?;
        // The node under a loop device is that of the device its file lies on.
        let below = || self.locate(Path::new(device.backing_file.as_deref()?), depth)?.node;
        Some(StoragePlace {
            node: device.node.or_else(below),
            device: found.name,
            direct_io: if found.is_device { of_device(device) } else { found.direct_io },
            filesystem: found.filesystem,
            looks_like: found.looks_like,
        })
    }

    fn live(&self, path: &Path) -> Option<Found> {
        let there = path.ancestors().find_map(|p| p.canonicalize().ok())?;
        let facts = there.metadata().ok()?;
        let is_device = facts.file_type().is_block_device();
        let number = if is_device { facts.rdev() } else { facts.dev() };
        // Linux keeps the low 8 bits of minor and 12 of major in the old places and the rest above them.
        let major = ((number >> 8) & 0xfff) | ((number >> 32) & !0xfff);
        let minor = (number & 0xff) | ((number >> 12) & !0xff & 0xffff_ffff);
        let mount = there.to_str().and_then(|there| self.mount(there));
        let name = self.numbered(&format!("{major}:{minor}")).or_else(|| self.of_mount(mount?))?;
        let file = facts.is_file();
        Some(Found {
            name,
            is_device,
            filesystem: mount.filter(|_| !is_device).map(|mount| mount.filesystem.clone()),
            looks_like: file.then(|| looks_like(&there)).flatten().map(str::to_owned),
            direct_io: file.then(|| of_file(&there)).flatten(),
        })
    }

    fn captured(&self, path: &Path) -> Option<Found> {
        let path = plain_path(path)?;
        let is_device = path.starts_with("/dev/");
        let mount = self.mount(&path).filter(|_| !is_device);
        let name =
            if is_device { self.named(&kernel_name(&self.reader, &path)?) } else { self.of_mount(mount?) };
        let filesystem = mount.map(|mount| mount.filesystem.clone());
        Some(Found { name: name?, is_device, filesystem, looks_like: None, direct_io: None })
    }

    /// The mount that `path` lies on.
    fn mount(&self, path: &str) -> Option<&Mount> {
        let holds = |mount: &&Mount| below(path, &mount.point);
        // Of two mounts on one point the later one hides the earlier; max_by_key keeps the last of equals.
        self.mounts.iter().filter(holds).max_by_key(|mount| mount.point.len())
    }

    /// A mount's device, by its numbers, else by the name of what is mounted there (btrfs and its like have numbers
    /// of their own).
    fn of_mount(&self, mount: &Mount) -> Option<String> {
        let named = || self.named(&kernel_name(&self.reader, &mount.source)?);
        self.numbered(&mount.numbers).or_else(named)
    }

    fn numbered(&self, numbers: &str) -> Option<String> {
        self.whole(&self.reader.link(&format!("/sys/dev/block/{numbers}"))?)
    }

    fn named(&self, name: &str) -> Option<String> {
        if self.topology.block.contains_key(name) {
            return Some(name.to_owned());
        }
        // A device-mapper device by the name it was given.
        if let Some(given) = name.strip_prefix("mapper/") {
            let mut mapped = self.topology.block.iter();
            return mapped
                .find(|(_, d)| d.mapper_name.as_deref() == Some(given))
                .map(|(name, _)| name.clone());
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

/// What is known of a path.
struct Found {
    name: String,
    is_device: bool,
    filesystem: Option<String>,
    looks_like: Option<String>,
    direct_io: Option<DirectIoAlignment>,
}

/// Block devices take direct I/O in logical blocks.
fn of_device(device: &BlockDevice) -> Option<DirectIoAlignment> {
    Some(DirectIoAlignment {
        memory_bytes: device.dma_alignment_bytes?,
        offset_bytes: device.logical_block_bytes?,
    })
}

/// What the file system says of a file (Linux 6.1 and later, where the file system knows).
fn of_file(path: &Path) -> Option<DirectIoAlignment> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let facts = statx(CWD, path, AtFlags::empty(), StatxFlags::DIOALIGN).ok()?;
    let answered = facts.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    answered.then_some(DirectIoAlignment {
        memory_bytes: facts.stx_dio_mem_align,
        offset_bytes: facts.stx_dio_offset_align,
    })
}

/// The first bytes of image formats that a guest would see as rubbish when they are given as raw: where, what, name.
const FORMATS: [(usize, &[u8], &str); 14] = [
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"\x1f\x8b\x08", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
];

/// What the first bytes of a regular file say it is, in QEMU's words where QEMU has one; `None` for everything raw.
fn looks_like(path: &Path) -> Option<&'static str> {
    // Between the look and this one the path can have become a pipe: that must not hang.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).ok()?;
    let mut file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut start = [0; 512];
    let mut length = 0;
    while let Some(rest) = start.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read(rest).ok()? {
            0 => break,
            more => length += more,
        }
    }
    let start = start.get(..length)?;
    let begins =
        |(at, magic, _): &&(usize, &[u8], &str)| start.get(*at..).is_some_and(|s| s.starts_with(magic));
    FORMATS.iter().find(begins).map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_known_by_their_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        for (at, magic, name) in FORMATS {
            let mut bytes = vec![0; 4096];
            bytes[at..at + magic.len()].copy_from_slice(magic);
            if name == "qcow2" {
                bytes[7] = 3;
            }
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(looks_like(&path), Some(name));
        }
        for raw in [&[0; 4096][..], b"", b"QF", b"\0QFI\xfb"] {
            std::fs::write(&path, raw).unwrap();
            assert_eq!(looks_like(&path), None);
        }
    }

    #[test]
    fn a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(looks_like(&path), None);
        assert_eq!(looks_like(dir.path()), None);
    }
}
