//! Words of other languages: what a user of libvirt or QEMU writes by habit, and what to write here instead. A language
//! gives its table to [`crate::Findings::knowing`]; the cursors look there before they guess at a misspelling.

/// A word that is not ours, where it may stand, and what to write.
#[derive(Debug, Clone, Copy)]
pub struct Foreign {
    /// What kind of word it is.
    pub kind: Kind,
    /// The node it stands in (of a node: its parent; of a property or an argument: its node); empty for any.
    pub within: &'static str,
    /// The word.
    pub word: &'static str,
    /// What to write, as a help line.
    pub write: &'static str,
}

/// A node's name.
pub const fn node(within: &'static str, word: &'static str, write: &'static str) -> Foreign {
    Foreign { kind: Kind::Node, within, word, write }
}

/// The name of a property.
pub const fn key(within: &'static str, word: &'static str, write: &'static str) -> Foreign {
    Foreign { kind: Kind::Property, within, word, write }
}

/// An argument, or the value of a property.
pub const fn value(within: &'static str, word: &'static str, write: &'static str) -> Foreign {
    Foreign { kind: Kind::Value, within, word, write }
}

/// The places a word can stand in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A node's name.
    Node,
    /// A property's key.
    Property,
    /// A value: `within` is the node for an argument and the key for a property.
    Value,
}

/// What to write instead of `word`, where the table knows it. An entry for this very place wins over one for any.
pub(crate) fn instead(
    table: &'static [Foreign],
    kind: Kind,
    within: &str,
    word: &str,
) -> Option<&'static str> {
    let fits = |entry: &&Foreign| entry.kind == kind && entry.word.eq_ignore_ascii_case(word);
    let here = table.iter().filter(fits).find(|entry| entry.within == within);
    here.or_else(|| table.iter().filter(fits).find(|entry| entry.within.is_empty())).map(|entry| entry.write)
}

/// The node that a help line tells to write: its first word behind the first backquote.
pub(crate) fn names(write: &str) -> Option<&str> {
    let code = write.strip_prefix("write `")?;
    code.split(|c: char| c.is_whitespace() || c == '`').next()
}
