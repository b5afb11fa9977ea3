//! Recipe and lock to image: what is in the store already is found by the digest of its inputs, what is not is built once,
//! by one process, and published. Nothing of this machine is an input: not its paths, users, locale, clock or threads.

mod boot;
mod check;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use crate::abilities::{self, Abilities, RootFacts};
use crate::apt::{Apt, Prepare, Wanted};
use crate::deb::Deb;
use crate::digest::Inputs;
use crate::error::{GuestError, Result};
use crate::lock::{Asked, Lock, LockedPackage};
use crate::progress::{Progress, Stage};
use crate::recipe::{Conduct, Format, Image, Place, Recipe};
use crate::store::{Entry, Record, Store};
use crate::{fetch, image, root};

/// Part of every digest of inputs. Raise it when the same recipe and lock shall give other bytes than before, which a new
/// release of a compressor can mean as well.
pub(crate) const BUILDER_VERSION: &str = "1";

/// Builds guests into a store.
#[derive(Clone, Copy)]
pub struct Builder<'a> {
    store: &'a Store,
    progress: &'a dyn Progress,
    offline: bool,
    frozen: bool,
    /// What is not in the store is an error instead of work.
    recalling: bool,
    prepare: Prepare,
}

impl std::fmt::Debug for Builder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("store", &self.store)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// A guest, built: everything a VMM needs to boot it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    pub name: String,
    /// The guest's pinned digest: the BLAKE3 of its root image, or of its initramfs where there is no other root.
    pub digest: String,
    /// The kernel, an ELF file with a PVH entry.
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// `None` for a guest that lives in its initramfs.
    pub root: Option<RootImage>,
    /// The kernel's release: what `uname -r` prints in the guest.
    pub kernel_release: String,
    /// The initramfs's modules in loading order.
    pub modules: Vec<String>,
    /// What the recipe adds to the kernel's command line.
    pub cmdline: Option<String>,
    pub conduct: Conduct,
    pub abilities: Abilities,
}

/// A root image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootImage {
    pub path: PathBuf,
    /// The kernel's name of it: `squashfs`.
    pub filesystem: String,
    /// To be mounted as it is, from a copy; otherwise under an overlay.
    pub writable: bool,
}

impl<'a> Builder<'a> {
    pub fn new(store: &'a Store, progress: &'a dyn Progress) -> Self {
        Self { store, progress, offline: false, frozen: false, recalling: false, prepare: |command| command }
    }

    /// Never touch the network: what is not in the store is an error.
    #[must_use]
    pub fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// Never write a lock file: a guest without one is an error.
    #[must_use]
    pub fn frozen(mut self, frozen: bool) -> Self {
        self.frozen = frozen;
        self
    }

    /// What is done to every process of the host's apt before it starts, such as tying its life to the caller's.
    #[must_use]
    pub fn children(mut self, prepare: fn(&mut Command) -> &mut Command) -> Self {
        self.prepare = prepare;
        self
    }

    pub fn store(&self) -> &'a Store {
        self.store
    }

    pub(crate) fn progress(&self) -> &'a dyn Progress {
        self.progress
    }

    pub(crate) fn stage(&self, name: &str, total: Option<u64>) -> Stage<'a> {
        Stage::begin(self.progress, name, total)
    }

    pub(crate) fn prepare(&self) -> Prepare {
        self.prepare
    }

    pub(crate) fn is_offline(&self) -> bool {
        self.offline
    }

    /// Resolves the recipe's packages as they are now, and writes the lock file beside the recipe.
    pub fn lock(&self, recipe: &Recipe) -> Result<Lock> {
        if self.offline {
            return Err(GuestError::LockNeedsNetwork { guest: recipe.name.clone() });
        }
        let lock = self.resolve(recipe)?;
        write_lock(recipe, &lock)?;
        Ok(lock)
    }

    fn resolve(&self, recipe: &Recipe) -> Result<Lock> {
        let asked = Asked::by(recipe);
        let from = recipe.distribution.as_ref().ok_or_else(|| GuestError::NotBuilt)?;
        let arch = &from.arch;
        let reading = self.stage(&format!("locking {}: reading Debian {}", recipe.name, asked.suite), None);
        let apt = Apt::update(self.store, &[&asked.suite], arch, self.prepare)?;
        drop(reading);
        let _stage = self.stage(&format!("locking {}: resolving packages", recipe.name), None);
        let wanted = Wanted { names: &asked.packages, without: &asked.without, recommends: asked.recommends };
        let packages = apt.resolve(&wanted)?;
        let kernel = apt.resolve_kernel(&asked.kernel)?;
        let releases = apt.releases()?;
        Ok(Lock { guest: recipe.name.clone(), releases, arch: arch.clone(), asked, kernel, packages })
    }

    /// The recipe's lock: the file's, when it is for this recipe, or a new one where there is none.
    pub fn locked(&self, recipe: &Recipe) -> Result<Lock> {
        if recipe.lock_path.exists() {
            let lock = Lock::read(&recipe.lock_path)?;
            lock.check(recipe)?;
            return Ok(lock);
        }
        if self.frozen {
            return Err(GuestError::NoLock { guest: recipe.name.clone(), path: recipe.lock_path.clone() });
        }
        self.progress.note(&format!("{} has no lock file yet: locking its packages", recipe.name));
        self.lock(recipe)
    }

    /// The guest as the store holds it; `None` where a build would have anything to do. Makes nothing and fetches nothing.
    pub fn built(&self, recipe: &Recipe) -> Result<Option<GuestImage>> {
        if !recipe.lock_path.exists() {
            return Ok(None);
        }
        let lock = Lock::read(&recipe.lock_path)?;
        let recalling = Builder { recalling: true, ..*self };
        match lock.check(recipe).and_then(|()| recalling.build_locked(recipe, &lock)) {
            Ok(image) => Ok(Some(image)),
            Err(GuestError::NotBuilt | GuestError::StaleLock { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Builds what of the guest is not in the store yet.
    pub fn build(&self, recipe: &Recipe) -> Result<GuestImage> {
        let lock = self.locked(recipe)?;
        self.build_locked(recipe, &lock)
    }

    /// As [`Builder::build`], with a lock that need not be a file.
    pub(crate) fn build_locked(&self, recipe: &Recipe, lock: &Lock) -> Result<GuestImage> {
        let boot = self.boot_files(recipe, lock)?;
        let root = match &recipe.image {
            Image::None => None,
            Image::Root { format, exclude } => Some((self.root(recipe, lock, *format, exclude)?, format)),
        };
        let abilities = abilities::of_facts(&boot.facts, root.as_ref().map(|((_, facts), _)| facts));
        let root = root.map(|((entry, _), format)| (entry, format));
        Ok(GuestImage {
            name: recipe.name.clone(),
            digest: root.as_ref().map_or(&boot.initramfs, |(entry, _)| entry).digest().to_owned(),
            kernel: boot.kernel.path,
            initramfs: boot.initramfs.path,
            root: root.map(|(entry, format)| RootImage {
                path: entry.path,
                filesystem: format.name().to_owned(),
                writable: format.is_writable(),
            }),
            kernel_release: boot.release,
            modules: boot.modules,
            cmdline: recipe.cmdline.clone(),
            conduct: recipe.conduct.clone(),
            abilities,
        })
    }

    /// Builds the guest again, into nothing, and compares it with what the store holds. Names the first difference.
    pub fn check(&self, recipe: &Recipe) -> Result<GuestImage> {
        let image = self.build(recipe)?;
        self.compare(recipe, &image)?;
        Ok(image)
    }

    /// The root image, with what its record says of it.
    fn root(
        &self,
        recipe: &Recipe,
        lock: &Lock,
        format: Format,
        exclude: &[String],
    ) -> Result<(Entry, BTreeMap<String, String>)> {
        let contents = placed_contents(recipe)?;
        let inputs = root_inputs(recipe, lock, format, exclude, &contents);
        let (record, entries) = self.once(inputs, |builder| {
            let mut temp = builder.store.temp_file()?;
            let (unmet, facts) = builder.write_root(recipe, lock, format, exclude, contents, temp.file())?;
            for path in unmet {
                builder.progress.note(&format!("{}: `exclude \"{path}\"` met nothing", recipe.name));
            }
            let entry = builder.store.publish_temp(temp, &format!("{}.{}", recipe.name, format.name()))?;
            let record = Record::new(format!("root image of {}", recipe.name)).with("root", &entry);
            Ok(facts.into_iter().fold(record, |record, (name, value)| record.fact(name, value)))
        })?;
        Ok((role(inputs, entries, "root")?, record.facts))
    }

    /// Writes the root image from packages in the store; returns exclusions that met nothing, and what the image can do.
    fn write_root(
        &self,
        recipe: &Recipe,
        lock: &Lock,
        format: Format,
        exclude: &[String],
        contents: Vec<Vec<u8>>,
        out: &mut File,
    ) -> Result<(Vec<String>, RootFacts)> {
        let debs = self.unpacked(&lock.packages, &lock.asked.suite)?;
        let _stage = self.stage(&format!("packing the root image of {}", recipe.name), None);
        let (tree, unmet) = root::assemble(recipe, exclude, debs, contents)?;
        image::write(&tree, format, &recipe.name, out)?;
        Ok((unmet, abilities::root_facts(&tree)))
    }

    fn unpacked(&self, packages: &[LockedPackage], suite: &str) -> Result<Vec<Deb>> {
        let packages: Vec<&LockedPackage> = packages.iter().collect();
        let entries = fetch::packages(self, &packages, suite)?;
        let stage = self.stage("unpacking packages", Some(entries.len() as u64));
        let unpack = |index: usize| {
            let deb = Deb::read(packages[index].file_name(), &fetch::read(packages[index], &entries[index])?);
            stage.advance(1);
            deb
        };
        in_parallel(entries.len(), unpack)
    }

    /// The record of `inputs`: from the store, or made by `build`, which one process at a time does.
    pub(crate) fn once(
        &self,
        inputs: Inputs,
        build: impl FnOnce(&Self) -> Result<Record>,
    ) -> Result<(Record, Vec<Entry>)> {
        if let Some(found) = self.store.recall(inputs) {
            return Ok(found);
        }
        if self.recalling {
            return Err(GuestError::NotBuilt);
        }
        let _claim = self.store.claim(inputs)?;
        if let Some(found) = self.store.recall(inputs) {
            return Ok(found);
        }
        let record = build(self)?;
        self.store.remember(inputs, &record)?;
        let entries = record.entries.iter().filter_map(|named| self.store.entry(&named.entry)).collect();
        Ok((record, entries))
    }
}

/// The results of `work` for 0 to `count`, in that order whatever the number of threads.
pub(crate) fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(8);
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return done;
            }
            done.push((index, work(index)));
        }
    };
    let mut all: Vec<(usize, Result<T>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let joined =
            workers.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect()
    });
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, result)| result).collect()
}

/// The first entry of a record that names one; a record without it was not written by this crate.
pub(crate) fn role(inputs: Inputs, entries: Vec<Entry>, role: &str) -> Result<Entry> {
    entries.into_iter().next().ok_or_else(|| GuestError::BadArchive {
        what: format!("record {inputs}"),
        problem: format!("it names no {role}"),
    })
}

fn write_lock(recipe: &Recipe, lock: &Lock) -> Result<()> {
    use std::io::Write as _;

    let path = &recipe.lock_path;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let failed = |error| crate::error::failed("write the lock file", path)(error);
    let mut temp = tempfile::Builder::new().prefix(".lock-").tempfile_in(directory).map_err(failed)?;
    temp.write_all(lock.to_text().as_bytes()).map_err(failed)?;
    temp.as_file().sync_all().map_err(failed)?;
    // A lock is a source file like the recipe: as readable as that.
    let mode = std::fs::metadata(&recipe.path).map(|meta| meta.permissions());
    if let Ok(mode) = mode {
        temp.as_file().set_permissions(mode).map_err(failed)?;
    }
    temp.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// The contents of the recipe's files, one for each of `placed`; empty for links and directories.
fn placed_contents(recipe: &Recipe) -> Result<Vec<Vec<u8>>> {
    let content = |what: &Place| match what {
        Place::Text { text, .. } => Ok(text.clone().into_bytes()),
        Place::From { source, .. } => crate::store::read(source),
        Place::Directory { .. } | Place::Link { .. } => Ok(Vec::new()),
    };
    recipe.placed.iter().map(|placed| content(&placed.what)).collect()
}

/// Everything that decides the root image's bytes.
fn root_inputs(
    recipe: &Recipe,
    lock: &Lock,
    format: Format,
    exclude: &[String],
    contents: &[Vec<u8>],
) -> Inputs {
    let mut hasher = Inputs::of("root image");
    hasher.field("builder", BUILDER_VERSION.as_bytes());
    // The record's facts: one without them is another's.
    hasher.field("facts", b"makes shell");
    hasher.field("format", format.inputs().as_bytes());
    for path in exclude {
        hasher.field("exclude", path.as_bytes());
    }
    hasher.field("name", recipe.name.as_bytes()).field("hostname", recipe.conduct.hostname.as_bytes());
    for package in &lock.packages {
        hasher.field("package", package.sha256.to_string().as_bytes());
    }
    for (placed, content) in recipe.placed.iter().zip(contents) {
        hasher.field("path", placed.path.as_bytes());
        let (kind, value) = match &placed.what {
            Place::Directory { mode } => ("directory", format!("{mode:o}")),
            Place::Link { target } => ("link", target.clone()),
            Place::Text { mode, .. } | Place::From { mode, .. } => ("file", format!("{mode:o}")),
        };
        hasher.field(kind, value.as_bytes()).field("content", content);
    }
    // What runs decides nothing in the image, but whether building it succeeds.
    for word in &recipe.conduct.run {
        hasher.field("run", word.as_bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests;
