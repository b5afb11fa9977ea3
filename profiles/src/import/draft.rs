//! A profile while it is being made of something else: nodes and words, each of which remembers what of the source it
//! says. A draft settles into text that the language takes: a word that is refused is struck, a node that is refused stays
//! as a comment, and both are listed with the language's own reason.

use std::ops::Range;

use vmprof_document::Problem;

use super::LeftOut;
use crate::decode::read_profile;

const INDENT: &str = "    ";

/// Where something comes from: the source's words for it, and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) what: String,
    pub(super) line: u32,
}

impl Origin {
    pub(super) fn new(what: impl Into<String>, line: u32) -> Self {
        Origin { what: what.into(), line }
    }
}

/// A draft of which something needed is refused.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    /// What of the source it says.
    pub(super) origin: Origin,
    /// The language's reason.
    pub(super) problem: Option<Problem>,
}

/// What happens to a node that the language refuses as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Without it there is no profile.
    Needed,
    /// It is dropped.
    Dropped,
    /// It stays to be read, behind `//`.
    Kept,
}

/// A node of the profile.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    head: String,
    origin: Origin,
    words: Vec<(String, Origin)>,
    children: Vec<Draft>,
    comments: Vec<String>,
    fate: Fate,
    /// Without children it says nothing.
    container: bool,
    /// Written behind `//`.
    commented: bool,
}

/// Which part of a draft a place in its text belongs to: the node by its path, and the word in it.
type Part = (Vec<usize>, Option<usize>);

impl Draft {
    /// A node that is dropped where the language refuses it.
    pub(super) fn new(head: impl Into<String>, origin: Origin) -> Self {
        Draft {
            head: head.into(),
            origin,
            words: Vec::new(),
            children: Vec::new(),
            comments: Vec::new(),
            fate: Fate::Dropped,
            container: false,
            commented: false,
        }
    }

    /// A node without which there is no profile; its words may go all the same.
    pub(super) fn needed(mut self) -> Self {
        self.fate = Fate::Needed;
        self
    }

    /// A node that goes with the last of its children.
    pub(super) fn container(mut self) -> Self {
        self.container = true;
        self
    }

    /// A node that is left as a comment where the language refuses it.
    pub(super) fn kept(mut self) -> Self {
        self.fate = Fate::Kept;
        self
    }

    /// Adds a word: an argument or a property.
    pub(super) fn word(&mut self, text: impl Into<String>, origin: Origin) {
        self.words.push((text.into(), origin));
    }

    pub(super) fn add(&mut self, child: Draft) {
        self.children.push(child);
    }

    /// A line of comment above the node.
    pub(super) fn comment(&mut self, text: impl AsRef<str>) {
        self.comments.push(text.as_ref().chars().map(|c| if hidden(c) { ' ' } else { c }).collect());
    }

    /// Turns the node into a comment.
    pub(super) fn strike(&mut self) {
        self.commented = true;
    }

    pub(super) fn has_children(&self) -> bool {
        !self.children.is_empty()
    }

    /// Writes the profile, until the language takes it.
    pub(super) fn settle(mut self, name: &str) -> Result<(String, Vec<LeftOut>), Box<Refused>> {
        let mut left_out = Vec::new();
        loop {
            let (text, parts) = self.text();
            let Err(problems) = read_profile(name, &text) else { return Ok((text, left_out)) };
            let mut refused = Refused { origin: self.origin.clone(), problem: None };
            let struck = problems.iter().filter(|problem| problem.is_error()).find_map(|problem| {
                refused.problem.get_or_insert_with(|| problem.clone());
                let place = problem.first_span()?.offset();
                // Of the parts that hold the place, the smallest is what was refused.
                let holds = |(range, _): &&(Range<usize>, Part)| range.contains(&place);
                let (_, part) = parts.iter().filter(holds).min_by_key(|(range, _)| range.len())?;
                let struck = self.remove(part, problem);
                if let (None, Some(node)) = (&struck, self.at(&part.0)) {
                    refused.origin = node.origin.clone();
                }
                struck
            });
            match struck {
                Some(struck) => left_out.push(struck),
                None => return Err(Box::new(refused)),
            }
        }
    }

    /// Takes a part out, or the smallest node around it that may go; `None` where nothing may.
    fn remove(&mut self, part: &Part, problem: &Problem) -> Option<LeftOut> {
        let why = match problem.help_text() {
            Some(help) => format!("{problem}; {help}"),
            None => problem.to_string(),
        };
        let listed = |origin: &Origin| LeftOut::at(origin.line, origin.what.clone(), why.clone());
        let (path, word) = part;
        if let (Some(word), Some(node)) = (word, self.at(path))
            && *word < node.words.len()
        {
            let (_, origin) = node.words.remove(*word);
            return Some(listed(&origin));
        }
        let (at, above) = path.split_last()?;
        let parent = self.at(above)?;
        let child = parent.children.get_mut(*at)?;
        let listed = listed(&child.origin);
        match child.fate {
            Fate::Needed => return None,
            Fate::Kept => child.commented = true,
            Fate::Dropped => {
                parent.children.remove(*at);
                self.clear(above);
            }
        }
        Some(listed)
    }

    /// Removes a container that has no children left, and so on upwards.
    fn clear(&mut self, path: &[usize]) {
        let empty = self.at(path).is_some_and(|node| node.container && !node.has_children());
        if let (true, Some((at, above))) = (empty, path.split_last()) {
            if let Some(parent) = self.at(above) {
                parent.children.remove(*at);
            }
            self.clear(above);
        }
    }

    fn at(&mut self, path: &[usize]) -> Option<&mut Draft> {
        path.iter().try_fold(self, |node, at| node.children.get_mut(*at))
    }

    /// The text, and which part each stretch of it belongs to.
    fn text(&self) -> (String, Vec<(Range<usize>, Part)>) {
        let mut text = "/- kdl-version 2\n".to_owned();
        let mut parts = Vec::new();
        self.write(&mut text, &mut parts, &[], "");
        (text, parts)
    }

    fn write(&self, text: &mut String, parts: &mut Vec<(Range<usize>, Part)>, path: &[usize], before: &str) {
        let before = match self.commented && !before.contains("//") {
            true => format!("{before}// "),
            false => before.to_owned(),
        };
        for comment in &self.comments {
            let slashes = if before.contains("//") { "" } else { "// " };
            text.push_str(&format!("{before}{slashes}{comment}\n"));
        }
        text.push_str(&before);
        let start = text.len();
        text.push_str(&self.head);
        for (at, (word, _)) in self.words.iter().enumerate() {
            text.push(' ');
            let start = text.len();
            text.push_str(word);
            parts.push((start..text.len(), (path.to_vec(), Some(at))));
        }
        if self.has_children() {
            text.push_str(" {\n");
            let inner = format!("{before}{INDENT}");
            for (at, child) in self.children.iter().enumerate() {
                child.write(text, parts, &[path, &[at]].concat(), &inner);
            }
            text.push_str(&before);
            text.push('}');
        }
        parts.push((start..text.len().saturating_add(1), (path.to_vec(), None)));
        text.push('\n');
    }
}

/// A KDL string: bare where it may be.
pub(super) fn string(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !["true", "false", "null", "inf", "nan"].contains(&text);
    if plain { text.to_owned() } else { quoted(text) }
}

/// A KDL string in quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if hidden(c) => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// What KDL does not let stand in a file, what ends a line, and what would hide the text around it.
fn hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{feff}' | '\u{2028}' | '\u{2029}')
        || ('\u{202a}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c)
}

/// The name with nothing in it that names of the language cannot have.
pub(super) fn plain_name(name: &str, longest: usize, otherwise: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let plain: String = name.chars().map(plain).collect();
    let plain: String = plain.trim_start_matches(['.', '-']).chars().take(longest).collect();
    if plain.is_empty() { otherwise.to_owned() } else { plain }
}
