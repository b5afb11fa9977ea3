//! The blocks of a directory: one block of names in order, or, where that is too small, leaves behind an index of hashes
//! (htree). And the names out of the blocks of any directory.

// Documentation/filesystems/ext4/directory.rst has the layouts.

use super::BLOCK;
use super::crc32c::{Checksums, crc32c};
use super::fields::{Get, Put, block};
use super::hash::HashSeed;

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) inode: u32,
    pub(super) file_type: u8,
    pub(super) name: &'a [u8],
}

pub(super) const TYPE_DIRECTORY: u8 = 2;
/// What a block ends with: an entry without a name that holds the block's sum.
const TAIL_BYTES: usize = 12;
const TYPE_TAIL: u8 = 0xde;
/// What leaves have for entries.
const LEAF_BYTES: usize = BLOCK - TAIL_BYTES;
/// Inode, length, length of the name, type.
const ENTRY_HEAD: usize = 8;
/// Of an index: a hash and a block, or for the first one the limit, the count and a block.
const INDEX_BYTES: usize = 8;
/// Where the index begins in the first block, behind the entries of `.` and `..` and the index's own description, and
/// elsewhere, behind an entry that covers the whole block.
const ROOT_INDEX_AT: usize = 32;
const NODE_INDEX_AT: usize = 8;
/// Places for indexes; the last one of the block holds the sum.
const ROOT_LIMIT: usize = (BLOCK - ROOT_INDEX_AT) / INDEX_BYTES - 1;
const NODE_LIMIT: usize = (BLOCK - NODE_INDEX_AT) / INDEX_BYTES - 1;
const HALF_MD4: u8 = 1;
/// A leaf that starts with the hash its predecessor ends with.
const CONTINUED: u32 = 1;

/// Whose directory it is, for the sums and for `.` and `..`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) inode: u32,
    pub(super) parent: u32,
    pub(super) sums: Checksums,
    pub(super) seed: HashSeed,
}

/// A directory's blocks, and whether they have an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) bytes: Vec<u8>,
    pub(super) indexed: bool,
}

fn length(name: &[u8]) -> usize {
    (ENTRY_HEAD + name.len()).next_multiple_of(4)
}

/// A directory with these names beside `.` and `..`; `None` where an index of two levels, all that ext4 has, cannot hold them.
pub(super) fn encode(owner: &Owner, entries: &[Entry<'_>]) -> Option<Blocks> {
    let dots = [
        Entry { inode: owner.inode, file_type: TYPE_DIRECTORY, name: b"." },
        Entry { inode: owner.parent, file_type: TYPE_DIRECTORY, name: b".." },
    ];
    let all: usize = dots.iter().chain(entries).map(|entry| length(entry.name)).sum();
    if all <= LEAF_BYTES {
        let mut bytes = block();
        fill(&mut bytes, dots.iter().chain(entries), owner);
        return Some(Blocks { bytes, indexed: false });
    }
    let mut hashed: Vec<((u32, u32), &Entry<'_>)> =
        entries.iter().map(|entry| (owner.seed.of(entry.name), entry)).collect();
    hashed.sort_unstable_by_key(|(hash, entry)| (*hash, entry.name));
    let leaves = leaves(&hashed);
    let starts = starts(&leaves);
    let direct = leaves.len() <= ROOT_LIMIT;
    let nodes: Vec<&[u32]> = if direct { Vec::new() } else { starts.chunks(NODE_LIMIT).collect() };
    if nodes.len() > ROOT_LIMIT {
        return None;
    }
    let mut bytes = vec![0; BLOCK * (1 + nodes.len() + leaves.len())];
    let (head, leaf_blocks) = bytes.split_at_mut(BLOCK * (1 + nodes.len()));
    let (root, node_blocks) = head.split_at_mut(BLOCK);
    let first_leaf = 1 + nodes.len() as u32;

    entry_at(root, 0, 12, &dots[0]);
    entry_at(root, 12, BLOCK - 12, &dots[1]);
    root.put_u8(28, HALF_MD4);
    root.put_u8(29, 8); // of the description
    root.put_u8(30, u8::from(!direct));
    let root_starts: Vec<u32> =
        if direct { starts.clone() } else { nodes.iter().filter_map(|node| node.first().copied()).collect() };
    index(root, ROOT_INDEX_AT, ROOT_LIMIT, &root_starts, 1, owner);
    let mut leaf = first_leaf;
    for (block, starts) in node_blocks.chunks_mut(BLOCK).zip(&nodes) {
        block.put_u16(4, BLOCK as u16);
        index(block, NODE_INDEX_AT, NODE_LIMIT, starts, leaf, owner);
        leaf += starts.len() as u32;
    }
    for (block, leaf) in leaf_blocks.chunks_mut(BLOCK).zip(leaves) {
        fill(block, leaf.iter().map(|(_, entry)| *entry), owner);
    }
    Some(Blocks { bytes, indexed: true })
}

/// A directory without a name but `.` and `..`, of several blocks: lost+found, which must not need new ones when it is needed.
pub(super) fn encode_roomy(owner: &Owner, blocks: usize) -> Option<Blocks> {
    let mut directory = encode(owner, &[])?;
    for _ in 1..blocks {
        let mut empty = block();
        fill(&mut empty, std::iter::empty(), owner);
        directory.bytes.extend(empty);
    }
    Some(directory)
}

type Hashed<'a, 'n> = ((u32, u32), &'a Entry<'n>);

/// As many names a leaf as fit, in order of their hashes.
fn leaves<'s, 'a, 'n>(hashed: &'s [Hashed<'a, 'n>]) -> Vec<&'s [Hashed<'a, 'n>]> {
    let mut leaves = Vec::new();
    let mut start = 0;
    let mut used = 0;
    for (at, (_, entry)) in hashed.iter().enumerate() {
        let length = length(entry.name);
        if used + length > LEAF_BYTES {
            leaves.push(&hashed[start..at]);
            start = at;
            used = 0;
        }
        used += length;
    }
    leaves.push(&hashed[start..]);
    leaves
}

/// The hash each leaf starts with, as its index says it.
fn starts(leaves: &[&[Hashed<'_, '_>]]) -> Vec<u32> {
    let mut before = None;
    let mut starts = Vec::new();
    for leaf in leaves {
        let hash = leaf.first().map_or(0, |((major, _), _)| *major);
        starts.push(if before == Some(hash) { hash | CONTINUED } else { hash });
        before = leaf.last().map(|((major, _), _)| *major);
    }
    starts
}

fn entry_at(block: &mut [u8], at: usize, length: usize, entry: &Entry<'_>) {
    block.put_u32(at, entry.inode);
    block.put_u16(at + 4, length as u16);
    block.put_u8(at + 6, entry.name.len() as u8);
    block.put_u8(at + 7, entry.file_type);
    block.put(at + ENTRY_HEAD, entry.name);
}

/// Fills a leaf; its last entry reaches to the tail.
fn fill<'a, 'n: 'a>(block: &mut [u8], entries: impl Iterator<Item = &'a Entry<'n>>, owner: &Owner) {
    let mut at = 0;
    let mut last = 0;
    for entry in entries {
        last = at;
        entry_at(block, at, length(entry.name), entry);
        at += length(entry.name);
    }
    block.put_u16(last + 4, (LEAF_BYTES - last) as u16);
    block.put_u16(LEAF_BYTES + 4, TAIL_BYTES as u16);
    block.put_u8(LEAF_BYTES + 7, TYPE_TAIL);
    let sum = crc32c(owner.sums.inode_seed(owner.inode, 0), &block[..LEAF_BYTES]);
    block.put_u32(LEAF_BYTES + 8, sum);
}

/// Writes an index of blocks that follow one another from `block` on, and its sum.
fn index(bytes: &mut [u8], at: usize, limit: usize, starts: &[u32], block: u32, owner: &Owner) {
    for (place, (start, block)) in starts.iter().zip(block..).enumerate() {
        let at = at + place * INDEX_BYTES;
        bytes.put_u32(at, *start);
        bytes.put_u32(at + 4, block);
    }
    // Nothing is before the first, so that its hash is not needed: limit and count stand there.
    bytes.put_u16(at, limit as u16);
    bytes.put_u16(at + 2, starts.len() as u16);
    let sum = index_sum(bytes, at, starts.len(), owner.sums.inode_seed(owner.inode, 0));
    bytes.put_u32(BLOCK - 4, sum);
}

/// Of what is used of the index, and of a tail whose sum is 0.
fn index_sum(bytes: &[u8], at: usize, count: usize, seed: u32) -> u32 {
    crc32c(crc32c(seed, &bytes[..at + count * INDEX_BYTES]), &[0; 8])
}

/// The names in the blocks of a directory, `.` and `..` among them; whose sums start with `seed`. `None`: damaged.
pub(super) fn decode(bytes: &[u8], indexed: bool, seed: u32) -> Option<Vec<Entry<'_>>> {
    let mut entries = Vec::new();
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        if block.len() != BLOCK {
            return None;
        }
        let first = (block.u32(0)?, block.u16(4)?);
        let at = match (indexed, number) {
            (true, 0) => Some(ROOT_INDEX_AT),
            // The entry that covers a node of the index is empty; a leaf's first entry leaves room for the tail.
            (true, _) if first == (0, BLOCK as u16) => Some(NODE_INDEX_AT),
            _ => None,
        };
        if let Some(at) = at {
            let count = usize::from(block.u16(at + 2)?);
            let fits = at + (count + 1) * INDEX_BYTES <= BLOCK;
            if !fits || index_sum(block, at, count, seed) != block.u32(BLOCK - 4)? {
                return None;
            }
        } else if crc32c(seed, &block[..LEAF_BYTES]) != block.u32(LEAF_BYTES + 8)? {
            return None;
        }
        let mut at = 0;
        while at < BLOCK {
            let length = usize::from(block.u16(at + 4)?);
            if length < ENTRY_HEAD || length % 4 != 0 || at + length > BLOCK {
                return None;
            }
            let inode = block.u32(at)?;
            if inode != 0 {
                let name_length = usize::from(block.u8(at + 6)?);
                let name = block.get(at + ENTRY_HEAD..at + length)?.get(..name_length)?;
                entries.push(Entry { inode, file_type: block.u8(at + 7)?, name });
            }
            at += length;
        }
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner() -> Owner {
        Owner { inode: 12, parent: 2, sums: Checksums::new(&[7; 16]), seed: HashSeed([1, 2, 3, 4]) }
    }

    fn read_back(names: &[Vec<u8>]) -> Option<bool> {
        let owner = owner();
        let entries: Vec<_> =
            names.iter().zip(20..).map(|(name, inode)| Entry { inode, file_type: 1, name }).collect();
        let blocks = encode(&owner, &entries)?;
        let mut found = decode(&blocks.bytes, blocks.indexed, owner.sums.inode_seed(owner.inode, 0)).unwrap();
        assert_eq!(found[0], Entry { inode: 12, file_type: TYPE_DIRECTORY, name: b"." });
        assert_eq!(found[1], Entry { inode: 2, file_type: TYPE_DIRECTORY, name: b".." });
        found.drain(..2);
        found.sort_by_key(|entry| entry.inode);
        assert_eq!(found, entries);
        Some(blocks.indexed)
    }

    #[test]
    fn a_directory_gets_an_index_when_one_block_is_too_small() {
        let names = |count: usize| (0..count).map(|n| format!("{n:0252}").into_bytes()).collect::<Vec<_>>();
        assert_eq!(read_back(&names(0)), Some(false));
        assert_eq!(read_back(&names(15)), Some(false));
        assert_eq!(read_back(&names(16)), Some(true));
        // 507 leaves of 15 names go directly below the root of the index.
        assert_eq!(read_back(&names(507 * 15 + 1)), Some(true));
    }

    proptest! {
        #[test]
        fn every_name_is_found_again(names in proptest::collection::btree_set(proptest::collection::vec(1u8..=255, 1..=255), 0..300)) {
            read_back(&names.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_blocks_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), BLOCK), indexed: bool, length in 0u16..64) {
            bytes.put_u16(4, length);
            let sum = crc32c(3, &bytes[..LEAF_BYTES]);
            bytes.put_u32(LEAF_BYTES + 8, sum);
            if let Some(entries) = decode(&bytes, indexed, 3) {
                prop_assert!(entries.len() <= BLOCK / ENTRY_HEAD);
            }
        }
    }
}
