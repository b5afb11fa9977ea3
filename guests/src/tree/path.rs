//! Where a path leads: links followed as Linux and dpkg follow them, and what no Linux filesystem could hold.

use super::{Kind, Node, Origin, Placed, Tree, TreeError};
use crate::error::Result;

/// Linux's NAME_MAX, and PATH_MAX less the closing zero: nothing longer could be opened in the guest.
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 4095;

/// Why no Linux filesystem can hold that, if it cannot.
pub(super) fn impossible(path: &str, kind: &Kind) -> Option<String> {
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

impl Tree {
    /// Where a new node of that path goes: its directory with links followed, made where it is missing.
    pub(super) fn place_of(&mut self, path: &str, by: &Origin) -> Result<String> {
        let path = path.trim_matches('/');
        let Some((parent, name)) = path.rsplit_once('/') else { return Ok(path.to_owned()) };
        let bad = |reason: &str| {
            TreeError::BadPath { path: path.to_owned(), by: by.name().to_owned(), reason: reason.to_owned() }
                .into()
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
    /// plain names. `None`: links in a circle, or to a path too long.
    pub(super) fn resolve(&self, path: &str, follow_last: bool) -> Option<String> {
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
