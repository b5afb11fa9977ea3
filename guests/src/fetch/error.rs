//! Why packages are not in the store.

use crate::digest::Sha256;
use crate::error::FailureClass;

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum FetchError {
    #[error("{} not in the store, and --offline forbids fetching: {}", count_are(names.len()), some(names))]
    #[diagnostic(code(vmprof::guest::offline), help("run the same build once without --offline"))]
    Offline { names: Vec<String> },

    #[error("{what} has the wrong bytes: SHA-256 {wanted} was asked for, {found} came")]
    #[diagnostic(
        code(vmprof::guest::hash_mismatch),
        help(
            "nothing was kept. The archive, a proxy or the lock file is not what it was when the lock was made"
        )
    )]
    HashMismatch { what: String, wanted: Sha256, found: String },

    #[error("no source of this host has {}{}", names.join(", "), list_tried(tried))]
    #[diagnostic(
        code(vmprof::guest::package_gone),
        help(
            "an archive drops a version when the next one comes: `vmprof lock --update={}` on the guest locks the present one. To build the old one, add a source to apt that still has it; its signature does not matter, the lock's hash decides",
            names.first().and_then(|name| name.split(' ').next()).unwrap_or("PACKAGE")
        )
    )]
    Gone { names: Vec<String>, tried: Vec<String> },
}

impl FetchError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Offline { .. } | Self::Gone { .. } => FailureClass::Failure,
            Self::HashMismatch { .. } => FailureClass::HashMismatch,
        }
    }
}

/// How many of many names an error tells.
const MOST_NAMES: usize = 12;

fn count_are(packages: usize) -> String {
    match packages {
        1 => "1 package is".to_owned(),
        n => format!("{n} packages are"),
    }
}

/// The first of the names in their order, and how many there are besides.
fn some(names: &[String]) -> String {
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    let left = sorted.len().saturating_sub(MOST_NAMES);
    sorted.truncate(MOST_NAMES);
    let more = if left == 0 { String::new() } else { format!(" and {left} more") };
    format!("{}{more}", sorted.join(", "))
}

fn list_tried(tried: &[String]) -> String {
    match tried {
        [] => String::new(),
        bases => format!(": looked in apt's cache, {}", bases.join(", ")),
    }
}
