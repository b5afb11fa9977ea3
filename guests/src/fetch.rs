//! Packages into the store by hash: what is there already costs nothing, what is not comes through the host's apt, a few
//! at a time, and is believed only when its SHA-256 is the lock's. A package that has left its archive is looked for in
//! apt's own cache and in every other source the host has: where it comes from does not matter, the hash decides.

mod error;
mod failure;
mod meter;

use std::path::Path;
use std::sync::Mutex;

use crate::apt::{self, Archives};
use crate::builder::Builder;
use crate::digest::{Inputs, Sha256};
use crate::error::Result;
use crate::lock::LockedPackage;
use crate::store::{Entry, Record, Store, StoreError};

use failure::Attempts;
use meter::Meter;

pub use error::FetchError;

/// Fetching apt processes at once, and what each is given at a time: enough to hide the start of a process, little enough
/// for unpacking to begin.
const FETCHERS: usize = 3;
const BATCH: usize = 6;
const BATCH_BYTES: u64 = 4 << 20;

/// Called with each package as soon as it is in the store, from several threads. `false`: no more are wanted.
pub(crate) type Arrived<'a> = &'a (dyn Fn(&LockedPackage) -> bool + Sync);

/// The store's name for a package with this hash.
pub(crate) fn inputs(sha256: Sha256) -> Inputs {
    Inputs::of("package").field("sha256", sha256.to_string().as_bytes()).finish()
}

/// The package's entry, if it was fetched before.
pub(crate) fn find(store: &Store, package: &LockedPackage) -> Option<Entry> {
    store.recall(inputs(package.sha256)).and_then(|(_, entries)| entries.into_iter().next())
}

/// Publishes a package that lies in a file of a [`crate::store::TempDir`], after checking its hash.
pub(crate) fn adopt(store: &Store, package: &LockedPackage, file: &Path) -> Result<Entry> {
    let found = Sha256::of(&crate::store::read(file)?);
    if found != package.sha256 {
        return Err(failure::mismatch(package, found.to_string()));
    }
    let entry = store.publish_from(file, package.file_name())?;
    remember(store, package, entry)
}

fn remember(store: &Store, package: &LockedPackage, entry: Entry) -> Result<Entry> {
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
    Err(StoreError::Damaged { path: entry.path.clone() }.into())
}

/// The entries of all `packages`, in their order, fetching what is missing from archives that have `suite`.
pub(crate) fn packages(
    builder: &Builder<'_>,
    packages: &[&LockedPackage],
    suite: &str,
) -> Result<Vec<Entry>> {
    let store = builder.store();
    let lacking: Vec<_> = packages.iter().copied().filter(|package| find(store, package).is_none()).collect();
    missing(builder, &lacking, suite, &|_| true)?;
    packages
        .iter()
        .map(|package| find(store, package).ok_or_else(|| failure::gone(std::slice::from_ref(package))))
        .collect()
}

/// Fetches packages that the store lacks; `arrived` hears of each.
pub(crate) fn missing(
    builder: &Builder<'_>,
    lacking: &[&LockedPackage],
    suite: &str,
    arrived: Arrived<'_>,
) -> Result<()> {
    if lacking.is_empty() {
        return Ok(());
    }
    if builder.is_offline() {
        let names = lacking.iter().map(|package| package.name.clone()).collect();
        return Err(FetchError::Offline { names }.into());
    }
    let store = builder.store();
    // One builder fetches at a time: guests share packages, and nothing is fetched twice.
    let _claim = store.claim(Inputs::of("fetching").finish())?;
    let (here, left): (Vec<_>, Vec<_>) =
        lacking.iter().copied().partition(|package| find(store, package).is_some());
    if !here.iter().all(|package| arrived(package)) {
        return Ok(());
    }
    let left = from_host_cache(builder, left, arrived)?;
    if left.is_empty() {
        return Ok(());
    }
    from_archives(builder, left, &Archives::of_host(suite, builder.prepare())?, arrived)
}

/// Takes what the host's apt has fetched for itself; returns what it has not.
fn from_host_cache<'a>(
    builder: &Builder<'_>,
    packages: Vec<&'a LockedPackage>,
    arrived: Arrived<'_>,
) -> Result<Vec<&'a LockedPackage>> {
    let Some(cache) = apt::host_cache(builder.prepare()).filter(|_| !packages.is_empty()) else {
        return Ok(packages);
    };
    let mut left = Vec::new();
    for package in packages {
        // An unreadable or other file is no failure: there are the archives.
        let bytes = std::fs::read(cache.join(cached_name(package))).unwrap_or_default();
        if bytes.len() as u64 != package.size || Sha256::of(&bytes) != package.sha256 {
            left.push(package);
            continue;
        }
        let entry = builder.store().publish_bytes(package.file_name(), &bytes)?;
        remember(builder.store(), package, entry)?;
        if !arrived(package) {
            return Ok(Vec::new());
        }
    }
    Ok(left)
}

/// apt's own name for the file: with the version's epoch, which a file of the archive has not.
fn cached_name(package: &LockedPackage) -> String {
    format!("{}_{}_{}.deb", package.name, package.version.replace(':', "%3a"), package.arch)
}

/// Fetches all of `packages` from the archives, the likeliest first.
fn from_archives(
    builder: &Builder<'_>,
    packages: Vec<&LockedPackage>,
    archives: &Archives,
    arrived: Arrived<'_>,
) -> Result<()> {
    let bytes = packages.iter().map(|p| p.size).sum();
    let stage = builder.download(&format!("fetching {}", count(packages.len())), bytes);
    let meter = Meter::new(&*stage);
    let mut attempts = Attempts::default();
    let mut left = packages;
    for base in archives.likely.iter().chain(&archives.others) {
        let (still, said) = one_archive(builder, left, base, &meter, arrived)?;
        left = still;
        if left.is_empty() {
            return Ok(());
        }
        attempts.add(base, said);
    }
    Err(attempts.explain(builder.store().root().join("tmp"), &left))
}

/// Packages for one apt process each, largest first: the longest transfer must not begin last.
fn batches(mut packages: Vec<&LockedPackage>) -> Vec<Vec<&LockedPackage>> {
    packages.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
    let mut batches: Vec<(u64, Vec<&LockedPackage>)> = Vec::new();
    for package in packages {
        match batches.last_mut() {
            Some((bytes, batch)) if batch.len() < BATCH && *bytes + package.size <= BATCH_BYTES => {
                *bytes += package.size;
                batch.push(package);
            }
            _ => batches.push((package.size, vec![package])),
        }
    }
    batches.into_iter().map(|(_, batch)| batch).collect()
}

/// What did not come from there, and what apt said about it.
fn one_archive<'a>(
    builder: &Builder<'_>,
    packages: Vec<&'a LockedPackage>,
    base: &str,
    meter: &Meter<'_>,
    arrived: Arrived<'_>,
) -> Result<(Vec<&'a LockedPackage>, Vec<String>)> {
    let store = builder.store();
    let mut open = batches(packages);
    open.reverse();
    // The fetching threads meet here: each takes its next batch, and leaves what did not come.
    let open = Mutex::new(open);
    let next = || open.lock().unwrap_or_else(|broken| broken.into_inner()).pop();
    let fetcher = || -> Result<(Vec<&'a LockedPackage>, Vec<String>)> {
        let dir = store.temp_dir()?;
        let (mut left, mut said) = (Vec::new(), Vec::new());
        while let Some(batch) = next() {
            for package in &batch {
                meter.begins(package, &dir.path().join(package.file_name()));
            }
            let fetched = apt::fetch(base, &batch, dir.path(), builder.prepare())?;
            let before = left.len();
            for package in batch {
                let file = dir.path().join(package.file_name());
                if !came(package, &file, fetched.whole) {
                    meter.left(&file);
                    left.push(package);
                    continue;
                }
                meter.came(package, &file);
                adopt(store, package, &file)?;
                if !arrived(package) {
                    open.lock().unwrap_or_else(|broken| broken.into_inner()).clear();
                    return Ok((left, said));
                }
            }
            if left.len() > before {
                said.push(fetched.output);
            }
        }
        Ok((left, said))
    };
    let (running, ended) = std::sync::mpsc::channel();
    let results = std::thread::scope(|scope| {
        scope.spawn(move || meter.watch(&ended));
        let threads: Vec<_> = (0..FETCHERS).map(|_| scope.spawn(fetcher)).collect();
        let results = threads.into_iter().map(|thread| thread.join()).collect::<Vec<_>>();
        drop(running);
        results
    });
    let (mut left, mut said) = (Vec::new(), Vec::new());
    for result in results {
        let (some, words) = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        left.extend(some);
        said.extend(words);
    }
    left.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((left, said))
}

/// Whether the file is worth looking at: a full disk or a broken connection makes apt fail, and leaves what it had by then.
fn came(package: &LockedPackage, file: &Path, whole: bool) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && (whole || meta.len() >= package.size))
}

fn count(packages: usize) -> String {
    match packages {
        1 => "1 package".to_owned(),
        n => format!("{n} packages"),
    }
}

#[cfg(test)]
mod tests;
