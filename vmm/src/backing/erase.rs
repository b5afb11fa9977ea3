//! Giving space back and zeroing without writing, as far as a backing can: found out when the disk is opened, and for the one
//! thing that cannot be tried without harm, at its first use.
//!
//! Both are fallocate(2). On a file, PUNCH_HOLE gives the space back and the range reads as zeros. On a block device the
//! kernel does the same with the device's own command to zero a range, which may unmap it, and never by writing zeros: a
//! device that has discards alone (BLKDISCARD) cannot be used for it, since what it leaves behind may be anything.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::device::BlockDevice;
use super::{Alignment, DiskError, SECTOR_BYTES};
use crate::config;

/// Beyond the end of any file that a disk may be: what is punched there is not there.
const PROBED_BYTES: u64 = 4_096;
/// Filesystems with larger blocks free by smaller ones, or say nothing useful.
const LARGEST_GRANULARITY: u64 = 1 << 20;

/// How a backing gives ranges back.
#[derive(Debug)]
pub struct Erase {
    /// Ranges begin and end on multiples of this many bytes; what is finer is written, or left alone.
    pub block_bytes: u64,
    /// The unit in which space is given back: a multiple of the block.
    pub granularity_bytes: u64,
    /// FALLOC_FL_ZERO_RANGE found nobody. Set by whichever IOThread finds out.
    keeps_no_space: AtomicBool,
}

impl Erase {
    pub fn new(block_bytes: u64, granularity_bytes: u64) -> Erase {
        Erase { block_bytes, granularity_bytes, keeps_no_space: AtomicBool::new(false) }
    }

    /// `file` is open for writing and has `size_bytes`.
    pub(super) fn probe(
        disk: &config::Disk,
        file: &File,
        size_bytes: u64,
        alignment: Alignment,
        device: Option<&BlockDevice>,
    ) -> Result<Erase, DiskError> {
        let refused = |why| DiskError::NoDiscard { disk: disk.name.clone(), path: disk.path.clone(), why };
        let block_bytes = alignment.offset.max(SECTOR_BYTES);
        if let Some(device) = device {
            lacks(device).map_or(Ok(()), |why| Err(refused(why)))?;
            let block_bytes = block_bytes.max(device.logical_bytes);
            return Ok(Erase::new(block_bytes, device.discard_granularity.next_multiple_of(block_bytes)));
        }
        let beyond = size_bytes.next_multiple_of(PROBED_BYTES);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, punch, beyond, PROBED_BYTES) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                return Err(refused("its filesystem has no holes to punch"));
            }
            Err(errno) => {
                let (disk, path) = (disk.name.clone(), disk.path.clone());
                return Err(DiskError::Discard { disk, path, source: errno.into() });
            }
        }
        let of_filesystem = file.metadata().map_err(|source| DiskError::unreadable(disk, source))?.blksize();
        let granularity = of_filesystem.clamp(block_bytes, LARGEST_GRANULARITY.max(block_bytes));
        Ok(Erase::new(block_bytes, granularity.next_multiple_of(block_bytes)))
    }

    /// Whether zeroing that keeps the space is worth asking for.
    pub fn keeps_space(&self) -> bool {
        !self.keeps_no_space.load(Ordering::Relaxed)
    }

    /// The backing does not know FALLOC_FL_ZERO_RANGE: from here on such zeros are written.
    pub fn cannot_keep_space(&self) {
        self.keeps_no_space.store(true, Ordering::Relaxed);
    }
}

/// Why a device cannot give space back.
fn lacks(device: &BlockDevice) -> Option<&'static str> {
    if device.discard_max_bytes == 0 {
        Some("the device has no discard")
    } else if device.zeroes_max_bytes == 0 {
        Some("the device can discard, and not so that the range reads as zeros")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    use super::super::tests::disk;
    use super::*;
    use crate::config::CacheMode;

    fn device(discard_max_bytes: u64, zeroes_max_bytes: u64) -> BlockDevice {
        BlockDevice {
            logical_bytes: 4096,
            physical_bytes: 4096,
            optimal_bytes: 0,
            discard_max_bytes,
            zeroes_max_bytes,
            discard_granularity: 6144,
        }
    }

    #[test]
    fn a_trial_finds_what_a_file_can_and_changes_nothing_of_it() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 5000], 0).unwrap();
        let disk = disk(Path::new("disk"), CacheMode::Writeback);
        let before = file.metadata().unwrap();
        let erase = Erase::probe(&disk, &file, 5000, Alignment::NONE, None).unwrap();
        assert_eq!((erase.block_bytes, erase.granularity_bytes), (512, before.blksize()));
        let after = file.metadata().unwrap();
        assert_eq!((before.len(), before.blocks()), (after.len(), after.blocks()));
        let direct = Alignment { offset: 4096, memory: 512 };
        assert_eq!(Erase::probe(&disk, &file, 5000, direct, None).unwrap().block_bytes, 4096);
    }

    #[test]
    fn a_backing_without_holes_is_refused_by_name_with_the_way_out() {
        let disk = disk(Path::new("/proc/self/comm"), CacheMode::Writeback);
        let file = File::options().read(true).write(true).open("/proc/self/comm").unwrap();
        let error = Erase::probe(&disk, &file, 4096, Alignment::NONE, None).unwrap_err();
        let text = error.to_string();
        for word in ["`data`", "discard=unmap", "/proc/self/comm", "discard=ignore"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn a_device_must_have_discards_that_leave_zeros() {
        let disk = disk(Path::new("/dev/sda"), CacheMode::None);
        let file = tempfile::tempfile().unwrap();
        let probe =
            |device| Erase::probe(&disk, &file, 8192, Alignment { offset: 512, memory: 4 }, Some(&device));
        for (discard, zeroes) in [(0, 0), (0, 4096), (4096, 0)] {
            assert!(matches!(probe(device(discard, zeroes)), Err(DiskError::NoDiscard { .. })));
        }
        let erase = probe(device(4096, 4096)).unwrap();
        assert_eq!((erase.block_bytes, erase.granularity_bytes), (4096, 8192));
    }
}
