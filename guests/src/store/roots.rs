//! Roots: who keeps what. A recipe keeps what its last build made for as long as its file exists, a toolset what it was
//! realised to, and a running VM the entries it was started with. What no living root reaches, `gc` removes.
//!
//! ```text
//! roots/<digest of the keeper>.json   a recipe's or a toolset's: names records, and through them entries
//! roots/vm-<digest>-….json            a running VM's: names entries; held by flock, so that it dies with its process
//! ```

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::lock::Using;
use super::{Store, StoreError, sync_dir};
use crate::digest::Inputs;
use crate::error::{GuestError, Result, failed};

const ROOT_SCHEMA: &str = "vmprof.root/1";

/// Who keeps something in the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeper {
    /// A recipe: it keeps as long as the file exists.
    #[serde(with = "path_text")]
    File(PathBuf),
    /// Something of vmprof's own that was realised: it keeps until everything is given up.
    Toolset(String),
    /// A running VM, by its name.
    Vm(String),
}

impl fmt::Display for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Toolset(name) => write!(f, "the {name}"),
            Self::Vm(name) => write!(f, "the running VM {name}"),
        }
    }
}

/// What a keeper keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    schema: String,
    pub kept_by: Keeper,
    /// Digests of inputs: with each its record and that one's entries.
    pub records: Vec<String>,
    /// The same, of the packages that its lock names: what was built does not need them, but the next build will.
    pub packages: Vec<String>,
    /// Names of entries without a record in between.
    pub entries: Vec<String>,
}

impl Root {
    /// Of a recipe's file. One that does not exist keeps nothing.
    pub fn of_file(path: &Path) -> Result<Self> {
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(error) if is_gone(&error) => std::path::absolute(path).map_err(failed("find", path))?,
            Err(error) => return Err(failed("find", path)(error)),
        };
        Ok(Self::new(Keeper::File(path)))
    }

    pub fn of_toolset(name: &str) -> Self {
        Self::new(Keeper::Toolset(name.to_owned()))
    }

    fn new(kept_by: Keeper) -> Self {
        Self {
            schema: ROOT_SCHEMA.to_owned(),
            kept_by,
            records: Vec::new(),
            packages: Vec::new(),
            entries: Vec::new(),
        }
    }

    /// Keeps the records of these inputs too.
    #[must_use]
    pub fn records(mut self, inputs: impl IntoIterator<Item = Inputs>) -> Self {
        add(&mut self.records, inputs.into_iter().map(|inputs| inputs.to_string()));
        self
    }

    /// Keeps the records of these packages too.
    #[must_use]
    pub fn packages(mut self, inputs: impl IntoIterator<Item = Inputs>) -> Self {
        add(&mut self.packages, inputs.into_iter().map(|inputs| inputs.to_string()));
        self
    }

    fn file_name(&self) -> String {
        let mut hasher = Inputs::of("root");
        let digest = match &self.kept_by {
            Keeper::File(path) => hasher.field("file", path.as_os_str().as_bytes()),
            Keeper::Toolset(name) => hasher.field("toolset", name.as_bytes()),
            Keeper::Vm(name) => hasher.field("vm", name.as_bytes()),
        }
        .finish();
        match &self.kept_by {
            // One name can run in two places, each with a hold of its own.
            Keeper::Vm(_) => format!("vm-{digest}"),
            _ => format!("{digest}.json"),
        }
    }

    fn text(&self, path: &Path) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(io::Error::other)
            .map_err(failed("write the root", path))?;
        text.push(b'\n');
        Ok(text)
    }
}

/// Sorted and each once, so that the same build writes the same root.
fn add(to: &mut Vec<String>, more: impl Iterator<Item = String>) {
    to.extend(more);
    to.sort();
    to.dedup();
}

/// Keeps a running VM's entries. Dropped, or its process gone, they are the other roots' business. Empty in a store that may
/// not be written: only its owner removes things there.
#[derive(Debug)]
pub struct Hold {
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    path: PathBuf,
    file: File,
}

impl Hold {
    /// The file that goes with it, and what holds that, where there is one: a process that goes on as another program hands
    /// both over.
    pub fn file(&self) -> Option<(&Path, BorrowedFd<'_>)> {
        self.held.as_ref().map(|held| (held.path.as_path(), held.file.as_fd()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // What cannot be removed is stale as soon as the lock is gone.
        let _ = fs::remove_file(&self.path);
    }
}

impl Using {
    /// Writes the root of one keeper in place of the one it had. Costs nothing where that says the same. `false` in a store that
    /// may not be written: what was found there stays as long as its owner lets it.
    pub fn root(&self, root: &Root) -> Result<bool> {
        let path = self.store.roots_dir().join(root.file_name());
        let text = root.text(&path)?;
        if fs::read(&path).is_ok_and(|there| there == text) {
            return Ok(true);
        }
        match self.store.temp_file() {
            Ok(mut temp) => {
                temp.write_all(&text)?;
                self.store.settle(&mut temp, &path, self.store.file_mode())?;
                Ok(true)
            }
            Err(GuestError::Store(StoreError::NotWritable { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Keeps the entries at or around these paths as long as the result lives; paths outside the store need no keeping.
    pub fn hold<P: AsRef<Path>>(&self, vm: &str, paths: impl IntoIterator<Item = P>) -> Result<Hold> {
        let mut root = Root::new(Keeper::Vm(vm.to_owned()));
        let entry = |path: P| -> Option<String> {
            let below = path.as_ref().strip_prefix(&self.store.root).ok()?;
            Some(below.components().next()?.as_os_str().to_str()?.to_owned())
        };
        add(&mut root.entries, paths.into_iter().filter_map(entry));
        let mut temp = match self.store.temp_file() {
            Ok(temp) => temp,
            Err(GuestError::Store(StoreError::NotWritable { .. })) => return Ok(Hold { held: None }),
            Err(error) => return Err(error),
        };
        let own = temp.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let path = self.store.roots_dir().join(format!("{}-{own}.json", root.file_name()));
        temp.write_all(&root.text(&path)?)?;
        // The lock is the open file's, and follows it to its new name: nobody sees it there unlocked.
        let file = temp.file().try_clone().map_err(failed("hold", &path))?;
        self.store.settle(&mut temp, &path, self.store.file_mode())?;
        Ok(Hold { held: Some(Held { path, file }) })
    }
}

/// A root as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundRoot {
    pub path: PathBuf,
    pub root: Root,
    pub is_alive: bool,
}

impl Store {
    pub(super) fn roots_dir(&self) -> PathBuf {
        self.root.join("roots")
    }

    /// Every root, living or not, sorted by keeper. One that cannot be understood is an error: what it keeps is not known.
    pub fn roots(&self) -> Result<Vec<FoundRoot>> {
        let mut found = Vec::new();
        for path in self.root_files()? {
            if let Some(root) = self.read_root(&path)? {
                found.push(root);
            }
        }
        found.sort_by(|a, b| (&a.root.kept_by, &a.path).cmp(&(&b.root.kept_by, &b.path)));
        Ok(found)
    }

    pub(super) fn root_files(&self) -> Result<Vec<PathBuf>> {
        let dir = self.roots_dir();
        let listing = match fs::read_dir(&dir) {
            Ok(listing) => listing,
            // A store of which another user has never made roots.
            Err(error) if is_gone(&error) => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &dir)(error)),
        };
        let paths: io::Result<Vec<PathBuf>> = listing.map(|item| Ok(item?.path())).collect();
        paths.map_err(failed("list", &dir))
    }

    /// `None` when it has just been removed.
    pub(super) fn read_root(&self, path: &Path) -> Result<Option<FoundRoot>> {
        let bad = |problem: String| StoreError::BadRoot { path: path.to_owned(), problem }.into();
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(failed("read the root", path)(error)),
        };
        let root: Root = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if root.schema != ROOT_SCHEMA {
            return Err(bad(format!("its schema is {}, and {ROOT_SCHEMA} is understood", root.schema)));
        }
        let is_alive = match &root.kept_by {
            // Whoever may not look does not know that it is gone: another user's recipe, say.
            Keeper::File(file) => !fs::metadata(file).is_err_and(|error| is_gone(&error)),
            Keeper::Toolset(_) => true,
            Keeper::Vm(_) => is_held(path)?,
        };
        Ok(Some(FoundRoot { path: path.to_owned(), root, is_alive }))
    }
}

fn is_held(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if is_gone(&error) => return Ok(false),
        Err(error) => return Err(failed("open", path)(error)),
    };
    // Shared, so that two who look do not take each other for the VM.
    Ok(flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Paths in JSON: text where they are, and their bytes in hexadecimal digits behind `hex:` where they are not.
mod path_text {
    use super::*;

    pub(super) fn serialize<S: serde::Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => to.serialize_str(text),
            None => {
                let hex: String =
                    path.as_os_str().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                to.serialize_str(&format!("hex:{hex}"))
            }
        }
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        let text = String::deserialize(from)?;
        let Some(hex) = text.strip_prefix("hex:") else { return Ok(text.into()) };
        let digits: Option<Vec<u8>> =
            hex.chars().map(|c| c.to_digit(16).and_then(|n| n.try_into().ok())).collect();
        let bytes = digits
            .filter(|digits| digits.len() % 2 == 0)
            .map(|digits| digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, n| byte << 4 | n)).collect())
            .ok_or_else(|| serde::de::Error::custom("a path's bytes are no hexadecimal digits"))?;
        Ok(OsString::from_vec(bytes).into())
    }
}

/// Removes a root's file; `true` when it was there.
pub(super) fn forget(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(failed("remove the root", path)(error)),
    }
}

/// After roots were removed.
pub(super) fn sync(store: &Store) -> Result<()> {
    sync_dir(&store.roots_dir())
}

#[cfg(test)]
mod tests;
