//! A root filesystem in memory: sorted paths, each with kind, mode, owner and content, and nothing else. No directory of
//! the building machine is ever the source, so neither its times, its owners, its umask nor the order it lists files in
//! can reach an image.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{GuestError, Result};

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
    fn is_like(&self, other: &Self) -> bool {
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

#[derive(Debug, Clone)]
struct Placed {
    node: Node,
    by: Origin,
}

/// Who put something at a path, which decides who may put something else there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The builder's own skeleton: anyone may take its place.
    Builder,
    Package {
        name: String,
        replaces: Arc<[String]>,
    },
    /// The recipe: takes anything's place.
    Recipe,
}

impl Origin {
    fn name(&self) -> &str {
        match self {
            Self::Builder => "the builder",
            Self::Package { name, .. } => name,
            Self::Recipe => "the recipe",
        }
    }

    fn yields_to(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Builder, _) | (_, Self::Recipe) => true,
            (Self::Package { name, .. }, Self::Package { replaces, .. }) => replaces.contains(name),
            _ => false,
        }
    }
}

/// Paths without a leading slash; the root is the empty path and always there.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: BTreeMap<String, Placed>,
}

/// Linux's NAME_MAX, and PATH_MAX less the closing zero: nothing longer could be opened in the guest.
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 4095;

/// Why no Linux filesystem can hold that, if it cannot.
fn impossible(path: &str, kind: &Kind) -> Option<String> {
    if path.len() > LONGEST_PATH || path.split('/').any(|name| name.len() > LONGEST_NAME) {
        return Some(format!("a name ends at {LONGEST_NAME} bytes and a path at {LONGEST_PATH}"));
    }
    if path.contains('\0') {
        return Some("a path holds no zero byte".to_owned());
    }
    if path.trim_matches('/').is_empty() && *kind != Kind::Directory {
        return Some("the root is a directory".to_owned());
    }
    match kind {
        Kind::Link(target) if target.is_empty() || target.len() > LONGEST_PATH || target.contains('\0') => {
            Some(format!("a link's target has 1 to {LONGEST_PATH} bytes, none of them zero"))
        }
        _ => None,
    }
}

/// As many links on one path as Linux follows.
const MOST_LINKS: u32 = 40;

impl Default for Tree {
    fn default() -> Self {
        let root = Placed { node: Node::directory(0o755), by: Origin::Builder };
        Self { nodes: BTreeMap::from([(String::new(), root)]) }
    }
}

impl Tree {
    /// Puts a node at a path, making the directories above it. Links above it are followed, as dpkg does: with `/bin` a
    /// link to `usr/bin`, what a package ships in `/bin` lands there. The same thing twice is nothing new; a directory
    /// keeps what is in it; anything else that is there already must yield (the recipe to nobody, a package to one
    /// that declares `Replaces`), or the image would depend on the order of packages.
    pub fn put(&mut self, path: &str, node: Node, by: &Origin) -> Result<()> {
        if let Some(reason) = impossible(path, &node.kind) {
            return Err(GuestError::BadPath { path: path.to_owned(), by: by.name().to_owned(), reason });
        }
        let path = self.place_of(path, by)?;
        let Some(there) = self.nodes.get_mut(&path) else {
            self.nodes.insert(path, Placed { node, by: by.clone() });
            return Ok(());
        };
        if there.node.is_like(&node) {
            // Of two packages one may know further names of the file; which came first must not matter. What the recipe
            // declares is a file of its own.
            if *by == Origin::Recipe || node.inode > there.node.inode {
                there.node.inode = node.inode;
            }
            return Ok(());
        }
        let Some(there) = self.nodes.get(&path) else { return Ok(()) };
        let both_directories = there.node.kind == Kind::Directory && node.kind == Kind::Directory;
        if both_directories && matches!(by, Origin::Package { .. }) && there.by != Origin::Builder {
            return Ok(());
        }
        // A directory where a link to a directory is: the link stays, as in dpkg.
        if node.kind == Kind::Directory
            && matches!(there.node.kind, Kind::Link(_))
            && self.look(&path).is_some_and(|(_, target)| target.kind == Kind::Directory)
        {
            return Ok(());
        }
        if !both_directories && there.node.kind == Kind::Directory && self.has_children(&path) {
            let reason = format!("{} has a directory there, with files in it", there.by.name());
            return Err(GuestError::BadPath { path, by: by.name().to_owned(), reason });
        }
        if there.by.yields_to(by) {
            self.nodes.insert(path, Placed { node, by: by.clone() });
            return Ok(());
        }
        if by.yields_to(&there.by) {
            return Ok(());
        }
        Err(GuestError::FileConflict {
            path,
            first: there.by.name().to_owned(),
            second: by.name().to_owned(),
        })
    }

    /// Puts a node at a path as a layer of an image does: links above it are followed, a directory keeps what is in it and
    /// takes the new owner and mode, and anything else takes the place of what is there with all that is below.
    pub(crate) fn lay(&mut self, path: &str, node: Node) -> Result<(), String> {
        if let Some(reason) = impossible(path, &node.kind) {
            return Err(reason);
        }
        let path = self.place_of(path, &Origin::Builder).map_err(|error| error.to_string())?;
        let both_directories = node.kind == Kind::Directory
            && self.nodes.get(&path).is_some_and(|there| there.node.kind == Kind::Directory);
        if !both_directories {
            self.remove_exactly(&path);
        }
        self.nodes.insert(path, Placed { node, by: Origin::Builder });
        Ok(())
    }

    /// What is at a path itself: links above it are followed, and a link there is not.
    pub(crate) fn at(&self, path: &str) -> Option<&Node> {
        let path = self.resolve(path, false)?;
        self.nodes.get(&path).map(|placed| &placed.node)
    }

    /// Removes everything below a path and leaves the path.
    pub(crate) fn empty(&mut self, path: &str) {
        let Some(path) = self.resolve(path, false) else { return };
        let below: Vec<String> = if path.is_empty() {
            self.nodes.keys().filter(|path| !path.is_empty()).cloned().collect()
        } else {
            self.below(&path).map(str::to_owned).collect()
        };
        for path in &below {
            self.nodes.remove(path);
        }
    }

    /// Removes a path and everything below it; says whether there was anything.
    pub fn remove(&mut self, path: &str) -> bool {
        let Some(path) = self.resolve(path, false) else { return false };
        if path.is_empty() {
            return false;
        }
        self.remove_exactly(&path)
    }

    /// As [`Tree::remove`], with a path that has no links in it.
    fn remove_exactly(&mut self, path: &str) -> bool {
        let below: Vec<String> = self.below(path).map(str::to_owned).collect();
        for path in &below {
            self.nodes.remove(path);
        }
        self.nodes.remove(path).is_some() || !below.is_empty()
    }

    /// What a path leads to, links followed: where it lies, and what it is.
    pub fn look(&self, path: &str) -> Option<(String, &Node)> {
        let path = self.resolve(path, true)?;
        let node = &self.nodes.get(&path)?.node;
        Some((path, node))
    }

    /// Everything, in path order; a directory comes before what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, placed)| (path.as_str(), &placed.node))
    }

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

    fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        let start = format!("{path}/");
        let prefix = start.clone();
        self.nodes
            .range(start..)
            .map(|(path, _)| path.as_str())
            .take_while(move |below| below.starts_with(&prefix))
    }

    fn has_children(&self, path: &str) -> bool {
        self.below(path).next().is_some()
    }

    /// Where a new node of that path goes: its directory with links followed, made where it is missing.
    fn place_of(&mut self, path: &str, by: &Origin) -> Result<String> {
        let path = path.trim_matches('/');
        let Some((parent, name)) = path.rsplit_once('/') else { return Ok(path.to_owned()) };
        let bad = |reason: &str| GuestError::BadPath {
            path: path.to_owned(),
            by: by.name().to_owned(),
            reason: reason.to_owned(),
        };
        let mut at =
            self.resolve(parent, true).ok_or_else(|| bad("a link above it leads in a circle or nowhere"))?;
        // Missing directories are made one by one: each may lie behind a link of its own.
        let mut made = String::new();
        for part in at.clone().split('/').filter(|part| !part.is_empty()) {
            if !made.is_empty() {
                made.push('/');
            }
            made.push_str(part);
            match self.nodes.get(&made).map(|placed| &placed.node.kind) {
                Some(Kind::Directory) => {}
                Some(_) => return Err(bad("something above it is not a directory")),
                None => {
                    let placed = Placed { node: Node::directory(0o755), by: Origin::Builder };
                    self.nodes.insert(made.clone(), placed);
                }
            }
        }
        if !at.is_empty() {
            at.push('/');
        }
        at.push_str(name);
        Ok(at)
    }

    /// The path without links in it; of the last part too when `follow_last`. Parts that are not there are taken as
    /// plain names. `None`: links in a circle.
    fn resolve(&self, path: &str, follow_last: bool) -> Option<String> {
        let mut left: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut at: Vec<String> = Vec::new();
        let mut followed = 0;
        while let Some(part) = left.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    at.pop();
                    continue;
                }
                _ => at.push(part),
            }
            // Links whose targets add up to a path that nothing could open; making it would take memory without end.
            if at.iter().map(|part| part.len() + 1).sum::<usize>() > LONGEST_PATH + 1 {
                return None;
            }
            let is_last = left.iter().all(|part| part.is_empty());
            if is_last && !follow_last {
                break;
            }
            if let Some(Kind::Link(target)) = self.nodes.get(&at.join("/")).map(|placed| &placed.node.kind) {
                followed += 1;
                if followed > MOST_LINKS {
                    return None;
                }
                at.pop();
                if target.starts_with('/') {
                    at.clear();
                }
                left.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        Some(at.join("/"))
    }
}

#[cfg(test)]
mod tests;
