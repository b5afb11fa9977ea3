//! A tree's own hash: what it holds, whatever the image it is packed into.

use std::collections::BTreeMap;

use super::{Kind, Tree};

impl Tree {
    /// The hash of everything in it, independent of how an image lays it out: UUIDs and seeds of images come from it. Which
    /// names share an inode counts, not the word they share.
    pub fn manifest_hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        let mut names: BTreeMap<&str, u32> = BTreeMap::new();
        for inode in self.iter().filter_map(|(_, node)| node.inode.as_deref()) {
            *names.entry(inode).or_default() += 1;
        }
        let mut first: BTreeMap<&str, &str> = BTreeMap::new();
        for (path, node) in self.iter() {
            field(path.as_bytes());
            let (kind, value) = match &node.kind {
                Kind::Directory => ("directory", Vec::new()),
                Kind::File(content) => ("file", blake3::hash(content).as_bytes().to_vec()),
                Kind::Link(target) => ("link", target.as_bytes().to_vec()),
                Kind::CharDevice { major, minor } => ("char", format!("{major}:{minor}").into_bytes()),
                Kind::BlockDevice { major, minor } => ("block", format!("{major}:{minor}").into_bytes()),
                Kind::Fifo => ("fifo", Vec::new()),
            };
            field(kind.as_bytes());
            field(&value);
            field(format!("{:o} {} {}", node.mode, node.uid, node.gid).as_bytes());
            for (name, value) in &node.xattrs {
                field(name.as_bytes());
                field(value);
            }
            // A name whose others are all gone is a file like any other.
            if let Some(inode) = node.inode.as_deref().filter(|inode| names.get(inode) > Some(&1)) {
                field(first.entry(inode).or_insert(path).as_bytes());
            }
        }
        hasher.finalize()
    }
}
