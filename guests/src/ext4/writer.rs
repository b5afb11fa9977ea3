//! Writes a layout: content, then inodes, then groups and superblocks. What is not written stays a hole of the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::crc32c::Checksums;
use super::extents::Extent;
use super::geometry::{DESCRIPTOR_BYTES, Geometry};
use super::groups::{self, Residents};
use super::identity::Identity;
use super::inode::{FLAG_EXTENTS, FORMAT_FILE, Record, format_of};
use super::layout::{Layout, Placed};
use super::population::{Content, Inode, LOST_AND_FOUND, ROOT};
use super::superblock::{self, Totals};
use super::{BLOCK, INLINE_BYTES, INODE_BYTES, journal, xattr};

/// Collected before it is written.
const BUFFER_BYTES: usize = 1 << 20;

pub(super) fn write(layout: &Layout<'_, '_>, identity: &Identity, bytes: u64, out: &File) -> io::Result<()> {
    out.set_len(bytes)?;
    let mut disk = Disk { file: out, at: 0, buffer: Vec::with_capacity(BUFFER_BYTES) };
    let sums = identity.sums();
    let mut records = Vec::new();
    for (inode, placed) in &layout.inodes {
        if let Content::Blocks { bytes, .. } = &inode.content {
            write_content(&mut disk, bytes, &placed.extents)?;
        }
        write_tree(&mut disk, placed)?;
        if let (Some(at), Some(block)) = (placed.xattr_block, &inode.xattrs.outside) {
            let mut block = block.clone();
            xattr::seal(&mut block, at, sums);
            disk.write(at * BLOCK as u64, &block)?;
        }
        records.push((inode.number, record(inode, placed, sums)));
    }
    write_content(&mut disk, &journal::superblock(layout.journal_blocks, identity), &layout.journal.extents)?;
    write_tree(&mut disk, &layout.journal)?;
    let journal = journal_record(layout);
    records.push((journal::INODE, journal.encode(&[], sums.inode_seed(journal::INODE, 0))));
    records.sort_unstable_by_key(|(number, _)| *number);
    for (number, record) in &records {
        disk.write(layout.geometry.inode_offset(*number), record)?;
    }
    write_groups(&mut disk, layout, identity, &journal)?;
    disk.flush()
}

fn record(inode: &Inode<'_>, placed: &Placed, sums: Checksums) -> [u8; INODE_BYTES] {
    let (format, _) = format_of(&inode.node.kind);
    let inline = match (&inode.content, &placed.tree) {
        (Content::Inline(inline), _) => *inline,
        (Content::Blocks { .. }, Some(tree)) => tree.root,
        (Content::Blocks { .. }, None) => [0; INLINE_BYTES],
    };
    let record = Record {
        mode: format | inode.node.mode & 0o7777,
        uid: inode.node.uid,
        gid: inode.node.gid,
        size: inode.size,
        links: inode.links,
        sectors: placed.sectors(),
        flags: inode.flags(),
        inline,
        xattr_block: placed.xattr_block.unwrap_or(0),
    };
    record.encode(&inode.xattrs.inside, sums.inode_seed(inode.number, 0))
}

fn journal_record(layout: &Layout<'_, '_>) -> Record {
    Record {
        mode: FORMAT_FILE | 0o600,
        uid: 0,
        gid: 0,
        size: layout.journal_blocks * BLOCK as u64,
        links: 1,
        sectors: layout.journal.sectors(),
        flags: FLAG_EXTENTS,
        inline: layout.journal.tree.as_ref().map_or([0; INLINE_BYTES], |tree| tree.root),
        xattr_block: 0,
    }
}

fn write_content(disk: &mut Disk<'_>, bytes: &[u8], extents: &[Extent]) -> io::Result<()> {
    for extent in extents {
        let start = (extent.logical as usize * BLOCK).min(bytes.len());
        let end = (start + extent.blocks as usize * BLOCK).min(bytes.len());
        disk.write(extent.start * BLOCK as u64, &bytes[start..end])?;
    }
    Ok(())
}

fn write_tree(disk: &mut Disk<'_>, placed: &Placed) -> io::Result<()> {
    for (at, block) in placed.tree.iter().flat_map(|tree| &tree.blocks) {
        disk.write(at * BLOCK as u64, block)?;
    }
    Ok(())
}

fn write_groups(
    disk: &mut Disk<'_>,
    layout: &Layout<'_, '_>,
    identity: &Identity,
    journal: &Record,
) -> io::Result<()> {
    let geometry = &layout.geometry;
    let mut descriptors = Vec::with_capacity(geometry.groups as usize * DESCRIPTOR_BYTES);
    let mut totals = Totals { free_blocks: 0, free_inodes: 0, overhead: layout.journal_blocks };
    for (group, residents) in (0..geometry.groups).zip(residents(geometry, layout)) {
        let group_bytes = groups::encode(geometry, &layout.allocation, group, &residents, identity.sums());
        if let Some(bitmap) = &group_bytes.block_bitmap {
            disk.write(geometry.block_bitmap(group) * BLOCK as u64, bitmap)?;
        }
        if let Some(bitmap) = &group_bytes.inode_bitmap {
            disk.write(geometry.inode_bitmap(group) * BLOCK as u64, bitmap)?;
        }
        descriptors.extend_from_slice(&group_bytes.descriptor);
        totals.free_blocks += group_bytes.free_blocks;
        totals.free_inodes += u64::from(group_bytes.free_inodes);
        totals.overhead += geometry.metadata_of(group);
    }
    for group in (0..geometry.groups).filter(|group| geometry.has_superblock(*group)) {
        let start = geometry.first_block(group) * BLOCK as u64;
        let offset = if group == 0 { superblock::OFFSET as u64 } else { 0 };
        let superblock =
            superblock::encode(geometry, identity, &totals, (&journal.inline, journal.size), group);
        disk.write(start + offset, &superblock)?;
        disk.write(start + BLOCK as u64, &descriptors)?;
    }
    Ok(())
}

/// Which inodes are used, group by group.
fn residents(geometry: &Geometry, layout: &Layout<'_, '_>) -> Vec<Residents> {
    let mut groups = vec![Residents::default(); geometry.groups as usize];
    let mut settle = |number: u32, is_directory: bool| {
        let index = number - 1;
        if let Some(group) = groups.get_mut((index / geometry.inodes_per_group) as usize) {
            group.inodes.push(index % geometry.inodes_per_group);
            group.directories += u32::from(is_directory);
        }
    };
    // Those that ext4 keeps for itself are used, whether they hold something or not; the root is among the others.
    for number in (1..LOST_AND_FOUND).filter(|number| *number != ROOT) {
        settle(number, false);
    }
    for (inode, _) in &layout.inodes {
        settle(inode.number, inode.is_directory());
    }
    groups
}

/// The image's file, written in pieces that follow one another where that is possible.
struct Disk<'f> {
    file: &'f File,
    /// Where the buffer's bytes belong.
    at: u64,
    buffer: Vec<u8>,
}

impl Disk<'_> {
    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let end = self.at + self.buffer.len() as u64;
        // The rest of a block behind the end of a file is zero, and cheaper written than left out.
        let gap = at.checked_sub(end).filter(|gap| *gap < BLOCK as u64 && !self.buffer.is_empty());
        match gap {
            Some(gap) if self.buffer.len() + bytes.len() + BLOCK <= BUFFER_BYTES => {
                self.buffer.resize(self.buffer.len() + gap as usize, 0);
            }
            _ => {
                self.flush()?;
                self.at = at;
            }
        }
        if bytes.len() >= BUFFER_BYTES {
            return self.file.write_all_at(bytes, at);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.at)?;
        self.buffer.clear();
        Ok(())
    }
}
