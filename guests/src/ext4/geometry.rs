//! Where a filesystem of some size has its metadata: block groups, the backups of superblock and descriptors, bitmaps and inode
//! tables. Pure arithmetic; what lies in the blocks is written elsewhere.

use super::{BLOCK, INODE_BYTES};

/// A block bitmap is one block, which has this many bits.
pub(super) const BLOCKS_PER_GROUP: u64 = 8 * BLOCK as u64;
pub(super) const INODES_PER_BLOCK: u32 = (BLOCK / INODE_BYTES) as u32;
/// An inode bitmap is one block, too.
const MOST_INODES_PER_GROUP: u64 = BLOCKS_PER_GROUP;
pub(super) const DESCRIPTOR_BYTES: usize = 64;
const DESCRIPTORS_PER_BLOCK: u64 = (BLOCK / DESCRIPTOR_BYTES) as u64;
/// A last group with less room than this beside its metadata is not worth having.
const LEAST_ROOM: u64 = 64;

/// For how many bytes there is an inode: as mke2fs decides for small, usual and big filesystems.
fn bytes_per_inode(bytes: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    const TIB: u64 = 1 << 40;
    if bytes < 512 * MIB {
        4 << 10
    } else if bytes < 4 * TIB {
        16 << 10
    } else {
        32 << 10
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) blocks: u64,
    pub(super) groups: u32,
    pub(super) inodes_per_group: u32,
    /// The metadata of this many groups lies together in the first of them (flex_bg).
    pub(super) groups_per_flex: u32,
}

impl Geometry {
    /// Of a filesystem of at most `bytes` with at least so many inodes; `None` where that is not possible.
    pub(super) fn new(bytes: u64, inodes: u64) -> Option<Self> {
        let wanted = inodes.max(bytes / bytes_per_inode(bytes));
        let mut blocks = bytes / BLOCK as u64;
        loop {
            let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
            let per_group = wanted.checked_div(groups)? + u64::from(!wanted.is_multiple_of(groups));
            let per_group = per_group.next_multiple_of(u64::from(INODES_PER_BLOCK));
            if per_group > MOST_INODES_PER_GROUP {
                return None;
            }
            let geometry = Self {
                blocks,
                groups: u32::try_from(groups).ok()?,
                inodes_per_group: u32::try_from(per_group).ok()?,
                // All tables of a flex group must fit into its first group.
                groups_per_flex: if per_group <= MOST_INODES_PER_GROUP / 2 { 16 } else { 8 },
            };
            let last = geometry.groups.checked_sub(1)?;
            if geometry.blocks_of(last) >= geometry.metadata_of(last) + LEAST_ROOM {
                return Some(geometry);
            }
            // As mke2fs does: the disk's last blocks, too few for a group of their own, stay unused.
            blocks = u64::from(last) * BLOCKS_PER_GROUP;
        }
    }

    pub(super) fn inodes(&self) -> u64 {
        u64::from(self.groups) * u64::from(self.inodes_per_group)
    }

    pub(super) fn first_block(&self, group: u32) -> u64 {
        u64::from(group) * BLOCKS_PER_GROUP
    }

    /// How many blocks a group has; only the last may have fewer than the others.
    pub(super) fn blocks_of(&self, group: u32) -> u64 {
        BLOCKS_PER_GROUP.min(self.blocks.saturating_sub(self.first_block(group)))
    }

    pub(super) fn descriptor_blocks(&self) -> u64 {
        u64::from(self.groups).div_ceil(DESCRIPTORS_PER_BLOCK)
    }

    /// Whether a group begins with a superblock and the descriptors: with sparse_super the groups 0 and 1 and the powers of
    /// 3, 5 and 7.
    pub(super) fn has_superblock(&self, group: u32) -> bool {
        let is_power =
            |base: u32| std::iter::successors(Some(base), |n| n.checked_mul(base)).any(|n| n == group);
        group <= 1 || is_power(3) || is_power(5) || is_power(7)
    }

    fn superblock_and_descriptors(&self, group: u32) -> u64 {
        if self.has_superblock(group) { 1 + self.descriptor_blocks() } else { 0 }
    }

    /// How many groups keep their bitmaps and tables where `group` keeps its own.
    fn groups_beside(&self, group: u32) -> u64 {
        let first = self.first_of_flex(group);
        u64::from(self.groups_per_flex.min(self.groups - first))
    }

    fn first_of_flex(&self, group: u32) -> u32 {
        group - group % self.groups_per_flex
    }

    pub(super) fn inode_table_blocks(&self) -> u64 {
        u64::from(self.inodes_per_group / INODES_PER_BLOCK)
    }

    /// Whether the group holds the bitmaps and tables of other groups.
    pub(super) fn leads_flex(&self, group: u32) -> bool {
        self.first_of_flex(group) == group
    }

    /// How many blocks at the start of a group are metadata.
    pub(super) fn metadata_of(&self, group: u32) -> u64 {
        let own = self.superblock_and_descriptors(group);
        if self.leads_flex(group) {
            own + self.groups_beside(group) * (2 + self.inode_table_blocks())
        } else {
            own
        }
    }

    pub(super) fn block_bitmap(&self, group: u32) -> u64 {
        let first = self.first_of_flex(group);
        self.first_block(first) + self.superblock_and_descriptors(first) + u64::from(group - first)
    }

    pub(super) fn inode_bitmap(&self, group: u32) -> u64 {
        self.block_bitmap(group) + self.groups_beside(group)
    }

    pub(super) fn inode_table(&self, group: u32) -> u64 {
        let first = self.first_of_flex(group);
        let tables = self.inode_bitmap(first) + self.groups_beside(group);
        tables + u64::from(group - first) * self.inode_table_blocks()
    }

    /// The byte at which an inode's record starts; inodes count from 1.
    pub(super) fn inode_offset(&self, number: u32) -> u64 {
        let index = number - 1;
        let table = self.inode_table(index / self.inodes_per_group);
        table * BLOCK as u64 + u64::from(index % self.inodes_per_group) * INODE_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_block_of_metadata_lies_on_another(mib in 2u64..40_000, inodes in 0u64..300_000) {
            let Some(geometry) = Geometry::new(mib << 20, inodes) else {
                prop_assert!(inodes > 0 || mib < 4);
                return Ok(());
            };
            prop_assert!(geometry.inodes() >= inodes);
            prop_assert!(geometry.blocks <= mib << 8);
            let mut spans = Vec::new();
            for group in 0..geometry.groups {
                if geometry.has_superblock(group) {
                    spans.push((geometry.first_block(group), 1 + geometry.descriptor_blocks()));
                }
                spans.push((geometry.block_bitmap(group), 1));
                spans.push((geometry.inode_bitmap(group), 1));
                spans.push((geometry.inode_table(group), geometry.inode_table_blocks()));
            }
            spans.sort_unstable();
            for pair in spans.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0);
            }
            // Every one lies in the part of its group that is said to be metadata.
            for (start, length) in spans {
                let group = (start / BLOCKS_PER_GROUP) as u32;
                let end = geometry.first_block(group) + geometry.metadata_of(group);
                prop_assert!(start + length <= end && end <= geometry.blocks);
            }
        }
    }
}
