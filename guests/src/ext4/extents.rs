//! Which blocks of the disk are which blocks of a file: the tree of extents that starts in the inode, made and read.

// Documentation/filesystems/ext4/ifork.rst, "Extent Tree".

use super::allocation::{Allocation, Full};
use super::crc32c::crc32c;
use super::fields::{Get, Put, block};
use super::view::View;
use super::{BLOCK, INLINE_BYTES};

/// A piece of a file that is contiguous on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where it starts in the file, in blocks.
    pub(super) logical: u64,
    pub(super) start: u64,
    pub(super) blocks: u64,
}

/// Longer ones would be taken for allocated but never written.
pub(super) const MOST_BLOCKS: u64 = 1 << 15;
const MAGIC: u16 = 0xf30a;
const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 12;
const IN_INODE: usize = (INLINE_BYTES - HEADER_BYTES) / ENTRY_BYTES;
/// Behind the last place of a block stands its sum.
const IN_BLOCK: usize = (BLOCK - HEADER_BYTES - 4) / ENTRY_BYTES;
const SUM_AT: usize = HEADER_BYTES + IN_BLOCK * ENTRY_BYTES;
/// Of any tree the kernel reads.
const DEEPEST: u16 = 5;

/// A tree: what stands in the inode, and the blocks below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentTree {
    pub(super) root: [u8; INLINE_BYTES],
    pub(super) blocks: Vec<(u64, Vec<u8>)>,
}

/// Of an inode whose sums start with `seed`; blocks for the tree come out of `allocation`.
pub(super) fn encode(extents: &[Extent], seed: u32, allocation: &mut Allocation) -> Result<ExtentTree, Full> {
    // Each entry as (block of the file, bytes); of the lowest level first.
    let mut level: Vec<(u64, [u8; ENTRY_BYTES])> = extents.iter().map(leaf_entry).collect();
    let mut blocks = Vec::new();
    let mut depth = 0;
    while level.len() > IN_INODE {
        let mut above = Vec::new();
        for entries in level.chunks(IN_BLOCK) {
            let at = allocation.take_one()?;
            let mut bytes = block();
            node(&mut bytes, entries, IN_BLOCK, depth);
            let sum = crc32c(seed, &bytes[..SUM_AT]);
            bytes.put_u32(SUM_AT, sum);
            blocks.push((at, bytes));
            let logical = entries.first().map_or(0, |(logical, _)| *logical);
            let mut entry = [0; ENTRY_BYTES];
            entry.put_u32(0, logical as u32);
            entry.put_u32(4, at as u32);
            entry.put_u16(8, (at >> 32) as u16);
            above.push((logical, entry));
        }
        level = above;
        depth += 1;
    }
    let mut root = [0; INLINE_BYTES];
    node(&mut root, &level, IN_INODE, depth);
    Ok(ExtentTree { root, blocks })
}

fn leaf_entry(extent: &Extent) -> (u64, [u8; ENTRY_BYTES]) {
    let mut entry = [0; ENTRY_BYTES];
    entry.put_u32(0, extent.logical as u32);
    entry.put_u16(4, extent.blocks as u16);
    entry.put_u16(6, (extent.start >> 32) as u16);
    entry.put_u32(8, extent.start as u32);
    (extent.logical, entry)
}

fn node(bytes: &mut [u8], entries: &[(u64, [u8; ENTRY_BYTES])], most: usize, depth: u16) {
    bytes.put_u16(0, MAGIC);
    bytes.put_u16(2, entries.len() as u16);
    bytes.put_u16(4, most as u16);
    bytes.put_u16(6, depth);
    for (place, (_, entry)) in entries.iter().enumerate() {
        bytes.put(HEADER_BYTES + place * ENTRY_BYTES, entry);
    }
}

/// The extents of a tree, in order, all within the first `end` blocks of the file. `None`: damaged. Every node must go on
/// where the one before it ended, so a tree that leads in a circle ends, too.
pub(super) fn decode(image: View<'_>, root: &[u8], seed: u32, end: u64) -> Option<Vec<Extent>> {
    let mut reader = Reader { image, seed, end, next: 0, found: Vec::new() };
    let depth = root.u16(6)?;
    if depth > DEEPEST {
        return None;
    }
    reader.node(root, depth, true)?;
    Some(reader.found)
}

struct Reader<'a> {
    image: View<'a>,
    seed: u32,
    end: u64,
    /// The first block of the file that the next extent may have.
    next: u64,
    found: Vec<Extent>,
}

impl Reader<'_> {
    fn node(&mut self, bytes: &[u8], depth: u16, is_root: bool) -> Option<()> {
        let entries = usize::from(bytes.u16(2)?);
        // Only the root of an empty file may be empty: each block moves `next`, which bounds the work.
        let well_formed =
            bytes.u16(0)? == MAGIC && bytes.u16(6)? == depth && (entries > 0 || is_root && depth == 0);
        let room = if is_root { IN_INODE } else { IN_BLOCK };
        if !well_formed || entries > room {
            return None;
        }
        for place in 0..entries {
            let at = HEADER_BYTES + place * ENTRY_BYTES;
            let logical = u64::from(bytes.u32(at)?);
            if depth == 0 {
                let blocks = u64::from(bytes.u16(at + 4)?);
                let start = u64::from(bytes.u16(at + 6)?) << 32 | u64::from(bytes.u32(at + 8)?);
                if logical < self.next || blocks == 0 || blocks > MOST_BLOCKS || logical + blocks > self.end {
                    return None;
                }
                self.next = logical + blocks;
                self.found.push(Extent { logical, start, blocks });
            } else {
                let below = u64::from(bytes.u32(at + 4)?) | u64::from(bytes.u16(at + 8)?) << 32;
                let bytes = self.image.block(below)?;
                if crc32c(self.seed, bytes.get(..SUM_AT)?) != bytes.u32(SUM_AT)? {
                    return None;
                }
                self.node(&bytes, depth - 1, false)?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::geometry::Geometry;
    use super::*;

    #[test]
    fn trees_of_every_depth_are_read_back() {
        for (count, depth) in [(0, 0), (1, 0), (4, 0), (5, 1), (1360, 1), (1361, 2), (5000, 2)] {
            let extents: Vec<_> = (0..count)
                .map(|n| Extent { logical: n * 20, start: (1 << 33) + n * 7, blocks: 1 + n % 16 })
                .collect();
            let mut allocation = Allocation::new(Geometry::new(64 << 20, 0).unwrap());
            let tree = encode(&extents, 5, &mut allocation).unwrap();
            assert_eq!(tree.root[6], depth);
            let mut image = vec![0; 64 << 20];
            for (at, bytes) in &tree.blocks {
                image.put(*at as usize * BLOCK, bytes);
            }
            assert_eq!(decode(View::whole(&image.as_slice()), &tree.root, 5, count * 20), Some(extents));
            if let Some((at, _)) = tree.blocks.first() {
                image[*at as usize * BLOCK + 20] ^= 1;
                assert_eq!(decode(View::whole(&image.as_slice()), &tree.root, 5, count * 20), None);
            }
        }
    }

    #[test]
    fn a_tree_in_a_circle_is_refused() {
        // A block that is its own child: depth and sum cannot both be right.
        let mut image = vec![0; BLOCK * 2];
        let mut entry = [0; ENTRY_BYTES];
        entry.put_u32(4, 1);
        let mut bytes = block();
        node(&mut bytes, &[(0, entry); IN_BLOCK], IN_BLOCK, 1);
        let sum = crc32c(5, &bytes[..SUM_AT]);
        bytes.put_u32(SUM_AT, sum);
        image.put(BLOCK, &bytes);
        let mut root = [0; INLINE_BYTES];
        node(&mut root, &[(0, entry); IN_INODE], IN_INODE, 2);
        assert_eq!(decode(View::whole(&image.as_slice()), &root, 5, 1 << 20), None);
    }
}
