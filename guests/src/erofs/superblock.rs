//! The superblock: 128 bytes at byte 1024, and behind them, where anything is compressed, what LZ4 was allowed.

use super::{BLOCK_BYTES, problem};
use crate::error::Result;

const OFFSET: usize = 1024;
const BYTES: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;

const COMPAT_CHECKSUM: u32 = 1;
/// Times are of the last change of content, not of the inode.
const COMPAT_MTIME: u32 = 2;

/// Compressed data lies at the end of its blocks, zeros before it.
const INCOMPAT_PADDING: u32 = 1;
/// Parameters of compressors follow the superblock; the same bit allows more than one block for one compressed extent.
const INCOMPAT_PARAMETERS: u32 = 2;

const LZ4: u16 = 1;
/// LZ4's own limit; the kernel sizes its window by it.
const LZ4_DISTANCE: u16 = 65535;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) root_nid: u16,
    pub(super) inodes: u64,
    /// Of the whole image.
    pub(super) blocks: u32,
    pub(super) meta_block: u32,
    pub(super) uuid: [u8; 16],
    pub(super) compressed: bool,
}

impl Superblock {
    /// Block 0.
    pub(super) fn block(&self) -> Vec<u8> {
        let incompat = if self.compressed { INCOMPAT_PADDING | INCOMPAT_PARAMETERS } else { 0 };
        let mut block = vec![0; OFFSET];
        block.extend(MAGIC.to_le_bytes());
        block.extend([0; 4]); // the checksum, when the rest is there
        block.extend((COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        block.extend([BLOCK_BYTES.trailing_zeros() as u8, 0]);
        block.extend(self.root_nid.to_le_bytes());
        block.extend(self.inodes.to_le_bytes());
        block.extend([0; 8 + 4]); // the time of all compact inodes
        block.extend(self.blocks.to_le_bytes());
        block.extend(self.meta_block.to_le_bytes());
        block.extend([0; 4]); // no shared extended attributes
        block.extend(self.uuid);
        block.extend([0; 16]); // no label
        block.extend(incompat.to_le_bytes());
        block.extend(if self.compressed { LZ4 } else { 0 }.to_le_bytes());
        block.resize(OFFSET + BYTES, 0);
        if self.compressed {
            block.extend(14_u16.to_le_bytes());
            block.extend(LZ4_DISTANCE.to_le_bytes());
            block.extend(super::compress::MOST_BLOCKS.to_le_bytes());
        }
        block.resize(BLOCK_BYTES, 0);
        let checksum = crc32c(block.get(OFFSET..).unwrap_or_default());
        for (to, from) in block.iter_mut().skip(OFFSET + 4).zip(checksum.to_le_bytes()) {
            *to = from;
        }
        block
    }

    /// Of an image that this crate writes; anything with other features is refused.
    pub(super) fn read(image: &[u8]) -> Result<Self> {
        let block = image.get(OFFSET..BLOCK_BYTES).ok_or_else(|| problem("too short for a superblock"))?;
        let word = |at: usize| little(block, at, 4).map(|word| word as u32);
        if word(0)? != MAGIC {
            return Err(problem("no superblock"));
        }
        let mut summed = block.to_vec();
        summed.iter_mut().skip(4).take(4).for_each(|byte| *byte = 0);
        if word(4)? != crc32c(&summed) {
            return Err(problem("the superblock's checksum is wrong"));
        }
        let incompat = word(80)?;
        let compressed = incompat == INCOMPAT_PADDING | INCOMPAT_PARAMETERS;
        if little(block, 12, 1)? != u64::from(BLOCK_BYTES.trailing_zeros()) || !(compressed || incompat == 0)
        {
            return Err(problem("laid out with features that are not vmprof's"));
        }
        let mut uuid = [0; 16];
        for (to, from) in uuid.iter_mut().zip(block.iter().skip(48)) {
            *to = *from;
        }
        Ok(Self {
            root_nid: little(block, 14, 2)? as u16,
            inodes: little(block, 16, 8)?,
            blocks: word(36)?,
            meta_block: word(40)?,
            uuid,
            compressed,
        })
    }
}

/// A number of `count` bytes, at most 8.
pub(super) fn little(bytes: &[u8], at: usize, count: usize) -> Result<u64> {
    let end = at.checked_add(count).ok_or_else(|| problem("an offset beyond everything"))?;
    let bytes = bytes.get(at..end).ok_or_else(|| problem(format!("it ends before byte {end}")))?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// CRC-32C with all bits set before and nothing inverted after, as the kernel's `crc32c(~0, …)`.
fn crc32c(bytes: &[u8]) -> u32 {
    if cfg!(feature = "fuzzing") {
        return 0;
    }
    bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4: 32 bytes of zeros, and the number whose inverse that appendix gives.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_read_and_one_changed_bit_is_seen() {
        let superblock = Superblock {
            root_nid: 1,
            inodes: 7,
            blocks: 99,
            meta_block: 44,
            uuid: [9; 16],
            compressed: true,
        };
        let mut block = superblock.block();
        assert_eq!(Superblock::read(&block).unwrap(), superblock);
        block[3000] ^= 1;
        assert!(Superblock::read(&block).is_err());
    }
}
