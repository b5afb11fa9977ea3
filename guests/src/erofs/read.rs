//! An image back into a tree, to compare two of them. It reads what this crate writes, and survives everything else.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::inode::{Found, Type};
use super::superblock::Superblock;
use super::{directory, meta, problem, xattr};
use crate::error::Result;
use crate::tree::{Kind, Node, Origin, Tree};

/// Contents of an image are at most so many times as long as it; far more than LZ4 can do, and an end for an image whose
/// inodes all name the same blocks.
const MOST_TIMES: u64 = 4096;

pub(crate) fn unpack(image: &[u8]) -> Result<Tree> {
    let superblock = Superblock::read(image)?;
    let mut reader = Reader {
        image,
        superblock,
        budget: (image.len() as u64).saturating_mul(MOST_TIMES),
        known: HashMap::new(),
        directories: BTreeSet::new(),
    };
    let mut tree = Tree::default();
    let mut left = vec![(String::new(), u64::from(superblock.root_nid))];
    while let Some((path, nid)) = left.pop() {
        let node = reader.node(nid)?;
        if path.is_empty() && node.kind != Kind::Directory {
            return Err(problem("the root is not a directory"));
        }
        if node.kind == Kind::Directory {
            for (name, nid) in reader.entries(nid)? {
                left.push((if path.is_empty() { name } else { format!("{path}/{name}") }, nid));
            }
        }
        tree.put(&path, node, &Origin::Recipe)?;
    }
    Ok(tree)
}

struct Reader<'a> {
    image: &'a [u8],
    superblock: Superblock,
    /// Bytes of content that may still be read.
    budget: u64,
    /// Inodes with more than one name.
    known: HashMap<u64, Node>,
    directories: BTreeSet<u64>,
}

impl Reader<'_> {
    fn found(&self, nid: u64) -> Result<Found> {
        Found::read(self.image, meta::place(self.superblock.meta_block, nid)?)
    }

    fn node(&mut self, nid: u64) -> Result<Node> {
        if let Some(node) = self.known.get(&nid) {
            return Ok(node.clone());
        }
        let found = self.found(nid)?;
        let kind = match found.kind()? {
            Type::File => Kind::File(Arc::from(self.content(&found)?)),
            Type::Link => {
                let target = String::from_utf8(self.content(&found)?);
                Kind::Link(target.map_err(|_| problem("a link's target that is not text"))?)
            }
            Type::Directory => Kind::Directory,
            Type::CharDevice { major, minor } => Kind::CharDevice { major, minor },
            Type::BlockDevice { major, minor } => Kind::BlockDevice { major, minor },
            Type::Fifo => Kind::Fifo,
        };
        let shared = kind != Kind::Directory && found.links > 1;
        let node = Node {
            uid: found.uid,
            gid: found.gid,
            xattrs: xattr::decode(found.xattrs(self.image)?)?,
            inode: shared.then(|| Arc::from(nid.to_string())),
            ..Node::new(kind, found.permissions())
        };
        if shared {
            self.known.insert(nid, node.clone());
        }
        Ok(node)
    }

    fn entries(&mut self, nid: u64) -> Result<Vec<(String, u64)>> {
        if !self.directories.insert(nid) {
            return Err(problem("a directory with two names"));
        }
        let found = self.found(nid)?;
        directory::decode(&self.content(&found)?)
    }

    fn content(&mut self, found: &Found) -> Result<Vec<u8>> {
        self.budget = self
            .budget
            .checked_sub(found.size())
            .ok_or_else(|| problem("more content than an image of its size can have"))?;
        found.content(self.image)
    }
}
