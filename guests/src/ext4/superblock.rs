//! The superblock: made for each place where one stands, and read.

// Documentation/filesystems/ext4/super.rst.

use super::crc32c::{Checksums, crc32c};
use super::fields::{Get, Put};
use super::geometry::{BLOCKS_PER_GROUP, DESCRIPTOR_BYTES, Geometry};
use super::identity::Identity;
use super::population::LOST_AND_FOUND;
use super::view::View;
use super::{BLOCK, INLINE_BYTES, INODE_BYTES, INODE_FIELDS, journal};

pub(super) const BYTES: usize = 1024;
/// From the start of the disk; in the other groups it stands at the start of its block.
pub(super) const OFFSET: usize = 1024;
const MAGIC: u16 = 0xef53;
const SUM_AT: usize = 0x3fc;

const HAS_JOURNAL: u32 = 0x4;
const EXT_ATTR: u32 = 0x8;
const DIR_INDEX: u32 = 0x20;

const FILETYPE: u32 = 0x2;
const EXTENTS: u32 = 0x40;
const SIXTY_FOUR_BIT: u32 = 0x80;
const FLEX_BG: u32 = 0x200;
const INCOMPATIBLE: u32 = FILETYPE | EXTENTS | SIXTY_FOUR_BIT | FLEX_BG;
/// The journal holds what is not in its place yet.
const RECOVER: u32 = 0x4;

const SPARSE_SUPER: u32 = 0x1;
const LARGE_FILE: u32 = 0x2;
const HUGE_FILE: u32 = 0x8;
const DIR_NLINK: u32 = 0x20;
const EXTRA_ISIZE: u32 = 0x40;
const METADATA_CSUM: u32 = 0x400;

/// Names are hashed as unsigned bytes.
const UNSIGNED_HASH: u32 = 0x2;
/// user_xattr and acl.
const DEFAULT_MOUNT_OPTIONS: u32 = 0x4 | 0x8;
/// A filesystem that finds itself damaged stops to write, as Debian's installer asks of a root.
const ERRORS_REMOUNT_READ_ONLY: u16 = 2;

/// What the whole filesystem counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) free_blocks: u64,
    pub(super) free_inodes: u64,
    /// Blocks that no file can ever have: metadata and the journal.
    pub(super) overhead: u64,
}

/// The superblock that stands in a group. `journal` is the journal's inode as far as it is kept here again: its blocks and its
/// size, for repairs.
pub(super) fn encode(
    geometry: &Geometry,
    identity: &Identity,
    totals: &Totals,
    journal: (&[u8; INLINE_BYTES], u64),
    group: u32,
) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    let at = bytes.as_mut_slice();
    at.put_u32(0x00, geometry.inodes() as u32);
    at.put_halves_u64(0x04, 0x150, geometry.blocks);
    at.put_halves_u64(0x0c, 0x158, totals.free_blocks);
    at.put_u32(0x10, totals.free_inodes as u32);
    at.put_u32(0x18, 2); // blocks of 1 KiB << 2
    at.put_u32(0x1c, 2); // and clusters
    at.put_u32(0x20, BLOCKS_PER_GROUP as u32);
    at.put_u32(0x24, BLOCKS_PER_GROUP as u32);
    at.put_u32(0x28, geometry.inodes_per_group);
    at.put_u16(0x36, u16::MAX); // no check after so many mounts
    at.put_u16(0x38, MAGIC);
    at.put_u16(0x3a, 1); // unmounted cleanly
    at.put_u16(0x3c, ERRORS_REMOUNT_READ_ONLY);
    at.put_u32(0x4c, 1); // revision with sizes and features
    at.put_u32(0x54, LOST_AND_FOUND);
    at.put_u16(0x58, INODE_BYTES as u16);
    at.put_u16(0x5a, group as u16);
    at.put_u32(0x5c, HAS_JOURNAL | EXT_ATTR | DIR_INDEX);
    at.put_u32(0x60, INCOMPATIBLE);
    at.put_u32(0x64, SPARSE_SUPER | LARGE_FILE | HUGE_FILE | DIR_NLINK | EXTRA_ISIZE | METADATA_CSUM);
    at.put(0x68, &identity.uuid);
    at.put_u32(0xe0, journal::INODE);
    at.put(0xec, &identity.hash_seed);
    at.put_u8(0xfc, 1); // half_md4
    at.put_u8(0xfd, 1); // the journal's inode follows
    at.put(0x10c, journal.0);
    at.put_halves_u64(0x14c, 0x148, journal.1);
    at.put_u16(0xfe, DESCRIPTOR_BYTES as u16);
    at.put_u32(0x100, DEFAULT_MOUNT_OPTIONS);
    at.put_u16(0x15c, (INODE_FIELDS - 128) as u16);
    at.put_u16(0x15e, (INODE_FIELDS - 128) as u16);
    at.put_u32(0x160, UNSIGNED_HASH);
    at.put_u8(0x174, geometry.groups_per_flex.ilog2() as u8);
    at.put_u8(0x175, 1); // crc32c
    at.put_u32(0x248, u32::try_from(totals.overhead).unwrap_or(0)); // 0: the kernel counts
    let sum = crc32c(u32::MAX, &at[..SUM_AT]);
    at.put_u32(SUM_AT, sum);
    bytes
}

/// What a reader needs of a superblock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) blocks: u64,
    pub(super) inodes: u32,
    pub(super) inodes_per_group: u32,
    pub(super) sums: Checksums,
}

/// Reads the first superblock; an error says what no reader of ours knows.
pub(super) fn decode(image: View<'_>) -> Result<Found, String> {
    let bytes = &image.at(OFFSET as u64, BYTES).ok_or("the image ends before its superblock does")?;
    let found = found(bytes).ok_or("the superblock is damaged")?;
    let odd = bytes.u32(0x60).map_or(0, |features| features ^ INCOMPATIBLE);
    if odd == RECOVER {
        return Err("it was mounted and not unmounted: its journal has to be replayed first".to_owned());
    }
    if odd != 0 {
        return Err(format!("it has other features than the builder gives (incompatible {odd:#x})"));
    }
    let sizes = (bytes.u32(0x18), bytes.u16(0x58), bytes.u16(0xfe), bytes.u32(0x20));
    let ours =
        (Some(2), Some(INODE_BYTES as u16), Some(DESCRIPTOR_BYTES as u16), Some(BLOCKS_PER_GROUP as u32));
    if sizes != ours || found.inodes_per_group == 0 {
        return Err("its blocks, inodes or descriptors have other sizes than the builder gives".to_owned());
    }
    if found.blocks > image.length() / BLOCK as u64 {
        return Err("the image is shorter than its superblock says".to_owned());
    }
    Ok(found)
}

fn found(bytes: &[u8]) -> Option<Found> {
    if bytes.u16(0x38)? != MAGIC || crc32c(u32::MAX, bytes.get(..SUM_AT)?) != bytes.u32(SUM_AT)? {
        return None;
    }
    Some(Found {
        blocks: bytes.halves_u64(0x04, 0x150)?,
        inodes: bytes.u32(0x00)?,
        inodes_per_group: bytes.u32(0x28)?,
        sums: Checksums::new(&bytes.array(0x68)?),
    })
}
