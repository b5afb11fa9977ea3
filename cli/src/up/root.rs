//! A root that the guest writes to: every run starts from the store's bytes, in a copy of its own that goes with the run.
//! Where the filesystem can share blocks between files, the copy takes no time and no room until it is written to.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom as From};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;

/// A run's copy of a root image. Dropping it removes it; what a killed run leaves, the next run removes.
#[derive(Debug)]
pub struct PrivateRoot {
    directory: PathBuf,
    path: PathBuf,
    /// Says that somebody still uses the directory.
    lock: File,
}

impl PrivateRoot {
    /// Copies `image` into a directory of its own below `roots`.
    pub fn copy(image: &Path, roots: &Path, name: &str) -> io::Result<PrivateRoot> {
        fs::create_dir_all(roots)?;
        sweep(roots)?;
        loop {
            let directory = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(roots)?.keep();
            // Whoever sweeps in between may find it unlocked, and takes it for a dead run's.
            let Ok(lock) = File::open(&directory) else { continue };
            lock.lock_shared()?;
            if !is_at(&lock, &directory) {
                continue;
            }
            let root = PrivateRoot { path: directory.join("root"), directory, lock };
            // From here on an error removes the directory.
            let mut copy =
                File::options().read(true).write(true).create_new(true).mode(0o600).open(&root.path)?;
            copy_file(&mut File::open(image)?, &mut copy)?;
            return Ok(root);
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What goes with the run.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What holds it.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Drop for PrivateRoot {
    fn drop(&mut self) {
        // What cannot be removed now is swept by the next run.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Removes what killed runs have left: every directory that nobody holds.
pub fn sweep(roots: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(roots) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let path = entry?.path();
        // Another sweeper may have been faster; and no copy is anything but a directory.
        let options = OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let directory = File::options().read(true).custom_flags(options.bits() as i32).open(&path);
        let Ok(directory) = directory else { continue };
        match directory.try_lock() {
            Ok(()) => match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(())
}

fn is_at(open: &File, path: &Path) -> bool {
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    open.metadata().map(identity).ok() == fs::metadata(path).map(identity).ok()
}

/// Shares the blocks where the filesystem can, and copies what is no hole where it cannot.
fn copy_file(from: &mut File, to: &mut File) -> io::Result<()> {
    match rustix::fs::ioctl_ficlone(&*to, &*from) {
        Ok(()) => return Ok(()),
        // Another filesystem, one without shared blocks, or a block size of its own: the kernel has a word for each.
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS | Errno::ACCESS) => {}
        Err(error) => return Err(error.into()),
    }
    copy_sparse(from, to)
}

fn copy_sparse(from: &mut File, to: &mut File) -> io::Result<()> {
    let bytes = from.metadata()?.len();
    to.set_len(bytes)?;
    let mut at = 0;
    while at < bytes {
        let start = match rustix::fs::seek(&*from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&*from, SeekFrom::Hole(start))?;
        from.seek(From::Start(start))?;
        to.seek(From::Start(start))?;
        let copied = io::copy(&mut from.by_ref().take(end - start), to)?;
        if copied < end - start {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the image ended early"));
        }
        at = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const HOLE: u64 = 8 << 20;

    /// An image with data at both ends and a hole between, and one more behind the data.
    fn image(directory: &Path) -> PathBuf {
        let path = directory.join("image");
        let file = File::create(&path).unwrap();
        file.set_len(2 * HOLE).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"last", HOLE).unwrap();
        path
    }

    fn entries(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    #[test]
    fn a_copy_has_the_images_bytes_and_is_gone_after_the_run() {
        let keep = tempfile::tempdir().unwrap();
        let (image, roots) = (image(keep.path()), keep.path().join("state/roots"));
        fs::set_permissions(&image, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        let copy = PrivateRoot::copy(&image, &roots, "db").unwrap();
        assert!(fs::read(copy.path()).unwrap() == fs::read(&image).unwrap());
        let written = File::options().write(true).open(copy.path()).unwrap();
        written.write_all_at(b"changed", 0).unwrap();
        assert!(fs::read(&image).unwrap().starts_with(b"first"), "the store's bytes stay");
        drop(copy);
        assert_eq!(entries(&roots), 0);
    }

    #[test]
    fn holes_stay_holes_where_blocks_are_not_shared() {
        let keep = tempfile::tempdir().unwrap();
        let mut from = File::open(image(keep.path())).unwrap();
        let mut to = tempfile::tempfile_in(keep.path()).unwrap();
        copy_sparse(&mut from, &mut to).unwrap();
        let mut bytes = vec![0; 2 * HOLE as usize];
        to.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.starts_with(b"first") && bytes[HOLE as usize..].starts_with(b"last"));
        assert_eq!(to.metadata().unwrap().len(), 2 * HOLE);
        let room = |file: &File| file.metadata().unwrap().blocks();
        assert!(room(&to) <= room(&from), "{} blocks of {}", room(&to), room(&from));
    }

    #[test]
    fn what_a_killed_run_left_is_swept_and_what_is_in_use_is_not() {
        let keep = tempfile::tempdir().unwrap();
        let (image, roots) = (image(keep.path()), keep.path().join("roots"));
        fs::create_dir_all(roots.join("dead-x1")).unwrap();
        fs::write(roots.join("dead-x1/root"), "left").unwrap();
        let first = PrivateRoot::copy(&image, &roots, "db").unwrap();
        assert_eq!(entries(&roots), 1, "the dead run's is gone");
        let second = PrivateRoot::copy(&image, &roots, "db").unwrap();
        assert!(first.path() != second.path() && first.path().exists() && second.path().exists());
    }

    #[test]
    fn sweeping_needs_nothing_to_be_there_and_leaves_what_is_no_copy() {
        let keep = tempfile::tempdir().unwrap();
        let roots = keep.path().join("roots");
        sweep(&roots).unwrap();
        fs::create_dir_all(roots.join("dead-x1")).unwrap();
        fs::write(roots.join("note"), "mine").unwrap();
        std::os::unix::fs::symlink(keep.path(), roots.join("elsewhere")).unwrap();
        sweep(&roots).unwrap();
        assert_eq!(entries(&roots), 2, "the dead run's alone is gone");
    }

    #[test]
    fn a_copy_that_fails_leaves_nothing() {
        let keep = tempfile::tempdir().unwrap();
        let roots = keep.path().join("roots");
        PrivateRoot::copy(&keep.path().join("absent"), &roots, "db").unwrap_err();
        assert_eq!(entries(&roots), 0);
    }
}
