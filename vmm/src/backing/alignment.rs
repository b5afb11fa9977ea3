//! What O_DIRECT asks of offsets, lengths and addresses. It is the host's affair alone: the guest is shown sectors of 512
//! bytes whatever it is, and requests that are finer go through a bounce buffer.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, StatxFlags};

use super::DiskError;
use crate::config;

/// STATX_DIOALIGN (statx(2), Linux 6.1).
const DIRECT_IO_ALIGNMENT: u32 = 0x2000;
const STRICTEST_PROBED: usize = 4_096;
/// A block must fit the bounce buffers with room to spare.
const LARGEST_BLOCK: u64 = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// Offsets and lengths, that of each piece of a buffer included, are multiples of this many bytes: before Linux 6.18 no
    /// block may be put together from two pieces.
    pub offset: u64,
    /// The addresses of buffers and of their pieces are multiples of this many.
    pub memory: usize,
}

impl Alignment {
    /// Through the page cache anything goes.
    pub const NONE: Alignment = Alignment { offset: 1, memory: 1 };

    /// Asks the kernel, and where it does not say, tries reads. `file` is open with O_DIRECT.
    pub(super) fn probe(disk: &config::Disk, file: &File) -> Result<Alignment, DiskError> {
        let found = match stated(file) {
            Stated::Never => return Err(DiskError::no_direct(disk)),
            Stated::Alignment(alignment) => alignment,
            Stated::Nothing => tried(file).ok_or_else(|| DiskError::no_direct(disk))?,
        };
        if found.offset > LARGEST_BLOCK || found.memory as u64 > LARGEST_BLOCK {
            let block_bytes = found.offset.max(found.memory as u64);
            let (disk, path) = (disk.name.clone(), disk.path.clone());
            return Err(DiskError::BlocksTooLarge { disk, path, block_bytes, most: LARGEST_BLOCK });
        }
        Ok(found)
    }
}

enum Stated {
    Alignment(Alignment),
    /// The kernel knows that this file has no direct I/O.
    Never,
    /// The kernel or the filesystem is older than the question.
    Nothing,
}

fn stated(file: &File) -> Stated {
    let wanted = StatxFlags::from_bits_retain(DIRECT_IO_ALIGNMENT);
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted) {
        Ok(found) if found.stx_mask & DIRECT_IO_ALIGNMENT != 0 => {
            if found.stx_dio_offset_align == 0 || found.stx_dio_mem_align == 0 {
                return Stated::Never;
            }
            let offset = u64::from(found.stx_dio_offset_align).next_power_of_two();
            Stated::Alignment(Alignment {
                offset,
                memory: (found.stx_dio_mem_align as usize).next_power_of_two(),
            })
        }
        _ => Stated::Nothing,
    }
}

/// The finest block that the file can be read in. Memory is aligned to the same: nothing tells the two apart that would
/// not depend on the device's mood.
fn tried(file: &File) -> Option<Alignment> {
    let mut room = vec![0; 4 * STRICTEST_PROBED];
    let base = room.as_ptr().align_offset(2 * STRICTEST_PROBED);
    let mut block = super::SECTOR_BYTES as usize;
    while block <= STRICTEST_PROBED {
        // At exactly this alignment and no finer one.
        let start = base + block;
        let target = room.get_mut(start..start + block)?;
        if file.read_at(target, block as u64).is_ok() && file.read_at(target, 0).is_ok() {
            return Some(Alignment { offset: block as u64, memory: block });
        }
        block *= 2;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_rules_is_read_by_sectors() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8_192).unwrap();
        let tried = tried(&file).unwrap();
        assert_eq!(tried, Alignment { offset: 512, memory: 512 });
    }
}
