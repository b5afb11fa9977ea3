//! One inode: 32 bytes where everything fits, else 64.

use super::content::{Body, Stored};
use super::inventory::Item;
use super::superblock::little;
use super::{BLOCK_BYTES, compress, problem, xattr};
use crate::error::Result;
use crate::tree::Kind;

pub(super) const COMPACT_BYTES: usize = 32;
const EXTENDED_BYTES: usize = 64;

/// Of a file's content, behind its inode. The kernel reads the inodes' blocks one by one, so whoever walks a tree waits for
/// every block that contents make the inodes take.
const MOST_TAIL_BYTES: usize = 512;

/// How content is laid out: `erofs_fs.h`'s numbers.
const FLAT_PLAIN: u16 = 0;
const COMPRESSED_FULL: u16 = 1;
const FLAT_INLINE: u16 = 2;

const TYPE: u16 = 0o170_000;
const REGULAR: u16 = 0o100_000;
const DIRECTORY: u16 = 0o040_000;
const LINK: u16 = 0o120_000;
const CHAR_DEVICE: u16 = 0o020_000;
const BLOCK_DEVICE: u16 = 0o060_000;
const FIFO: u16 = 0o010_000;

/// What an inode takes in the area of the inodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    extended: bool,
    xattrs: Vec<u8>,
    /// Bytes of content that follow the inode.
    pub(super) tail: usize,
    /// All together.
    pub(super) bytes: usize,
}

impl Shape {
    /// Of an inode whose content is stored as it is. The tail must lie in one block, so it follows the inode where both
    /// fit into one.
    pub(super) fn flat(item: &Item<'_>, size: usize) -> Result<Self> {
        let mut shape = Self::bare(item, size)?;
        let tail = size % BLOCK_BYTES;
        let near = tail <= MOST_TAIL_BYTES || !matches!(item.node.kind, Kind::File(_));
        if near && shape.bytes + tail <= BLOCK_BYTES {
            shape.tail = tail;
            shape.bytes += tail;
        }
        Ok(shape)
    }

    pub(super) fn compressed(item: &Item<'_>, size: usize) -> Result<Self> {
        let mut shape = Self::bare(item, size)?;
        shape.bytes = shape.bytes.next_multiple_of(8) + compress::index_bytes(size);
        Ok(shape)
    }

    fn bare(item: &Item<'_>, size: usize) -> Result<Self> {
        let node = item.node;
        let short = [node.uid, node.gid, item.links].iter().all(|number| u16::try_from(*number).is_ok());
        let extended = !short || u32::try_from(size).is_err();
        let xattrs = xattr::encode(item.path, &node.xattrs)?;
        let own = if extended { EXTENDED_BYTES } else { COMPACT_BYTES };
        Ok(Self { extended, bytes: own + xattrs.len(), xattrs, tail: 0 })
    }
}

/// The inode, its extended attributes and the index of a compressed file; of anything else the tail follows.
pub(super) fn encode(item: &Item<'_>, body: &Body, block: u32, number: u32) -> Result<Vec<u8>> {
    let node = item.node;
    let shape = &body.shape;
    let (layout, value) = match (&body.stored, &node.kind) {
        (_, Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor }) => {
            (FLAT_PLAIN, device(item.path, *major, *minor)?)
        }
        (Stored::Compressed(extents), _) => {
            (COMPRESSED_FULL, extents.iter().map(|extent| extent.blocks).sum())
        }
        (Stored::Flat { .. }, _) => (if shape.tail > 0 { FLAT_INLINE } else { FLAT_PLAIN }, block),
    };
    let xattrs = u16::try_from(xattr::count(&shape.xattrs)).unwrap_or(u16::MAX);
    let mut inode = Vec::with_capacity(shape.bytes);
    inode.extend((layout << 1 | u16::from(shape.extended)).to_le_bytes());
    inode.extend(xattrs.to_le_bytes());
    inode.extend((file_type(&node.kind) | node.mode & !TYPE).to_le_bytes());
    if shape.extended {
        inode.extend([0; 2]);
        inode.extend((body.size as u64).to_le_bytes());
        inode.extend(value.to_le_bytes());
        inode.extend(number.to_le_bytes());
        inode.extend(node.uid.to_le_bytes());
        inode.extend(node.gid.to_le_bytes());
        inode.extend([0; 8 + 4]); // the time
        inode.extend(item.links.to_le_bytes());
        inode.extend([0; 16]);
    } else {
        inode.extend((item.links as u16).to_le_bytes());
        inode.extend((body.size as u32).to_le_bytes());
        inode.extend([0; 4]); // the time, as in the superblock
        inode.extend(value.to_le_bytes());
        inode.extend(number.to_le_bytes());
        inode.extend((node.uid as u16).to_le_bytes());
        inode.extend((node.gid as u16).to_le_bytes());
        inode.extend([0; 4]);
    }
    inode.extend(&shape.xattrs);
    if let Stored::Compressed(extents) = &body.stored {
        inode.resize(inode.len().next_multiple_of(8), 0);
        inode.extend(compress::encode_index(body.size, extents));
    }
    Ok(inode)
}

fn file_type(kind: &Kind) -> u16 {
    match kind {
        Kind::File(_) => REGULAR,
        Kind::Directory => DIRECTORY,
        Kind::Link(_) => LINK,
        Kind::CharDevice { .. } => CHAR_DEVICE,
        Kind::BlockDevice { .. } => BLOCK_DEVICE,
        Kind::Fifo => FIFO,
    }
}

/// What a directory says of the inode behind a name.
pub(super) fn entry_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory => 2,
        Kind::CharDevice { .. } => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::Fifo => 5,
        Kind::Link(_) => 7,
    }
}

/// Linux's 32-bit form of a device number.
fn device(path: &str, major: u32, minor: u32) -> Result<u32> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err(problem(format!("/{path}: {major}:{minor} is no device number")));
    }
    Ok((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// An inode as it is read back.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    size: u64,
    value: u32,
    layout: u16,
    /// Where its extended attributes begin in the image, and how long they are.
    xattrs: (usize, usize),
}

/// What an inode read back is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    File,
    Directory,
    Link,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

impl Found {
    pub(super) fn read(image: &[u8], at: usize) -> Result<Self> {
        let number = |offset: usize, bytes: usize| {
            little(image, at.checked_add(offset).ok_or_else(|| problem("an inode beyond everything"))?, bytes)
        };
        let word = |offset: usize| number(offset, 4).map(|word| word as u32);
        let format = number(0, 2)? as u16;
        let extended = format & 1 == 1;
        let own = if extended { EXTENDED_BYTES } else { COMPACT_BYTES };
        // All of it, before parts.
        number(own - 8, 8)?;
        let xattrs = (at + own, xattr::bytes(number(2, 2)? as u16));
        let mode = number(4, 2)? as u16;
        let layout = format >> 1;
        Ok(if extended {
            let (uid, gid, links) = (word(24)?, word(28)?, word(44)?);
            Self { mode, uid, gid, links, size: number(8, 8)?, value: word(16)?, layout, xattrs }
        } else {
            let (uid, gid, links) = (number(24, 2)? as u32, number(26, 2)? as u32, number(6, 2)? as u32);
            Self { mode, uid, gid, links, size: number(8, 4)?, value: word(16)?, layout, xattrs }
        })
    }

    pub(super) fn kind(&self) -> Result<Type> {
        let (major, minor) = ((self.value >> 8) & 0xfff, (self.value & 0xff) | ((self.value >> 12) & !0xff));
        Ok(match self.mode & TYPE {
            REGULAR => Type::File,
            DIRECTORY => Type::Directory,
            LINK => Type::Link,
            CHAR_DEVICE => Type::CharDevice { major, minor },
            BLOCK_DEVICE => Type::BlockDevice { major, minor },
            FIFO => Type::Fifo,
            other => return Err(problem(format!("an inode of type {other:o}, which no build makes"))),
        })
    }

    pub(super) fn permissions(&self) -> u16 {
        self.mode & !TYPE
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn xattrs<'a>(&self, image: &'a [u8]) -> Result<&'a [u8]> {
        let (at, bytes) = self.xattrs;
        image.get(at..at + bytes).ok_or_else(|| problem("extended attributes beyond the image's end"))
    }

    /// What it holds.
    pub(super) fn content(&self, image: &[u8]) -> Result<Vec<u8>> {
        let beyond = || problem("content beyond the image's end");
        let size = usize::try_from(self.size).map_err(|_| beyond())?;
        let (xattrs, bytes) = self.xattrs;
        let own_end = xattrs + bytes;
        let tail = match self.layout {
            COMPRESSED_FULL => return compress::read(image, own_end, size),
            FLAT_INLINE => size % BLOCK_BYTES,
            FLAT_PLAIN => 0,
            other => return Err(problem(format!("a layout with the number {other}"))),
        };
        let first = self.value as usize * BLOCK_BYTES;
        let whole = size - tail;
        let end = first.checked_add(whole).ok_or_else(beyond)?;
        let blocks = if whole == 0 { &[][..] } else { image.get(first..end).ok_or_else(beyond)? };
        let tail = image.get(own_end..own_end + tail).ok_or_else(beyond)?;
        Ok([blocks, tail].concat())
    }
}
