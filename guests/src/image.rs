//! A tree as the bytes of a filesystem, and back: which writer and which reader a format has.

mod error;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::{Result, failed};
use crate::recipe::Format;
use crate::tree::Tree;
use crate::{erofs, ext4, squashfs};

pub use error::ImageError;

/// Writes the tree's image to `out`, an empty file; `name` is what errors call it.
pub(crate) fn write(tree: &Tree, format: Format, name: &str, out: &mut File) -> Result<()> {
    match format {
        Format::Squashfs { compression } => {
            out.write_all(&squashfs::pack(tree, compression)?).map_err(failed("write the image", name))
        }
        Format::Erofs { compressed } => erofs::pack(tree, compressed, out),
        Format::Ext4 { bytes } => ext4::pack(tree, bytes, name, out),
    }
}

/// Reads the image in the file at `path` back into a tree, to compare two of them.
pub(crate) fn read(path: &Path, format: Format) -> Result<Tree> {
    match format {
        // As large as what is in them.
        Format::Squashfs { .. } => squashfs::unpack(&crate::store::read(path)?),
        Format::Erofs { .. } => erofs::unpack(&crate::store::read(path)?),
        // As large as the recipe says.
        Format::Ext4 { .. } => ext4::unpack(&File::open(path).map_err(failed("read", path))?),
    }
}
