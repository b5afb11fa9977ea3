//! Declared paths: `directory`, `link`, `file`.

use std::collections::BTreeMap;

use vmprof_document::{Block, Node};

use super::beside::{Beside, Wanted};
use super::users::People;
use super::{MOUNTED_OVER, absolute, covers, mode};
use crate::recipe::{GuestMount, Place, Placed};

/// What the accounts of the guest are written to.
pub(super) const ACCOUNTS: [&str; 2] = ["/etc/passwd", "/etc/group"];

pub(super) fn placed(
    body: &Block<'_>,
    beside: Beside<'_>,
    people: &People,
    mounts: &[GuestMount],
) -> Vec<Placed> {
    let found = body.findings();
    let mut placed = Vec::new();
    let mut taken = BTreeMap::new();
    let mut place = |node: Node<'_>, read: &dyn Fn(&Node<'_>) -> Option<Place>| {
        let path = node
            .required_arg("a path", "write an absolute path of the guest in double quotes")
            .and_then(|v| absolute(found, v).map(|path| (v, path)));
        let owner = people.owner(&node).or_root();
        let what = read(&node);
        if let Some((value, path)) = path {
            if let Some(over) = MOUNTED_OVER.iter().find(|over| covers(over, &path)) {
                let problem =
                    value.problem("hidden_path", format!("the guest mounts over {over} when it starts"));
                found.push(problem.help(
                    "choose another path, or let a service make it: `service … { directory \"/run/name\" }`",
                ));
            }
            if let Some(over) = mounts.iter().map(|m| &m.mount.path).find(|over| covers(over, &path)) {
                let message = format!("the recipe mounts over {over}, which hides {path}");
                let help = match *over == path {
                    true => "give the `mount` its `owner=` and `mode=` instead",
                    false => "make it when the disk is there: with `directory` or `prepare` of a service",
                };
                found.push(value.problem("hidden_path", message).help(help));
            }
            if ACCOUNTS.contains(&path.as_str()) && !people.is_empty() {
                let message = format!("{path} is written from the recipe's users and groups");
                let problem = value.problem("contradiction", message);
                found.push(problem.help("write everything as `user` and `group`, or everything in the file"));
            }
            if let Some(first) = taken.insert(path.clone(), value.span()) {
                let problem = found.error("duplicate_path", format!("{path} is declared twice"));
                let problem = problem.at(value.span(), "again here").at(first, "first here");
                found.push(problem.help("keep one of them"));
            }
            placed.extend(what.zip(owner).map(|(what, owner)| Placed { path, owner, what }));
        }
        node.finish();
    };
    for node in body.all("directory") {
        place(node, &|node| Some(Place::Directory { mode: mode(node, 0o755)? }));
    }
    for node in body.all("link") {
        place(node, &|node| {
            let target = node.required_prop("to", "write `link \"/path\" to=\"target\"`")?.text()?;
            Some(Place::Link { target: target.to_owned() })
        });
    }
    for node in body.all("file") {
        place(node, &|node| file(node, beside));
    }
    placed
}

fn file(node: &Node<'_>, beside: Beside<'_>) -> Option<Place> {
    let mode = mode(node, 0o644);
    let from = node.prop("from");
    let text = node.arg("the file's text");
    let place = match (text, from) {
        (Some(text), None) => Place::Text { mode: mode?, text: with_newline(text.string()?) },
        (None, Some(from)) => {
            let source = beside.path(node.findings(), from, Wanted::File);
            Place::From { mode: mode?, source: source? }
        }
        (None, None) => {
            let problem = node.problem("empty_file", "the file has neither text nor a source");
            node.findings().push(problem.help("write its text as second argument, or `from=\"path\"`"));
            return None;
        }
        (Some(_), Some(from)) => {
            let problem = from.problem("contradiction", "the file has both text and a source");
            node.findings().push(problem.help("keep one of them"));
            return None;
        }
    };
    Some(place)
}

/// KDL's multi-line strings do not end with a newline, text files do.
fn with_newline(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}
