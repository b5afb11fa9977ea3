//! Recipe and lock to image: what is in the store already is found by the digest of its inputs, what is not is built once,
//! by one process, and published. Nothing of this machine is an input: not its paths, users, locale, clock or threads.

mod boot;
mod check;
mod difference;
mod disk;
mod locking;
mod packages;

use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

use boot::Source;

use crate::abilities::{self, Abilities};
use crate::apt::Prepare;
use crate::digest::Inputs;
use crate::error::{GuestError, Result};
use crate::fetch;
use crate::lock::{Lock, LockError, LockedPackage};
use crate::progress::{Progress, Stage, Total};
use crate::recipe::{Conduct, Image, Recipe};
use crate::store::{Entry, Record, Root as StoreRoot, Store, Using};

pub use locking::{Locked, Update};

/// Part of every digest of inputs. Raise it when the same recipe and lock shall give other bytes than before, which a new
/// release of a compressor can mean as well.
pub(crate) const BUILDER_VERSION: &str = "2";

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
    /// The recipe's, over what the container image says that the root is made of.
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

    /// Begins a stage that counts packages or the like, if anything.
    pub(crate) fn stage(&self, name: &str, total: Option<u64>) -> Box<dyn Stage> {
        self.progress.stage(name, total.map_or(Total::Unknown, Total::Items))
    }

    /// Begins a stage that counts bytes.
    pub(crate) fn download(&self, name: &str, bytes: u64) -> Box<dyn Stage> {
        self.progress.stage(name, Total::Bytes(bytes))
    }

    pub(crate) fn prepare(&self) -> Prepare {
        self.prepare
    }

    pub(crate) fn is_offline(&self) -> bool {
        self.offline
    }

    /// The guest as the store holds it; `None` where a build would have anything to do. Makes nothing and fetches nothing.
    pub fn built(&self, recipe: &Recipe) -> Result<Option<GuestImage>> {
        let recalling = Builder { recalling: true, frozen: true, ..*self };
        match recalling.locked(recipe).and_then(|lock| recalling.realise(recipe, &lock)) {
            Ok((image, _)) => Ok(Some(image)),
            Err(
                GuestError::NotBuilt | GuestError::Lock(LockError::Missing { .. } | LockError::Stale { .. }),
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Builds what of the guest is not in the store yet. What it is made of stays in the store as long as the recipe's file
    /// exists.
    pub fn build(&self, recipe: &Recipe) -> Result<GuestImage> {
        let using = self.store.using()?;
        let lock = self.locked(recipe)?;
        let (image, records) = self.realise(recipe, &lock)?;
        self.keep(&using, StoreRoot::of_file(&recipe.path)?, &lock, records)?;
        Ok(image)
    }

    /// As [`Builder::build`], with a lock that need not be a file, for something that vmprof itself needs.
    pub(crate) fn build_locked(&self, recipe: &Recipe, lock: &Lock, name: &str) -> Result<GuestImage> {
        let using = self.store.using()?;
        let (image, records) = self.realise(recipe, lock)?;
        self.keep(&using, StoreRoot::of_toolset(name), lock, records)?;
        Ok(image)
    }

    /// Writes the root that keeps these records and the lock's packages.
    pub(crate) fn keep(
        &self,
        using: &Using,
        root: StoreRoot,
        lock: &Lock,
        records: impl IntoIterator<Item = Inputs>,
    ) -> Result<()> {
        let packages = lock
            .kernel
            .iter()
            .chain(&lock.packages)
            .flat_map(|package| [fetch::inputs(package.sha256), packages::inputs(package)]);
        if !using.root(&root.records(records).packages(packages))? {
            let store = self.store.root().display();
            self.progress
                .note(&format!("{store} may not be written: its owner's gc may remove what was found"));
        }
        Ok(())
    }

    /// The image, with the inputs whose records a root has to keep.
    fn realise(&self, recipe: &Recipe, lock: &Lock) -> Result<(GuestImage, Vec<Inputs>)> {
        let plan = match &recipe.image {
            Image::None => None,
            Image::Root { format, exclude } => {
                Some((disk::Plan::new(recipe, lock, *format, exclude)?, format))
            }
        };
        let kernel = Source::of(recipe, lock)?;
        let boot_is_there = self.has_boot_files(recipe, &kernel);
        let root_is_there = plan.as_ref().is_none_or(|(plan, _)| self.has_root(plan));
        if self.recalling && !(boot_is_there && root_is_there) {
            return Err(GuestError::NotBuilt);
        }
        let of_kernel = lock.kernel.iter().filter(|_| !boot_is_there);
        let packages: Vec<&LockedPackage> =
            of_kernel.chain(lock.packages.iter().filter(|_| !root_is_there)).collect();
        self.have_unpacked(&packages, &lock.asked.suite)?;
        let (boot, root) = std::thread::scope(|scope| {
            let boot = scope.spawn(|| self.boot_files(recipe, &kernel));
            let root = plan.as_ref().map(|(plan, format)| Ok::<_, GuestError>((self.root(plan)?, *format)));
            (boot.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), root.transpose())
        });
        let boot = boot?;
        let mut records = boot.inputs.to_vec();
        let root = root?;
        records.extend(root.as_ref().map(|(built, _)| built.inputs));
        let config = root.as_ref().and_then(|(built, _)| built.config.clone());
        let abilities = abilities::of_facts(&boot.facts, root.as_ref().map(|(built, _)| &built.facts));
        let root = root.map(|(built, format)| (built.entry, format));
        let image = GuestImage {
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
            conduct: recipe.conduct_with(&config.unwrap_or_default()),
            abilities,
        };
        Ok((image, records))
    }

    /// Builds the guest again, into nothing, and compares it with what the store holds. Names the first difference.
    pub fn check(&self, recipe: &Recipe) -> Result<GuestImage> {
        let _using = self.store.using()?;
        let image = self.build(recipe)?;
        self.compare(recipe, &image)?;
        Ok(image)
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

/// The first entry of a record that names one; a record without it was not written by this crate.
pub(crate) fn role(inputs: Inputs, entries: Vec<Entry>, role: &str) -> Result<Entry> {
    entries.into_iter().next().ok_or_else(|| GuestError::BadArchive {
        what: format!("record {inputs}"),
        problem: format!("it names no {role}"),
    })
}

#[cfg(test)]
mod matrix;
#[cfg(test)]
mod tests;
