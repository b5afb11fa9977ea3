//! What the roots reach, by records, down to entries; and the store's listing, which says for each entry who keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::{Entry, Keeper, Record, Root, Store, StoreError, entry::is_digest, record::parse, tree};
use crate::error::{Result, failed};

/// Why an entry stays: the keeper, and the record in between.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Chain {
    pub kept_by: Keeper,
    /// The keeper's lock names it as a package: nothing that was built needs it.
    pub is_package: bool,
    /// The record's own words, `root image of fio`; `None` where the keeper names the entry itself.
    pub what: Option<String>,
    /// What the entry is in that record.
    pub role: Option<String>,
}

/// What living roots reach.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Digests of inputs.
    pub(super) records: BTreeSet<String>,
    pub(super) entries: BTreeMap<String, Vec<Chain>>,
}

/// A record's file as it was found.
#[derive(Debug)]
pub(super) struct FoundRecord {
    /// The digest of its inputs: its name without the ending.
    pub(super) digest: String,
    pub(super) path: std::path::PathBuf,
    /// What it says, or why that cannot be understood.
    pub(super) said: Result<Record, String>,
}

/// An entry with what `store ls` tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub entry: Entry,
    /// `package`, `kernel`, `initramfs`, `root image`, `toolset`, `lock`, or what a record calls it.
    pub kind: String,
    /// Bytes that can be read out of it, those of holes included.
    pub bytes: u64,
    /// Bytes it takes of the disk.
    pub disk_bytes: u64,
    /// Sorted; empty when nobody keeps it.
    pub kept: Vec<Chain>,
}

impl Listed {
    /// How many roots keep it.
    pub fn roots(&self) -> usize {
        self.kept.iter().map(|chain| &chain.kept_by).collect::<BTreeSet<_>>().len()
    }

    /// The name without the hash.
    pub fn short_name(&self) -> &str {
        self.entry.name.split_once('-').map_or(&self.entry.name, |(_, name)| name)
    }
}

/// The whole store, sorted by kind and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    pub entries: Vec<Listed>,
    /// How many records there are.
    pub records: usize,
}

impl Listing {
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|listed| listed.bytes).sum()
    }

    pub fn disk_bytes(&self) -> u64 {
        self.entries.iter().map(|listed| listed.disk_bytes).sum()
    }

    /// The entries that `asked` means: a path, an entry's name, the name of a package or an image (perhaps several
    /// entries), or the beginning of one digest.
    pub fn find(&self, asked: &str) -> Result<Vec<&Listed>> {
        let path = Path::new(asked);
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let by = |meant: &dyn Fn(&Listed) -> bool| -> Vec<&Listed> {
            self.entries.iter().filter(|listed| meant(listed)).collect()
        };
        let there = by(&|listed| path.starts_with(&listed.entry.path) || listed.entry.name == asked);
        if !there.is_empty() {
            return Ok(there);
        }
        let named = by(&|listed| {
            let name = listed.short_name();
            name == asked || name.strip_prefix(asked).is_some_and(|rest| rest.starts_with(['_', '.']))
        });
        if !named.is_empty() {
            return Ok(named);
        }
        let digest = by(&|listed| !asked.is_empty() && listed.entry.digest().starts_with(asked));
        match digest.len() {
            0 => Err(StoreError::NoEntry { asked: asked.to_owned() }.into()),
            1 => Ok(digest),
            _ => Err(StoreError::Ambiguous {
                asked: asked.to_owned(),
                names: digest.iter().map(|listed| abbreviated(listed)).collect(),
            }
            .into()),
        }
    }
}

impl Store {
    /// What these roots reach; packages of their locks only where `packages` says so.
    pub(super) fn reach<'r>(
        &self,
        roots: impl IntoIterator<Item = &'r Root>,
        packages: bool,
    ) -> Result<Reach> {
        let mut reach = Reach::default();
        for root in roots {
            let of_lock = root.packages.iter().filter(|_| packages).map(|digest| (digest, true));
            for (digest, is_package) in root.records.iter().map(|digest| (digest, false)).chain(of_lock) {
                let Some(record) = self.record_of(digest) else { continue };
                reach.records.insert(digest.clone());
                for named in record.entries {
                    let chain = Chain {
                        kept_by: root.kept_by.clone(),
                        is_package,
                        what: Some(record.what.clone()),
                        role: Some(named.role),
                    };
                    reach.entries.entry(named.entry).or_default().push(chain);
                }
            }
            for entry in &root.entries {
                let chain =
                    Chain { kept_by: root.kept_by.clone(), is_package: false, what: None, role: None };
                reach.entries.entry(entry.clone()).or_default().push(chain);
            }
        }
        for chains in reach.entries.values_mut() {
            chains.sort();
            chains.dedup();
        }
        Ok(reach)
    }

    fn record_of(&self, digest: &str) -> Option<Record> {
        // A root is data from disk: it must not lead out of the store.
        let text = is_digest(digest)
            .then(|| fs::read(self.root.join("records").join(format!("{digest}.json"))))?
            .ok()?;
        parse(&text).ok()
    }

    /// Every record, sorted by its name.
    pub(super) fn found_records(&self) -> Result<Vec<FoundRecord>> {
        let dir = self.root.join("records");
        let listing = fs::read_dir(&dir).map_err(failed("list", &dir))?;
        let mut found = Vec::new();
        for item in listing {
            let path = item.map_err(failed("list", &dir))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let digest = name.strip_suffix(".json").unwrap_or(&name).to_owned();
            let said = match fs::read(&path) {
                Ok(text) => parse(&text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Err(error.to_string()),
            };
            found.push(FoundRecord { digest, path, said });
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Every entry with its kind, its sizes and who keeps it.
    pub fn list(&self) -> Result<Listing> {
        let roots = self.roots()?;
        let reach = self.reach(roots.iter().filter(|root| root.is_alive).map(|root| &root.root), true)?;
        let records = self.found_records()?;
        let mut roles = BTreeMap::new();
        for record in records.iter().filter_map(|record| record.said.as_ref().ok()) {
            for named in &record.entries {
                roles.insert(named.entry.as_str(), named.role.as_str());
            }
        }
        let mut entries = Vec::new();
        for entry in self.entries()? {
            // Removed while it is listed, by a gc that runs at the same time.
            let Ok((bytes, disk_bytes)) = tree::sizes(&entry.path) else { continue };
            let kind = kind(&entry, roles.get(entry.name.as_str()).copied());
            let kept = reach.entries.get(&entry.name).cloned().unwrap_or_default();
            entries.push(Listed { entry, kind, bytes, disk_bytes, kept });
        }
        entries.sort_by(|a, b| {
            (&a.kind, a.short_name(), &a.entry.name).cmp(&(&b.kind, b.short_name(), &b.entry.name))
        });
        Ok(Listing { entries, records: records.len() })
    }
}

/// Enough of a digest to tell the entries of any store apart, with the name.
fn abbreviated(listed: &Listed) -> String {
    format!("{}-{}", listed.entry.digest().get(..12).unwrap_or_default(), listed.short_name())
}

/// What a record says of the entry; without one, what its name does.
fn kind(entry: &Entry, role: Option<&str>) -> String {
    let ends = |ending: &str| entry.name.ends_with(ending);
    let kind = match role {
        _ if entry.bytes.is_none() => "toolset",
        Some("files") => "unpacked",
        Some("deb") => "package",
        Some("root") => "root image",
        Some(role) => role,
        None if ends(".deb") => "package",
        None if ends("-vmlinux") => "kernel",
        None if ends("-initramfs") => "initramfs",
        None if [".squashfs", ".erofs", ".ext4"].into_iter().any(ends) => "root image",
        None if ends(".lock.kdl") => "lock",
        None => "file",
    };
    kind.to_owned()
}
