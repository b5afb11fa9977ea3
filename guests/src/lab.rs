//! The boot files of the lab's emulated host: kernel and modules for KVM, from an embedded recipe and lock, so that the lab
//! needs no file beside the binary.

use std::path::{Path, PathBuf};

use crate::builder::Builder;
use crate::error::Result;
use crate::lock::Lock;
use crate::recipe::Recipe;

const RECIPE: &str = include_str!("../lab.kdl");
const LOCK: &str = include_str!("../lab.lock.kdl");

/// What the emulated host boots. Its initramfs is its root: the caller appends vmprof, the job and what that needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabHost {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// What `uname -r` prints in it.
    pub kernel_release: String,
    /// The whole environment of what runs in it.
    pub env: Vec<(String, String)>,
    pub hostname: String,
}

/// The lab host's boot files, built when they are not in the store yet.
pub fn lab_host(builder: &Builder<'_>) -> Result<LabHost> {
    let recipe = Recipe::parse(Path::new("lab.kdl"), RECIPE)?;
    let lock = Lock::parse(Path::new("lab.lock.kdl"), LOCK)?;
    lock.check(&recipe)?;
    let image = builder.build_locked(&recipe, &lock, "host of the lab")?;
    Ok(LabHost {
        kernel: image.kernel,
        initramfs: image.initramfs,
        kernel_release: image.kernel_release,
        env: image.conduct.env,
        hostname: image.conduct.hostname,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_lock_is_the_embedded_recipes() {
        let recipe = Recipe::parse(Path::new("lab.kdl"), RECIPE).unwrap();
        let lock = Lock::parse(Path::new("lab.lock.kdl"), LOCK).unwrap();
        lock.check(&recipe).unwrap();
        assert_eq!(lock.kernel.len(), 1);
        assert!(lock.packages.is_empty());
    }
}
