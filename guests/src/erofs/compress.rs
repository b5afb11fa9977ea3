//! Compressed files: cut into extents, each an LZ4 block of its own that ends where its blocks end, and an index that says
//! for every 4 KiB of the file which extent they are in (`z_erofs_lcluster_index`).

use vmprof_lz4::Window;

use super::superblock::little;
use super::{BLOCK_BYTES, problem};
use crate::error::Result;

/// Of a file, compressed by one thread at a time; a whole number of blocks.
pub(super) const PART_BYTES: usize = 1 << 20;
/// Entries of the index, each for a block of content, that one extent takes. Larger packs tighter, smaller reads less for
/// a page. Between the two it ends where it fills its blocks best.
const MOST_CLUSTERS: usize = vmprof_lz4::MOST_BYTES / BLOCK_BYTES;
const FEWEST_CLUSTERS: usize = MOST_CLUSTERS / 2;
/// Of one compressed extent; an extent that does not save a block is stored as it is.
pub(super) const MOST_BLOCKS: u16 = MOST_CLUSTERS as u16;

const HEADER_BYTES: usize = 8;
/// `Z_EROFS_ADVISE_BIG_PCLUSTER_1`: an extent may have more than one block.
const ADVISE_BIG: u16 = 2;
/// The kernel's `Z_EROFS_FULL_INDEX_START`: behind the header eight bytes are left free.
const INDEX_START: usize = HEADER_BYTES + 8;
const ENTRY_BYTES: usize = 8;

const PLAIN: u16 = 0;
const HEAD: u16 = 1;
const NOT_HEAD: u16 = 2;
/// In the first entry behind a head: not how far back that is, but how many blocks its extent has.
const BLOCK_COUNT: u16 = 1 << 11;

/// An extent, ready to be stored.
#[derive(Debug)]
pub(super) struct Packed {
    /// Of content.
    pub(super) bytes: usize,
    /// Whole blocks, zeros first; `None` for content that is no smaller compressed.
    pub(super) compressed: Option<Vec<u8>>,
}

/// Cuts a part of a file into extents and compresses them.
pub(super) fn pack(mut part: &[u8]) -> Vec<Packed> {
    let mut extents = Vec::new();
    while !part.is_empty() {
        let window = Window::new(part);
        let bytes = if part.len() <= vmprof_lz4::MOST_BYTES { part.len() } else { best_end(&window) };
        extents.push(Packed { bytes, compressed: compressed(&window, bytes) });
        part = part.get(bytes..).unwrap_or_default();
    }
    extents
}

/// Where an extent takes the fewest blocks for what it holds.
fn best_end(window: &Window<'_>) -> usize {
    let sizes = window.sizes(BLOCK_BYTES);
    let ends = sizes.iter().enumerate().map(|(index, size)| (index + 1, size.div_ceil(BLOCK_BYTES)));
    let best = ends
        .filter(|(clusters, _)| *clusters >= FEWEST_CLUSTERS)
        .reduce(|best, next| if next.1 * best.0 <= best.1 * next.0 { next } else { best });
    best.map_or(MOST_CLUSTERS, |(clusters, _)| clusters) * BLOCK_BYTES
}

fn compressed(window: &Window<'_>, bytes: usize) -> Option<Vec<u8>> {
    let block = window.block(bytes);
    let stored = block.len().next_multiple_of(BLOCK_BYTES);
    let clusters = bytes.div_ceil(BLOCK_BYTES);
    // How many blocks it has stands in the second entry, which a tail of two entries needs to say where it ends.
    let countable = clusters > 2 || bytes == 2 * BLOCK_BYTES || stored == BLOCK_BYTES;
    if stored >= clusters * BLOCK_BYTES || !countable {
        return None;
    }
    Some([vec![0; stored - block.len()], block].concat())
}

/// Where an extent was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Of content.
    pub(super) bytes: usize,
    pub(super) compressed: bool,
    pub(super) block: u32,
    pub(super) blocks: u32,
}

/// How long the index of a file is, with what it keeps free to be aligned.
pub(super) fn index_bytes(size: usize) -> usize {
    INDEX_START + ENTRY_BYTES * size.div_ceil(BLOCK_BYTES)
}

/// The index of a file of these extents, which all but the last one are whole blocks of content.
pub(super) fn encode_index(size: usize, extents: &[Extent]) -> Vec<u8> {
    let mut index = Vec::with_capacity(index_bytes(size));
    index.extend([0; 4]);
    index.extend(ADVISE_BIG.to_le_bytes());
    index.extend([0, 0]); // LZ4 in both heads; 4 KiB to an entry
    index.extend([0; 8]);
    let mut entry = |kind: u16, offset: u16, low: u16, high: u16| {
        for word in [kind, offset, low, high] {
            index.extend(word.to_le_bytes());
        }
    };
    let block = |block: u32| (block as u16, (block >> 16) as u16);
    for extent in extents {
        let bytes = extent.bytes;
        let clusters = bytes.div_ceil(BLOCK_BYTES);
        if !extent.compressed {
            for number in 0..clusters as u32 {
                let (low, high) = block(extent.block + number);
                entry(PLAIN, 0, low, high);
            }
            continue;
        }
        let (low, high) = block(extent.block);
        entry(HEAD, 0, low, high);
        let whole = bytes / BLOCK_BYTES;
        for number in 1..whole {
            let back = if number == 1 { BLOCK_COUNT | extent.blocks as u16 } else { number as u16 };
            entry(NOT_HEAD, 0, back, (whole - number) as u16);
        }
        // A tail that does not fill its 4 KiB says where it ends: the kernel takes that for the start of another extent.
        if bytes % BLOCK_BYTES != 0 && whole > 0 {
            entry(PLAIN, (bytes % BLOCK_BYTES) as u16, 0, 0);
        }
    }
    index
}

/// Reads the content of a file of `size` bytes through its index, which begins at `at` rounded up to 8.
pub(super) fn read(image: &[u8], at: usize, size: usize) -> Result<Vec<u8>> {
    let at = at.checked_next_multiple_of(8).ok_or_else(|| problem("an index beyond everything"))?;
    if little(image, at + 4, 4)? != u64::from(ADVISE_BIG) {
        return Err(problem("an index of a kind that is not vmprof's"));
    }
    let clusters = size.div_ceil(BLOCK_BYTES);
    // Where each extent begins in the file, and what its head says. Before anything of that size is made, all of the
    // index must be there.
    little(image, at + INDEX_START + ENTRY_BYTES * clusters.saturating_sub(1), ENTRY_BYTES)?;
    let mut heads: Vec<(usize, u16, u32, u32)> = Vec::new();
    for cluster in 0..clusters {
        let entry = at + INDEX_START + ENTRY_BYTES * cluster;
        let kind = little(image, entry, 2)? as u16;
        let offset = little(image, entry + 2, 2)? as usize;
        match kind {
            PLAIN | HEAD if offset < BLOCK_BYTES => {
                heads.push((cluster * BLOCK_BYTES + offset, kind, little(image, entry + 4, 4)? as u32, 1));
            }
            NOT_HEAD => {
                let back = little(image, entry + 4, 2)? as u16;
                if back & BLOCK_COUNT != 0
                    && let Some((.., blocks)) = heads.last_mut()
                {
                    *blocks = u32::from(back & !BLOCK_COUNT);
                }
            }
            _ => return Err(problem("an index entry of an unknown kind")),
        }
    }
    let mut content = Vec::new();
    let ends = heads.iter().skip(1).map(|(start, ..)| *start).chain([size]);
    for ((start, kind, block, blocks), end) in heads.iter().zip(ends) {
        let length = end.min(size).saturating_sub(*start);
        if length == 0 {
            continue;
        }
        if *start != content.len() {
            return Err(problem("a hole in a compressed file"));
        }
        let first = *block as usize * BLOCK_BYTES;
        let stored = image
            .get(first..first + *blocks as usize * BLOCK_BYTES)
            .ok_or_else(|| problem("an extent beyond the image's end"))?;
        if *kind == PLAIN {
            content.extend(stored.get(..length).ok_or_else(|| problem("a plain extent is too short"))?);
            continue;
        }
        let zeros = stored.iter().take_while(|byte| **byte == 0).count();
        let mut room = vec![0; length];
        let size = lz4_flex::block::decompress_into(stored.get(zeros..).unwrap_or_default(), &mut room)
            .map_err(|error| problem(format!("LZ4: {error}")))?;
        if size != length {
            return Err(problem("an extent of another size than the index says"));
        }
        content.append(&mut room);
    }
    if content.len() != size {
        return Err(problem("a compressed file that its index does not cover"));
    }
    Ok(content)
}
