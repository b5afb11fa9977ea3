//! Entries: what is whole in the store, found by name, and compared with the hash in it.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use super::{Store, StoreError, tree};
use crate::error::{Result, failed};

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

impl Store {
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
            Err(StoreError::Damaged { path: entry.path.clone() }.into())
        }
    }
}

pub(crate) fn entry_name(hash: blake3::Hash, name: &str) -> String {
    format!("{}-{name}", hash.to_hex())
}

fn is_entry_name(name: &str) -> bool {
    name.split_once('-').is_some_and(|(digest, name)| is_digest(digest) && !name.is_empty())
}

pub(super) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}
