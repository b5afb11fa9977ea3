//! `when FACT OP=VALUE { … }`: the condition, and which nodes may stand under it. What they come to is read once for every
//! set of conditions, so that a profile that reads is right on any host.

use vmprof_document::{Node, Value};

use super::Reading;
use crate::conditions::{Comparison, Fact, FactValue, When};

/// Each doubles the number of profiles that one file can come to.
pub(super) const MOST_WHENS: usize = 8;

/// What belongs to the VM itself, whatever the host: a `when` only tunes.
const FIXED: [(&str, &str); 5] = [
    ("guest", "write two profiles that extend one"),
    ("extends", "write it outside the `when`"),
    ("when", "write one `when` after the other: each is tested by itself"),
    ("assert", "write it outside the `when`: it holds on any host"),
    ("description", "write it outside the `when`"),
];
/// The same, of a disk.
const FIXED_OF_DISK: [(&str, &str); 2] = [
    ("source", "write it in the disk outside the `when`: a disk's bytes lie in one place"),
    ("format", "write it in the disk outside the `when`: its filesystem is made once"),
];

impl<'a> Reading<'a> {
    /// Reads the conditions; the node of each comes along, for its braces.
    pub(super) fn whens(&self, nodes: Vec<Node<'a>>, disks: &[&str]) -> Vec<(When, Node<'a>)> {
        if let Some(one_too_many) = nodes.get(MOST_WHENS) {
            self.findings.push(
                one_too_many
                    .problem("too_many_whens", format!("there are {} `when`s, and {MOST_WHENS} is the most", nodes.len()))
                    .help("every set of them is a profile of its own; join some, or write two profiles that extend one"),
            );
        }
        nodes.into_iter().take(MOST_WHENS).filter_map(|node| Some((self.when(&node, disks)?, node))).collect()
    }

    fn when(&self, node: &Node<'a>, disks: &[&str]) -> Option<When> {
        let help = "write a fact and a comparison: `when host.spare-cores lt=2 { … }`";
        let fact = node.required_arg("which fact", help).and_then(|v| v.word(&Fact::ALL));
        let mut tests = Vec::new();
        let mut any = false;
        for (key, comparison) in Comparison::ALL {
            if let Some(value) = node.prop(key) {
                any = true;
                let wanted = fact.and_then(|fact| self.wanted(fact, comparison, value));
                tests.extend(wanted.map(|wanted| (comparison, wanted)));
            }
        }
        let signs = [("<", "lt"), (">", "gt"), ("==", "eq"), ("!=", "ne"), ("is", "eq")];
        if let Some(sign) = node.arg("a comparison") {
            any = true;
            let word = sign.raw().as_string().unwrap_or_default();
            let value = node.arg("the value").map_or("2".to_owned(), |value| value.raw().to_string());
            let key = signs.iter().find(|(sign, _)| *sign == word).map_or("lt", |(_, key)| key);
            self.findings.push(
                sign.problem("extra_argument", "a comparison is a property of the `when`").help(format!(
                    "write `{key}={value}`; the comparisons are `lt`, `le`, `eq`, `ne`, `ge` and `gt`"
                )),
            );
        }
        if !any && !node.has_unread_props() && fact.is_some() {
            self.findings.push(
                node.problem("missing_property", "this `when` compares its fact with nothing")
                    .help("write `lt=`, `le=`, `eq=`, `ne=`, `ge=` or `gt=` and a value, such as `lt=2`"),
            );
        }
        let tunes = self.body(node, disks);
        node.report_rest();
        // A wrong condition is reported by now, so the profile is refused; its braces are still worth reading.
        let fact = fact.unwrap_or(Fact::Cpus);
        tunes.then(|| When { fact, tests, line: node.line(), span: node.name_span() })
    }

    fn wanted(&self, fact: Fact, comparison: Comparison, value: Value<'a>) -> Option<FactValue> {
        let ordered = !matches!(fact, Fact::Smt | Fact::Hybrid | Fact::Arch);
        if !ordered && !matches!(comparison, Comparison::Eq | Comparison::Ne) {
            let message = format!("`{}` is not more or less than anything", fact.word());
            self.findings
                .push(value.problem("unordered_fact", message).help("compare it with `eq=` or `ne=`"));
            return None;
        }
        Some(match fact {
            Fact::Memory => FactValue::Bytes(value.bytes()?),
            Fact::Smt | Fact::Hybrid => FactValue::Switch(value.bool()?),
            Fact::Arch => FactValue::Word(value.text()?.to_owned()),
            _ => FactValue::Number(value.u64(0..=u64::from(u32::MAX))?),
        })
    }

    /// The braces: their nodes are read with the rest of the profile; here, what may not stand in them is refused. Gives
    /// whether they can be read over the rest.
    fn body(&self, node: &Node<'a>, disks: &[&str]) -> bool {
        let mut tunes = true;
        let block = node.children();
        if block.is_empty() {
            self.findings.push(
                node.problem("empty_when", "this `when` changes nothing")
                    .help("write in braces what the profile says where the condition holds"),
            );
        }
        let refuse = |node: &Node<'a>, instead: &str| {
            let message = format!("`{}` does not depend on the host", node.name());
            self.findings.push(node.problem("not_under_when", message).help(instead));
        };
        for (name, instead) in FIXED {
            block.all(name).iter().for_each(|node| refuse(node, instead));
        }
        for disk in block.all("disk") {
            if let Some(name) = disk.first_text().filter(|name| !disks.contains(name)) {
                tunes = false;
                let help = match vmprof_document::closest(name, disks.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`? A `when` tunes the disks there are"),
                    None => {
                        "write the disk outside the `when`, and in here what is different about it".to_owned()
                    }
                };
                let message = format!("the disk `{name}` would only be there on some hosts");
                self.findings.push(disk.problem("new_disk_under_when", message).help(help));
            }
            let inner = disk.children();
            for (name, instead) in FIXED_OF_DISK {
                inner.all(name).iter().for_each(|node| refuse(node, instead));
            }
        }
        tunes
    }
}
