//! Packages into the store by hash: what is there already costs nothing, what is not comes through the host's apt, a few
//! at a time, and is believed only when its SHA-256 is the lock's.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::io::Errno;

use crate::apt::{self, Archives};
use crate::builder::Builder;
use crate::digest::{Inputs, Sha256};
use crate::error::{GuestError, Result};
use crate::lock::LockedPackage;
use crate::progress::Stage;
use crate::store::{Entry, Record, Store};

/// Fetching apt processes at once, and packages each is given at a time: enough to hide the start of a process, few
/// enough for progress to move.
const FETCHERS: usize = 3;
const BATCH: usize = 6;

/// The store's name for a package with this hash.
pub(crate) fn inputs(sha256: Sha256) -> Inputs {
    Inputs::of("package").field("sha256", sha256.to_string().as_bytes()).finish()
}

/// The package's entry, if it was fetched before.
pub(crate) fn find(store: &Store, package: &LockedPackage) -> Option<Entry> {
    store.recall(inputs(package.sha256)).and_then(|(_, entries)| entries.into_iter().next())
}

/// Publishes a package that lies in a file, after checking its hash.
pub(crate) fn adopt(store: &Store, package: &LockedPackage, file: &Path) -> Result<Entry> {
    let found = Sha256::of(&crate::store::read(file)?);
    if found != package.sha256 {
        return Err(mismatch(package, found.to_string()));
    }
    let entry = store.publish_from(file, package.file_name())?;
    let record = Record::new(format!("package {} {}", package.name, package.version)).with("deb", &entry);
    store.remember(inputs(package.sha256), &record)?;
    Ok(entry)
}

/// The package's bytes, read from its entry and held against the lock: a damaged store must not become an image.
pub(crate) fn read(package: &LockedPackage, entry: &Entry) -> Result<Vec<u8>> {
    let bytes = crate::store::read(&entry.path)?;
    if Sha256::of(&bytes) == package.sha256 {
        return Ok(bytes);
    }
    Err(GuestError::StoreDamaged { path: entry.path.clone() })
}

/// The entries of all `packages`, in their order, fetching what is missing from archives that have `suite`.
pub(crate) fn packages(
    builder: &Builder<'_>,
    packages: &[&LockedPackage],
    suite: &str,
) -> Result<Vec<Entry>> {
    let store = builder.store();
    let missing = || -> Vec<&LockedPackage> {
        packages.iter().copied().filter(|package| find(store, package).is_none()).collect()
    };
    let lacking = missing();
    if !lacking.is_empty() {
        if builder.is_offline() {
            return Err(GuestError::Offline {
                missing: lacking.len(),
                wanted: packages.len(),
                names: lacking.iter().map(|p| p.name.clone()).collect(),
            });
        }
        // One builder fetches at a time: guests share packages, and nothing is fetched twice.
        let _claim = store.claim(Inputs::of("fetching").finish())?;
        let lacking = missing();
        if !lacking.is_empty() {
            fetch_missing(builder, lacking, &Archives::of_host(suite, builder.prepare())?)?;
        }
    }
    packages
        .iter()
        .map(|package| {
            find(store, package).ok_or_else(|| GuestError::PackageGone {
                names: vec![package.file_name().to_owned()],
                output: String::new(),
            })
        })
        .collect()
}

fn fetch_missing(builder: &Builder<'_>, missing: Vec<&LockedPackage>, archives: &Archives) -> Result<()> {
    let bytes = missing.iter().map(|p| p.size).sum();
    let stage = builder.stage(&format!("fetching {}", count(missing.len())), Some(bytes));
    let mut left = missing;
    let mut said = String::new();
    for base in &archives.0 {
        let round = one_archive(builder, &left, base, &stage)?;
        left = round.left;
        if !round.said.is_empty() {
            said = round.said;
        }
        if left.is_empty() {
            break;
        }
    }
    drop(stage);
    if left.is_empty() {
        return Ok(());
    }
    Err(explain(builder.store().root().join("tmp"), &left, said))
}

struct Round<'a> {
    left: Vec<&'a LockedPackage>,
    said: String,
}

fn one_archive<'a>(
    builder: &Builder<'_>,
    packages: &[&'a LockedPackage],
    base: &str,
    stage: &Stage<'_>,
) -> Result<Round<'a>> {
    let store = builder.store();
    // The fetching threads meet here: each takes its next batch, and leaves what did not come.
    let open: Mutex<VecDeque<Vec<&LockedPackage>>> =
        Mutex::new(packages.chunks(BATCH).map(<[_]>::to_vec).collect());
    let results = std::thread::scope(|scope| {
        let fetcher = || -> Result<Round<'a>> {
            let dir = store.temp_dir()?;
            let mut round = Round { left: Vec::new(), said: String::new() };
            loop {
                let batch = open.lock().unwrap_or_else(|broken| broken.into_inner()).pop_front();
                let Some(batch) = batch else { return Ok(round) };
                let fetched = apt::fetch(base, &batch, dir.path(), builder.prepare())?;
                for package in batch {
                    let file = dir.path().join(package.file_name());
                    if arrived(package, &file, fetched.whole) {
                        adopt(store, package, &file)?;
                        stage.advance(package.size);
                    } else {
                        round.left.push(package);
                        round.said.clone_from(&fetched.output);
                    }
                }
            }
        };
        let threads: Vec<_> = (0..FETCHERS).map(|_| scope.spawn(fetcher)).collect();
        threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
    });
    let mut all = Round { left: Vec::new(), said: String::new() };
    for result in results {
        let round = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        all.left.extend(round.left);
        if !round.said.is_empty() {
            all.said = round.said;
        }
    }
    Ok(all)
}

/// Whether the file is worth looking at: a full disk or a broken connection makes apt fail, and leaves what it had by then.
fn arrived(package: &LockedPackage, file: &Path, whole: bool) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && (whole || meta.len() >= package.size))
}

/// Why packages did not come, from what apt said last.
fn explain(tmp: PathBuf, left: &[&LockedPackage], said: String) -> GuestError {
    let names = || left.iter().map(|p| p.file_name().to_owned()).collect();
    if said.contains("No space left on device") {
        return GuestError::NoSpace { path: tmp, source: Errno::NOSPC.into() };
    }
    if said.contains("Hash Sum mismatch") {
        return mismatch(left[0], "another one".to_owned());
    }
    if said.contains("404") || said.contains("File not found") || said.contains("No such file") {
        return GuestError::PackageGone { names: names(), output: said };
    }
    GuestError::AptFailed {
        doing: format!("fetching {}", count(left.len())),
        command: "apt-helper download-file".to_owned(),
        output: said,
    }
}

fn count(packages: usize) -> String {
    match packages {
        1 => "1 package".to_owned(),
        n => format!("{n} packages"),
    }
}

fn mismatch(package: &LockedPackage, found: String) -> GuestError {
    GuestError::HashMismatch {
        what: format!("package {} {}", package.name, package.version),
        wanted: package.sha256,
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FailureClass;
    use crate::testing;

    #[test]
    fn what_apt_left_half_fetched_has_not_arrived() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("other_1_amd64.deb");
        let package = testing::locked("other", b"what was locked");
        assert!(!arrived(&package, &file, true));
        std::fs::write(&file, b"what").unwrap();
        assert!(!arrived(&package, &file, false));
        // apt says that it is whole: then it is the hash that decides.
        assert!(arrived(&package, &file, true));
        std::fs::write(&file, b"what was locked").unwrap();
        assert!(arrived(&package, &file, false));
    }

    #[test]
    fn apts_words_become_the_error_they_mean() {
        let package = testing::locked("other", b"what was locked");
        let explained = |said: &str| explain("tmp".into(), &[&package], said.to_owned());
        let full = "E: Failed to fetch x  Error writing to file - write (28: No space left on device)";
        assert!(matches!(explained(full), GuestError::NoSpace { .. }));
        assert_eq!(explained("E: Failed to fetch x  Hash Sum mismatch").class(), FailureClass::HashMismatch);
        assert!(matches!(explained("E: Failed to fetch x  404  Not Found"), GuestError::PackageGone { .. }));
        let cut = explained("E: Failed to fetch x  Error reading from server. Remote end closed connection");
        assert!(matches!(cut, GuestError::AptFailed { .. }));
    }
}
