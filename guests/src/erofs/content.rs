//! What files hold, written to the image: as it is, or compressed, a file at a time and in the order of the inodes,
//! whatever order the threads that compress finish in.

use std::collections::{BTreeMap, HashMap};

use super::compress::{self, Extent, PART_BYTES, Packed};
use super::inode::Shape;
use super::inventory::{Inventory, Item};
use super::{BLOCK_BYTES, Blocks, directory};
use crate::error::Result;
use crate::parallel;
use crate::tree::Kind;

/// Of contents that are compressed before the first of them is written: enough for all threads, and no more memory.
const BATCH_BYTES: usize = 64 << 20;

/// An inode's content: its size, how it is stored, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Body {
    pub(super) size: usize,
    pub(super) shape: Shape,
    pub(super) stored: Stored,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stored {
    /// In whole blocks from this one on; what they do not hold follows the inode. A directory's blocks are written when
    /// all inodes have their numbers: until then it is 0, as where there are none.
    Flat {
        block: u32,
    },
    Compressed(Vec<Extent>),
}

/// Writes all contents; returns a body for each item.
pub(super) fn write(inventory: &Inventory<'_>, compressed: bool, out: &mut Blocks<'_>) -> Result<Vec<Body>> {
    let items = &inventory.items;
    let mut bodies = Vec::with_capacity(items.len());
    let repeated = repeated(items);
    let mut written = HashMap::new();
    while let Some(left) = items.get(bodies.len()..).filter(|left| !left.is_empty()) {
        let mut bytes = 0;
        let batch = left.iter().take_while(|item| {
            let room = bytes < BATCH_BYTES;
            bytes += content(item).len();
            room
        });
        let batch: Vec<&Item<'_>> = batch.collect();
        let mut packed = if compressed { pack(&batch)? } else { BTreeMap::new() };
        for (at, item) in batch.into_iter().enumerate() {
            let extents = packed.remove(&at).unwrap_or_default();
            let compressed = extents.iter().any(|packed| packed.compressed.is_some());
            if compressed {
                bodies.push(put_compressed(item, &extents, out)?);
                continue;
            }
            let known = repeated.get(&bodies.len()).and_then(|hash| written.get(hash)).copied();
            let body = put_flat(item, known, out)?;
            if let (Some(hash), Stored::Flat { block }) = (repeated.get(&bodies.len()), &body.stored) {
                written.insert(*hash, *block);
            }
            bodies.push(body);
        }
    }
    Ok(bodies)
}

/// What an item's blocks are made of; nothing for what has none.
fn content<'a>(item: &Item<'a>) -> &'a [u8] {
    match &item.node.kind {
        Kind::File(content) => content,
        Kind::Link(target) => target.as_bytes(),
        _ => &[],
    }
}

/// The extents of every file of the batch that has more than a block. A part of a file is one thread's work, so that the
/// largest file does not keep all others waiting.
fn pack(batch: &[&Item<'_>]) -> Result<BTreeMap<usize, Vec<Packed>>> {
    let files = batch.iter().enumerate().filter(|(_, item)| matches!(item.node.kind, Kind::File(_)));
    let parts: Vec<(usize, &[u8])> = files
        .filter(|(_, item)| content(item).len() > BLOCK_BYTES)
        .flat_map(|(at, item)| content(item).chunks(PART_BYTES).map(move |part| (at, part)))
        .collect();
    let size = |(_, part): &(usize, &[u8])| part.len() as u64;
    let packed = parallel::each(&parts, size, |(_, part)| Ok(compress::pack(part)))?;
    let mut files: BTreeMap<usize, Vec<Packed>> = BTreeMap::new();
    for ((at, _), packed) in parts.iter().zip(packed) {
        files.entry(*at).or_default().extend(packed);
    }
    Ok(files)
}

/// The items with equal contents, by what they have in common. A read-only filesystem may give the same blocks to any number
/// of inodes: each has its own pages in the kernel's cache, and none can change what the others see. Compressed blocks
/// are not shared: Linux finds the state of a decompression under way by block, and only later kernels let two inodes
/// wait for one.
fn repeated(items: &[Item<'_>]) -> HashMap<usize, blake3::Hash> {
    let mut sizes: HashMap<usize, Vec<usize>> = HashMap::new();
    for (number, item) in items.iter().enumerate() {
        if content(item).len() >= BLOCK_BYTES {
            sizes.entry(content(item).len()).or_default().push(number);
        }
    }
    let alike = sizes.into_values().filter(|numbers| numbers.len() > 1).flatten();
    alike.filter_map(|number| Some((number, blake3::hash(content(items.get(number)?))))).collect()
}

fn put_compressed(item: &Item<'_>, extents: &[Packed], out: &mut Blocks<'_>) -> Result<Body> {
    let content = content(item);
    let mut left = content;
    let mut put = Vec::with_capacity(extents.len());
    for packed in extents {
        let (plain, rest) = left.split_at_checked(packed.bytes).unwrap_or((left, &[]));
        left = rest;
        let block = out.put(packed.compressed.as_deref().unwrap_or(plain))?;
        let compressed = packed.compressed.is_some();
        put.push(Extent { bytes: packed.bytes, compressed, block, blocks: out.next - block });
    }
    let shape = Shape::compressed(item, content.len())?;
    Ok(Body { size: content.len(), shape, stored: Stored::Compressed(put) })
}

/// `known` is where equal content begins.
fn put_flat(item: &Item<'_>, known: Option<u32>, out: &mut Blocks<'_>) -> Result<Body> {
    if item.node.kind == Kind::Directory {
        let size = directory::size(&item.entries);
        return Ok(Body { size, shape: Shape::flat(item, size)?, stored: Stored::Flat { block: 0 } });
    }
    let content = content(item);
    let shape = Shape::flat(item, content.len())?;
    let whole = content.get(..content.len() - shape.tail).unwrap_or_default();
    let block = match known {
        Some(block) => block,
        None if whole.is_empty() => 0,
        None => out.put(whole)?,
    };
    Ok(Body { size: content.len(), shape, stored: Stored::Flat { block } })
}
