//! `build --export`: a guest's root disk as a file of the user's own, whole or not at all.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use vmprof_guests::{GuestError, GuestImage, Progress, Stage, StoreError, Total};

use crate::failure::{Failure, Kind};
use crate::progress::{Stages, Unfinished};

/// Holes are found in pieces of this size: a filesystem's block, or a few.
const PIECE_BYTES: usize = 64 << 10;

/// A file that may be written. What is there already may be a disk with somebody's data on it: it is replaced only where the
/// user says so.
#[derive(Debug, Clone, Copy)]
pub struct Target<'t> {
    to: &'t Path,
    force: bool,
}

impl<'t> Target<'t> {
    /// Refuses what cannot be written before anything is built for it.
    pub fn new(to: &'t Path, force: bool) -> Result<Self, Failure> {
        let target = Self { to, force };
        let refused = |message: String, help: &str| {
            Failure::said(Kind::Failure, "vmprof::build::export_target", message, help)
        };
        if to == Path::new("-") {
            let message = "a disk is written to a file, not to standard output".to_owned();
            let help =
                "`cat \"$(vmprof build GUEST)\"` is the disk on standard output; ./- is a file of that name";
            return Err(refused(message, help));
        }
        let there = to.metadata().ok();
        if there.as_ref().is_some_and(std::fs::Metadata::is_dir) {
            return Err(refused(format!("{} is a directory", to.display()), "name the file in it"));
        }
        // A device would lose its node to a plain file.
        if there.is_some_and(|there| !there.is_file()) {
            let help = "`vmprof build` without --export prints where the image is: write it there with dd";
            return Err(refused(format!("{} is not a plain file", to.display()), help));
        }
        if !target.directory().is_dir() {
            let message = format!("{} cannot be written: its directory does not exist", to.display());
            return Err(refused(message, "make the directory, or name a file in another one"));
        }
        if !force && to.symlink_metadata().is_ok() {
            return Err(target.failed(0)(io::ErrorKind::AlreadyExists.into()));
        }
        Ok(target)
    }

    /// Writes the image's root disk, and holds it against the digest in its name on the way.
    pub fn write(self, image: &GuestImage, stages: &Stages) -> Result<(), Failure> {
        let Some(root) = &image.root else {
            let message = format!("guest `{}` has no root disk: it lives in its initramfs", image.name);
            let help = "--format json names the kernel and the initramfs";
            return Err(Failure::said(Kind::Failure, "vmprof::build::no_disk", message, help));
        };
        let mut from = File::open(&root.path)
            .map_err(|error| Failure::os(format!("{} cannot be read", root.path.display()), error))?;
        let bytes = from.metadata().map_or(0, |meta| meta.len());
        let failed = || self.failed(bytes);
        let unfinished = stages.unfinished(Unfinished {
            told: format!("interrupted: {} was not written", self.to.display()),
            remove: None,
        });
        let mut landing = Landing::in_directory(self.directory(), |path| {
            unfinished.removes(path);
        })
        .map_err(failed())?;
        let stage = stages.stage(&format!("writing {}", self.to.display()), Total::Bytes(bytes));
        let digest = copy(&mut from, landing.file(), &*stage).map_err(failed())?;
        if digest.to_hex().as_str() != image.digest {
            return Err(GuestError::from(StoreError::Damaged { path: root.path.clone() }).into());
        }
        // What a full disk had no room for, some filesystems say only here.
        landing.file().sync_all().map_err(failed())?;
        drop(stage);
        landing.publish(self.to, self.force, |path| unfinished.removes(path)).map_err(failed())?;
        File::open(self.directory()).and_then(|directory| directory.sync_all()).map_err(failed())
    }

    fn directory(&self) -> &'t Path {
        self.to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn failed(&self, bytes: u64) -> impl FnOnce(io::Error) -> Failure + use<> {
        let to = self.to.display().to_string();
        move |error| match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::said(
                Kind::Failure,
                "vmprof::build::export_exists",
                format!("{to} exists"),
                "name another file, or replace this one with --force",
            ),
            // A limit on a file's size stops a writer as a full disk does.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Failure::said(
                    Kind::Failure,
                    "vmprof::build::export_no_space",
                    format!(
                        "no space left while writing {to}, a disk of {} MiB: {error}",
                        bytes.div_ceil(1 << 20)
                    ),
                    "nothing was left there: free some space, or name a file on another disk",
                )
            }
            _ => Failure::os(format!("the disk cannot be written to {to}"), error),
        }
    }
}

/// A file on its way: without a name where the filesystem can do that, so that nothing of it is left however vmprof ends.
#[derive(Debug)]
enum Landing {
    Nameless(File),
    Named { file: File, path: PathBuf },
}

impl Landing {
    /// `named` hears of a name before it exists: whoever ends this process removes it.
    fn in_directory(directory: &Path, named: impl FnOnce(&Path)) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(directory, flags, Mode::from_raw_mode(0o666)) {
            Ok(file) => Ok(Self::Nameless(file.into())),
            // Not on this filesystem; ISDIR is what kernels say that never heard of the flag.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Self::named(directory, named),
            Err(error) => Err(error.into()),
        }
    }

    fn named(directory: &Path, named: impl FnOnce(&Path)) -> io::Result<Self> {
        let path = directory.join(temporary_name());
        named(&path);
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self::Named { file, path })
    }

    fn file(&mut self) -> &mut File {
        match self {
            Self::Nameless(file) | Self::Named { file, .. } => file,
        }
    }

    /// Gives it its name, in one step. Replacing takes a name of its own for a moment, since a link replaces nothing.
    fn publish(self, to: &Path, replace: bool, named: impl FnOnce(&Path)) -> io::Result<()> {
        let link = |from: &Path, to: &Path, flags| rustix::fs::linkat(CWD, from, CWD, to, flags);
        match &self {
            Self::Nameless(file) => {
                let nameless = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
                if !replace {
                    return Ok(link(&nameless, to, AtFlags::SYMLINK_FOLLOW)?);
                }
                let path = to.with_file_name(temporary_name());
                named(&path);
                link(&nameless, &path, AtFlags::SYMLINK_FOLLOW)?;
                std::fs::rename(&path, to).inspect_err(|_| drop(std::fs::remove_file(&path)))
            }
            Self::Named { path, .. } if replace => std::fs::rename(path, to),
            // FAT has no links.
            Self::Named { path, .. } => {
                match rustix::fs::renameat_with(CWD, path, CWD, to, rustix::fs::RenameFlags::NOREPLACE) {
                    Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                        Ok(link(path, to, AtFlags::empty())?)
                    }
                    other => Ok(other?),
                }
            }
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Self::Named { path, .. } = self {
            // Published by a rename, it is not there any more.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Of its own, whatever a killed process left under its name.
fn temporary_name() -> OsString {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!(".vmprof-{}-{}", std::process::id(), since.as_nanos()).into()
}

/// Shares the blocks where the filesystem can, and otherwise copies what is not zero. Returns the digest of what was read.
fn copy(from: &mut File, to: &mut File, stage: &dyn Stage) -> io::Result<blake3::Hash> {
    let shared = rustix::fs::ioctl_ficlone(&*to, &*from).is_ok();
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        let read = match from.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let Some(content) = piece.get(..read).filter(|content| !content.is_empty()) else { break };
        hasher.update(content);
        match content.iter().all(|byte| *byte == 0) {
            _ if shared => {}
            true => drop(to.seek(SeekFrom::Current(read as i64))?),
            false => to.write_all(content)?,
        }
        bytes += read as u64;
        stage.advance(read as u64);
    }
    if !shared {
        to.set_len(bytes)?;
    }
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use vmprof_guests::Silent;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let keep = tempfile::tempdir().unwrap();
        let source = keep.path().join("source");
        let mut bytes = vec![0_u8; 8 << 20];
        bytes[3 << 20] = 7;
        bytes.extend([0; 1000]);
        std::fs::write(&source, &bytes).unwrap();
        let target = keep.path().join("target");
        let mut to = File::create(&target).unwrap();
        let digest = copy(&mut File::open(&source).unwrap(), &mut to, &Silent).unwrap();
        assert_eq!(digest, blake3::hash(&bytes));
        assert!(std::fs::read(&target).unwrap() == bytes);
        assert!(target.metadata().unwrap().blocks() < source.metadata().unwrap().blocks() / 8);
    }

    #[test]
    fn what_is_no_place_for_a_disk_is_refused_before_anything_is_built() {
        let keep = tempfile::tempdir().unwrap();
        let refused = |to: &Path, force| Target::new(to, force).unwrap_err().problem.to_string();
        assert_eq!(refused(Path::new("/dev/null"), true), "/dev/null is not a plain file");
        assert!(refused(keep.path(), true).ends_with("is a directory"));
        assert!(refused(&keep.path().join("no/where"), false).ends_with("its directory does not exist"));
        assert!(refused(Path::new("-"), true).ends_with("not to standard output"));
        let old = keep.path().join("old");
        std::fs::write(&old, "disk").unwrap();
        assert!(refused(&old, false).ends_with("old exists"));
        assert!(Target::new(&old, true).is_ok());
        assert!(Target::new(&keep.path().join("new"), false).is_ok());
    }

    #[test]
    fn a_file_on_its_way_leaves_nothing_and_takes_its_name_whole() {
        let keep = tempfile::tempdir().unwrap();
        let to = keep.path().join("disk");
        // The form with a name, which not every filesystem of a test machine needs, and the one that it has.
        type Begin = fn(&Path) -> Landing;
        let forms: [Begin; 2] = [
            |directory| Landing::named(directory, |_| {}).unwrap(),
            |directory| Landing::in_directory(directory, |_| {}).unwrap(),
        ];
        for begin in forms {
            let mut dropped = begin(keep.path());
            dropped.file().write_all(b"half").unwrap();
            drop(dropped);
            assert_eq!(names(keep.path()), Vec::<String>::new());
            let mut whole = begin(keep.path());
            whole.file().write_all(b"one").unwrap();
            whole.publish(&to, false, |_| {}).unwrap();
            let second = begin(keep.path()).publish(&to, false, |_| {});
            assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(&to).unwrap(), b"one");
            let mut other = begin(keep.path());
            other.file().write_all(b"two").unwrap();
            other.publish(&to, true, |_| {}).unwrap();
            assert_eq!(std::fs::read(&to).unwrap(), b"two");
            assert_eq!(names(keep.path()), ["disk"]);
            std::fs::remove_file(&to).unwrap();
        }
    }

    #[test]
    fn a_full_disk_is_said_with_what_it_needs() {
        let full = Target { to: Path::new("db.img"), force: false }.failed(8 << 20);
        let failure = full(Errno::NOSPC.into());
        assert_eq!(failure.kind.status(), 1);
        assert!(
            failure.problem.to_string().starts_with("no space left while writing db.img, a disk of 8 MiB")
        );
    }
}
