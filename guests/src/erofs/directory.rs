//! Directories: blocks that each begin with the entries of their names and go on with the names. The kernel searches the
//! blocks by their first names, and then the block, so names are in the order of their bytes throughout.

use super::inode::entry_type;
use super::inventory::Inventory;
use super::meta::Layout;
use super::superblock::little;
use super::{BLOCK_BYTES, Blocks, problem};
use crate::error::Result;

const ENTRY_BYTES: usize = 12;

/// A directory, encoded.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// Where its whole blocks begin; 0 where it has none.
    pub(super) block: u32,
    /// What follows its inode.
    pub(super) tail: Vec<u8>,
}

/// How many of the entries go into the next block, and how many bytes of it they take.
fn next_block(entries: &[(&str, usize)]) -> (usize, usize) {
    let mut bytes = 0;
    let mut count = 0;
    for (name, _) in entries {
        let more = bytes + ENTRY_BYTES + name.len();
        if more > BLOCK_BYTES {
            break;
        }
        bytes = more;
        count += 1;
    }
    (count, bytes)
}

/// How long a directory of these entries is.
pub(super) fn size(mut entries: &[(&str, usize)]) -> usize {
    let mut whole = 0;
    loop {
        let (count, bytes) = next_block(entries);
        entries = entries.get(count..).unwrap_or_default();
        if entries.is_empty() {
            return whole + bytes;
        }
        whole += BLOCK_BYTES;
    }
}

/// Writes what of the directories does not follow their inodes; returns one for each item, empty for all others.
pub(super) fn write(
    inventory: &Inventory<'_>,
    layout: &Layout,
    out: &mut Blocks<'_>,
) -> Result<Vec<Directory>> {
    let mut directories = Vec::with_capacity(inventory.items.len());
    for (item, tail) in inventory.items.iter().zip(&layout.tails) {
        if item.entries.is_empty() {
            directories.push(Directory::default());
            continue;
        }
        let mut encoded = encode(inventory, layout, &item.entries);
        let tail = encoded.split_off(encoded.len() - tail);
        let block = if encoded.is_empty() { 0 } else { out.put(&encoded)? };
        directories.push(Directory { block, tail });
    }
    Ok(directories)
}

fn encode(inventory: &Inventory<'_>, layout: &Layout, mut entries: &[(&str, usize)]) -> Vec<u8> {
    let mut encoded = Vec::with_capacity(size(entries));
    while !entries.is_empty() {
        encoded.resize(encoded.len().next_multiple_of(BLOCK_BYTES), 0);
        let (count, _) = next_block(entries);
        let (here, rest) = entries.split_at(count);
        let mut name_at = ENTRY_BYTES * count;
        for (name, item) in here {
            let kind = inventory.items.get(*item).map_or(0, |item| entry_type(&item.node.kind));
            encoded.extend(layout.nids.get(*item).copied().unwrap_or_default().to_le_bytes());
            encoded.extend((name_at as u16).to_le_bytes());
            encoded.extend([kind, 0]);
            name_at += name.len();
        }
        here.iter().for_each(|(name, _)| encoded.extend(name.as_bytes()));
        entries = rest;
    }
    encoded
}

/// The names and inodes of a directory, the dots left out.
pub(super) fn decode(content: &[u8]) -> Result<Vec<(String, u64)>> {
    let mut entries = Vec::new();
    for block in content.chunks(BLOCK_BYTES) {
        let torn = || problem("a directory's block is torn");
        let names_at = little(block, 8, 2)? as usize;
        if names_at < ENTRY_BYTES || !names_at.is_multiple_of(ENTRY_BYTES) || names_at > block.len() {
            return Err(torn());
        }
        let count = names_at / ENTRY_BYTES;
        for entry in 0..count {
            let at = entry * ENTRY_BYTES;
            let nid = little(block, at, 8)?;
            let start = little(block, at + 8, 2)? as usize;
            let end = if entry + 1 < count {
                little(block, at + 8 + ENTRY_BYTES, 2)? as usize
            } else {
                block.len()
            };
            let name = block.get(start..end).ok_or_else(torn)?;
            // The last name of a block ends where the zeros begin.
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let name = std::str::from_utf8(name).map_err(|_| problem("a name that is not text"))?;
            if name.is_empty() || name.contains('/') {
                return Err(problem(format!("`{name}` is no name")));
            }
            if name != "." && name != ".." {
                entries.push((name.to_owned(), nid));
            }
        }
    }
    Ok(entries)
}
