//! The store's locks: files below `locks/`, held with flock and let go by the kernel when their process ends, however it
//! ends. Three kinds: a *claim* is the right to build one thing, *using* keeps `gc` away from what a build has found or made
//! and no root keeps yet, and the *gate* stands between a temporary thing's making and its locking.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;

use super::{Store, StoreError};
use crate::digest::Inputs;
use crate::error::{GuestError, Result, failed};

/// The names below `locks/` that are no claim.
pub(super) const GATE: &str = "gate";
pub(super) const USING: &str = "using";

/// The right to build one thing. Dropping it lets the next process in.
#[derive(Debug)]
pub struct Claim {
    _held: File,
}

/// While it lives, nothing leaves the store: `gc` waits. Held from before the first look into the store until roots or holds
/// keep what was found; never for as long as a VM runs.
#[derive(Debug)]
pub struct Using {
    pub(super) store: Store,
    /// `None` where the store is another user's and has never been collected.
    _held: Option<File>,
}

/// The store to oneself: no build runs, and none begins.
#[derive(Debug)]
pub(super) struct Alone {
    _held: File,
}

impl Store {
    /// Waits until no other process builds `inputs`. Look with [`Store::recall`] again once it is held.
    pub fn claim(&self, inputs: Inputs) -> Result<Claim> {
        Ok(Claim { _held: self.wait_for(&inputs.to_string(), FlockOperation::LockExclusive)? })
    }

    /// Keeps `gc` away while the result lives. Any number of processes at once; several in one process too.
    pub fn using(&self) -> Result<Using> {
        match self.wait_for(USING, FlockOperation::LockShared) {
            Ok(held) => Ok(Using { store: self.clone(), _held: Some(held) }),
            // Whoever may not write here can build nothing either, only find what is there.
            Err(GuestError::Store(StoreError::NotWritable { .. })) => {
                Ok(Using { store: self.clone(), _held: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Waits until nobody is [`Store::using`] it; `waiting` is called where that is not at once. A new build need not wait for
    /// one who waits here: builds come first.
    pub(super) fn alone(&self, waiting: &dyn Fn()) -> Result<Alone> {
        let at_once = self.take(USING, FlockOperation::NonBlockingLockExclusive)?;
        let held = match at_once {
            Some(held) => held,
            None => {
                waiting();
                self.wait_for(USING, FlockOperation::LockExclusive)?
            }
        };
        Ok(Alone { _held: held })
    }

    /// Held, shared, between a temporary thing's making and its locking; exclusively while clearing. Without it the
    /// clearing process could take the lock of a thing that its maker has just made.
    pub(super) fn gate(&self) -> Result<File> {
        self.wait_for(GATE, FlockOperation::LockShared)
    }

    fn wait_for(&self, name: &str, how: FlockOperation) -> Result<File> {
        loop {
            if let Some(held) = self.take(name, how)? {
                return Ok(held);
            }
        }
    }

    /// The lock, or `None` where `how` does not wait and somebody holds it.
    pub(super) fn take(&self, name: &str, how: FlockOperation) -> Result<Option<File>> {
        let path = self.root.join("locks").join(name);
        loop {
            let file = self.open_lock(&path)?;
            match rustix::io::retry_on_intr(|| flock(&file, how)) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(errno) => return Err(not_locked(&self.root, &path, errno)),
            }
            // `gc` removes lock files. One that went while this process waited for it keeps nobody out.
            let held = file.metadata().map_err(failed("look at", &path))?;
            if std::fs::metadata(&path)
                .is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino()))
            {
                return Ok(Some(file));
            }
        }
    }

    fn open_lock(&self, path: &Path) -> Result<File> {
        let open = |flags| open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(self.file_mode()));
        let file = match open(OFlags::RDWR | OFlags::CREATE) {
            // Another user's: to lock it, reading is enough.
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM) => open(OFlags::RDONLY).map_err(|_| Errno::ACCESS),
            other => other,
        };
        let file = File::from(file.map_err(io::Error::from).map_err(self.refused("open the lock", path))?);
        self.share(&file);
        Ok(file)
    }
}

fn not_locked(root: &Path, path: &Path, errno: Errno) -> GuestError {
    match errno {
        Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL => {
            StoreError::NoLocks { path: root.to_owned(), source: errno.into() }.into()
        }
        errno => failed("lock", path)(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_without_locks_is_told_as_such() {
        let told = |errno| not_locked(Path::new("s"), Path::new("s/locks/using"), errno);
        assert!(matches!(told(Errno::NOLCK), GuestError::Store(StoreError::NoLocks { .. })));
        assert!(matches!(told(Errno::OPNOTSUPP), GuestError::Store(StoreError::NoLocks { .. })));
        assert!(matches!(told(Errno::IO), GuestError::Io { .. }));
    }

    #[test]
    fn a_lock_whose_file_was_removed_meanwhile_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let path = store.root.join("locks/x");
        let first = store.take("x", FlockOperation::LockExclusive).unwrap().unwrap();
        let other = store.clone();
        let waiting =
            std::thread::spawn(move || other.take("x", FlockOperation::LockExclusive).unwrap().unwrap());
        // Whether the other has opened the old file by now or not, it ends up with the new one.
        std::fs::remove_file(&path).unwrap();
        drop(first);
        let held = waiting.join().unwrap();
        let there = std::fs::metadata(&path).unwrap();
        assert_eq!(held.metadata().unwrap().ino(), there.ino());
        assert!(store.take("x", FlockOperation::NonBlockingLockExclusive).unwrap().is_none());
    }

    #[test]
    fn builds_use_the_store_together_and_gc_has_it_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let (one, two) = (store.using().unwrap(), store.using().unwrap());
        drop(one);
        assert!(store.take(USING, FlockOperation::NonBlockingLockExclusive).unwrap().is_none());
        drop(two);
        let alone = store.alone(&|| panic!("nobody uses it")).unwrap();
        assert!(store.take(USING, FlockOperation::NonBlockingLockShared).unwrap().is_none());
        drop(alone);
        store.using().unwrap();
    }
}
