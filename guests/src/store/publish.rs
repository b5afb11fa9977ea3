//! Publishing files: written below `tmp`, held by a lock while they are, and renamed to what their content is called.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::{Entry, Store, entry_name, lock, sync_dir, tree};
use crate::error::{Result, failed};

/// A file being written. Dropped unpublished, it is gone.
#[derive(Debug)]
pub struct TempFile {
    pub(crate) path: PathBuf,
    file: File,
    published: bool,
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl TempFile {
    /// To write at will: holes stay holes.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(failed("write", &self.path))
    }
}

impl Store {
    /// A new empty file under `tmp`, held by this process.
    pub fn temp_file(&self) -> Result<TempFile> {
        let _gate = self.gate()?;
        let path = self.temp_path();
        let file = OpenOptions::new()
            .write(true)
            .read(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(self.refused("make the temporary file", &path))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .map_err(failed("lock", &path))?;
        Ok(TempFile { path, file, published: false })
    }

    /// Publishes `bytes` as an entry called `name`.
    pub fn publish_bytes(&self, name: &str, bytes: &[u8]) -> Result<Entry> {
        let entry_name = entry_name(blake3::hash(bytes), name);
        if let Some(there) = self.entry(&entry_name).filter(|e| e.bytes == Some(bytes.len() as u64)) {
            return Ok(there);
        }
        let mut temp = self.temp_file()?;
        temp.write_all(bytes)?;
        self.settle_entry(&mut temp, entry_name)
    }

    /// Publishes what was written to `temp` as an entry called `name`.
    pub fn publish_temp(&self, mut temp: TempFile, name: &str) -> Result<Entry> {
        let mut hasher = blake3::Hasher::new();
        let mut written = File::open(&temp.path).map_err(failed("read", &temp.path))?;
        io::copy(&mut written, &mut hasher).map_err(failed("read", &temp.path))?;
        self.settle_entry(&mut temp, entry_name(hasher.finalize(), name))
    }

    /// Publishes the file at `from` (which lies in a [`TempDir`] of this store) as an entry called `name`.
    pub(crate) fn publish_from(&self, from: &Path, name: &str) -> Result<Entry> {
        let mut source = File::open(from).map_err(failed("read", from))?;
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut source, &mut hasher).map_err(failed("read", from))?;
        let mut temp = self.temp_file()?;
        // The moved file takes the temporary name over, and so needs the lock that says somebody holds it.
        flock(&source, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .map_err(failed("lock", from))?;
        fs::rename(from, &temp.path).map_err(failed("move", from))?;
        temp.file = source;
        self.settle_entry(&mut temp, entry_name(hasher.finalize(), name))
    }

    fn settle_entry(&self, temp: &mut TempFile, name: String) -> Result<Entry> {
        let path = self.root.join(&name);
        self.settle(temp, &path, 0o444)?;
        let bytes = fs::metadata(&path).map_err(failed("look at", &path))?.len();
        Ok(Entry { path, name, bytes: Some(bytes) })
    }

    /// Bytes to disk, then the name, then the name to disk.
    pub(super) fn settle(&self, temp: &mut TempFile, path: &Path, mode: u32) -> Result<()> {
        temp.file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("protect", &temp.path))?;
        temp.file.sync_all().map_err(failed("write", &temp.path))?;
        fs::rename(&temp.path, path).map_err(failed("publish", path))?;
        temp.published = true;
        sync_dir(path.parent().unwrap_or(&self.root))
    }

    pub(super) fn temp_path(&self) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.subsec_nanos());
        self.root.join("tmp").join(format!("{}-{count}-{nanos}", std::process::id()))
    }

    /// Removes what killed processes left in `tmp`. What is another user's and may not be removed stays.
    pub(super) fn clear_abandoned(&self) -> Result<()> {
        let tmp = self.root.join("tmp");
        let mut listing = fs::read_dir(&tmp).map_err(failed("list", &tmp))?.peekable();
        if listing.peek().is_none() {
            return Ok(());
        }
        let Ok(Some(_gate)) = self.take(lock::GATE, FlockOperation::NonBlockingLockExclusive) else {
            return Ok(());
        };
        for item in listing {
            let path = item.map_err(failed("list", &tmp))?.path();
            let Ok(held) = File::open(&path) else { continue };
            if flock(&held, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = tree::remove(&path);
            }
        }
        Ok(())
    }
}
