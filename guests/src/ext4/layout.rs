//! Where everything of a population lies on a disk of some size: decided first, as plain data, and written after. Directories
//! come first, then what is in them, in the order of the paths; the journal is last.

use super::BLOCK;
use super::allocation::{Allocation, Full, Run};
use super::extents::{self, Extent, ExtentTree, MOST_BLOCKS};
use super::geometry::Geometry;
use super::identity::Identity;
use super::journal;
use super::population::{Content, Inode, Segment};

/// An inode's blocks.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) extents: Vec<Extent>,
    pub(super) tree: Option<ExtentTree>,
    pub(super) xattr_block: Option<u64>,
}

impl Placed {
    /// All of them, as the inode counts them.
    pub(super) fn sectors(&self) -> u64 {
        let content: u64 = self.extents.iter().map(|extent| extent.blocks).sum();
        let tree = self.tree.as_ref().map_or(0, |tree| tree.blocks.len() as u64);
        (content + tree + u64::from(self.xattr_block.is_some())) * (BLOCK as u64 / 512)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Layout<'p, 'a> {
    pub(super) geometry: Geometry,
    pub(super) allocation: Allocation,
    /// In the order in which they lie on the disk.
    pub(super) inodes: Vec<(&'p Inode<'a>, Placed)>,
    pub(super) journal: Placed,
    pub(super) journal_blocks: u64,
}

/// On a disk of so many bytes; `None` where that is too small.
pub(super) fn plan<'p, 'a>(
    population: &'p [Inode<'a>],
    identity: &Identity,
    bytes: u64,
) -> Option<Layout<'p, 'a>> {
    let highest = population.last().map_or(0, |inode| u64::from(inode.number));
    // What is there, and half as much again for what will be.
    let geometry = Geometry::new(bytes, highest + highest / 2)?;
    let journal_blocks = journal::blocks_for(geometry.blocks);
    let mut allocation = Allocation::new(geometry);
    let blocks: u64 = population.iter().map(Inode::blocks).sum();
    // Not worth looking at every file.
    if blocks + journal_blocks > geometry.blocks {
        return None;
    }
    let (directories, others): (Vec<_>, Vec<_>) = population.iter().partition(|inode| inode.is_directory());
    let mut inodes = Vec::new();
    for inode in directories.into_iter().chain(others) {
        let placed = place(inode, identity, &mut allocation).ok()?;
        inodes.push((inode, placed));
    }
    let all = Segment { logical: 0, blocks: journal_blocks };
    let journal = place_segments(&[all], journal::INODE, identity, &mut allocation).ok()?;
    Some(Layout { geometry, allocation, inodes, journal, journal_blocks })
}

fn place(inode: &Inode<'_>, identity: &Identity, allocation: &mut Allocation) -> Result<Placed, Full> {
    let xattr_block = inode.xattrs.outside.as_ref().map(|_| allocation.take_one()).transpose()?;
    let placed = match &inode.content {
        Content::Inline(_) => Placed { extents: Vec::new(), tree: None, xattr_block: None },
        Content::Blocks { segments, .. } => place_segments(segments, inode.number, identity, allocation)?,
    };
    Ok(Placed { xattr_block, ..placed })
}

fn place_segments(
    segments: &[Segment],
    inode: u32,
    identity: &Identity,
    allocation: &mut Allocation,
) -> Result<Placed, Full> {
    let mut extents = Vec::new();
    for segment in segments {
        let mut logical = segment.logical;
        for run in allocation.take(segment.blocks)? {
            extents.extend(cut(run, logical));
            logical += run.blocks;
        }
    }
    let tree = extents::encode(&extents, identity.sums().inode_seed(inode, 0), allocation)?;
    Ok(Placed { extents, tree: Some(tree), xattr_block: None })
}

/// A run as extents, each as long as one may be.
fn cut(run: Run, logical: u64) -> impl Iterator<Item = Extent> {
    (0..run.blocks).step_by(MOST_BLOCKS as usize).map(move |done| Extent {
        logical: logical + done,
        start: run.start + done,
        blocks: MOST_BLOCKS.min(run.blocks - done),
    })
}
