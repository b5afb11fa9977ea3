//! Why a container image cannot be a root.

use std::path::PathBuf;

use crate::digest::Sha256;
use crate::error::FailureClass;

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum OciError {
    #[error("{} has no image with digest sha256:{digest}", path.display())]
    #[diagnostic(code(vmprof::guest::no_such_image), help("{}", there_help(there)))]
    NoSuchImage { path: PathBuf, digest: Sha256, there: Vec<String> },

    #[error("image sha256:{digest} of {} is for {platform}, and guests are linux/amd64", path.display())]
    #[diagnostic(
        code(vmprof::guest::image_platform),
        help(
            "save the image for that platform: `skopeo copy --override-arch amd64`, or `docker pull --platform linux/amd64`"
        )
    )]
    Platform { path: PathBuf, digest: Sha256, platform: String },

    #[error("layer {digest} of {} is of type `{media_type}`: {reason}", path.display())]
    #[diagnostic(
        code(vmprof::guest::image_layer),
        help(
            "layers that are a tar, plain or packed with gzip or zstd, are understood; save the image with those"
        )
    )]
    Layer { path: PathBuf, digest: String, media_type: String, reason: &'static str },
}

impl OciError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::NoSuchImage { .. } | Self::Platform { .. } | Self::Layer { .. } => FailureClass::Invalid,
        }
    }
}

fn there_help(there: &[String]) -> String {
    match there {
        [] => "there is no image in it".to_owned(),
        images => format!("there is: {}", images.join("; ")),
    }
}
