//! What can go wrong between vmprof and the host's apt.

use std::io;
use std::path::PathBuf;

use crate::error::{FailureClass, near_help};

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum AptError {
    #[error("this host has no `{program}`, which vmprof fetches Debian packages with")]
    #[diagnostic(
        code(vmprof::guest::no_apt),
        help(
            "guests are locked and fetched through apt of a Debian host. Build on such a host and copy the store, or give the lab a QEMU of at least 11.1 on PATH"
        )
    )]
    NoApt { program: String, source: io::Error },

    #[error("no Debian keyring on this host: looked for {}", looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "))]
    #[diagnostic(code(vmprof::guest::no_keyring), help("install the package debian-archive-keyring"))]
    NoKeyring { looked: Vec<PathBuf> },

    #[error("apt on this host names no archive that could hold Debian {suite}")]
    #[diagnostic(
        code(vmprof::guest::no_archive),
        help("`apt-get --print-uris update` shows what apt knows; add a Debian source with component main")
    )]
    NoArchive { suite: String },

    #[error("the archive of this host has no Debian {suite}")]
    #[diagnostic(
        code(vmprof::guest::no_suite),
        help("check the suite's name: `bookworm`, `trixie`, or one of their `-updates` and `-backports`")
    )]
    NoSuite { suite: String, output: String },

    #[error("`{command}` failed while {doing}:\n{output}")]
    #[diagnostic(
        code(vmprof::guest::apt_failed),
        help(
            "see that the network and a proxy, if there is one, are set up for apt: `apt-get update` must work for this user's environment"
        )
    )]
    Failed { doing: String, command: String, output: String },

    #[error("Debian {suite} (main, {arch}) has no package `{name}`")]
    #[diagnostic(code(vmprof::guest::unknown_package), help("{}", near_help(near)))]
    UnknownPackage { name: String, suite: String, arch: String, near: Vec<String> },

    #[error("`without {name}` drops nothing: the packages do not depend on it")]
    #[diagnostic(code(vmprof::guest::without_unused), help("{}", near_help(near)))]
    WithoutUnused { name: String, near: Vec<String> },
}

impl AptError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::NoSuite { .. } | Self::UnknownPackage { .. } | Self::WithoutUnused { .. } => {
                FailureClass::Invalid
            }
            Self::NoApt { .. } | Self::NoKeyring { .. } | Self::NoArchive { .. } | Self::Failed { .. } => {
                FailureClass::Failure
            }
        }
    }
}
