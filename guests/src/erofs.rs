//! A tree as an EROFS image, and back. What is said here about the format is said by the kernel's `fs/erofs/erofs_fs.h`
//! and `Documentation/filesystems/erofs.rst`; Linux 6.1 mounts every image that is written here, and so do later ones.
//!
//! ```text
//! block 0      superblock, parameters of LZ4
//! block 1 …    contents of files, in the order of the inodes
//! …            blocks of directories
//! …            inodes, each with its extended attributes, the index of a compressed file or the tail of what it holds
//! ```
//!
//! The inodes come last because they say where everything else is, so that one pass over a file writes the image. Times
//! are 0 and the UUID is the tree's hash: the same tree gives the same bytes.

mod compress;
mod content;
mod directory;
mod inode;
mod inventory;
mod meta;
mod read;
mod superblock;
mod xattr;

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};

use crate::error::{GuestError, Result};
use crate::image::ImageError;
use crate::tree::Tree;

pub(crate) use read::unpack;

/// Of a filesystem block. Linux 6.1 mounts no other size than its own page's.
const BLOCK_BYTES: usize = 4096;

/// Packs the tree into `out`, an empty file. `compressed` is LZ4 for files that become smaller by it.
pub(crate) fn pack(tree: &Tree, compressed: bool, out: &mut File) -> Result<()> {
    let inventory = inventory::take(tree)?;
    let mut blocks = Blocks::after_superblock(out)?;
    let bodies = content::write(&inventory, compressed, &mut blocks)?;
    let layout = meta::lay_out(&inventory, &bodies)?;
    let directories = directory::write(&inventory, &layout, &mut blocks)?;
    let meta_block = blocks.next;
    blocks.put(&meta::encode(&inventory, &bodies, &directories, &layout)?)?;
    let superblock = superblock::Superblock {
        root_nid: layout.root_nid()?,
        inodes: inventory.items.len() as u64,
        blocks: blocks.next,
        meta_block,
        uuid: uuid(tree),
        compressed,
    };
    blocks.finish(&superblock.block())
}

/// Of version 8, which leaves all but six bits to the writer.
fn uuid(tree: &Tree) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (to, from) in uuid.iter_mut().zip(tree.manifest_hash().as_bytes()) {
        *to = *from;
    }
    uuid[6] = 0x80 | (uuid[6] & 0x0f);
    uuid[8] = 0x80 | (uuid[8] & 0x3f);
    uuid
}

/// The image as it grows, block by block.
struct Blocks<'a> {
    out: BufWriter<&'a mut File>,
    /// The number of the block that is written next.
    next: u32,
}

impl<'a> Blocks<'a> {
    fn after_superblock(out: &'a mut File) -> Result<Self> {
        let mut blocks = Self { out: BufWriter::with_capacity(1 << 20, out), next: 0 };
        blocks.put(&[0; BLOCK_BYTES])?;
        Ok(blocks)
    }

    /// Writes whole blocks, the last one filled up with zeros; returns the first one's number.
    fn put(&mut self, bytes: &[u8]) -> Result<u32> {
        let first = self.next;
        let count = bytes.len().div_ceil(BLOCK_BYTES);
        self.next = u32::try_from(count)
            .ok()
            .and_then(|count| first.checked_add(count))
            .ok_or_else(|| problem("an image ends at 2^32 blocks"))?;
        let fill = vec![0; count * BLOCK_BYTES - bytes.len()];
        self.out.write_all(bytes).and_then(|()| self.out.write_all(&fill)).map_err(failed)?;
        Ok(first)
    }

    fn finish(mut self, superblock: &[u8]) -> Result<()> {
        self.out.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.out.write_all(superblock).map_err(failed)?;
        self.out.flush().map_err(failed)
    }
}

fn failed(error: std::io::Error) -> GuestError {
    crate::error::failed("write the image", "erofs")(error)
}

fn problem(problem: impl Into<String>) -> GuestError {
    ImageError::Format { format: "erofs", problem: problem.into() }.into()
}

#[cfg(test)]
mod tests;
