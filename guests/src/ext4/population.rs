//! Who lives in a filesystem: every node of a tree as an inode with its number, its links, its attributes and its content, before
//! anything is known of where the content lies.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::directory::{self, Entry, Owner};
use super::fields::Put as _;
use super::identity::Identity;
use super::inode::{self, FLAG_EXTENTS, FLAG_INDEX, MOST_LINKS};
use super::xattr::{self, Stored};
use super::{BLOCK, INLINE_BYTES};
use crate::error::{GuestError, Result};
use crate::tree::{Kind, Node, Tree, TreeError};

pub(super) const ROOT: u32 = 2;
/// The first number that ext4 itself has no use for; by custom that of lost+found.
pub(super) const LOST_AND_FOUND: u32 = 11;
pub(super) const LOST_AND_FOUND_NAME: &str = "lost+found";
/// 16 KiB, as mke2fs makes it.
const LOST_AND_FOUND_BLOCKS: usize = 4;
static LOST_AND_FOUND_NODE: LazyLock<Node> = LazyLock::new(|| Node::directory(0o700));
/// As many zero blocks in a row are left out of a file; fewer would cut it into more extents than that is worth.
const LEAST_HOLE: usize = 16;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Blocks of a file that are not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) logical: u64,
    pub(super) blocks: u64,
}

/// What an inode holds.
#[derive(Debug, Clone)]
pub(super) enum Content<'a> {
    /// In the inode itself: a short link, a device's number, nothing.
    Inline([u8; INLINE_BYTES]),
    Blocks {
        bytes: Cow<'a, [u8]>,
        segments: Vec<Segment>,
        indexed: bool,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Inode<'a> {
    pub(super) number: u32,
    pub(super) node: &'a Node,
    pub(super) links: u16,
    pub(super) size: u64,
    pub(super) content: Content<'a>,
    pub(super) xattrs: Stored,
}

impl Inode<'_> {
    pub(super) fn flags(&self) -> u32 {
        match &self.content {
            Content::Inline(_) => 0,
            Content::Blocks { indexed, .. } => FLAG_EXTENTS | if *indexed { FLAG_INDEX } else { 0 },
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        self.node.kind == Kind::Directory
    }

    /// Blocks of content and of attributes.
    pub(super) fn blocks(&self) -> u64 {
        let content = match &self.content {
            Content::Inline(_) => 0,
            Content::Blocks { segments, .. } => segments.iter().map(|segment| segment.blocks).sum(),
        };
        content + u64::from(self.xattrs.outside.is_some())
    }
}

/// A node with the names that lead to it; of a directory also what is in it.
struct Person<'a> {
    path: &'a str,
    node: &'a Node,
    links: u64,
    parent: u32,
    entries: Vec<Entry<'a>>,
}

/// All inodes in order of their numbers, which is the order of their paths.
pub(super) fn of<'a>(tree: &'a Tree, identity: &Identity) -> Result<Vec<Inode<'a>>> {
    let mut people: BTreeMap<u32, Person<'a>> = BTreeMap::new();
    let mut directories: BTreeMap<&str, u32> = BTreeMap::new();
    let mut shared: BTreeMap<&str, u32> = BTreeMap::new();
    let mut next = LOST_AND_FOUND + 1;
    // A tree that has something there of its own keeps it, under a number that is nothing special.
    let own_lost_and_found = tree.iter().any(|(path, _)| path == LOST_AND_FOUND_NAME);
    let found = (!own_lost_and_found).then_some((LOST_AND_FOUND_NAME, &*LOST_AND_FOUND_NODE));
    for (path, node) in tree.iter().chain(found) {
        let number = match (path, &node.inode) {
            ("", _) => ROOT,
            (LOST_AND_FOUND_NAME, _) if !own_lost_and_found => LOST_AND_FOUND,
            (_, Some(word)) if node.kind != Kind::Directory => *shared.entry(word).or_insert(next),
            _ => next,
        };
        next += u32::from(number == next);
        let (parent_path, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = match (path, directories.get(parent_path)) {
            ("", _) => ROOT,
            (_, Some(parent)) => *parent,
            (_, None) => return Err(bad(path, "nothing above it is a directory".to_owned())),
        };
        if node.kind == Kind::Directory {
            directories.insert(path, number);
        }
        let person = people.entry(number).or_insert_with(|| Person {
            path,
            node,
            links: if node.kind == Kind::Directory { 1 } else { 0 },
            parent,
            entries: Vec::new(),
        });
        person.links += 1;
        if person.node != node {
            let reason = format!("it shares an inode with /{}, which is another node", person.path);
            return Err(bad(path, reason));
        }
        if let Some(above) = people.get_mut(&parent).filter(|_| !path.is_empty()) {
            above.links += u64::from(node.kind == Kind::Directory);
            let (_, file_type) = inode::format_of(&node.kind);
            above.entries.push(Entry { inode: number, file_type, name: name.as_bytes() });
        }
    }
    people.into_iter().map(|(number, person)| settle(number, person, identity)).collect()
}

fn settle<'a>(number: u32, person: Person<'a>, identity: &Identity) -> Result<Inode<'a>> {
    let Person { path, node, links, parent, entries } = person;
    let links = match (links > MOST_LINKS, &node.kind) {
        (false, _) => links as u16,
        (true, Kind::Directory) => 1,
        (true, _) => {
            return Err(bad(path, format!("ext4 has no more than {MOST_LINKS} names for one inode")));
        }
    };
    let (size, content) = match &node.kind {
        Kind::Directory => {
            let owner =
                Owner { inode: number, parent, sums: identity.sums(), seed: identity.directory_seed() };
            let blocks = if number == LOST_AND_FOUND {
                directory::encode_roomy(&owner, LOST_AND_FOUND_BLOCKS)
            } else {
                directory::encode(&owner, &entries)
            };
            let blocks =
                blocks.ok_or_else(|| bad(path, format!("{} names are too many for ext4", entries.len())))?;
            whole(Cow::Owned(blocks.bytes), blocks.indexed)
        }
        Kind::File(bytes) => {
            let segments = segments(bytes);
            (bytes.len() as u64, Content::Blocks { bytes: Cow::Borrowed(bytes), segments, indexed: false })
        }
        Kind::Link(target) if target.len() < INLINE_BYTES => {
            let mut inline = [0; INLINE_BYTES];
            inline.put(0, target.as_bytes());
            (target.len() as u64, Content::Inline(inline))
        }
        Kind::Link(target) => whole(Cow::Borrowed(target.as_bytes()), false),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            let inline = inode::device(*major, *minor)
                .ok_or_else(|| bad(path, format!("{major}:{minor} is no device number")))?;
            (0, Content::Inline(inline))
        }
        Kind::Fifo => (0, Content::Inline([0; INLINE_BYTES])),
    };
    let xattrs = xattr::encode(&node.xattrs).map_err(|reason| bad(path, reason))?;
    Ok(Inode { number, node, links, size, content, xattrs })
}

fn bad(path: &str, reason: String) -> GuestError {
    TreeError::BadPath { path: path.to_owned(), by: "the image".to_owned(), reason }.into()
}

/// Content without holes.
fn whole(bytes: Cow<'_, [u8]>, indexed: bool) -> (u64, Content<'_>) {
    let segment = Segment { logical: 0, blocks: bytes.len().div_ceil(BLOCK) as u64 };
    (bytes.len() as u64, Content::Blocks { bytes, segments: vec![segment], indexed })
}

/// What is left of a file without its long runs of zeros.
fn segments(bytes: &[u8]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut zeros = 0;
    for (logical, block) in bytes.chunks(BLOCK).enumerate() {
        if block == &ZEROS[..block.len()] {
            zeros += 1;
            continue;
        }
        // Short runs of zeros belong to what is around them.
        let before = if zeros < LEAST_HOLE { zeros } else { 0 };
        match segments.last_mut().filter(|_| zeros < LEAST_HOLE) {
            Some(last) => last.blocks += before as u64 + 1,
            None => segments.push(Segment { logical: (logical - before) as u64, blocks: before as u64 + 1 }),
        }
        zeros = 0;
    }
    let end = bytes.len().div_ceil(BLOCK);
    if zeros > 0 && zeros < LEAST_HOLE {
        match segments.last_mut() {
            Some(last) => last.blocks += zeros as u64,
            None => segments.push(Segment { logical: (end - zeros) as u64, blocks: zeros as u64 }),
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_of_zeros_are_holes_and_short_ones_are_not() {
        let file = |parts: &[(u8, usize)]| -> Vec<(u64, u64)> {
            let bytes: Vec<u8> =
                parts.iter().flat_map(|(byte, blocks)| vec![*byte; blocks * BLOCK]).collect();
            segments(&bytes).into_iter().map(|segment| (segment.logical, segment.blocks)).collect()
        };
        assert_eq!(file(&[]), []);
        assert_eq!(file(&[(0, 3)]), [(0, 3)]);
        assert_eq!(file(&[(0, 16)]), []);
        assert_eq!(file(&[(1, 2)]), [(0, 2)]);
        assert_eq!(file(&[(1, 2), (0, 15), (1, 1)]), [(0, 18)]);
        assert_eq!(file(&[(1, 2), (0, 16), (1, 1)]), [(0, 2), (18, 1)]);
        assert_eq!(file(&[(0, 15), (1, 1), (0, 15)]), [(0, 31)]);
        assert_eq!(file(&[(0, 16), (1, 1), (0, 16)]), [(16, 1)]);
    }
}
