//! Why the emulator that was found is not taken.

use std::path::PathBuf;

use crate::error::FailureClass;

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum EmulatorError {
    #[error("the emulator realised from Debian is version {found}; the lab needs at least {wanted}")]
    #[diagnostic(code(vmprof::guest::emulator_version), help("put a QEMU of at least that version on PATH"))]
    Version { found: String, wanted: String },

    #[error("the emulator {} does not start: {output}", program.display())]
    #[diagnostic(code(vmprof::guest::emulator_broken))]
    Broken { program: PathBuf, output: String },
}

impl EmulatorError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Version { .. } | Self::Broken { .. } => FailureClass::Failure,
        }
    }
}
