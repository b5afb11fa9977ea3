//! Garbage collection: what no living root reaches leaves the store.
//!
//! `gc` has the store alone while it decides and while it takes things away, and that is short: an entry goes to `tmp` by one
//! rename, and its bytes are freed after the store is everybody's again. Roots go first, then records, then entries. Killed
//! between any two steps, `gc` leaves entries that nobody names, which the next one takes, and perhaps something in `tmp`, which
//! the next process that opens the store takes; never a record whose entries are gone.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::FlockOperation;

use super::{Keeper, Listed, Store, lock, roots, sync_dir};
use crate::error::{Result, failed};

/// How far a collection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sweep {
    /// Packages too that locks name: the next change of a recipe fetches them again.
    pub packages: bool,
    /// Everything but what running VMs use.
    pub all: bool,
    /// Change nothing, and tell what would be.
    pub dry_run: bool,
}

/// What a collection removed, or would remove.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    pub entries: Vec<Listed>,
    pub records: usize,
    /// Keepers that are gone, or whose claim was given up.
    pub roots: Vec<Keeper>,
    /// Lock files that nobody holds.
    pub locks: usize,
    /// Things that an earlier repair had taken out of the way.
    pub damaged: usize,
    /// Entries that stay although nobody keeps them, and why: another user's, in a shared store.
    pub left: Vec<(String, String)>,
}

impl Collected {
    /// What the disk has again.
    pub fn disk_bytes(&self) -> u64 {
        self.entries.iter().map(|listed| listed.disk_bytes).sum()
    }
}

impl Store {
    /// Removes what no living root reaches. `waiting` is called when builds have to end first.
    pub fn gc(&self, sweep: Sweep, waiting: &dyn Fn()) -> Result<Collected> {
        let (alone, using) = match sweep.dry_run {
            true => (None, Some(self.using()?)),
            false => (Some(self.alone(waiting)?), None),
        };
        let found = self.roots()?;
        let stays = |root: &&roots::FoundRoot| {
            root.is_alive && (!sweep.all || matches!(root.root.kept_by, Keeper::Vm(_)))
        };
        let reach = self.reach(found.iter().filter(stays).map(|root| &root.root), !sweep.packages)?;
        let gone: Vec<_> = found.iter().filter(|root| !stays(root)).collect();
        let records: Vec<_> = self
            .found_records()?
            .into_iter()
            .filter(|record| !reach.records.contains(&record.digest))
            .collect();
        let entries: Vec<Listed> = self
            .list()?
            .entries
            .into_iter()
            .filter(|listed| !reach.entries.contains_key(&listed.entry.name))
            .collect();
        let mut collected = Collected {
            records: records.len(),
            roots: gone.iter().map(|root| root.root.kept_by.clone()).collect(),
            damaged: self.names_in("damaged")?.len(),
            ..Collected::default()
        };
        if sweep.dry_run {
            collected.entries = entries;
            collected.locks = self.idle_locks(|_| Ok(()))?;
            drop(using);
            return Ok(collected);
        }

        for root in &gone {
            roots::forget(&root.path)?;
        }
        roots::sync(self)?;
        for record in &records {
            remove_file(&record.path)?;
        }
        sync_dir(&self.root.join("records"))?;
        let bin = self.temp_dir()?;
        for listed in entries {
            match take_away(&listed.entry.path, &bin.path().join(&listed.entry.name)) {
                Ok(()) => collected.entries.push(listed),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    collected.left.push((listed.entry.name, error.to_string()));
                }
                Err(error) => return Err(failed("remove", &listed.entry.path)(error)),
            }
        }
        for name in self.names_in("damaged")? {
            let path = self.root.join("damaged").join(&name);
            // A name of its own: the same entry may have been damaged more than once.
            take_away(&path, &bin.path().join(format!("damaged-{name}"))).map_err(failed("remove", &path))?;
        }
        sync_dir(&self.root)?;
        collected.locks = self.idle_locks(remove_file)?;
        drop(alone);
        bin.remove()?;
        Ok(collected)
    }

    /// Calls `each` on every claim's file that nobody holds, and counts them.
    fn idle_locks(&self, each: impl Fn(&Path) -> Result<()>) -> Result<usize> {
        let mut count = 0;
        for name in self.names_in("locks")? {
            if [lock::GATE, lock::USING].contains(&name.as_str()) {
                continue;
            }
            if let Some(_held) = self.take(&name, FlockOperation::NonBlockingLockExclusive)? {
                each(&self.root.join("locks").join(&name))?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Sorted; none where there is no such directory.
    pub(super) fn names_in(&self, part: &str) -> Result<Vec<String>> {
        let dir = self.root.join(part);
        let listing = match fs::read_dir(&dir) {
            Ok(listing) => listing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &dir)(error)),
        };
        let names: io::Result<Vec<String>> =
            listing.map(|item| Ok(item?.file_name().to_string_lossy().into_owned())).collect();
        let mut names = names.map_err(failed("list", &dir))?;
        names.sort();
        Ok(names)
    }
}

/// Moves a file or a directory within the store's filesystem.
pub(super) fn take_away(from: &Path, to: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(from)?;
    // A rename to another parent writes the directory's `..`.
    if meta.is_dir() && meta.permissions().mode() & 0o200 == 0 {
        fs::set_permissions(from, fs::Permissions::from_mode(0o755))?;
    }
    fs::rename(from, to)
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
