//! What cannot be at a path.

use crate::error::FailureClass;

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum TreeError {
    #[error("packages `{first}` and `{second}` both hold /{path}, with different content")]
    #[diagnostic(
        code(vmprof::guest::file_conflict),
        help(
            "leave one of the packages out, `exclude` the path, or write the path as a `file` of the recipe"
        )
    )]
    Conflict { path: String, first: String, second: String },

    #[error("{by} puts something at /{path}, but {reason}")]
    #[diagnostic(code(vmprof::guest::bad_path))]
    BadPath { path: String, by: String, reason: String },
}

impl TreeError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Conflict { .. } | Self::BadPath { .. } => FailureClass::Invalid,
        }
    }
}
