//! Who is process 1: `init vmprof`, `init systemd { enable …; mask … }`.

use std::collections::BTreeMap;

use vmprof_document::{Block, Node};

use crate::recipe::Init;
use crate::recipe::words::UNIT;

/// What a unit's name can end with.
const KINDS: [&str; 10] =
    ["service", "socket", "target", "timer", "path", "mount", "automount", "swap", "slice", "device"];

pub(super) fn init(body: &Block<'_>) -> Init {
    let Some(node) = body.only("init") else { return Init::Vmprof };
    let found = node.findings();
    let systemd = node
        .required_arg("who is process 1", "write `init vmprof` or `init systemd`")
        .and_then(|v| v.word(&[("vmprof", false), ("systemd", true)]));
    if systemd != Some(true) {
        node.finish();
        return Init::Vmprof;
    }
    let children = node.children();
    let mut places = BTreeMap::new();
    let mut units = |nodes: Vec<Node<'_>>| {
        let mut names = Vec::new();
        for node in nodes {
            for value in node.args("a unit's name") {
                let Some(name) = value.text() else { continue };
                let kind = name.rsplit_once('.').map(|(_, kind)| kind);
                if !UNIT.fits(name) || kind.is_none_or(|kind| !KINDS.contains(&kind)) {
                    let problem = value.problem("bad_name", format!("`{name}` cannot be a unit's name"));
                    let help = match kind {
                        None if UNIT.fits(name) => {
                            format!("write \"{name}.service\", or another kind of unit")
                        }
                        _ => "write a name with its kind, such as \"ssh.service\"".to_owned(),
                    };
                    found.push(problem.help(help));
                    continue;
                }
                if let Some((kind, first)) =
                    places.insert(name.to_owned(), (node.name().to_owned(), value.span()))
                    && kind != node.name()
                {
                    let message = format!("unit `{name}` is enabled and masked at once");
                    let problem = found.error("contradiction", message).at(value.span(), "again here");
                    found.push(problem.at(first, "first here").help("keep one of them"));
                }
                names.push(name.to_owned());
            }
            node.finish();
        }
        names.sort();
        names.dedup();
        names
    };
    let enable = units(children.all("enable"));
    let mask = units(children.all("mask"));
    children.finish();
    node.finish();
    Init::Systemd { enable, mask }
}
