//! How one lock differs from another, package by package: what `vmprof lock` tells.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Lock, LockedPackage};

/// One package that is new, gone or another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub name: String,
    /// `None`: it is new.
    pub before: Option<LockedPackage>,
    /// `None`: it is gone.
    pub after: Option<LockedPackage>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match (&self.before, &self.after) {
            (None, Some(new)) => write!(f, "added   {name} {}", new.version),
            (Some(old), None) => write!(f, "removed {name} {}", old.version),
            (Some(old), Some(new)) if old.version == new.version => {
                write!(f, "changed {name} {}: other bytes under the same version", new.version)
            }
            (Some(old), Some(new)) => write!(f, "changed {name} {} → {}", old.version, new.version),
            (None, None) => write!(f, "nothing of {name}"),
        }
    }
}

/// What `after` changes, sorted by name; everything is new where there was nothing before.
pub fn changes(before: Option<&Lock>, after: &Lock) -> Vec<Change> {
    fn all(lock: &Lock) -> BTreeMap<&str, &LockedPackage> {
        lock.kernel.iter().chain(&lock.packages).map(|package| (package.name.as_str(), package)).collect()
    }
    let (old, new) = (before.map(all).unwrap_or_default(), all(after));
    let names: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
    let change = |name: &str| Change {
        name: name.to_owned(),
        before: old.get(name).map(|package| (*package).clone()),
        after: new.get(name).map(|package| (*package).clone()),
    };
    names.into_iter().map(change).filter(|change| change.before != change.after).collect()
}
