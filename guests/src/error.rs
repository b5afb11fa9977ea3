//! What can go wrong between a recipe and an image, each with what was asked, what was found and the next step. What one area
//! raises lies in its `error.rs`; here is what any step can meet, and the type that all of them come together in. Problems
//! inside a recipe or a lock file carry spans and arrive as one list.

use std::io;
use std::path::{Path, PathBuf};

use crate::apt::AptError;
use crate::digest::Sha256;
use crate::emulator::EmulatorError;
use crate::fetch::FetchError;
use crate::image::ImageError;
use crate::kernel::KernelError;
use crate::lock::LockError;
use crate::oci::OciError;
use crate::passt::PasstError;
use crate::root::RootError;
use crate::store::StoreError;
use crate::tree::TreeError;

/// Which of the command line's exit codes a failure belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// The recipe or its lock is wrong: exit 3.
    Invalid,
    /// Bytes differ from the hash they were asked by: exit 102.
    HashMismatch,
    /// Two builds of the same inputs differ: exit 104.
    NotDeterministic,
    /// Everything else: exit 1.
    Failure,
}

/// The result of anything in this crate that can fail.
pub type Result<T, E = GuestError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum GuestError {
    #[error(transparent)]
    #[diagnostic(transparent)]
    Document(#[from] Box<vmprof_document::Problems>),

    #[error("could not {doing} {}", path.display())]
    #[diagnostic(code(vmprof::guest::io))]
    Io { doing: &'static str, path: PathBuf, source: io::Error },

    #[error("no space left while writing {}", path.display())]
    #[diagnostic(
        code(vmprof::guest::no_space),
        help(
            "nothing half-written was left in the store. Free some space, or put the store on another disk with VMPROF_STORE"
        )
    )]
    NoSpace { path: PathBuf, source: io::Error },

    #[error("{} is not text: byte {at} is not UTF-8", path.display())]
    #[diagnostic(
        code(vmprof::guest::not_text),
        help("a guest and its lock are KDL files; `vmprof lock` makes a lock anew")
    )]
    NotText { path: PathBuf, at: usize },

    #[error("the guest is not built")]
    #[diagnostic(code(vmprof::guest::not_built), help("`vmprof build` builds it"))]
    NotBuilt,

    #[error("{what} is not what the recipe names: its SHA-256 is {found}, and {wanted} was asked for")]
    #[diagnostic(
        code(vmprof::guest::input_mismatch),
        help("bring the file that was meant, or write the other hash into the recipe if this one is")
    )]
    InputMismatch { what: String, wanted: Sha256, found: Sha256 },

    #[error("{what} is damaged or of an unknown form: {problem}")]
    #[diagnostic(code(vmprof::guest::bad_archive))]
    BadArchive { what: String, problem: String },

    #[error("building `{what}` twice gave different bytes: {difference}")]
    #[diagnostic(
        code(vmprof::guest::not_deterministic),
        help("this is a defect of vmprof or a damaged store: `vmprof store verify` tells the two apart")
    )]
    NotDeterministic { what: String, difference: String },

    #[error(transparent)]
    #[diagnostic(transparent)]
    Apt(#[from] AptError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Fetch(#[from] FetchError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Lock(#[from] LockError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Store(#[from] StoreError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Oci(#[from] OciError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Kernel(#[from] KernelError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Tree(#[from] TreeError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Root(#[from] RootError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Image(#[from] ImageError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Emulator(#[from] EmulatorError),

    #[error(transparent)]
    #[diagnostic(transparent)]
    Passt(#[from] PasstError),
}

impl GuestError {
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Document(_) | Self::NotText { .. } => FailureClass::Invalid,
            Self::InputMismatch { .. } => FailureClass::HashMismatch,
            Self::NotDeterministic { .. } => FailureClass::NotDeterministic,
            Self::Io { .. } | Self::NotBuilt | Self::NoSpace { .. } | Self::BadArchive { .. } => {
                FailureClass::Failure
            }
            Self::Apt(error) => error.class(),
            Self::Fetch(error) => error.class(),
            Self::Lock(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Oci(error) => error.class(),
            Self::Kernel(error) => error.class(),
            Self::Tree(error) => error.class(),
            Self::Root(error) => error.class(),
            Self::Image(error) => error.class(),
            Self::Emulator(error) => error.class(),
            Self::Passt(PasstError::Version { .. }) => FailureClass::Failure,
        }
    }
}

/// Turns an I/O failure into an error that names the path: `.map_err(failed("read", path))`.
pub(crate) fn failed(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> GuestError {
    let path = path.as_ref().to_owned();
    move |source| match source.kind() {
        // A limit on a file's size (`ulimit -f`) stops a writer as a full disk does.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            GuestError::NoSpace { path, source }
        }
        _ => GuestError::Io { doing, path, source },
    }
}

/// Reads a file that must be text.
pub(crate) fn read_text(doing: &'static str, path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(failed(doing, path))?;
    String::from_utf8(bytes)
        .map_err(|error| GuestError::NotText { path: path.to_owned(), at: error.utf8_error().valid_up_to() })
}

/// Which of the names that are there was meant.
pub(crate) fn near_help(near: &[String]) -> String {
    match near {
        [] => "check the name".to_owned(),
        names => {
            format!(
                "did you mean {}?",
                names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(" or ")
            )
        }
    }
}
