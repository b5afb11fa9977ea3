//! The sizes of blocks that the guest is told (virtio 1.3, 5.2.4): the unit in which it addresses the disk, and the one that
//! it should write whole. The protocol counts in sectors of 512 bytes whatever they are.

use crate::backing::{Backing, DiskError, SECTOR_BYTES};
use crate::config::{self, LARGEST_LOGICAL_BLOCK_BYTES, LARGEST_PHYSICAL_BLOCK_BYTES};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) logical_bytes: u32,
    /// A multiple of the logical ones by a power of two.
    pub(super) physical_bytes: u32,
    /// The transfers that the disk likes best; 0: it does not say.
    pub(super) optimal_bytes: u64,
}

impl Blocks {
    /// As `config` has them, and as the disk's own where it leaves them open.
    pub(super) fn of(config: &config::Disk, backing: &Backing) -> Result<Blocks, DiskError> {
        // The same on every host: what is in a file, a partition table say, counts in logical blocks.
        let logical_bytes = config.logical_block_bytes.unwrap_or(SECTOR_BYTES as u32);
        // What direct I/O asks for is at most 64 KiB; a device may write more at once than it asks for.
        let own = backing.alignment.offset.max(backing.physical_bytes).next_power_of_two();
        let own = (own.min(LARGEST_PHYSICAL_BLOCK_BYTES.into()) as u32).max(logical_bytes);
        let physical_bytes = config.physical_block_bytes.unwrap_or(own);
        let fits =
            |bytes: u32, least: u32, most: u32| bytes.is_power_of_two() && (least..=most).contains(&bytes);
        let disk = || config.name.clone();
        if !fits(logical_bytes, SECTOR_BYTES as u32, LARGEST_LOGICAL_BLOCK_BYTES) {
            let most = LARGEST_LOGICAL_BLOCK_BYTES;
            return Err(DiskError::LogicalBlock { disk: disk(), block_bytes: logical_bytes, most });
        }
        if !fits(physical_bytes, logical_bytes, LARGEST_PHYSICAL_BLOCK_BYTES) {
            let (block_bytes, least, most) = (physical_bytes, logical_bytes, LARGEST_PHYSICAL_BLOCK_BYTES);
            return Err(DiskError::PhysicalBlock { disk: disk(), block_bytes, least, most });
        }
        if !backing.capacity_bytes.is_multiple_of(logical_bytes.into()) {
            let (path, size_bytes) = (config.path.clone(), backing.size_bytes);
            let block_bytes = logical_bytes;
            return Err(DiskError::PartialLogicalBlock { disk: disk(), path, size_bytes, block_bytes });
        }
        Ok(Blocks { logical_bytes, physical_bytes, optimal_bytes: backing.optimal_bytes })
    }

    /// The best size of requests, in logical blocks; 0: none.
    pub(super) fn optimal(self) -> u32 {
        u32::try_from(self.optimal_bytes / u64::from(self.logical_bytes)).unwrap_or(0)
    }
}
