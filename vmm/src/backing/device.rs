//! What the kernel says of a block device's queue, in sysfs (Documentation/ABI/stable/sysfs-block). Regular files have none.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// A block device, measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDevice {
    pub logical_bytes: u64,
    /// What it writes at once: a drive of 512e has 512 and 4,096.
    pub physical_bytes: u64,
    /// The transfers that it likes best; 0: it does not say.
    pub optimal_bytes: u64,
    /// The most that one discard, and one zeroing that moves no data, may cover; 0: it has none.
    pub discard_max_bytes: u64,
    pub zeroes_max_bytes: u64,
    /// The unit in which it gives space back.
    pub discard_granularity: u64,
}

impl BlockDevice {
    /// `None` for what is no block device.
    pub fn under(file: &File) -> io::Result<Option<BlockDevice>> {
        let metadata = file.metadata()?;
        if !metadata.file_type().is_block_device() {
            return Ok(None);
        }
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        Ok(Some(BlockDevice::of(&queue(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))))))
    }

    /// What a directory `queue` of sysfs says. What it does not say, the device does not have.
    fn of(queue: &Path) -> BlockDevice {
        let number = |name: &str| -> u64 {
            let text = fs::read_to_string(queue.join(name)).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let logical_bytes = number("logical_block_size").max(super::SECTOR_BYTES);
        BlockDevice {
            logical_bytes,
            physical_bytes: number("physical_block_size").max(logical_bytes),
            optimal_bytes: number("optimal_io_size"),
            discard_max_bytes: number("discard_max_bytes"),
            zeroes_max_bytes: number("write_zeroes_max_bytes"),
            discard_granularity: number("discard_granularity").max(logical_bytes),
        }
    }
}

/// A partition's queue is that of its disk, one directory up.
pub(super) fn queue(device: &Path) -> PathBuf {
    let own = device.join("queue");
    if own.is_dir() { own } else { device.join("../queue") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_has_the_queue_of_its_disk_and_what_is_not_said_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let (disk, partition) =
            (directory.path().join("nvme0n1"), directory.path().join("nvme0n1/nvme0n1p1"));
        fs::create_dir_all(&partition).unwrap();
        fs::create_dir(disk.join("queue")).unwrap();
        for (name, value) in [
            ("logical_block_size", "4096\n"),
            ("physical_block_size", "16384\n"),
            ("discard_max_bytes", "2147450880\n"),
            ("optimal_io_size", "x"),
        ] {
            fs::write(disk.join("queue").join(name), value).unwrap();
        }
        let expected = BlockDevice {
            logical_bytes: 4096,
            physical_bytes: 16_384,
            optimal_bytes: 0,
            discard_max_bytes: 2_147_450_880,
            zeroes_max_bytes: 0,
            discard_granularity: 4096,
        };
        assert_eq!(BlockDevice::of(&queue(&disk)), expected);
        assert_eq!(BlockDevice::of(&queue(&partition)), expected);
    }

    #[test]
    fn a_file_is_no_block_device() {
        assert_eq!(BlockDevice::under(&tempfile::tempfile().unwrap()).unwrap(), None);
    }
}
