//! The lock: which exact packages a recipe's names stood for when it was last resolved. One line a package, sorted, so
//! that a change reads well in a diff; no host is named, the hash decides. `lock/file.rs` reads and writes the text.

mod changes;
mod error;
pub(crate) mod file;

use std::path::Path;

use crate::digest::Sha256;
use crate::error::{Result, read_text};
use crate::recipe::{Kernel, Recipe};

pub use changes::{Change, changes};
pub use error::LockError;

/// A resolved recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lock {
    /// The guest's name.
    pub guest: String,
    /// The suites it was resolved in, with the state their release files had.
    pub releases: Vec<Release>,
    pub arch: String,
    /// What the recipe asked for: a recipe that asks for something else needs another lock.
    pub asked: Asked,
    /// The packages that hold the kernel and its modules; not in the root image.
    pub kernel: Vec<LockedPackage>,
    /// The packages of the root image, sorted by name.
    pub packages: Vec<LockedPackage>,
}

/// One suite's release file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    pub suite: String,
    /// The file's own `Date`.
    pub date: String,
    /// Of the signed file.
    pub sha256: Sha256,
}

/// The part of a recipe that decides its lock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Asked {
    pub suite: String,
    pub packages: Vec<String>,
    pub without: Vec<String>,
    pub recommends: bool,
    pub kernel: String,
}

/// One package, exactly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedPackage {
    pub name: String,
    pub version: String,
    pub arch: String,
    pub size: u64,
    pub sha256: Sha256,
    /// Below the archive's base address: `pool/main/f/fio/fio_3.33-3_amd64.deb`.
    pub path: String,
}

impl LockedPackage {
    /// The last part of the path, which becomes the name of the store's entry.
    pub fn file_name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

impl Asked {
    pub fn by(recipe: &Recipe) -> Self {
        Self {
            suite: recipe.distribution.as_ref().map(|from| from.suite.clone()).unwrap_or_default(),
            packages: recipe.packages.names.clone(),
            without: recipe.packages.without.clone(),
            recommends: recipe.packages.recommends,
            kernel: match &recipe.kernel {
                Kernel::Package(name) => name.clone(),
                Kernel::File { .. } => "none".to_owned(),
            },
        }
    }

    /// How `now` differs, in words; `None` when it does not.
    fn difference(&self, now: &Self) -> Option<String> {
        let mut changes = Vec::new();
        let mut list = |what: &str, then: &[String], now: &[String]| {
            changes.extend(now.iter().filter(|n| !then.contains(n)).map(|n| format!("{what}`{n}` is new")));
            changes.extend(then.iter().filter(|n| !now.contains(n)).map(|n| format!("{what}`{n}` is gone")));
        };
        list("", &self.packages, &now.packages);
        list("without ", &self.without, &now.without);
        list("kernel ", std::slice::from_ref(&self.kernel), std::slice::from_ref(&now.kernel));
        list("suite ", std::slice::from_ref(&self.suite), std::slice::from_ref(&now.suite));
        if self.recommends != now.recommends {
            changes.push(format!("recommends is now {}", now.recommends));
        }
        (!changes.is_empty()).then(|| changes.join(", "))
    }
}

impl Lock {
    /// Of a recipe without packages: nothing can change about it, and no file keeps it.
    pub(crate) fn of_nothing(recipe: &Recipe) -> Self {
        Self {
            guest: recipe.name.clone(),
            releases: Vec::new(),
            arch: "amd64".to_owned(),
            asked: Asked::by(recipe),
            kernel: Vec::new(),
            packages: Vec::new(),
        }
    }

    /// Reads a lock file; every problem at once.
    pub fn read(path: &Path) -> Result<Self> {
        let text = read_text("read the lock", path)?;
        Self::parse(path, &text)
    }

    /// As [`Lock::read`], from text that belongs to `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        file::parse(path, text).map_err(|problems| Box::new(problems).into())
    }

    /// The lock file's text: the same lock gives the same bytes.
    pub fn to_text(&self) -> String {
        file::text(self)
    }

    /// Refuses a lock that was made for another list of packages.
    pub fn check(&self, recipe: &Recipe) -> Result<()> {
        match self.asked.difference(&Asked::by(recipe)) {
            None => Ok(()),
            Some(changed) => {
                Err(LockError::Stale { guest: recipe.name.clone(), path: recipe.lock_path.clone(), changed }
                    .into())
            }
        }
    }
}

#[cfg(test)]
mod tests;
