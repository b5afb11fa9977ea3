//! Block groups: their bitmaps, and the table of descriptors that says where these and the inode tables are.

// Documentation/filesystems/ext4/group_descr.rst and bitmaps.rst.

use super::BLOCK;
use super::allocation::Allocation;
use super::crc32c::{Checksums, crc32c};
use super::fields::{Put, block};
use super::geometry::{BLOCKS_PER_GROUP, DESCRIPTOR_BYTES, Geometry};

/// Nothing of the group's inode table is used, and its bitmap is not written.
const INODE_UNINIT: u16 = 0x1;
/// Nothing but the group's own metadata is used, and its bitmap is not written.
const BLOCK_UNINIT: u16 = 0x2;
/// The inode table is zeros, which in a new image holds of every table, so that no kernel has to write them.
const INODE_ZEROED: u16 = 0x4;

/// A group as the image has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) descriptor: [u8; DESCRIPTOR_BYTES],
    /// Where it says "not written", the block stays a hole.
    pub(super) block_bitmap: Option<Vec<u8>>,
    pub(super) inode_bitmap: Option<Vec<u8>>,
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u32,
}

/// How the inodes of a group are used: by their indexes in the group.
#[derive(Debug, Clone, Default)]
pub(super) struct Residents {
    pub(super) inodes: Vec<u32>,
    pub(super) directories: u32,
}

pub(super) fn encode(
    geometry: &Geometry,
    allocation: &Allocation,
    group: u32,
    residents: &Residents,
    sums: Checksums,
) -> Group {
    let used = allocation.used_of(group);
    let all = geometry.blocks_of(group);
    let is_last = group + 1 == geometry.groups;
    // The last group's bitmap marks the blocks behind the end, so it is always written.
    let untouched = used == geometry.metadata_of(group) && !geometry.leads_flex(group) && !is_last;
    let block_bitmap = (!untouched).then(|| {
        let mut bitmap = block();
        set(&mut bitmap, 0, used);
        set(&mut bitmap, all, BLOCKS_PER_GROUP);
        bitmap
    });
    let inode_bitmap = (!residents.inodes.is_empty()).then(|| {
        let mut bitmap = block();
        for index in &residents.inodes {
            set(&mut bitmap, u64::from(*index), u64::from(*index) + 1);
        }
        set(&mut bitmap, u64::from(geometry.inodes_per_group), BLOCKS_PER_GROUP);
        bitmap
    });
    let mut flags = INODE_ZEROED;
    flags |= if block_bitmap.is_none() { BLOCK_UNINIT } else { 0 };
    flags |= if inode_bitmap.is_none() { INODE_UNINIT } else { 0 };
    let free_blocks = all - used;
    let free_inodes = geometry.inodes_per_group - residents.inodes.len() as u32;
    let never_used =
        geometry.inodes_per_group - residents.inodes.iter().max().map_or(0, |highest| highest + 1);
    let block_sum = block_bitmap.as_ref().map_or(0, |bitmap| sums.of(bitmap));
    let inode_sum =
        inode_bitmap.as_ref().map_or(0, |bitmap| sums.of(&bitmap[..geometry.inodes_per_group as usize / 8]));

    let mut bytes = [0; DESCRIPTOR_BYTES];
    bytes.put_halves_u64(0x00, 0x20, geometry.block_bitmap(group));
    bytes.put_halves_u64(0x04, 0x24, geometry.inode_bitmap(group));
    bytes.put_halves_u64(0x08, 0x28, geometry.inode_table(group));
    bytes.put_halves_u32(0x0c, 0x2c, free_blocks as u32);
    bytes.put_halves_u32(0x0e, 0x2e, free_inodes);
    bytes.put_halves_u32(0x10, 0x30, residents.directories);
    bytes.put_u16(0x12, flags);
    bytes.put_halves_u32(0x18, 0x38, block_sum);
    bytes.put_halves_u32(0x1a, 0x3a, inode_sum);
    bytes.put_halves_u32(0x1c, 0x32, never_used);
    let sum = descriptor_sum(&bytes, group, sums);
    bytes.put_u16(0x1e, sum);
    Group { descriptor: bytes, block_bitmap, inode_bitmap, free_blocks, free_inodes }
}

/// Over the group's number and the descriptor with a sum of 0.
pub(super) fn descriptor_sum(descriptor: &[u8; DESCRIPTOR_BYTES], group: u32, sums: Checksums) -> u16 {
    let mut summed = *descriptor;
    summed.put_u16(0x1e, 0);
    crc32c(sums.of(&group.to_le_bytes()), &summed) as u16
}

/// Sets the bits from `start` up to `end`.
fn set(bitmap: &mut [u8], start: u64, end: u64) {
    let (start, end) = (start as usize, (end as usize).min(BLOCK * 8));
    let mut bit = start;
    while bit < end {
        if bit.is_multiple_of(8) && bit + 8 <= end {
            bitmap[bit / 8] = 0xff;
            bit += 8;
        } else {
            bitmap[bit / 8] |= 1 << (bit % 8);
            bit += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_set_from_the_first_up_to_the_last() {
        let mut bitmap = block();
        set(&mut bitmap, 3, 21);
        set(&mut bitmap, 30, 31);
        assert_eq!(bitmap[..5], [0xf8, 0xff, 0x1f, 0x40, 0]);
        set(&mut bitmap, 0, 1 << 15);
        assert!(bitmap.iter().all(|byte| *byte == 0xff));
    }
}
