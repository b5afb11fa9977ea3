//! What can be wrong with a store, or with what is asked of it.

use std::io;
use std::path::PathBuf;

use crate::error::FailureClass;

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum StoreError {
    #[error("store entry {} is damaged: its content no longer has the hash in its name", path.display())]
    #[diagnostic(
        code(vmprof::guest::store_damaged),
        help(
            "run `vmprof store verify --repair`, which moves what is damaged out of the way, and build again: what is missing is made anew"
        )
    )]
    Damaged { path: PathBuf },

    #[error("{} is no directory, so it cannot be the store", path.display())]
    #[diagnostic(
        code(vmprof::store::not_a_directory),
        help("move it away, or name another place with VMPROF_STORE")
    )]
    NotADirectory { path: PathBuf },

    #[error("the store {} may not be written by this user", path.display())]
    #[diagnostic(
        code(vmprof::store::not_writable),
        help(
            "name a store of your own with VMPROF_STORE. A store is shared by a group when its directory belongs to that group and is group-writable with the setgid bit"
        )
    )]
    NotWritable { path: PathBuf, source: io::Error },

    #[error("the filesystem of the store {} has no locks", path.display())]
    #[diagnostic(
        code(vmprof::store::no_locks),
        help(
            "builders and gc keep out of each other's way with flock: put the store on a local filesystem with VMPROF_STORE"
        )
    )]
    NoLocks { path: PathBuf, source: io::Error },

    #[error("the store's root {} cannot be understood: {problem}", path.display())]
    #[diagnostic(
        code(vmprof::store::bad_root),
        help(
            "nothing was removed, since what it keeps is not known. `vmprof store verify --repair` moves it away; the next build of its recipe writes it anew"
        )
    )]
    BadRoot { path: PathBuf, problem: String },

    #[error("nothing in the store is called `{asked}`")]
    #[diagnostic(
        code(vmprof::store::no_entry),
        help(
            "`vmprof store ls` lists what there is; the beginning of a digest or the name of a package is enough"
        )
    )]
    NoEntry { asked: String },

    #[error("several digests in the store begin with `{asked}`: {}", first_of(names))]
    #[diagnostic(code(vmprof::store::ambiguous), help("write more of the one that is meant"))]
    Ambiguous { asked: String, names: Vec<String> },
}

impl StoreError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::NotADirectory { .. }
            | Self::NotWritable { .. }
            | Self::NoLocks { .. }
            | Self::BadRoot { .. }
            | Self::NoEntry { .. }
            | Self::Ambiguous { .. } => FailureClass::Failure,
            Self::Damaged { .. } => FailureClass::HashMismatch,
        }
    }
}

/// A list for a sentence: what is past the first few is counted.
fn first_of(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}
