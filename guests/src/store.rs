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

mod gc;
mod lock;
mod reach;
mod roots;
mod tree;
mod verify;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::digest::Inputs;
use crate::error::{GuestError, Result, failed};

pub use gc::{Collected, Sweep};
pub use lock::{Claim, Using};
pub use reach::{Chain, Listed, Listing};
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

/// What inputs once gave: entries by role (`root`, `kernel`, …) and facts about them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    schema: String,
    /// What was built, for people: `root of fio`.
    pub what: String,
    pub entries: Vec<RecordEntry>,
    /// Facts found while building that a reader of the record needs: a kernel release, an emulator version.
    #[serde(default)]
    pub facts: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordEntry {
    pub role: String,
    pub entry: String,
    /// Size of a file entry in bytes; `None` for a directory entry.
    pub bytes: Option<u64>,
}

const RECORD_SCHEMA: &str = "vmprof.record/1";

impl Record {
    pub fn new(what: impl Into<String>) -> Self {
        Self {
            schema: RECORD_SCHEMA.to_owned(),
            what: what.into(),
            entries: Vec::new(),
            facts: Default::default(),
        }
    }

    pub(crate) fn with(mut self, role: &str, entry: &Entry) -> Self {
        self.entries.push(RecordEntry {
            role: role.to_owned(),
            entry: entry.name.clone(),
            bytes: entry.bytes,
        });
        self
    }

    pub(crate) fn fact(mut self, name: &str, value: impl Into<String>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }
}

/// A whole thing in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: PathBuf,
    /// The file name: `<blake3>-<name>`.
    pub name: String,
    /// Size of a file entry; `None` for a directory.
    pub bytes: Option<u64>,
}

impl Entry {
    /// The BLAKE3 in the entry's name, 64 hexadecimal digits.
    pub fn digest(&self) -> &str {
        self.name.split('-').next().unwrap_or_default()
    }
}

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
            Ok(_) => return Err(GuestError::StoreNotADirectory { path: dir }),
            Err(_) => {}
        }
        if let Err(error) = fs::create_dir_all(&dir) {
            return Err(match error.kind() {
                io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                    GuestError::StoreNotADirectory { path: dir }
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
                GuestError::StoreNotWritable { path: store, source }
            }
            _ => failed(doing, path)(source),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The entry of that file name, if it is there.
    pub fn entry(&self, name: &str) -> Option<Entry> {
        // A record is data from disk: a name with a slash in it would lead out of the store.
        if name.contains('/') || !is_entry_name(name) {
            return None;
        }
        let path = self.root.join(name);
        let meta = fs::symlink_metadata(&path).ok()?;
        let bytes = meta.is_file().then_some(meta.len());
        (meta.is_dir() || meta.is_file()).then(|| Entry { path, name: name.to_owned(), bytes })
    }

    /// What `inputs` gave, if all of it is still there with the sizes it had.
    pub fn recall(&self, inputs: Inputs) -> Option<(Record, Vec<Entry>)> {
        let record = self.recall_record(inputs)?;
        let entries: Option<Vec<_>> = record
            .entries
            .iter()
            .map(|named| self.entry(&named.entry).filter(|found| found.bytes == named.bytes))
            .collect();
        Some((record, entries?))
    }

    /// The record of `inputs` whether or not its entries are still there.
    pub fn recall_record(&self, inputs: Inputs) -> Option<Record> {
        reach::parse(&fs::read(self.record_path(inputs)).ok()?).ok()
    }

    /// Records that `inputs` gave these entries. Call it after they are published.
    pub fn remember(&self, inputs: Inputs, record: &Record) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(record)
            .map_err(io::Error::other)
            .map_err(failed("write the record", self.record_path(inputs)))?;
        text.push(b'\n');
        let mut temp = self.temp_file()?;
        temp.write_all(&text)?;
        self.settle(&mut temp, &self.record_path(inputs), self.file_mode())
    }

    fn record_path(&self, inputs: Inputs) -> PathBuf {
        self.root.join("records").join(format!("{inputs}.json"))
    }

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
    fn settle(&self, temp: &mut TempFile, path: &Path, mode: u32) -> Result<()> {
        temp.file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("protect", &temp.path))?;
        temp.file.sync_all().map_err(failed("write", &temp.path))?;
        fs::rename(&temp.path, path).map_err(failed("publish", path))?;
        temp.published = true;
        sync_dir(path.parent().unwrap_or(&self.root))
    }

    /// Every entry, sorted by name.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let listing = fs::read_dir(&self.root).map_err(failed("list", &self.root))?;
        let mut names = Vec::new();
        for item in listing {
            let item = item.map_err(failed("list", &self.root))?;
            if let Some(name) = item.file_name().to_str().filter(|name| is_entry_name(name)) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names.iter().filter_map(|name| self.entry(name)).collect())
    }

    /// Bytes of a file entry, or of all files of a directory entry.
    pub fn size_of(&self, entry: &Entry) -> Result<u64> {
        match entry.bytes {
            Some(bytes) => Ok(bytes),
            None => tree::size(&entry.path),
        }
    }

    /// Reads a whole entry and compares it with the hash in its name.
    pub fn verify(&self, entry: &Entry) -> Result<()> {
        let found = match entry.bytes {
            Some(_) => {
                let mut file = File::open(&entry.path).map_err(failed("read", &entry.path))?;
                let mut hasher = blake3::Hasher::new();
                io::copy(&mut file, &mut hasher).map_err(failed("read", &entry.path))?;
                hasher.finalize()
            }
            None => tree::listing_hash(&entry.path)?,
        };
        if found.to_hex().as_str() == entry.digest() {
            Ok(())
        } else {
            Err(GuestError::StoreDamaged { path: entry.path.clone() })
        }
    }

    fn temp_path(&self) -> PathBuf {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.subsec_nanos());
        self.root.join("tmp").join(format!("{}-{count}-{nanos}", std::process::id()))
    }

    /// Removes what killed processes left in `tmp`. What is another user's and may not be removed stays.
    fn clear_abandoned(&self) -> Result<()> {
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

impl TempFile {
    /// To write at will: holes stay holes.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(failed("write", &self.path))
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("write", dir))
}

pub(crate) fn entry_name(hash: blake3::Hash, name: &str) -> String {
    format!("{}-{name}", hash.to_hex())
}

fn is_entry_name(name: &str) -> bool {
    name.split_once('-').is_some_and(|(digest, name)| is_digest(digest) && !name.is_empty())
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Reads a file whole; the error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(failed("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
