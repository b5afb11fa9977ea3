//! KDL documents with spans, for the profile and the recipe language alike.
//!
//! What lives here: text → [`Document`]; the cursors ([`Block`], [`Node`], [`Value`]) through which a language reads
//! it; and the [`Findings`] that gather every problem of a file before anyone stops. What does not: any node name of
//! any language, and any rendering. `vmprof-profiles` and `vmprof-guests` call this; `vmprof` renders what comes out.
//!
//! A cursor remembers what was asked for. Its `finish` then reports what nobody read: an unknown node, an unknown
//! property, an argument too many. So a language cannot forget to refuse what it does not know, as long as each
//! cursor is finished.
//!
//! ```
//! use vmprof_document::Document;
//!
//! let doc = Document::parse("vmprof::example", "shop.kdl", "tea \"8GiB\" sugar=#true\n").unwrap();
//! let found = doc.findings();
//! let root = doc.root(&found);
//! let tea = root.required("tea", "name the tea").unwrap();
//! assert_eq!(tea.arg("a size").and_then(|v| v.bytes()), Some(8 << 30));
//! assert_eq!(tea.prop("sugar").and_then(|v| v.bool()), Some(true));
//! tea.finish();
//! root.finish();
//! assert!(doc.conclude(found, Some(())).is_ok());
//! ```

mod cursor;
mod duration;
pub mod foreign;
mod format;
mod layers;
mod limits;
mod merge;
mod problem;
mod quick;
mod shape;
mod size;
mod sources;
mod suggest;
mod syntax;
mod token;
mod value;

use kdl::KdlDocument;
pub use miette::SourceSpan;

pub use cursor::{Block, Node};
pub use duration::{DurationError, format_duration, parse_duration};
pub use foreign::{Foreign, Kind};
pub use format::format;
pub use layers::Load;
pub use merge::{Key, Layering, Over, Rule};
pub use problem::{Findings, Problem, Problems};
pub use size::{SizeError, format_size, parse_size};
pub use sources::{Line, SourceFile, Sources};
pub use suggest::{closest, one_of};
pub use value::Value;

/// A parsed file, or several over each other: the texts, the nodes, and where each of them stands.
///
/// Slips that the KDL parser cannot read but vmprof understands (`memory 8GiB`, `true`) are recorded as problems and
/// stood in for, so that the rest of the file is still checked.
#[derive(Debug)]
pub struct Document {
    area: &'static str,
    sources: Sources,
    kdl: KdlDocument,
    slips: Vec<Problem>,
    /// How layers lie over each other, for a document that was read with them.
    layering: Option<&'static Layering>,
}

impl Document {
    /// Reads `text`. `area` prefixes the codes of all problems (`vmprof::profile`), `name` is what diagnostics call
    /// the file. Fails only where the text is not KDL at all.
    pub fn parse(area: &'static str, name: &str, text: &str) -> Result<Self, Problems> {
        let sources = Sources::one(name, text);
        match syntax::parse(area, text) {
            Ok((kdl, slips)) => Ok(Document { area, sources, kdl, slips, layering: None }),
            Err(problems) => Err(Problems::new(area, sources, problems)),
        }
    }

    /// The file's name as diagnostics show it.
    pub fn name(&self) -> &str {
        self.sources.name()
    }

    /// The text as it was read; the first one, where there are several.
    pub fn text(&self) -> &str {
        self.sources.files().first().map_or("", |file| &file.text)
    }

    /// A gatherer for one reading of this document; it starts with the syntax slips found while parsing.
    pub fn findings(&self) -> Findings {
        let poisoned = self.slips.iter().filter_map(Problem::first_span).collect();
        Findings::new(self.area, self.sources.clone(), self.slips.clone(), poisoned)
    }

    /// The cursor over the top-level nodes.
    pub fn root<'a>(&'a self, findings: &'a Findings) -> Block<'a> {
        let end = SourceSpan::from((self.text().len().saturating_sub(1), 0));
        Block::new(findings, Some(&self.kdl), end, "", "the file".to_owned())
    }

    /// Ends a reading: the value and the warnings (perhaps none), or all problems at once. A reading that yields no
    /// value without having found an error is reported as a problem of its own.
    pub fn conclude<T>(&self, findings: Findings, value: Option<T>) -> Result<(T, Problems), Problems> {
        let skipped = findings.skipped();
        let mut problems = findings.into_problems();
        problems.sort_by_key(|p| p.first_span().map_or(0, |s| s.offset()));
        let failed = problems.iter().any(Problem::is_error);
        match value {
            Some(value) if !failed => Ok((value, self.problems(problems))),
            _ => {
                if !failed {
                    problems.push(
                        Problem::error(format!("{}::incomplete", self.area), "the file does not say enough")
                            .help("`vmprof check` reads it again and names what is missing"),
                    );
                }
                Err(Problems::counted(self.area, self.sources.clone(), problems, skipped))
            }
        }
    }

    /// Wraps problems found later (when planning, say) with this file's text.
    pub fn problems(&self, problems: Vec<Problem>) -> Problems {
        Problems::new(self.area, self.sources.clone(), problems)
    }

    /// All texts it was read from, under their names.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }
}

#[cfg(test)]
mod tests;

/// The name of a file's first node, whatever the rest of it says; `None` where that cannot be read. For telling kinds of
/// file apart: the reader of the kind then says what is wrong with it.
pub fn first_node(text: &str) -> Option<String> {
    match syntax::parse("", text) {
        Ok((document, _)) => document.nodes().first().map(|node| node.name().value().to_owned()),
        // What is no KDL as a whole still begins with a word, after comments and the version marker.
        Err(_) => {
            let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('/'))?;
            line.split_whitespace().next().map(str::to_owned)
        }
    }
}
