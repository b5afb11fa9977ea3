//! The text of an hwloc XML file as a tree of elements, within limits: a file that somebody sent must not make vmprof
//! run for hours or eat all memory.

use roxmltree::{Document, Node, ParsingOptions, TextPos};

/// A file beyond this describes no machine: 1,024 CPUs make a megabyte.
const MOST_BYTES: usize = 64 << 20;
/// Elements and texts.
const MOST_NODES: u32 = 1 << 20;
/// Of one element. The parser compares each with all others.
const MOST_ATTRIBUTES: usize = 64;
/// Objects inside objects; real machines stay below 30, with bridges and all.
pub(super) const DEPTH: usize = 128;

/// Why a text is no hwloc topology that vmprof can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, miette::Diagnostic)]
#[error("the hwloc XML makes no sense at line {line}, column {column}: {found}")]
#[diagnostic(
    code(vmprof::host::bad_hwloc),
    help("`lstopo --of xml FILE` on the machine to plan for writes one that vmprof reads")
)]
pub struct HwlocError {
    /// Counted from 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// What is wrong there.
    pub found: String,
}

impl HwlocError {
    fn at(at: TextPos, found: impl Into<String>) -> HwlocError {
        HwlocError { line: at.row, column: at.col, found: found.into() }
    }

    /// A remark about an element.
    pub(super) fn of(node: Node<'_, '_>, found: impl Into<String>) -> HwlocError {
        HwlocError::at(node.document().text_pos_at(node.range().start), found)
    }
}

/// Parses the text.
pub(in crate::topology) fn parse(text: &str) -> Result<Document<'_>, HwlocError> {
    let at = |offset: usize| {
        let before = text.get(..offset).unwrap_or_default();
        let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        TextPos::new(small(line), small(column))
    };
    if text.len() > MOST_BYTES {
        let found = format!("the file has {} bytes, and vmprof reads {MOST_BYTES}", text.len());
        return Err(HwlocError::at(at(0), found));
    }
    // hwloc writes neither; both can make a small file enormous when it is read.
    for (word, what) in [("<!ENTITY", "an entity is declared"), ("xmlns", "a namespace is named")] {
        if let Some(offset) = text.find(word) {
            return Err(HwlocError::at(at(offset), format!("{what}, which hwloc never does")));
        }
    }
    let mut offset = 0;
    for part in text.split('<') {
        if part.bytes().filter(|b| *b == b'=').count() > MOST_ATTRIBUTES {
            let found = format!("more than {MOST_ATTRIBUTES} attributes");
            return Err(HwlocError::at(at(offset), found));
        }
        offset += part.len() + 1;
    }
    let options = ParsingOptions { allow_dtd: true, nodes_limit: MOST_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|error| {
        let position = error.pos();
        let said = error.to_string();
        // The parser ends its messages with the position that ours begin with.
        let found = said.trim_end_matches(&format!(" at {position}")).to_owned();
        HwlocError::at(position, found)
    })?;
    not_too_deep(&document)?;
    Ok(document)
}

fn not_too_deep(document: &Document<'_>) -> Result<(), HwlocError> {
    let mut at = document.root();
    let mut depth = 0;
    loop {
        if let Some(child) = at.first_child() {
            depth += 1;
            if depth > DEPTH {
                return Err(HwlocError::of(child, format!("elements inside {DEPTH} others")));
            }
            at = child;
            continue;
        }
        while at.next_sibling().is_none() {
            let Some(parent) = at.parent() else { return Ok(()) };
            depth -= 1;
            at = parent;
        }
        let Some(next) = at.next_sibling() else { return Ok(()) };
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> HwlocError {
        parse(text).map(|_| ()).unwrap_err()
    }

    #[test]
    fn what_is_no_xml_is_named_by_line_and_column() {
        let error = refused("<topology>\n  <object type=\"Machine\">\n  </objekt>\n</topology>");
        assert_eq!((error.line, error.column), (3, 3), "{error}");
        assert!(refused("<topology>").to_string().contains("line 1"));
        assert!(refused("").to_string().contains("line 1"));
    }

    #[test]
    fn hostile_files_are_refused() {
        let entities = "<!DOCTYPE t [<!ENTITY a \"x\"><!ENTITY b \"&a;&a;\">]>\n<topology>&b;</topology>";
        let deep = format!("<topology>{}", "<object>".repeat(100_000));
        let closed = format!("<topology>{}{}</topology>", "<o>".repeat(5000), "</o>".repeat(5000));
        let wide = format!("<topology{}/>", (0..300).map(|n| format!(" a{n}=\"\"")).collect::<String>());
        let spaces = "<topology xmlns:a=\"b\"/>";
        let many = format!("<topology>{}</topology>", "<o/>".repeat(1 << 21));
        for text in [entities, &deep, &closed, &wide, spaces, &many] {
            refused(text);
        }
        assert!(parse("<!DOCTYPE topology SYSTEM \"hwloc2.dtd\">\n<topology version=\"2.0\"/>").is_ok());
    }
}
