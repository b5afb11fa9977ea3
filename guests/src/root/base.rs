//! What a root starts from: packages, or an image or a tar of the building machine, named by its hash. Reading one is pure but
//! for the file itself; what is in it is decided by the hash alone, so a build that finds the hash reads nothing.

use std::path::Path;

use crate::archive;
use crate::deb::Deb;
use crate::digest::{InputsHasher, Sha256};
use crate::error::{GuestError, Result};
use crate::oci;
use crate::packed::Packing;
use crate::recipe::{ImageConfig, Root};
use crate::tree::{Origin, Tree};

/// What the root's files come from, before what the recipe declares.
#[derive(Debug)]
pub(crate) enum Base {
    Packages(Vec<Deb>),
    /// The tree of an archive, as it is, and what its image says of how it is run.
    Archive {
        tree: Tree,
        config: ImageConfig,
    },
}

impl Base {
    /// What the recipe names, read where it is an archive. `debs` are the recipe's packages, and count where the root is made of
    /// them.
    pub(crate) fn of(root: &Root, debs: Vec<Deb>) -> Result<Self> {
        match root {
            Root::Packages => Ok(Self::Packages(debs)),
            Root::Oci { path, digest } => {
                let image = oci::read(path, *digest)?;
                Ok(Self::Archive { tree: image.tree, config: image.config })
            }
            Root::Tar { path, sha256 } => {
                let tree = read_tar(path, *sha256)?;
                Ok(Self::Archive { tree, config: ImageConfig::default() })
            }
        }
    }

    /// What of it decides an image's bytes.
    pub(crate) fn inputs(root: &Root, hasher: &mut InputsHasher) {
        match root {
            Root::Packages => {}
            Root::Oci { digest, .. } => {
                hasher.field("image", digest.to_string().as_bytes());
            }
            Root::Tar { sha256, .. } => {
                hasher.field("tar", sha256.to_string().as_bytes());
            }
        }
    }

    /// What an image says of how it is run.
    pub(crate) fn config(&self) -> Option<&ImageConfig> {
        match self {
            Self::Packages(_) => None,
            Self::Archive { config, .. } => Some(config),
        }
    }
}

fn read_tar(path: &Path, sha256: Sha256) -> Result<Tree> {
    let bytes = crate::store::read(path)?;
    let found = Sha256::of(&bytes);
    if found != sha256 {
        return Err(GuestError::InputMismatch { what: path.display().to_string(), wanted: sha256, found });
    }
    let bad = |problem: String| GuestError::BadArchive { what: path.display().to_string(), problem };
    let tar = match Packing::of_bytes(&bytes) {
        Packing::None => bytes,
        packing @ (Packing::Gzip | Packing::Xz | Packing::Zstd) => packing.unpack(&bytes).map_err(bad)?,
        other => return Err(bad(format!("it is packed with {}; gzip, xz and zstd are read", other.name()))),
    };
    // The hash and not the path: the same bytes elsewhere are the same image.
    let files = archive::read(&sha256.to_string(), &tar, &|_| true).map_err(bad)?;
    let by = Origin::Package { name: path.display().to_string(), replaces: [].into() };
    let mut tree = Tree::default();
    for (at, node) in files {
        if at.is_empty() {
            tree.lay("", node).map_err(bad)?;
        } else {
            tree.put(&at, node, &by)?;
        }
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FailureClass;
    use crate::testing::{self, Thing};

    fn root(directory: &Path, bytes: &[u8]) -> Root {
        let path = directory.join("root.tar");
        std::fs::write(&path, bytes).unwrap();
        Root::Tar { path, sha256: Sha256::of(bytes) }
    }

    #[test]
    fn a_tar_reads_the_same_however_it_is_packed() {
        let dir = tempfile::tempdir().unwrap();
        let tar = testing::tar(&[
            ("etc", Thing::Dir),
            ("etc/x", Thing::File(0o640, b"1")),
            ("y", Thing::HardLink("etc/x")),
        ]);
        let tree = |bytes: &[u8]| match Base::of(&root(dir.path(), bytes), Vec::new()).unwrap() {
            Base::Archive { tree, .. } => tree,
            other => panic!("{other:?}"),
        };
        let plain = tree(&tar);
        assert_eq!(plain.iter().count(), 1 + 3);
        for form in [".gz", ".xz", ".zst"] {
            let packed = tree(&testing::pack(form, &tar));
            assert_eq!(packed.manifest_hash(), plain.manifest_hash(), "{form}");
        }
    }

    #[test]
    fn another_tar_than_the_recipe_names_is_a_mismatch_that_says_both_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let tar = testing::tar(&[("x", Thing::File(0o644, b"1"))]);
        let Root::Tar { path, .. } = root(dir.path(), &tar) else { panic!("a tar") };
        let wanted = Sha256::of(b"another");
        let error = Base::of(&Root::Tar { path, sha256: wanted }, Vec::new()).unwrap_err();
        assert_eq!(error.class(), FailureClass::HashMismatch);
        let text = error.to_string();
        assert!(text.contains(&wanted.to_string()) && text.contains(&Sha256::of(&tar).to_string()), "{text}");
    }

    #[test]
    fn packings_that_a_root_may_not_have_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let error = Base::of(&root(dir.path(), b"BZh91AY"), Vec::new()).unwrap_err();
        assert!(error.to_string().contains("bzip2"), "{error}");
    }
}
