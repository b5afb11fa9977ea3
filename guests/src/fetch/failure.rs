//! Why packages did not come, told from what apt said about each archive.

use std::path::PathBuf;

use rustix::io::Errno;

use super::count;
use crate::apt::encode_path;
use crate::error::GuestError;
use crate::lock::LockedPackage;

/// The archives that were asked, and what apt said.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    tried: Vec<String>,
    said: Vec<String>,
}

impl Attempts {
    pub(super) fn add(&mut self, base: &str, said: Vec<String>) {
        self.tried.push(base.to_owned());
        self.said.extend(said);
    }

    /// The error for packages that no archive gave. Of several reasons the one that matters most: a full disk, wrong bytes, a
    /// connection that failed, and only then that it is nowhere.
    pub(super) fn explain(self, tmp: PathBuf, left: &[&LockedPackage]) -> GuestError {
        let lines = || self.said.iter().flat_map(|said| said.lines());
        if lines().any(|line| line.contains("No space left on device")) {
            return GuestError::NoSpace { path: tmp, source: Errno::NOSPC.into() };
        }
        let about = |package: &LockedPackage, line: &str| {
            line.contains(&encode_path(&package.path)) || line.contains(&package.path)
        };
        let differs = |line: &&str| line.contains("Hash Sum mismatch") || line.contains("unexpected size");
        if let Some(line) = lines().find(differs) {
            let package = left.iter().find(|package| about(package, line)).or(left.first());
            if let Some(package) = package {
                return mismatch(package, "another one".to_owned());
            }
        }
        let absent = |line: &str| ["404", "File not found", "No such file"].iter().any(|w| line.contains(w));
        let failed = |line: &&str| line.starts_with("E: Failed to fetch") && !absent(line);
        if !lines().any(|line| failed(&line)) && lines().any(absent) {
            return GuestError::PackageGone { names: names(left), tried: self.tried };
        }
        GuestError::AptFailed {
            doing: format!("fetching {}", count(left.len())),
            command: "apt-helper download-file".to_owned(),
            output: self.said.join("\n"),
        }
    }
}

/// The error for packages that are in no archive, and that nothing more is known about.
pub(super) fn gone(packages: &[&LockedPackage]) -> GuestError {
    GuestError::PackageGone { names: names(packages), tried: Vec::new() }
}

fn names(packages: &[&LockedPackage]) -> Vec<String> {
    packages.iter().map(|package| format!("{} {}", package.name, package.version)).collect()
}

pub(super) fn mismatch(package: &LockedPackage, found: String) -> GuestError {
    GuestError::HashMismatch {
        what: format!("package {} {}", package.name, package.version),
        wanted: package.sha256,
        found,
    }
}
