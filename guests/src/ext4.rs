//! A tree as an ext4 image, and back: for roots that are written to. The image has the features mke2fs gives a new filesystem,
//! with a journal and with sums over all metadata, and is sparse where it is empty. The facts are from the kernel's
//! Documentation/filesystems/ext4.
//!
//! ```text
//! Tree ──► population ──► layout ──► writer ──► image ──► reader ──► Tree
//!          inodes with    blocks     bytes, and
//!          their content             nothing else
//! ```
//!
//! Everything derives from the tree and the size: UUIDs and the key of directory hashes from the tree's hash, all times are 0,
//! inodes and blocks are given in the order of the paths.

mod acl;
mod allocation;
mod crc32c;
mod directory;
mod extents;
mod fields;
mod geometry;
mod groups;
mod hash;
mod identity;
mod inode;
mod journal;
mod layout;
mod population;
mod reader;
mod superblock;
mod view;
mod writer;
mod xattr;

use std::fs::File;

pub(crate) use reader::unpack;

use crate::error::{GuestError, Result, failed};
use crate::image::ImageError;
use crate::tree::Tree;
use identity::Identity;
use layout::Layout;
use population::Inode;

const FORMAT: &str = "ext4";
/// A page, which every x86-64 kernel can mount.
const BLOCK: usize = 4096;
const INODE_BYTES: usize = 256;
/// Of an inode, up to the project's number; the rest is for extended attributes.
const INODE_FIELDS: usize = 160;
/// Of an inode, for the root of the extent tree, a short link or a device's number.
const INLINE_BYTES: usize = 60;

const MIB: u64 = 1 << 20;
/// When no size is given.
const LEAST_BYTES: u64 = 64 * MIB;
/// With blocks of 4 KiB, block numbers end there for tools that count them in 32 bits.
const MOST_BYTES: u64 = 16 << 40;

/// Writes the tree's image to `out`, an empty file, which errors call `name`: of `bytes`, rounded up to whole MiB, or of what
/// the tree needs and half as much again.
pub(crate) fn pack(tree: &Tree, bytes: Option<u64>, name: &str, out: &File) -> Result<()> {
    let identity = Identity::of(&tree.manifest_hash());
    let population = population::of(tree, &identity)?;
    let (bytes, layout) = match bytes {
        Some(asked) => given(&population, &identity, asked)?,
        None => roomy(&population, &identity)?,
    };
    writer::write(&layout, &identity, bytes, out).map_err(failed("write the image", name))
}

fn given<'p, 'a>(
    population: &'p [Inode<'a>],
    identity: &Identity,
    asked: u64,
) -> Result<(u64, Layout<'p, 'a>)> {
    if asked > MOST_BYTES {
        return Err(too_large(asked));
    }
    let bytes = asked.max(1).next_multiple_of(MIB);
    match layout::plan(population, identity, bytes) {
        Some(layout) => Ok((bytes, layout)),
        None => {
            let (needed, _) = least(population, identity, bytes)?;
            Err(ImageError::TooSmall { format: FORMAT, asked, needed }.into())
        }
    }
}

fn roomy<'p, 'a>(population: &'p [Inode<'a>], identity: &Identity) -> Result<(u64, Layout<'p, 'a>)> {
    let content = population.iter().map(Inode::blocks).sum::<u64>() * BLOCK as u64;
    let bytes = (content + content / 2).next_multiple_of(MIB).max(LEAST_BYTES);
    match layout::plan(population, identity, bytes) {
        Some(layout) => Ok((bytes, layout)),
        None => least(population, identity, bytes),
    }
}

/// A size above `small`, which is too small, that is large enough when a MiB less is not.
fn least<'p, 'a>(
    population: &'p [Inode<'a>],
    identity: &Identity,
    small: u64,
) -> Result<(u64, Layout<'p, 'a>)> {
    let mut small = small / MIB;
    let (mut large, mut layout) = loop {
        let next = small * 2;
        if next * MIB > MOST_BYTES {
            return Err(too_large(next * MIB));
        }
        if let Some(layout) = layout::plan(population, identity, next * MIB) {
            break (next, layout);
        }
        small = next;
    };
    while large - small > 1 {
        let middle = small + (large - small) / 2;
        match layout::plan(population, identity, middle * MIB) {
            Some(fits) => (large, layout) = (middle, fits),
            None => small = middle,
        }
    }
    Ok((large * MIB, layout))
}

fn too_large(bytes: u64) -> GuestError {
    let (asked, most) = (bytes >> 30, MOST_BYTES >> 40);
    ImageError::Format {
        format: FORMAT,
        problem: format!("an image of {asked} GiB is larger than the {most} TiB that are supported"),
    }
    .into()
}

#[cfg(test)]
mod tests;
