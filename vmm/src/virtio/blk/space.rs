//! The configuration space of a block device (virtio 1.3, 5.2.4), as this device fills it.

use super::blocks::Blocks;
use super::erase::{MOST_DISCARD_SECTORS, MOST_RANGES, MOST_ZEROES_SECTORS};
use crate::backing::SECTOR_BYTES;

/// Where `writeback` stands, the one byte that a driver may write.
pub(super) const WRITEBACK_AT: u32 = 32;
const BYTES: usize = 60;

#[derive(Debug, Clone, Copy)]
pub(super) struct Space {
    pub(super) capacity_bytes: u64,
    pub(super) longest_segment: u32,
    pub(super) most_segments: u32,
    pub(super) blocks: Blocks,
    pub(super) queues: u16,
    pub(super) write_back: bool,
    /// The unit in which discards give space back; `None`: the disk has neither discards nor write zeroes.
    pub(super) discard_bytes: Option<u64>,
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
        put(8, &self.longest_segment.to_le_bytes());
        put(12, &self.most_segments.to_le_bytes());
        let Blocks { logical_bytes, physical_bytes, .. } = self.blocks;
        put(20, &logical_bytes.to_le_bytes());
        // physical_block_exp, and from alignment_offset on: the first block begins the disk; the least that is written at
        // once, and the best size of requests, in logical blocks.
        put(24, &[(physical_bytes / logical_bytes).trailing_zeros() as u8]);
        put(26, &((physical_bytes / logical_bytes) as u16).to_le_bytes());
        put(28, &self.blocks.optimal().to_le_bytes());
        put(WRITEBACK_AT as usize, &[self.write_back.into()]);
        put(34, &self.queues.to_le_bytes());
        if let Some(bytes) = self.discard_bytes {
            put(36, &MOST_DISCARD_SECTORS.to_le_bytes());
            put(40, &MOST_RANGES.to_le_bytes());
            put(44, &u32::try_from(bytes / SECTOR_BYTES).unwrap_or(1).to_le_bytes());
            put(48, &MOST_ZEROES_SECTORS.to_le_bytes());
            put(52, &MOST_RANGES.to_le_bytes());
            // write_zeroes_may_unmap
            put(56, &[1]);
        }
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
            longest_segment: 1 << 30,
            most_segments: 254,
            blocks: Blocks { logical_bytes: 512, physical_bytes: 4096, optimal_bytes: 1 << 20 },
            queues: 4,
            write_back: true,
            discard_bytes: Some(4096),
        };
        let at = |offset, len| {
            let mut data = vec![0xff; len];
            space.read(offset, &mut data);
            data
        };
        assert_eq!(at(0, 8), (0x1234_5678_9a00_u64 / 512).to_le_bytes());
        assert_eq!(at(8, 4), (1_u32 << 30).to_le_bytes());
        assert_eq!(at(12, 4), 254_u32.to_le_bytes());
        assert_eq!(at(20, 4), 512_u32.to_le_bytes());
        assert_eq!(at(24, 8), [3, 0, 8, 0, 0, 8, 0, 0]);
        assert_eq!(at(32, 4), [1, 0, 4, 0]);
        let words: Vec<u32> =
            (36..56).step_by(4).map(|offset| u32::from_le_bytes(at(offset, 4).try_into().unwrap())).collect();
        assert_eq!(words, [1 << 21, 32, 8, 1 << 18, 32]);
        assert_eq!(at(56, 2), [1, 0]);
        assert_eq!(at(58, 4), [0; 4], "beyond its end are zeros");
        assert_eq!(at(u32::MAX, 2), [0; 2]);
    }
}
