//! Filesystems on the guest's disks: what is on one, and making one where nothing is. What it is made with are the guest's
//! own programs; deciding whether it may be made is done here, from the bytes alone.
//!
//! A machine may die in the middle of making one. So before anything else two marks are written, far apart and outside of
//! what is looked at for emptiness, and cleared when the filesystem is whole. A disk with a mark was never mounted: it is
//! made again. Two, since the program may put its own things over one of them.

mod probe;
mod tool;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vmprof_job::Filesystem;

use crate::failure::Failure;
pub(crate) use probe::{Seen, probe, size, wants_check};
pub(crate) use tool::{check, make};

pub(crate) const MIB: u64 = 1 << 20;
/// No filesystem worth having is smaller, and the marks need their room.
pub(crate) const SMALLEST: u64 = 32 * MIB;
/// mkfs.xfs makes none below since its release 5.19, and says so between pages of its usage.
const SMALLEST_XFS: u64 = 300 * MIB;

fn smallest(filesystem: Filesystem) -> u64 {
    match filesystem {
        Filesystem::Ext4 => SMALLEST,
        Filesystem::Xfs => SMALLEST_XFS,
    }
}

/// A block of its own on any disk.
const MARK_BYTES: usize = 4096;
const MARK: &[u8] = b"vmprof: the filesystem on this disk is being made and was never mounted\n";
/// From the end of the disk. Neither lies in the first or the last MiB.
const MARKS: [u64; 2] = [2 * MIB, 5 * MIB];

fn mark() -> [u8; MARK_BYTES] {
    let mut block = [0; MARK_BYTES];
    block.iter_mut().zip(MARK).for_each(|(to, from)| *to = *from);
    block
}

/// Where a mark lies, with its distance from the end; on a disk of any size a multiple of its own.
fn mark_at(bytes: u64, from_end: u64) -> Option<u64> {
    Some(bytes.checked_sub(from_end)? / MARK_BYTES as u64 * MARK_BYTES as u64)
}

pub(crate) fn is_marked(device: &File, bytes: u64) -> io::Result<bool> {
    for at in MARKS.iter().filter_map(|from_end| mark_at(bytes, *from_end)) {
        let mut block = [0; MARK_BYTES];
        device.read_exact_at(&mut block, at)?;
        if block == mark() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Before a filesystem is made: from here on the disk is no longer empty, nor anybody's.
fn set_marks(device: &File, bytes: u64) -> io::Result<()> {
    for at in MARKS.iter().filter_map(|from_end| mark_at(bytes, *from_end)) {
        device.write_all_at(&mark(), at)?;
    }
    device.sync_all()?;
    // What an earlier try has left must not be taken for anything, by us or by the program.
    let zeroes = vec![0; MIB as usize];
    device.write_all_at(&zeroes, 0)?;
    device.write_all_at(&zeroes, bytes.saturating_sub(MIB))?;
    device.sync_all()
}

/// After it was made. A mark that is no longer there lies under something of the filesystem's.
fn clear_marks(device: &File, bytes: u64) -> io::Result<()> {
    // The filesystem first: while it is not on the disk, neither mark may go.
    device.sync_all()?;
    for at in MARKS.iter().filter_map(|from_end| mark_at(bytes, *from_end)) {
        let mut block = [0; MARK_BYTES];
        device.read_exact_at(&mut block, at)?;
        if block == mark() {
            device.write_all_at(&[0; MARK_BYTES], at)?;
        }
    }
    device.sync_all()
}

/// What to do with a disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It holds this one, to be mounted as what it is.
    Use(Filesystem),
    Make(Filesystem),
    /// It is left as it is: nobody mounts it and nobody asked for a filesystem.
    Leave,
}

/// `wished` is the job's format, which is a wish for empty disks only; `needed` is set where a mount needs a filesystem.
pub(crate) fn decide(
    disk: &str,
    seen: Seen,
    bytes: u64,
    wished: Option<Filesystem>,
    needed: bool,
) -> Result<Decision, Failure> {
    let refused = |found: String| Failure::NotEmpty { disk: disk.to_owned(), found };
    match (seen, wished) {
        (Seen::Holds(found), _) => Ok(Decision::Use(found)),
        (Seen::Empty | Seen::CutShort, Some(wished)) if bytes >= smallest(wished) => {
            Ok(Decision::Make(wished))
        }
        (Seen::Empty | Seen::CutShort, Some(wished)) => Err(Failure::DiskTooSmall {
            disk: disk.to_owned(),
            bytes,
            filesystem: wished.name(),
            smallest_mib: smallest(wished) / MIB,
        }),
        (Seen::Empty, None) if needed => Err(Failure::NoFilesystem { disk: disk.to_owned() }),
        (Seen::CutShort, None) if needed => Err(refused(
            "a filesystem whose making was cut short, and no `format` that would make it again".to_owned(),
        )),
        (Seen::Foreign(found), _) if needed || wished.is_some() => Err(refused(found)),
        (Seen::Empty | Seen::CutShort | Seen::Foreign(_), None) => Ok(Decision::Leave),
        (Seen::Foreign(found), Some(_)) => Err(refused(found)),
    }
}

/// Looks at the disk and makes the filesystem it lacks; the filesystem it then has, if it has one.
pub(crate) fn settle_on(
    disk: &str,
    device: &Path,
    wished: Option<Filesystem>,
    needed: bool,
) -> Result<Option<Filesystem>, Failure> {
    let unread = |source| Failure::DiskUnread { disk: disk.to_owned(), device: device.into(), source };
    let opened = File::open(device).map_err(unread)?;
    let bytes = size(&opened).map_err(unread)?;
    let seen = probe(&opened, bytes).map_err(unread)?;
    drop(opened);
    match decide(disk, seen, bytes, wished, needed)? {
        Decision::Use(found) => Ok(Some(found)),
        Decision::Leave => Ok(None),
        Decision::Make(filesystem) => {
            make_marked(disk, device, bytes, || make(disk, device, filesystem))?;
            Ok(Some(filesystem))
        }
    }
}

/// The steps around `program`, in the order that survives a death of the machine at any moment.
fn make_marked(
    disk: &str,
    device: &Path,
    bytes: u64,
    program: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |source| Failure::DiskUnwritten { disk: disk.to_owned(), device: device.into(), source };
    // Closed while the program runs: it may want the disk for itself.
    let open = || File::options().read(true).write(true).open(device).map_err(failed);
    set_marks(&open()?, bytes).map_err(failed)?;
    program()?;
    clear_marks(&open()?, bytes).map_err(failed)
}

#[cfg(test)]
mod tests;
