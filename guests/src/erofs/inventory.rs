//! The tree as inodes: hard links joined, links counted, in the order the inodes lie in the image. That order goes from
//! directory to directory, level by level, so that what is in one directory lies together.

use std::collections::{BTreeMap, HashMap};

use super::problem;
use crate::error::Result;
use crate::tree::{Kind, Node, Tree};

pub(super) struct Inventory<'a> {
    /// The root comes first.
    pub(super) items: Vec<Item<'a>>,
}

pub(super) struct Item<'a> {
    /// Its first one.
    pub(super) path: &'a str,
    pub(super) node: &'a Node,
    pub(super) links: u32,
    /// Of a directory: itself and the one above under their names, in the order of the names' bytes.
    pub(super) entries: Vec<(&'a str, usize)>,
}

pub(super) fn take(tree: &Tree) -> Result<Inventory<'_>> {
    let mut children: HashMap<&str, Vec<(&str, &str, &Node)>> = HashMap::new();
    let mut root = None;
    for (path, node) in tree.iter() {
        if path.is_empty() {
            root = Some(node);
            continue;
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        children.entry(parent).or_default().push((name, path, node));
    }
    let node = root.ok_or_else(|| problem("a tree without a root"))?;
    let mut items = vec![Item { path: "", node, links: 2, entries: vec![(".", 0), ("..", 0)] }];
    // Names of one inode must agree in everything; where one was replaced, the word alone joins nothing.
    let mut inodes: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut at = 0;
    while let Some(directory) = items.get(at).filter(|item| item.node.kind == Kind::Directory).map(|i| i.path)
    {
        let mut entries = Vec::new();
        for (name, path, node) in children.remove(directory).unwrap_or_default() {
            let same = node.inode.as_deref().filter(|_| node.kind != Kind::Directory).and_then(|word| {
                let known = inodes.entry(word).or_default();
                let same =
                    known.iter().copied().find(|index| items.get(*index).is_some_and(|i| i.node == node));
                if same.is_none() {
                    known.push(items.len());
                }
                same
            });
            if let Some(index) = same {
                entries.push((name, index));
                if let Some(item) = items.get_mut(index) {
                    item.links += 1;
                }
                continue;
            }
            entries.push((name, items.len()));
            let (links, own) = match node.kind {
                Kind::Directory => (2, vec![(".", items.len()), ("..", at)]),
                _ => (1, Vec::new()),
            };
            items.push(Item { path, node, links, entries: own });
        }
        let below = entries
            .iter()
            .filter(|(_, index)| items.get(*index).is_some_and(|item| item.node.kind == Kind::Directory));
        let below = below.count() as u32;
        if let Some(item) = items.get_mut(at) {
            item.links += below;
            item.entries.append(&mut entries);
            // The dots are sorted among the names: `+` comes before them.
            item.entries.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        }
        at += 1;
        // To the next directory.
        while items.get(at).is_some_and(|item| item.node.kind != Kind::Directory) {
            at += 1;
        }
    }
    Ok(Inventory { items })
}
