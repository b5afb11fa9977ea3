//! The area of the inodes: each begins at a multiple of 32 bytes, whose number from the area's start is the inode's. An inode
//! with the tail of its content lies in one block, as the kernel asks; others fill what such inodes leave free.

use std::collections::VecDeque;

use super::content::{Body, Stored};
use super::directory::Directory;
use super::inode::{self, COMPACT_BYTES};
use super::inventory::Inventory;
use super::{BLOCK_BYTES, problem};
use crate::error::Result;
use crate::tree::Kind;

/// What a number counts.
const SLOT_BYTES: usize = COMPACT_BYTES;
/// Blocks that are looked at for room, the latest ones: inodes of one directory stay near each other.
const OPEN_BLOCKS: usize = 8;

/// Where every inode lies.
#[derive(Debug)]
pub(super) struct Layout {
    /// Their numbers, which are their places: in slots from the start of the area.
    pub(super) nids: Vec<u64>,
    /// How much of their content follows them.
    pub(super) tails: Vec<usize>,
    bytes: usize,
}

impl Layout {
    /// The superblock has 16 bits for it; the root is laid out first.
    pub(super) fn root_nid(&self) -> Result<u16> {
        let root = self.nids.first().and_then(|nid| u16::try_from(*nid).ok());
        root.ok_or_else(|| problem("the root's inode lies too far from the first"))
    }
}

pub(super) fn lay_out(inventory: &Inventory<'_>, bodies: &[Body]) -> Result<Layout> {
    // Number 0 stays free: as the number of a directory entry it means that there is none.
    let mut end = BLOCK_BYTES;
    let mut open = VecDeque::from([(SLOT_BYTES, BLOCK_BYTES)]);
    let mut nids = Vec::with_capacity(inventory.items.len());
    for body in bodies {
        let bytes = body.shape.bytes.next_multiple_of(SLOT_BYTES);
        let room = open.iter_mut().filter(|(from, to)| to - from >= bytes).min_by_key(|(from, to)| to - from);
        let at = match room {
            Some((from, _)) => {
                let at = *from;
                *from += bytes;
                at
            }
            None => {
                let at = end;
                end += bytes.next_multiple_of(BLOCK_BYTES);
                open.push_back((at + bytes, end));
                at
            }
        };
        open.retain(|(from, to)| from < to);
        if open.len() > OPEN_BLOCKS {
            open.pop_front();
        }
        nids.push((at / SLOT_BYTES) as u64);
    }
    // erofs-utils reads a header of extended attributes behind every inode, also where none is, and finds the image damaged
    // where that is its end.
    if !open.iter().any(|(_, to)| *to == end) {
        end += BLOCK_BYTES;
    }
    let tails = bodies.iter().map(|body| body.shape.tail).collect();
    Ok(Layout { nids, tails, bytes: end })
}

/// All inodes with what follows them.
pub(super) fn encode(
    inventory: &Inventory<'_>,
    bodies: &[Body],
    directories: &[Directory],
    layout: &Layout,
) -> Result<Vec<u8>> {
    let mut area = vec![0; layout.bytes];
    let all = inventory.items.iter().zip(bodies).zip(directories).zip(&layout.nids);
    for (number, (((item, body), directory), nid)) in all.enumerate() {
        let block = match body.stored {
            Stored::Flat { block } if item.node.kind != Kind::Directory => block,
            _ => directory.block,
        };
        let mut inode = inode::encode(item, body, block, number as u32 + 1)?;
        let content = match &item.node.kind {
            Kind::Directory => &directory.tail,
            Kind::File(content) => &content[..],
            Kind::Link(target) => target.as_bytes(),
            _ => &[],
        };
        inode.extend(content.get(content.len() - body.shape.tail..).unwrap_or_default());
        let at = *nid as usize * SLOT_BYTES;
        let room = area.get_mut(at..at + inode.len()).ok_or_else(|| problem("an inode beyond its area"))?;
        room.copy_from_slice(&inode);
    }
    Ok(area)
}

/// Where the inode of that number lies in an image.
pub(super) fn place(meta_block: u32, nid: u64) -> Result<usize> {
    let beyond = || problem("an inode beyond everything");
    let slot = usize::try_from(nid).ok().and_then(|nid| nid.checked_mul(SLOT_BYTES)).ok_or_else(beyond)?;
    slot.checked_add(meta_block as usize * BLOCK_BYTES).ok_or_else(beyond)
}
