//! Compressed files: cut into extents, each an LZ4 block of its own that ends where its blocks end, and an index that says
//! for every 4 KiB of the file which extent they are in (`z_erofs_lcluster_index`).

use super::{BLOCK_BYTES, problem};
use crate::error::Result;
use crate::erofs::superblock::little;

/// Of the file, in one extent. Larger packs tighter, smaller reads less for a page.
pub(super) const EXTENT_BYTES: usize = 64 << 10;
/// Of one compressed extent; an extent that does not save a block is stored as it is.
pub(super) const MOST_BLOCKS: u16 = (EXTENT_BYTES / BLOCK_BYTES) as u16;

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

/// One extent's bytes as they are stored.
#[derive(Debug)]
pub(super) enum Packed {
    /// Whole blocks, zeros first.
    Lz4(Vec<u8>),
    /// No smaller.
    Plain,
}

/// Compresses the content of one extent.
pub(super) fn pack(content: &[u8]) -> Result<Packed> {
    let mut room = vec![0; lz4_flex::block::get_maximum_output_size(content.len())];
    let size = lz4_flex::block::compress_into(content, &mut room)
        .map_err(|error| problem(format!("LZ4: {error}")))?;
    let stored = size.next_multiple_of(BLOCK_BYTES);
    let clusters = content.len().div_ceil(BLOCK_BYTES);
    let one_block = stored == BLOCK_BYTES;
    // How many blocks it has stands in the second entry, which a tail of two entries needs to say where it ends.
    let countable = clusters > 2 || content.len() == 2 * BLOCK_BYTES;
    if stored >= clusters * BLOCK_BYTES || !(one_block || countable) {
        return Ok(Packed::Plain);
    }
    let mut bytes = vec![0; stored - size];
    bytes.extend(room.get(..size).unwrap_or_default());
    Ok(Packed::Lz4(bytes))
}

/// Where an extent was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) compressed: bool,
    pub(super) block: u32,
    pub(super) blocks: u32,
}

/// How long the index of a file is, with what it keeps free to be aligned.
pub(super) fn index_bytes(size: usize) -> usize {
    INDEX_START + ENTRY_BYTES * size.div_ceil(BLOCK_BYTES)
}

/// The index of a file whose extents all have [`EXTENT_BYTES`], the last one what is left.
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
    let mut left = size;
    for extent in extents {
        let bytes = left.min(EXTENT_BYTES);
        left -= bytes;
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
