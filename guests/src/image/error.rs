//! What a writer or a reader of an image refuses.

use crate::error::FailureClass;

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum ImageError {
    #[error("squashfs: {problem}")]
    #[diagnostic(code(vmprof::guest::squashfs))]
    Squashfs { problem: String },

    #[error("squashfs: /{path} has the extended attribute {name}, which vmprof's squashfs cannot hold")]
    #[diagnostic(
        code(vmprof::guest::squashfs_xattr),
        help(
            "write `image root {{ format erofs }}`: that format keeps extended attributes. Or leave the file out with `exclude`"
        )
    )]
    SquashfsXattr { path: String, name: String },

    #[error("{format}: {problem}")]
    #[diagnostic(code(vmprof::guest::image_format))]
    Format { format: &'static str, problem: String },

    #[error("the {format} image of {} MiB is too small: what goes into it needs {} MiB", asked >> 20, needed >> 20)]
    #[diagnostic(
        code(vmprof::guest::image_too_small),
        help(
            "give `format {format}` a size of at least \"{}MiB\", or none: then it is what its files need and half as much again",
            needed >> 20
        )
    )]
    TooSmall { format: &'static str, asked: u64, needed: u64 },
}

impl ImageError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::SquashfsXattr { .. } | Self::TooSmall { .. } => FailureClass::Invalid,
            Self::Squashfs { .. } | Self::Format { .. } => FailureClass::Failure,
        }
    }
}
