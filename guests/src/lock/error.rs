//! What a lock can lack, and what it cannot be made or changed for.

use std::path::PathBuf;

use crate::error::{FailureClass, near_help};

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum LockError {
    #[error("guest `{guest}` has no lock file: {} does not exist, and --frozen forbids making one", path.display())]
    #[diagnostic(
        code(vmprof::guest::no_lock),
        help("run `vmprof lock` on the guest once, and keep the file it writes beside the recipe")
    )]
    Missing { guest: String, path: PathBuf },

    #[error("the lock file of guest `{guest}` belongs to another list of packages: {changed}")]
    #[diagnostic(
        code(vmprof::guest::stale_lock),
        help("run `vmprof lock` on the guest: it resolves the packages again and rewrites {}", path.display())
    )]
    Stale { guest: String, path: PathBuf, changed: String },

    #[error("`--update={name}`: the lock of guest `{guest}` has no package `{name}`")]
    #[diagnostic(code(vmprof::guest::not_locked), help("{}", not_locked_help(near, *is_asked_for)))]
    NotLocked {
        name: String,
        guest: String,
        near: Vec<String>,
        /// Whether the recipe names it, and the lock is older than that.
        is_asked_for: bool,
    },

    #[error("cannot resolve the packages of guest `{guest}` offline")]
    #[diagnostic(
        code(vmprof::guest::lock_needs_network),
        help(
            "run `vmprof lock` once without --offline; builds from the lock then need the network only for what the store lacks"
        )
    )]
    NeedsNetwork { guest: String },
}

impl LockError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Missing { .. } | Self::Stale { .. } => FailureClass::Invalid,
            Self::NotLocked { .. } | Self::NeedsNetwork { .. } => FailureClass::Failure,
        }
    }
}

fn not_locked_help(near: &[String], is_asked_for: bool) -> String {
    match is_asked_for {
        true => "the recipe asks for it anew: `vmprof lock` without --update locks it".to_owned(),
        false => near_help(near),
    }
}
