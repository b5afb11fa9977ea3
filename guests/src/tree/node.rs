//! What is at one path of a tree: its kind, mode, owner and content.

use std::collections::BTreeMap;
use std::sync::Arc;

/// What is at one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits, setuid, setgid and sticky included.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Extended attributes by their whole name: `security.capability`.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Nodes with the same word are one inode under several names (hard links); a word is made of where it came from.
    pub inode: Option<Arc<str>>,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Arc<[u8]>),
    Link(String),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory => f.write_str("Directory"),
            Self::File(content) => write!(f, "File({} bytes)", content.len()),
            Self::Link(target) => write!(f, "Link({target})"),
            Self::CharDevice { major, minor } => write!(f, "CharDevice({major}:{minor})"),
            Self::BlockDevice { major, minor } => write!(f, "BlockDevice({major}:{minor})"),
            Self::Fifo => f.write_str("Fifo"),
        }
    }
}

impl Node {
    /// Root's, without extended attributes or further names.
    pub fn new(kind: Kind, mode: u16) -> Self {
        Self { kind, mode, uid: 0, gid: 0, xattrs: BTreeMap::new(), inode: None }
    }

    /// Whether it is the same file, under whatever other names.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let of = |node: &Self| (node.mode, node.uid, node.gid);
        self.kind == other.kind && of(self) == of(other) && self.xattrs == other.xattrs
    }

    pub fn directory(mode: u16) -> Self {
        Self::new(Kind::Directory, mode)
    }

    pub fn file(mode: u16, content: impl Into<Arc<[u8]>>) -> Self {
        Self::new(Kind::File(content.into()), mode)
    }

    pub fn link(target: impl Into<String>) -> Self {
        Self::new(Kind::Link(target.into()), 0o777)
    }
}
