//! What is on a disk, by its bytes: nothing, a filesystem this program mounts, or something that must be left alone.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use vmprof_job::Filesystem;

use super::{MIB, is_marked};

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The first and the last MiB are zeroes.
    Empty,
    /// A filesystem was being made when the machine died.
    CutShort,
    Holds(Filesystem),
    /// What it looks like, in words.
    Foreign(String),
}

/// Of a block device as of a file.
pub(crate) fn size(device: &File) -> io::Result<u64> {
    let mut device = device;
    let bytes = device.seek(SeekFrom::End(0))?;
    device.seek(SeekFrom::Start(0))?;
    Ok(bytes)
}

pub(crate) fn probe(device: &File, bytes: u64) -> io::Result<Seen> {
    if is_marked(device, bytes)? {
        return Ok(Seen::CutShort);
    }
    let edge = bytes.min(MIB);
    let length = usize::try_from(edge).unwrap_or_default();
    let (mut first, mut last) = (vec![0; length], vec![0; length]);
    device.read_exact_at(&mut first, 0)?;
    device.read_exact_at(&mut last, bytes - edge)?;
    Ok(judge(&first, &last, bytes))
}

/// From the first and the last MiB.
fn judge(first: &[u8], last: &[u8], bytes: u64) -> Seen {
    let foreign = |found: &str| Seen::Foreign(found.to_owned());
    // Those that lie over others come first: a partition table may stand before what an older filesystem has left.
    if let Some(found) = foreign_kinds(first) {
        return foreign(found);
    }
    let boot_sector = has(first, 510, b"\x55\xaa");
    match (boot_sector, filesystem(first, bytes)) {
        (false, Some(found)) => return Seen::Holds(found),
        (true, Some(found)) => {
            return Seen::Foreign(format!("both a boot sector and an {} superblock", found.name()));
        }
        (true, None) => return foreign("a boot sector: a partition table, FAT or NTFS"),
        (false, None) => {}
    }
    let first_byte = first.iter().position(|byte| *byte != 0);
    let last_byte = last.iter().position(|byte| *byte != 0);
    match (first_byte, last_byte) {
        (None, None) => Seen::Empty,
        (Some(at), _) => Seen::Foreign(format!("bytes of an unknown kind, the first at {at}")),
        (None, Some(at)) => {
            let at = bytes - last.len() as u64 + at as u64;
            let kind = if has(last, last.len().saturating_sub(512), b"EFI PART") {
                "the second copy of a GPT partition table"
            } else {
                "bytes of an unknown kind"
            };
            Seen::Foreign(format!("nothing in the first MiB, but {kind} at {at}"))
        }
    }
}

fn foreign_kinds(first: &[u8]) -> Option<&'static str> {
    const KINDS: [(usize, &[u8], &str); 16] = [
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
        (0, b"LUKS\xba\xbe", "a LUKS container"),
        (0, b"hsqs", "squashfs"),
        (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
        (4086, b"SWAPSPACE2", "swap space"),
        (4086, b"SWAP-SPACE", "swap space"),
        (65_600, b"_BHRfS_M", "btrfs"),
        (1024, b"\x10\x20\xf5\xf2", "f2fs"),
        (4096, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
        (0, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
        (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "bcache"),
        (4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "bcachefs"),
        (32_769, b"CD001", "ISO 9660"),
        (3, b"EXFAT   ", "exFAT"),
        (0, b"QFI\xfb", "a qcow2 image"),
    ];
    let listed = KINDS.iter().find(|(at, magic, _)| has(first, *at, magic)).map(|(_, _, name)| *name);
    // LVM's label stands in one of the first four sectors.
    listed.or_else(|| (0..4).any(|n| has(first, n * 512, b"LABELONE")).then_some("an LVM physical volume"))
}

fn filesystem(first: &[u8], bytes: u64) -> Option<Filesystem> {
    if has(first, 0, b"XFSB") {
        return Some(Filesystem::Xfs);
    }
    // Two bytes of magic are few: the counts behind them must make sense too. ext2 and ext3 are ext4's own past.
    let superblock = first.get(1024..2048)?;
    let blocks = u64::from(little(superblock, 4)?);
    let block_bytes = 1024_u64.checked_shl(little(superblock, 24)?)?;
    let magic = has(superblock, 56, &[0x53, 0xef]);
    let plausible = blocks > 0 && block_bytes <= 65_536 && blocks.checked_mul(block_bytes)? <= bytes;
    (magic && plausible).then_some(Filesystem::Ext4)
}

/// Whether an ext4 filesystem asks to be looked through before it is mounted: it noted errors, or, having no journal, was
/// not unmounted. What a journal holds, the kernel replays.
pub(crate) fn wants_check(device: &File) -> io::Result<bool> {
    let mut superblock = [0; 1024];
    device.read_exact_at(&mut superblock, 1024)?;
    let state = little(&superblock, 56).unwrap_or_default() >> 16;
    const VALID: u32 = 1;
    const ERRORS: u32 = 2;
    Ok(state & VALID == 0 || state & ERRORS != 0)
}

fn has(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

fn little(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 * MIB;

    fn first(writes: &[(usize, &[u8])]) -> Vec<u8> {
        let mut first = vec![0; MIB as usize];
        for (at, bytes) in writes {
            first[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        first
    }

    fn ext4(blocks: u32) -> Vec<u8> {
        first(&[(1028, &blocks.to_le_bytes()), (1048, &2u32.to_le_bytes()), (1080, &[0x53, 0xef])])
    }

    #[test]
    fn each_kind_of_disk_is_told_by_its_bytes() {
        let empty = first(&[]);
        let foreign = |words: &str| Seen::Foreign(words.to_owned());
        let boot = |mut bytes: Vec<u8>| {
            bytes[510..512].copy_from_slice(b"\x55\xaa");
            bytes
        };
        for (bytes, seen) in [
            (empty.clone(), Seen::Empty),
            (ext4(16_384), Seen::Holds(Filesystem::Ext4)),
            (first(&[(0, b"XFSB")]), Seen::Holds(Filesystem::Xfs)),
            // More blocks than the disk has room for: two bytes that happen to be there.
            (ext4(16_385), foreign("bytes of an unknown kind, the first at 1028")),
            (first(&[(512, b"EFI PART")]), foreign("a GPT partition table")),
            (first(&[(512, b"LABELONE")]), foreign("an LVM physical volume")),
            (first(&[(0, b"LUKS\xba\xbe")]), foreign("a LUKS container")),
            (first(&[(65_600, b"_BHRfS_M")]), foreign("btrfs")),
            (boot(empty.clone()), foreign("a boot sector: a partition table, FAT or NTFS")),
            (boot(ext4(16_384)), foreign("both a boot sector and an ext4 superblock")),
            (first(&[(70_000, b"x")]), foreign("bytes of an unknown kind, the first at 70000")),
        ] {
            assert_eq!(judge(&bytes, &empty, SIZE), seen);
        }
    }

    #[test]
    fn what_lies_at_the_end_alone_is_not_nothing() {
        let mut last = first(&[]);
        let end = last.len();
        last[end - 512..end - 504].copy_from_slice(b"EFI PART");
        let Seen::Foreign(words) = judge(&first(&[]), &last, SIZE) else { panic!() };
        assert_eq!(
            words,
            "nothing in the first MiB, but the second copy of a GPT partition table at 67108352"
        );
    }

    #[test]
    fn a_disk_smaller_than_a_mebibyte_is_looked_at_whole() {
        assert_eq!(judge(&[0; 512], &[0; 512], 512), Seen::Empty);
        assert_eq!(judge(&[], &[], 0), Seen::Empty);
    }
}
