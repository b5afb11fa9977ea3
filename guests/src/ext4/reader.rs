//! An image as a tree again, to compare two of them. Nothing in the bytes is believed: every sum is checked, every place looked
//! up, and every walk is bounded by what was read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::crc32c::Checksums;
use super::directory::{self, Entry};
use super::fields::Get as _;
use super::geometry::DESCRIPTOR_BYTES;
use super::inode::{self, FLAG_EXTENTS, FLAG_INDEX, Record};
use super::population::{LOST_AND_FOUND, LOST_AND_FOUND_NAME, ROOT};
use super::view::{Bytes, View};
use super::{BLOCK, FORMAT, INLINE_BYTES, INODE_BYTES, INODE_FIELDS, extents, groups, superblock, xattr};
use crate::error::{GuestError, Result};
use crate::image::ImageError;
use crate::tree::{Kind, Node, Origin, Tree};

/// All files together may be so many times as large as the image, by their holes.
const MOST_SPARSE: u64 = 64;

/// Reads an image into a tree. Of the image itself no more is in memory at once than one file of it.
pub(crate) fn unpack(image: &dyn Bytes) -> Result<Tree> {
    let view = View::whole(image);
    let found = superblock::decode(view).map_err(problem)?;
    let mut reader = Reader {
        image: view.up_to(found.blocks),
        found,
        budget: view.length().saturating_mul(MOST_SPARSE),
        shared: BTreeMap::new(),
    };
    reader.tree()
}

fn problem(problem: String) -> GuestError {
    ImageError::Format { format: FORMAT, problem }.into()
}

struct Reader<'a> {
    image: View<'a>,
    found: superblock::Found,
    /// Bytes of content that may still be read.
    budget: u64,
    /// Inodes with several names.
    shared: BTreeMap<u32, Node>,
}

/// An inode as far as it can be read without its content.
struct Found {
    number: u32,
    record: Record,
    seed: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
}

impl Reader<'_> {
    fn tree(&mut self) -> Result<Tree> {
        let mut tree = Tree::default();
        let mut seen = BTreeSet::from([ROOT]);
        let mut left = vec![(String::new(), ROOT)];
        while let Some((path, number)) = left.pop() {
            let found = self.inode(number).ok_or_else(|| damaged_inode(number, &path))?;
            if found.record.format() != inode::FORMAT_DIRECTORY {
                return Err(problem(format!("/{path} is no directory")));
            }
            tree.put(&path, node(&found, Kind::Directory), &Origin::Recipe)?;
            let bytes = self.content(&found).ok_or_else(|| damaged_content(number, &path))?;
            let indexed = found.record.flags & FLAG_INDEX != 0;
            let entries = directory::decode(&bytes, indexed, found.seed)
                .filter(|entries| !entries.is_empty())
                .ok_or_else(|| damaged_content(number, &path))?;
            for entry in entries {
                if matches!(entry.name, b"." | b"..") {
                    continue;
                }
                let name = std::str::from_utf8(entry.name)
                    .ok()
                    .filter(|name| !name.is_empty() && !name.contains('/'))
                    .ok_or_else(|| problem(format!("/{path} has a name that no path can have")))?;
                let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
                if entry.file_type != directory::TYPE_DIRECTORY {
                    let node = self.node(&entry, &below)?;
                    tree.put(&below, node, &Origin::Recipe)?;
                } else if !seen.insert(entry.inode) {
                    return Err(problem(format!("the directory /{below} has two names")));
                } else if !self.is_our_lost_and_found(&below, entry.inode) {
                    left.push((below, entry.inode));
                }
            }
        }
        Ok(tree)
    }

    /// The one the writer made, which no tree asked for.
    fn is_our_lost_and_found(&mut self, path: &str, number: u32) -> bool {
        if path != LOST_AND_FOUND_NAME || number != LOST_AND_FOUND {
            return false;
        }
        let Some(found) = self.inode(number) else { return false };
        let plain = node(&found, Kind::Directory) == Node::directory(0o700);
        let names = self
            .content(&found)
            .and_then(|bytes| directory::decode(&bytes, false, found.seed).map(|entries| entries.len()));
        plain && names == Some(2)
    }

    fn inode(&self, number: u32) -> Option<Found> {
        if number > self.found.inodes || (number != ROOT && number < LOST_AND_FOUND) {
            return None;
        }
        let index = number.checked_sub(1)?;
        let group = index.checked_div(self.found.inodes_per_group)?;
        let at = BLOCK as u64 + u64::from(group) * DESCRIPTOR_BYTES as u64;
        let descriptor = self.image.at(at, DESCRIPTOR_BYTES)?.array::<DESCRIPTOR_BYTES>(0)?;
        let sums: Checksums = self.found.sums;
        if groups::descriptor_sum(&descriptor, group, sums) != descriptor.u16(0x1e)? {
            return None;
        }
        let table = descriptor.halves_u64(0x08, 0x28)?.checked_mul(BLOCK as u64)?;
        let inside = u64::from(index % self.found.inodes_per_group) * INODE_BYTES as u64;
        let bytes = self.image.at(table.checked_add(inside)?, INODE_BYTES)?;
        let (record, seed) = Record::decode(&bytes, |generation| sums.inode_seed(number, generation))?;
        if record.links == 0 {
            return None;
        }
        let mut xattrs = BTreeMap::new();
        xattr::decode_inside(bytes.get(INODE_FIELDS..)?, &mut xattrs)?;
        if record.xattr_block != 0 {
            let block = self.image.block(record.xattr_block)?;
            xattr::decode_block(&block, record.xattr_block, sums, &mut xattrs)?;
        }
        Some(Found { number, record, seed, xattrs })
    }

    /// Everything that is no directory.
    fn node(&mut self, entry: &Entry<'_>, path: &str) -> Result<Node> {
        if let Some(node) = self.shared.get(&entry.inode) {
            return Ok(node.clone());
        }
        let found = self.inode(entry.inode).ok_or_else(|| damaged_inode(entry.inode, path))?;
        let damaged = || damaged_content(found.number, path);
        let kind = match found.record.format() {
            inode::FORMAT_FILE => Kind::File(Arc::from(self.content(&found).ok_or_else(damaged)?)),
            inode::FORMAT_LINK => Kind::Link(self.target(&found).ok_or_else(damaged)?),
            inode::FORMAT_FIFO => Kind::Fifo,
            format @ (inode::FORMAT_CHAR | inode::FORMAT_BLOCK) => {
                let (major, minor) = inode::device_of(&found.record.inline).ok_or_else(damaged)?;
                if format == inode::FORMAT_CHAR {
                    Kind::CharDevice { major, minor }
                } else {
                    Kind::BlockDevice { major, minor }
                }
            }
            format => return Err(problem(format!("/{path} is of a kind no build makes ({format:#o})"))),
        };
        if inode::format_of(&kind).1 != entry.file_type {
            return Err(problem(format!("/{path} is something else than its directory says")));
        }
        let mut node = node(&found, kind);
        if found.record.links > 1 {
            node.inode = Some(Arc::from(format!("inode {}", found.number)));
            self.shared.insert(found.number, node.clone());
        }
        Ok(node)
    }

    fn target(&mut self, found: &Found) -> Option<String> {
        let bytes = if found.record.flags & FLAG_EXTENTS != 0 {
            self.content(found)?
        } else {
            let size = usize::try_from(found.record.size).ok().filter(|size| *size < INLINE_BYTES)?;
            found.record.inline.get(..size)?.to_vec()
        };
        String::from_utf8(bytes).ok()
    }

    fn content(&mut self, found: &Found) -> Option<Vec<u8>> {
        if found.record.flags & FLAG_EXTENTS == 0 {
            return None;
        }
        let size = found.record.size;
        self.budget = self.budget.checked_sub(size)?;
        let blocks = size.div_ceil(BLOCK as u64);
        let extents = extents::decode(self.image, &found.record.inline, found.seed, blocks)?;
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        for extent in extents {
            let start = usize::try_from(extent.logical).ok()? * BLOCK;
            let place = bytes.get_mut(start..)?;
            let length = place.len().min(usize::try_from(extent.blocks).ok()?.checked_mul(BLOCK)?);
            let found = self.image.at(extent.start.checked_mul(BLOCK as u64)?, length)?;
            place.get_mut(..length)?.copy_from_slice(&found);
        }
        Some(bytes)
    }
}

fn node(found: &Found, kind: Kind) -> Node {
    Node {
        uid: found.record.uid,
        gid: found.record.gid,
        xattrs: found.xattrs.clone(),
        ..Node::new(kind, found.record.mode & 0o7777)
    }
}

fn damaged_inode(number: u32, path: &str) -> GuestError {
    problem(format!("inode {number}, /{path}, is damaged or not of a form the builder gives"))
}

fn damaged_content(number: u32, path: &str) -> GuestError {
    problem(format!("the content of inode {number}, /{path}, is damaged"))
}
