//! What is a run's as long as a lock is held: its record, its copy of the guest's root, its hold on the store's entries. The
//! vmprof that plans takes each; the program that it goes on as keeps it to the end of the run.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmprof_guests::Hold;
use vmprof_sys::inherited;

use super::root::PrivateRoot;
use crate::run::record::OwnRecord;

/// A file or a directory that goes with the run, and what holds it, on its way to the next program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    path: PathBuf,
    lock: RawFd,
}

impl Lease {
    pub fn of_record(record: &OwnRecord) -> io::Result<Lease> {
        Lease::of(record.directory(), record.lock())
    }

    pub fn of_root(root: &PrivateRoot) -> io::Result<Lease> {
        Lease::of(root.directory(), root.lock())
    }

    /// A store that may not be written keeps nothing for anybody.
    pub fn of_hold(hold: &Hold) -> io::Result<Option<Lease>> {
        hold.file().map(|(path, lock)| Lease::of(path, lock)).transpose()
    }

    fn of(path: &Path, lock: BorrowedFd<'_>) -> io::Result<Lease> {
        Ok(Lease { path: path.to_owned(), lock: inherited::leave_open(lock)? })
    }

    /// In the next program, once, before it opens anything.
    pub fn take(self) -> io::Result<Leased> {
        Ok(Leased { path: self.path, _lock: inherited::take(self.lock)? })
    }
}

/// Dropping it removes the file or the directory.
#[derive(Debug)]
pub struct Leased {
    path: PathBuf,
    _lock: OwnedFd,
}

impl Drop for Leased {
    fn drop(&mut self) {
        // The lock goes with the process either way; what cannot be removed is stale to whoever finds it.
        let _ = match fs::symlink_metadata(&self.path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&self.path),
            _ => fs::remove_file(&self.path),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, TryLockError};
    use std::os::fd::{AsFd, IntoRawFd};

    use super::*;

    #[test]
    fn what_is_leased_stays_locked_until_it_goes_with_the_run() {
        let keep = tempfile::tempdir().unwrap();
        let directory = keep.path().join("run");
        fs::create_dir(&directory).unwrap();
        let file = directory.join("lock");
        let lock = File::create(&file).unwrap();
        lock.lock().unwrap();
        let lease = Lease::of(&directory, lock.as_fd()).unwrap();
        // An exec runs no destructors.
        let _ = lock.into_raw_fd();
        let text = serde_json::to_string(&lease).unwrap();
        let leased = serde_json::from_str::<Lease>(&text).unwrap().take().unwrap();
        let other = File::open(&file).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(leased);
        assert!(!directory.exists());
        // A child that another test just starts has the lock's file, too, until its exec.
        other.lock().unwrap();
    }
}
