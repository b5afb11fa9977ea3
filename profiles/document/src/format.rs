//! The canonical layout of a KDL text: one node per line, four blanks a level, one blank between words, at most one empty
//! line between nodes. Braces that stood on one line stay on it while it is short. Every comment, switched-off node
//! and value is kept as it was written: the layout is made from the text's tokens, not from what they mean, and what
//! comes out is compared with what went in.

mod layout;

use kdl::{KdlDocument, KdlEntry, KdlNode};

use crate::Document;
use crate::problem::{Problem, Problems};
use crate::token::{self, Kind, Token};

/// Lays `text` out anew. `area` and `name` are as for [`Document::parse`]; a text with problems of syntax is not touched.
pub fn format(area: &'static str, name: &str, text: &str) -> Result<String, Problems> {
    let before = Document::parse(area, name, text)?;
    if !before.slips.is_empty() {
        return Err(before.problems(before.slips.clone()));
    }
    let tokens = token::tokens(text);
    let after = layout::layout(&tokens);
    let kept = said(&tokens) == said(&token::tokens(&after))
        && KdlDocument::parse_v2(&after).is_ok_and(|document| same(&before.kdl, &document));
    if kept {
        return Ok(after);
    }
    let problem =
        Problem::error(format!("{area}::not_formatted"), "this text cannot be laid out without changing it")
            .help("it is left as it is; please report it as a mistake in vmprof");
    Err(before.problems(vec![problem]))
}

/// The tokens that carry meaning, comments among them.
fn said<'t>(tokens: &[Token<'t>]) -> Vec<(Kind, &'t str)> {
    let mut said = Vec::new();
    for token in tokens {
        match token.kind {
            Kind::Newline | Kind::Semicolon => {}
            Kind::Continued => {
                let comment = layout::continued_comment(token.text).unwrap_or_default();
                said.extend(token::tokens(comment).iter().map(|token| (token.kind, token.text)));
            }
            Kind::LineComment => said.push((token.kind, token.text.trim_end())),
            _ => said.push((token.kind, token.text)),
        }
    }
    said
}

/// Whether two documents say the same, wherever it stands.
fn same(one: &KdlDocument, other: &KdlDocument) -> bool {
    one.nodes().len() == other.nodes().len()
        && one.nodes().iter().zip(other.nodes()).all(|(a, b)| same_node(a, b))
}

fn same_node(one: &KdlNode, other: &KdlNode) -> bool {
    let empty = KdlDocument::new();
    let ty = |node: &KdlNode| node.ty().map(|ty| ty.value().to_owned());
    one.name().value() == other.name().value()
        && ty(one) == ty(other)
        && one.entries().len() == other.entries().len()
        && one.entries().iter().zip(other.entries()).all(|(a, b)| same_entry(a, b))
        && same(one.children().unwrap_or(&empty), other.children().unwrap_or(&empty))
}

fn same_entry(one: &KdlEntry, other: &KdlEntry) -> bool {
    let name = |entry: &KdlEntry| entry.name().map(|name| name.value().to_owned());
    let ty = |entry: &KdlEntry| entry.ty().map(|ty| ty.value().to_owned());
    name(one) == name(other) && ty(one) == ty(other) && one.value() == other.value()
}

#[cfg(test)]
mod tests;
