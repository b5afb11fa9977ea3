//! Names with values: `env`, of a guest and of a service, and `sysctl`.

use std::collections::BTreeMap;

use vmprof_document::{Block, Node, Value};

use super::handed;
use crate::recipe::words::{Form, SYSCTL, VARIABLE};

/// The variables that an `env` writes out, sorted by name.
pub(super) fn variables(node: Node<'_>) -> Vec<(String, String)> {
    named_values(node, &VARIABLE, "variable", "write `NAME \"value\"`")
}

/// Kernel settings, sorted by name.
pub(super) fn sysctl(body: &Block<'_>) -> Vec<(String, String)> {
    let Some(node) = body.only("sysctl") else { return Vec::new() };
    named_values(node, &SYSCTL, "setting", "write `vm.swappiness 1`")
}

fn named_values(node: Node<'_>, form: &Form, what: &str, help: &str) -> Vec<(String, String)> {
    let found = node.findings();
    let mut read: BTreeMap<String, String> = BTreeMap::new();
    let mut first = BTreeMap::new();
    let children = node.children();
    for child in children.rest() {
        let name = child.name();
        if !form.fits(name) {
            let problem = child.problem("bad_name", format!("`{name}` cannot be {}", form.what));
            found.push(problem.help(format!("it is made of {}", form.made_of)));
        }
        if let Some(before) = first.insert(name, child.name_span()) {
            let message = format!("{what} `{name}` is set twice");
            let problem = found.error("duplicate_node", message).at(child.name_span(), "again here");
            found.push(problem.at(before, "first here").help("keep one of them"));
        }
        let value = child.required_arg("its value", help);
        let value = value.and_then(|v| number(&v).or_else(|| handed(found, v)));
        if let Some(value) = value {
            read.insert(name.to_owned(), value);
        }
        child.finish();
    }
    children.finish();
    node.finish();
    read.into_iter().collect()
}

/// A whole number's digits: `vm.swappiness 1` needs no quotes.
fn number(value: &Value<'_>) -> Option<String> {
    if value.poisoned() {
        return None;
    }
    value.raw().as_integer().map(|n| n.to_string())
}
