//! Making and renewing locks: what a recipe's names stand for now, with every version kept that nobody asked to change.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::Builder;
use crate::apt::{Apt, Wanted};
use crate::error::{Result, failed};
use crate::lock::{Asked, Change, Lock, LockError, LockedPackage, changes};
use crate::recipe::{Distribution, Recipe};

/// Which versions of a lock may change though the archive still has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// None: only what the recipe's change needs.
    Nothing,
    /// These packages, and what they need in a newer version.
    Packages(Vec<String>),
    All,
}

/// A lock, made or renewed.
#[derive(Debug, Clone)]
pub struct Locked {
    pub lock: Lock,
    /// Against the lock file as it was.
    pub changes: Vec<Change>,
    /// Whether the file is not what it should be, or was not before it was written.
    pub differs: bool,
}

impl Builder<'_> {
    /// Resolves the recipe's packages and writes the lock file beside the recipe where it differs.
    pub fn lock(&self, recipe: &Recipe, update: &Update) -> Result<Locked> {
        let locked = self.resolve(recipe, update)?;
        if locked.differs {
            write(recipe, &locked.lock)?;
        }
        Ok(locked)
    }

    /// As [`Builder::lock`], writing nothing.
    pub fn resolve(&self, recipe: &Recipe, update: &Update) -> Result<Locked> {
        let Some(from) = &recipe.distribution else {
            return Ok(Locked { lock: Lock::of_nothing(recipe), changes: Vec::new(), differs: false });
        };
        if self.offline {
            return Err(LockError::NeedsNetwork { guest: recipe.name.clone() }.into());
        }
        let (text, before) = self.lock_before(recipe)?;
        if let (Update::Packages(names), Some(before)) = (update, &before) {
            known(names, before, recipe)?;
        }
        let mut lock = self.resolve_from(recipe, from, before.as_ref(), update)?;
        let changes = changes(before.as_ref(), &lock);
        if let Some(before) =
            before.filter(|before| *update != Update::All && changes.is_empty() && before.asked == lock.asked)
        {
            // The same packages out of a newer index are the same lock.
            lock.releases = before.releases;
        }
        let differs = text.as_deref() != Some(lock.to_text().as_str());
        Ok(Locked { lock, changes, differs })
    }

    /// The lock file's text and what it says; one that cannot be read is as good as none, and will be replaced.
    fn lock_before(&self, recipe: &Recipe) -> Result<(Option<String>, Option<Lock>)> {
        if !recipe.lock_path.exists() {
            return Ok((None, None));
        }
        let bytes = crate::store::read(&recipe.lock_path)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lock = Lock::parse(&recipe.lock_path, &text).ok();
        if lock.is_none() {
            let path = recipe.lock_path.display();
            self.progress
                .note(&format!("{path} is not a lock that this vmprof reads: resolving everything anew"));
        }
        Ok((Some(text), lock))
    }

    fn resolve_from(
        &self,
        recipe: &Recipe,
        from: &Distribution,
        before: Option<&Lock>,
        update: &Update,
    ) -> Result<Lock> {
        let asked = Asked::by(recipe);
        let arch = &from.arch;
        let name = &recipe.name;
        let reading = self.stage(&format!("locking {name}: reading Debian {}", asked.suite), None);
        let apt = Apt::update(self.store, &[&asked.suite], arch, self.prepare)?;
        drop(reading);
        let _stage = self.stage(&format!("locking {name}: resolving packages"), None);
        let kept = before.map_or_else(Vec::new, |before| kept(before, update));
        let wanted = Wanted { names: &asked.packages, without: &asked.without, recommends: asked.recommends };
        let packages = apt.resolve(&wanted, &kept)?;
        let kernel = match before.filter(|before| keeps_kernel(before, &asked, update)) {
            Some(before) if apt.has(&before.kernel)? => before.kernel.clone(),
            _ if recipe.kernel_package().is_none() => Vec::new(),
            _ => apt.resolve_kernel(&asked.kernel)?,
        };
        Ok(Lock {
            guest: name.clone(),
            releases: apt.releases()?,
            arch: arch.clone(),
            asked,
            kernel,
            packages,
        })
    }

    /// The recipe's lock: the file's, when it is for this recipe, or a new one where there is none.
    pub fn locked(&self, recipe: &Recipe) -> Result<Lock> {
        if recipe.distribution.is_none() {
            return Ok(Lock::of_nothing(recipe));
        }
        if recipe.lock_path.exists() {
            let lock = Lock::read(&recipe.lock_path)?;
            lock.check(recipe)?;
            return Ok(lock);
        }
        if self.frozen {
            return Err(
                LockError::Missing { guest: recipe.name.clone(), path: recipe.lock_path.clone() }.into()
            );
        }
        if !self.offline {
            self.progress.note(&format!("{} has no lock file yet: locking its packages", recipe.name));
        }
        Ok(self.lock(recipe, &Update::Nothing)?.lock)
    }
}

/// What to hold at its version.
fn kept<'l>(before: &'l Lock, update: &Update) -> Vec<&'l LockedPackage> {
    let kept = |package: &&LockedPackage| match update {
        Update::Nothing => true,
        Update::Packages(names) => !names.contains(&package.name),
        Update::All => false,
    };
    before.packages.iter().filter(kept).collect()
}

fn keeps_kernel(before: &Lock, asked: &Asked, update: &Update) -> bool {
    let named = |names: &[String]| {
        names.contains(&asked.kernel) || before.kernel.iter().any(|package| names.contains(&package.name))
    };
    let same = before.asked.kernel == asked.kernel && before.asked.suite == asked.suite;
    same && match update {
        Update::Nothing => true,
        Update::Packages(names) => !named(names),
        Update::All => false,
    }
}

/// Refuses names that are not in the lock: a typing error would update nothing and say so.
fn known(names: &[String], lock: &Lock, recipe: &Recipe) -> Result<()> {
    let all: BTreeSet<&str> = lock.packages.iter().chain(&lock.kernel).map(|p| p.name.as_str()).collect();
    match names.iter().find(|name| !all.contains(name.as_str()) && **name != lock.asked.kernel) {
        None => Ok(()),
        Some(name) => Err(LockError::NotLocked {
            name: name.clone(),
            guest: lock.guest.clone(),
            is_asked_for: Asked::by(recipe).packages.contains(name),
            near: vmprof_document::closest(name, all.iter().copied())
                .map(str::to_owned)
                .into_iter()
                .collect(),
        }
        .into()),
    }
}

fn write(recipe: &Recipe, lock: &Lock) -> Result<()> {
    use std::io::Write as _;

    let path = &recipe.lock_path;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let failed = |error| failed("write the lock file", path)(error);
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

#[cfg(test)]
mod tests;
