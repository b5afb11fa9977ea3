//! The journal: how large, and its first block. The others are never read before they are written, so they stay holes.

// Documentation/filesystems/ext4/journal.rst. Everything in a journal is big-endian.

use super::fields::{Put, block};
use super::identity::Identity;

pub(super) const INODE: u32 = 8;

/// As many blocks as mke2fs gives a filesystem of so many blocks.
pub(super) fn blocks_for(blocks: u64) -> u64 {
    const MIB: u64 = 256;
    match blocks {
        0..32_768 => 4 * MIB,
        32_768..262_144 => 16 * MIB,
        262_144..524_288 => 32 * MIB,
        524_288..4_194_304 => 64 * MIB,
        4_194_304..8_388_608 => 128 * MIB,
        8_388_608..16_777_216 => 256 * MIB,
        16_777_216..33_554_432 => 512 * MIB,
        _ => 1024 * MIB,
    }
}

/// The journal's superblock: empty, to be started at its second block with transaction 1.
pub(super) fn superblock(blocks: u64, identity: &Identity) -> Vec<u8> {
    let mut bytes = block();
    let mut put = |at: usize, value: u32| bytes.put(at, &value.to_be_bytes());
    put(0x00, 0xc03b_3998);
    put(0x04, 4); // a superblock, of version 2
    put(0x0c, super::BLOCK as u32);
    put(0x10, blocks as u32);
    put(0x14, 1); // first block of the log
    put(0x18, 1); // first transaction
    put(0x40, 1); // filesystems that use it
    bytes.put(0x30, &identity.journal_uuid);
    bytes
}
