//! The content-addressed store: layout, atomic publishing, records, locks.
//!
//! ```text
//! STORE/<blake3 of the content>-<name>   an entry, read-only: a file, or a directory named by its listing's hash
//! STORE/records/<digest of the inputs>   which entries those inputs gave
//! STORE/roots/…                          who keeps what: recipes, toolsets, running VMs
//! STORE/locks/<digest of the inputs>     held by the one process that builds them
//! STORE/tmp/…                            being written; each held by a lock, so what nobody holds is rubbish
//! STORE/damaged/…                        what `verify --repair` took out of the way; the next gc removes it
//! ```
//!
//! An entry appears by one rename after its bytes are on disk, so whatever has an entry's name is whole. A record is
//! written after its entries and removed before them, so a record's entries are there. Nothing here knows what a guest is.

mod entry;
mod error;
mod gc;
mod lock;
mod publish;
mod reach;
mod record;
mod roots;
mod tree;
mod verify;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{GuestError, Result, failed};

pub use entry::Entry;
pub(crate) use entry::entry_name;
pub use error::StoreError;
pub use gc::{Collected, Sweep};
pub use lock::{Claim, Using};
pub use publish::TempFile;
pub use reach::{Chain, Listed, Listing};
pub use record::{Record, RecordEntry};
pub use roots::{FoundRoot, Hold, Keeper, Root};
pub use tree::TempDir;
pub use verify::{Fault, Verified};

/// An open store. Cheap to clone; every process opens its own.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    /// The store's directory may be written by its group: then so may all that is made in it.
    shared: bool,
}

impl Store {
    /// Opens the store at `root`, makes it when it is not there, and clears what killed builders left.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let mut store = Self { root, shared: false };
        store.make_directory("")?;
        store.root = store.root.canonicalize().map_err(failed("find", &store.root))?;
        let meta = fs::metadata(&store.root).map_err(failed("look at", &store.root))?;
        store.shared = meta.mode() & 0o020 != 0;
        for part in ["records", "roots", "locks", "tmp"] {
            store.make_directory(part)?;
        }
        store.clear_abandoned()?;
        Ok(store)
    }

    fn make_directory(&self, part: &str) -> Result<()> {
        let dir = if part.is_empty() { self.root.clone() } else { self.root.join(part) };
        match fs::metadata(&dir) {
            Ok(meta) if meta.is_dir() => return Ok(()),
            Ok(_) => return Err(StoreError::NotADirectory { path: dir }.into()),
            Err(_) => {}
        }
        if let Err(error) = fs::create_dir_all(&dir) {
            return Err(match error.kind() {
                io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                    StoreError::NotADirectory { path: dir }.into()
                }
                _ => self.refused("make the store directory", &dir)(error),
            });
        }
        if let Ok(made) = File::open(&dir) {
            self.share(&made);
        }
        // Its parent may be one that this user cannot even list.
        let _ = dir.parent().map(sync_dir);
        Ok(())
    }

    /// What a file that others shall read is made with: in a shared store its group may replace it.
    fn file_mode(&self) -> u32 {
        if self.shared { 0o664 } else { 0o644 }
    }

    /// Opens what was just made to the group of a shared store, whatever the umask.
    fn share(&self, made: &File) {
        let Some(meta) = made.metadata().ok().filter(|_| self.shared) else { return };
        let wanted = meta.mode() | if meta.is_dir() { 0o2070 } else { 0o060 };
        if wanted != meta.mode() {
            // Another user's is as its maker left it.
            let _ = made.set_permissions(fs::Permissions::from_mode(wanted & 0o7777));
        }
    }

    /// As [`failed`], for what whoever may not write to the store meets first.
    fn refused(&self, doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> GuestError {
        let (store, path) = (self.root.clone(), path.to_owned());
        move |source| match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StoreError::NotWritable { path: store, source }.into()
            }
            _ => failed(doing, path)(source),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("write", dir))
}

/// Reads a file whole; the error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(failed("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
