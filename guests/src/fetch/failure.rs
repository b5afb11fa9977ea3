//! Why packages did not come, told from what apt said about each archive.

use std::path::PathBuf;

use rustix::io::Errno;

use super::{FetchError, count};
use crate::apt::{AptError, encode_path};
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
            return FetchError::Gone { names: names(left), tried: self.tried }.into();
        }
        AptError::Failed {
            doing: format!("fetching {}", count(left.len())),
            command: "apt-helper download-file".to_owned(),
            output: reasons(&self.said),
        }
        .into()
    }
}

/// How many reasons of apt an error tells.
const MOST_REASONS: usize = 6;

/// Each reason that apt gives once, with the first address that it gives it for: of a hundred packages without a network
/// there is one thing to say, and not a hundred.
fn reasons(said: &[String]) -> String {
    let lines = || said.iter().flat_map(|said| said.lines());
    let mut told: Vec<(&str, &str, usize)> = Vec::new();
    for line in lines().filter_map(|line| line.strip_prefix("E: Failed to fetch ")) {
        let (address, reason) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let reason = reason.trim();
        match told.iter_mut().find(|(_, other, _)| *other == reason) {
            Some((_, _, times)) => *times += 1,
            None => told.push((address, reason, 1)),
        }
    }
    let left = told.len().saturating_sub(MOST_REASONS);
    let mut text: Vec<String> = told
        .iter()
        .take(MOST_REASONS)
        .map(|(address, reason, times)| match times {
            1 => format!("{reason}: {address}"),
            times => format!("{reason}: {address} and {} more", times - 1),
        })
        .collect();
    if text.is_empty() {
        text = lines().take(MOST_REASONS).map(str::to_owned).collect();
    } else if left > 0 {
        text.push(format!("and {left} more reasons"));
    }
    text.join("\n")
}

/// The error for packages that are in no archive, and that nothing more is known about.
pub(super) fn gone(packages: &[&LockedPackage]) -> GuestError {
    FetchError::Gone { names: names(packages), tried: Vec::new() }.into()
}

fn names(packages: &[&LockedPackage]) -> Vec<String> {
    packages.iter().map(|package| format!("{} {}", package.name, package.version)).collect()
}

pub(super) fn mismatch(package: &LockedPackage, found: String) -> GuestError {
    FetchError::HashMismatch {
        what: format!("package {} {}", package.name, package.version),
        wanted: package.sha256,
        found,
    }
    .into()
}
