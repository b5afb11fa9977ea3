//! The image a VM boots: what the builder made, as paths that are valid where the VM runs. The lab's emulated host gets it
//! as a file, with its own paths (docs/decisions/0004).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmprof_guests::{Abilities, Builder, Conduct, GuestImage, Recipe, RootImage};

use super::root::{self, PrivateRoot};
use crate::failure::{Failure, Kind};
use crate::places::Places;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootImage {
    pub guest: String,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// A guest without one lives in its initramfs.
    pub root: Option<RootImage>,
    /// The root is this run's own copy already, to be written to.
    pub private_root: bool,
    /// The guest's digest: its root image's.
    pub digest: String,
    pub cmdline: Option<String>,
    pub conduct: Conduct,
    pub abilities: Abilities,
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
            private_root: false,
            digest: image.digest,
            cmdline: image.cmdline,
            conduct: image.conduct,
            abilities: image.abilities,
        })
    }

    /// With a copy of its root for this run alone, where the guest writes to it: the store's bytes stay what they are.
    pub fn with_private_root(
        self,
        places: &Places,
        name: &str,
    ) -> Result<(BootImage, Option<PrivateRoot>), Failure> {
        // Whatever runs next, a killed run's copy is in the way; where it cannot be removed, the next copy says so.
        let _ = root::sweep(&places.roots());
        let Some(root) = self.root.clone().filter(|root| root.writable && !self.private_root) else {
            return Ok((self, None));
        };
        let copy = PrivateRoot::copy(&root.path, &places.roots(), name).map_err(|error| {
            let roots = places.roots();
            Failure::os(
                format!("the guest's root cannot be copied to {} for this run", roots.display()),
                error,
            )
        })?;
        let root = RootImage { path: copy.path().to_owned(), ..root };
        Ok((BootImage { root: Some(root), private_root: true, ..self }, Some(copy)))
    }

    /// The files of the store that a run reads for as long as it lives, and that are held against its collection.
    pub fn entries(&self) -> Vec<&Path> {
        let root = self.root.as_ref().filter(|_| !self.private_root);
        [Some(&self.kernel), Some(&self.initramfs), root.map(|root| &root.path)]
            .into_iter()
            .flatten()
            .map(PathBuf::as_path)
            .collect()
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
