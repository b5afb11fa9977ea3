//! The configuration space of a block device (virtio 1.3, 5.2.4), as this device fills it.

use super::blocks::Blocks;
use crate::backing::SECTOR_BYTES;

/// Where `writeback` stands, the one byte that a driver may write.
pub(super) const WRITEBACK_AT: u32 = 32;
const BYTES: usize = 60;

#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) capacity_bytes: u64,
    pub(super) most_segments: u32,
    pub(super) blocks: Blocks,
    pub(super) queues: u16,
    pub(super) write_back: bool,
}

impl Space {
    /// Fills `data` from `offset` on; what lies beyond the space reads as zero.
    pub(super) fn read(&self, offset: u32, data: &mut [u8]) {
        let space = self.bytes();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = space.get(at).copied().unwrap_or(0);
        }
    }

    fn bytes(&self) -> [u8; BYTES] {
        let mut space = [0; BYTES];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.capacity_bytes / SECTOR_BYTES).to_le_bytes());
        put(12, &self.most_segments.to_le_bytes());
        let Blocks { logical_bytes, physical_bytes } = self.blocks;
        put(20, &logical_bytes.to_le_bytes());
        // physical_block_exp, and from alignment_offset on: the first block begins the disk; the least that is written at
        // once, in logical blocks. No size of requests is the best.
        put(24, &[(physical_bytes / logical_bytes).trailing_zeros() as u8]);
        put(26, &((physical_bytes / logical_bytes) as u16).to_le_bytes());
        put(WRITEBACK_AT as usize, &[self.write_back.into()]);
        put(34, &self.queues.to_le_bytes());
        space
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_specification_has_them() {
        let space = Space {
            capacity_bytes: 0x1234_5678_9a00,
            most_segments: 254,
            blocks: Blocks { logical_bytes: 512, physical_bytes: 4096 },
            queues: 4,
            write_back: true,
        };
        let at = |offset, len| {
            let mut data = vec![0xff; len];
            space.read(offset, &mut data);
            data
        };
        assert_eq!(at(0, 8), (0x1234_5678_9a00_u64 / 512).to_le_bytes());
        assert_eq!(at(12, 4), 254_u32.to_le_bytes());
        assert_eq!(at(20, 4), 512_u32.to_le_bytes());
        assert_eq!(at(24, 8), [3, 0, 8, 0, 0, 0, 0, 0]);
        assert_eq!(at(32, 4), [1, 0, 4, 0]);
        assert_eq!(at(58, 4), [0; 4], "beyond its end are zeros");
        assert_eq!(at(u32::MAX, 2), [0; 2]);
    }
}
