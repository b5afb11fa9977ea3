//! The image a VM boots: what the builder made, as paths that are valid where the VM runs. The lab's emulated host gets it
//! as a file, with its own paths (docs/decisions/0004).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmprof_guests::{Builder, Conduct, GuestImage, Recipe, RootImage};

use crate::failure::{Failure, Kind};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootImage {
    pub guest: String,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// A guest without one lives in its initramfs.
    pub root: Option<RootImage>,
    /// The guest's digest: its root image's.
    pub digest: String,
    pub cmdline: Option<String>,
    pub conduct: Conduct,
}

impl BootImage {
    /// Realises the guest's image in the builder's store, from its lock file where there is one.
    pub fn build(builder: &Builder<'_>, recipe: &Recipe) -> Result<BootImage, Failure> {
        let image: GuestImage = builder.build(recipe)?;
        Ok(BootImage {
            guest: image.name,
            kernel: image.kernel,
            initramfs: image.initramfs,
            root: image.root,
            digest: image.digest,
            cmdline: image.cmdline,
            conduct: image.conduct,
        })
    }

    pub fn read(path: &Path) -> Result<BootImage, Failure> {
        let text = std::fs::read(path).map_err(|error| {
            Failure::os(format!("the image file {} cannot be read", path.display()), error)
        })?;
        serde_json::from_slice(&text).map_err(|error| {
            let message = format!("{} is no description of an image: {error}", path.display());
            Failure::said(
                Kind::Failure,
                "vmprof::up::image_file",
                message,
                "vmprof writes it for the lab; write none by hand",
            )
        })
    }
}
