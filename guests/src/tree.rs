//! A root filesystem in memory: sorted paths, each with kind, mode, owner and content, and nothing else. No directory of
//! the building machine is ever the source, so neither its times, its owners, its umask nor the order it lists files in
//! can reach an image.

mod error;
mod manifest;
mod node;
mod origin;
mod path;

use std::collections::BTreeMap;

use crate::error::Result;

pub use error::TreeError;
pub use node::{Kind, Node};
pub use origin::Origin;
use path::impossible;

/// Paths without a leading slash; the root is the empty path and always there.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: BTreeMap<String, Placed>,
}

#[derive(Debug, Clone)]
struct Placed {
    node: Node,
    by: Origin,
}

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
            return Err(TreeError::BadPath { path: path.to_owned(), by: by.name().to_owned(), reason }.into());
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
            return Err(TreeError::BadPath { path, by: by.name().to_owned(), reason }.into());
        }
        if there.by.yields_to(by) {
            self.nodes.insert(path, Placed { node, by: by.clone() });
            return Ok(());
        }
        if by.yields_to(&there.by) {
            return Ok(());
        }
        Err(TreeError::Conflict { path, first: there.by.name().to_owned(), second: by.name().to_owned() }
            .into())
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
}

#[cfg(test)]
mod tests;
