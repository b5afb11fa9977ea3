//! One layer on those below it (OCI image specification, "Image Layer Filesystem Changeset"). Whiteouts act on the layers below
//! alone, wherever in the archive they stand.

use std::sync::Arc;

use crate::archive::{self, Member, What};
use crate::tree::{Kind, Node, Tree};

/// Before a name: what the layers below have under it is gone.
const WHITEOUT: &str = ".wh.";
/// What the layers below have in this directory is gone.
const OPAQUE: &str = ".wh..wh..opq";

/// `word` becomes part of the inodes' words, so that two layers' links stay apart.
pub(super) fn apply(tree: &mut Tree, word: &str, tar: &[u8]) -> Result<(), String> {
    let members = archive::members(tar)?;
    let mut gone = Vec::new();
    let mut here = Vec::new();
    for member in &members {
        let (directory, name) = member.path.rsplit_once('/').unwrap_or(("", &member.path));
        if directory.split('/').any(|part| part.starts_with(WHITEOUT)) {
            return Err(format!("{} lies below a whiteout", member.path));
        }
        match name.strip_prefix(WHITEOUT) {
            None => here.push(member),
            Some(_) if name == OPAQUE => gone.push(Gone::Below(directory)),
            Some(hidden) if hidden.starts_with(WHITEOUT) || matches!(hidden, "" | "." | "..") => {
                return Err(format!("{} is a whiteout of a kind that is not known", member.path));
            }
            Some(hidden) => gone.push(Gone::Path(join(directory, hidden))),
        }
    }
    // A directory in place of a link or a file below: whiteouts in it must not follow that link.
    for member in &here {
        let is_directory = matches!(member.what, What::Other(Kind::Directory));
        let replaced =
            tree.at(&member.path).is_some_and(|node| node.kind != Kind::Directory || !is_directory);
        if replaced {
            tree.remove(&member.path);
        }
    }
    for one in &gone {
        match one {
            Gone::Path(path) => {
                tree.remove(path);
            }
            Gone::Below(path) => tree.empty(path),
        }
    }
    here.into_iter().try_for_each(|member| lay(tree, word, member))
}

enum Gone<'a> {
    Path(String),
    Below(&'a str),
}

fn lay(tree: &mut Tree, word: &str, member: &Member<'_>) -> Result<(), String> {
    let path = member.path.as_str();
    let node = match &member.what {
        What::HardLink(target) => shared(tree, word, path, target)?,
        _ => member.node().ok_or_else(|| format!("{path} is nothing"))?,
    };
    tree.lay(path, node)
}

/// The node of an earlier name, of this layer or of one below, marked as one with several names.
fn shared(tree: &mut Tree, word: &str, path: &str, target: &str) -> Result<Node, String> {
    let missing = || format!("{path} is a hard link to {target}, which is not in the image so far");
    let mut node = tree.at(target).ok_or_else(missing)?.clone();
    if node.kind == Kind::Directory {
        return Err(format!("{path} is a hard link to a directory"));
    }
    if node.inode.is_none() {
        node.inode = Some(Arc::from(format!("{word}:{target}")));
        tree.lay(target, node.clone())?;
    }
    Ok(node)
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}
