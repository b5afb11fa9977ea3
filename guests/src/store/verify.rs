//! The store read whole: every entry against the hash in its name, every record and root for sense. With repair, what is
//! wrong is moved to `damaged/`, so that the next build makes it anew.

use std::fs;
use std::path::{Path, PathBuf};

use super::gc::take_away;
use super::{Entry, Record, Store, StoreError, sync_dir};
use crate::error::{GuestError, Result, failed};
use crate::parallel;
use crate::progress::{Progress, Total};

/// Something in the store that is not as it should be.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum Fault {
    #[error(transparent)]
    #[diagnostic(transparent)]
    Entry(GuestError),

    #[error("the record {} cannot be understood: {problem}", path.display())]
    #[diagnostic(
        code(vmprof::store::bad_record),
        help("`vmprof store verify --repair` moves it away; the next build works the result out anew")
    )]
    Record { path: PathBuf, problem: String },

    #[error("the record of `{what}` names {}, which the store does not have as it was", missing.join(", "))]
    #[diagnostic(
        code(vmprof::store::dangling_record),
        help(
            "something was removed or cut short by other means than `vmprof store gc`. The next build makes it anew; `vmprof store verify --repair` moves the record away"
        )
    )]
    Dangling { path: PathBuf, what: String, missing: Vec<String> },

    #[error(transparent)]
    #[diagnostic(transparent)]
    Root(GuestError),
}

impl Fault {
    /// What is at fault.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Record { path, .. } | Self::Dangling { path, .. } => Some(path),
            Self::Entry(error) | Self::Root(error) => match error {
                GuestError::Store(StoreError::Damaged { path } | StoreError::BadRoot { path, .. })
                | GuestError::Io { path, .. } => Some(path),
                _ => None,
            },
        }
    }
}

/// What was looked at and what was found.
#[derive(Debug, Default)]
pub struct Verified {
    pub entries: usize,
    pub records: usize,
    pub roots: usize,
    pub faults: Vec<Fault>,
    /// Where the things at fault lie now.
    pub moved: Vec<PathBuf>,
}

impl Store {
    /// Reads everything. Builders and `gc` may run meanwhile; what they are about to publish is no fault.
    pub fn verify_all(&self, progress: &dyn Progress) -> Result<Verified> {
        let entries = self.entries()?;
        let sized: Vec<(&Entry, u64)> =
            entries.iter().map(|entry| (entry, self.size_of(entry).unwrap_or(0))).collect();
        let stage =
            progress.stage("reading the store", Total::Bytes(sized.iter().map(|(_, size)| size).sum()));
        let read = |(entry, size): &(&Entry, u64)| {
            let fault = self.entry_fault(entry);
            stage.advance(*size);
            Ok(fault)
        };
        let faults = parallel::each(&sized, |(_, size)| *size, read)?;
        drop(stage);
        let mut verified = Verified { entries: entries.len(), ..Verified::default() };
        verified.faults.extend(faults.into_iter().flatten());
        for found in self.found_records()? {
            verified.records += 1;
            let path = found.path;
            match found.said {
                Err(problem) => verified.faults.push(Fault::Record { path, problem }),
                Ok(record) => {
                    let has = |name: &str, bytes| self.entry(name).is_some_and(|found| found.bytes == bytes);
                    let missing: Vec<String> = record
                        .entries
                        .iter()
                        .filter(|named| !has(&named.entry, named.bytes))
                        .map(|named| named.entry.clone())
                        .collect();
                    // A gc may have taken the record since it was read, and the entries with it.
                    if !missing.is_empty() && path.exists() {
                        verified.faults.push(Fault::Dangling { path, what: record.what, missing });
                    }
                }
            }
        }
        for path in self.root_files()? {
            verified.roots += 1;
            if let Err(error) = self.read_root(&path) {
                verified.faults.push(Fault::Root(error));
            }
        }
        Ok(verified)
    }

    /// `None` too where a gc removed it while it was read.
    fn entry_fault(&self, entry: &Entry) -> Option<Fault> {
        let error = self.verify(entry).err()?;
        fs::symlink_metadata(&entry.path).is_ok().then_some(Fault::Entry(error))
    }

    /// Moves what [`Store::verify_all`] found out of the way. Waits for builds, which might be reading it.
    pub fn repair(&self, verified: &mut Verified, waiting: &dyn Fn()) -> Result<()> {
        if verified.faults.is_empty() {
            return Ok(());
        }
        let _alone = self.alone(waiting)?;
        let damaged = self.root.join("damaged");
        fs::create_dir_all(&damaged).map_err(self.refused("make the directory", &damaged))?;
        let mut gone = Vec::new();
        for path in verified.faults.iter().filter_map(Fault::path) {
            let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
                continue;
            };
            // A builder may have made it anew since it was read.
            let is_whole =
                self.entry(&name).is_some_and(|entry| entry.path == path && self.verify(&entry).is_ok());
            if path.starts_with(&self.root) && fs::symlink_metadata(path).is_ok() && !is_whole {
                verified.moved.push(move_away(path, &damaged)?);
                gone.push(name);
            }
        }
        // What names something that has gone would be the next fault.
        for found in self.found_records()? {
            let names_gone = |record: &Record| record.entries.iter().any(|named| gone.contains(&named.entry));
            if found.said.as_ref().is_ok_and(names_gone) {
                verified.moved.push(move_away(&found.path, &damaged)?);
            }
        }
        for dir in ["", "records", "roots", "damaged"] {
            sync_dir(&self.root.join(dir))?;
        }
        Ok(())
    }
}

/// Moves it there under a name that nothing there has; gives that.
fn move_away(path: &Path, damaged: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut to = damaged.join(&*name);
    let mut count = 0;
    while fs::symlink_metadata(&to).is_ok() {
        count += 1;
        to = damaged.join(format!("{name}~{count}"));
    }
    take_away(path, &to).map_err(failed("move", path))?;
    Ok(to)
}
