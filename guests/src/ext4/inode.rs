//! The record of an inode: 256 bytes, of which 160 are fields, 96 extended attributes.

// Documentation/filesystems/ext4/inodes.rst.

use super::crc32c::crc32c;
use super::fields::{Get, Put};
use super::{INLINE_BYTES, INODE_BYTES, INODE_FIELDS};
use crate::tree::Kind;

pub(super) const FLAG_INDEX: u32 = 0x1000;
pub(super) const FLAG_EXTENTS: u32 = 0x8_0000;
/// Attributes in inodes of their own, content inside of the inode, encryption, verity: in no image of ours.
const FLAGS_UNREADABLE: u32 = 0x20_0000 | 0x1000_0000 | 0x800 | 0x10_0000;
/// More links than that no inode has; a directory with more subdirectories says 1 (dir_nlink).
pub(super) const MOST_LINKS: u64 = 65_000;

pub(super) const FORMAT_FIFO: u16 = 0x1000;
pub(super) const FORMAT_CHAR: u16 = 0x2000;
pub(super) const FORMAT_DIRECTORY: u16 = 0x4000;
pub(super) const FORMAT_BLOCK: u16 = 0x6000;
pub(super) const FORMAT_FILE: u16 = 0x8000;
pub(super) const FORMAT_LINK: u16 = 0xa000;
const FORMAT_MASK: u16 = 0xf000;

/// What a mode says a node is, and what a directory's entry says.
pub(super) fn format_of(kind: &Kind) -> (u16, u8) {
    match kind {
        Kind::File(_) => (FORMAT_FILE, 1),
        Kind::Directory => (FORMAT_DIRECTORY, 2),
        Kind::CharDevice { .. } => (FORMAT_CHAR, 3),
        Kind::BlockDevice { .. } => (FORMAT_BLOCK, 4),
        Kind::Fifo => (FORMAT_FIFO, 5),
        Kind::Link(_) => (FORMAT_LINK, 7),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Format and permissions.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) links: u16,
    /// Of the disk, extent tree and attributes included.
    pub(super) sectors: u64,
    pub(super) flags: u32,
    pub(super) inline: [u8; INLINE_BYTES],
    pub(super) xattr_block: u64,
}

impl Record {
    pub(super) fn format(&self) -> u16 {
        self.mode & FORMAT_MASK
    }

    /// With the attributes behind the fields, and the sum. All times are 0.
    pub(super) fn encode(&self, xattrs: &[u8], seed: u32) -> [u8; INODE_BYTES] {
        let mut bytes = [0; INODE_BYTES];
        bytes.put_u16(0x00, self.mode);
        bytes.put_halves_u32(0x02, 0x78, self.uid);
        bytes.put_halves_u64(0x04, 0x6c, self.size);
        bytes.put_halves_u32(0x18, 0x7a, self.gid);
        bytes.put_u16(0x1a, self.links);
        bytes.put_u32(0x1c, self.sectors as u32);
        bytes.put_u16(0x74, (self.sectors >> 32) as u16);
        bytes.put_u32(0x20, self.flags);
        bytes.put(0x28, &self.inline);
        bytes.put_u32(0x68, self.xattr_block as u32);
        bytes.put_u16(0x76, (self.xattr_block >> 32) as u16);
        bytes.put_u16(0x80, (INODE_FIELDS - 128) as u16);
        bytes.put(INODE_FIELDS, xattrs);
        let sum = crc32c(seed, &bytes);
        bytes.put_halves_u32(0x7c, 0x82, sum);
        bytes
    }

    /// The fields of a record whose sum, which starts with the seed of its generation, is right.
    pub(super) fn decode(bytes: &[u8], seed: impl FnOnce(u32) -> u32) -> Option<(Self, u32)> {
        let mut summed = bytes.to_vec();
        summed.get_mut(..INODE_FIELDS)?;
        summed.put_halves_u32(0x7c, 0x82, 0);
        let seed = seed(bytes.u32(0x64)?);
        let flags = bytes.u32(0x20)?;
        if crc32c(seed, &summed) != bytes.halves_u32(0x7c, 0x82)? || flags & FLAGS_UNREADABLE != 0 {
            return None;
        }
        let record = Self {
            mode: bytes.u16(0x00)?,
            uid: bytes.halves_u32(0x02, 0x78)?,
            gid: bytes.halves_u32(0x18, 0x7a)?,
            size: bytes.halves_u64(0x04, 0x6c)?,
            links: bytes.u16(0x1a)?,
            sectors: u64::from(bytes.u32(0x1c)?) | u64::from(bytes.u16(0x74)?) << 32,
            flags,
            inline: bytes.array(0x28)?,
            xattr_block: u64::from(bytes.u32(0x68)?) | u64::from(bytes.u16(0x76)?) << 32,
        };
        Some((record, seed))
    }
}

/// A device's number stands where others have their blocks: in two bytes if it fits, else behind them in Linux's newer form.
/// `None`: more than 12 bits of major or 20 of minor number.
pub(super) fn device(major: u32, minor: u32) -> Option<[u8; INLINE_BYTES]> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return None;
    }
    let mut inline = [0; INLINE_BYTES];
    if major < 256 && minor < 256 {
        inline.put_u32(0, major << 8 | minor);
    } else {
        inline.put_u32(4, minor & 0xff | major << 8 | (minor & !0xff) << 12);
    }
    Some(inline)
}

/// Major and minor number.
pub(super) fn device_of(inline: &[u8; INLINE_BYTES]) -> Option<(u32, u32)> {
    let (old, new) = (inline.u32(0)?, inline.u32(4)?);
    Some(if old != 0 {
        (old >> 8 & 0xff, old & 0xff)
    } else {
        (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_read_back() {
        for (major, minor) in [(0, 0), (1, 3), (255, 255), (256, 0), (8, 256), (259, 700), (4095, 0xf_ffff)] {
            assert_eq!(device_of(&device(major, minor).unwrap()), Some((major, minor)));
        }
        assert_eq!(device(4096, 0), None);
        assert_eq!(device(0, 1 << 20), None);
    }

    #[test]
    fn a_record_is_read_back_and_a_changed_one_refused() {
        let record = Record {
            mode: 0o104755,
            uid: 0x1234_5678,
            gid: 0x9abc_def0,
            size: 0x1_2345_6789,
            links: 3,
            sectors: 0x1234_5678_9abc,
            flags: FLAG_EXTENTS,
            inline: [7; INLINE_BYTES],
            xattr_block: 0x1234_5678_9abc,
        };
        let mut bytes = record.encode(&[1; 96], 42);
        assert_eq!(Record::decode(&bytes, |_| 42), Some((record, 42)));
        bytes[200] ^= 1;
        assert_eq!(Record::decode(&bytes, |_| 42), None);
        assert_eq!(Record::decode(&bytes[..100], |_| 42), None);
    }
}
