//! The plain part of KDL, read in one pass: nodes, bare words, whole numbers, strings without escapes, `#true` and its like,
//! comments, `/-`. That is nearly every profile, recipe and lock, and takes a hundredth of the time of the whole parser.
//! Whatever else stands in a text, mistakes above all, is left to the parser: then this gives nothing. What it does give is
//! what the parser would, which a property in the tests keeps true.

use kdl::{KdlDocument, KdlEntry, KdlIdentifier, KdlNode, KdlValue};
use miette::SourceSpan;

use crate::token::{Kind, Token, tokens};

/// The document, where all of `text` is plain.
pub(crate) fn parse(text: &str) -> Option<KdlDocument> {
    // A byte order mark may stand at the start only; the parser knows.
    if text.contains('\u{feff}') {
        return None;
    }
    let tokens = tokens(text);
    let mut reader = Reader { tokens: &tokens, at: 0 };
    reader.document(true)
}

struct Reader<'t> {
    tokens: &'t [Token<'t>],
    at: usize,
}

impl<'t> Reader<'t> {
    fn peek(&self) -> Option<Token<'t>> {
        self.tokens.get(self.at).copied()
    }

    /// Whether the token at hand stands behind the one before it without a blank.
    fn touches(&self) -> bool {
        let before = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
        before.zip(self.peek()).is_some_and(|(before, here)| before.end() == here.at)
    }

    fn document(&mut self, file: bool) -> Option<KdlDocument> {
        let mut document = KdlDocument::new();
        loop {
            let Some(token) = self.peek() else { return file.then_some(document) };
            match token.kind {
                Kind::Newline if matches!(token.text, "\n" | "\r\n") => self.at += 1,
                Kind::LineComment => self.at += 1,
                Kind::BlockComment if token.is_closed_comment() => self.at += 1,
                Kind::Close if !file => {
                    self.at += 1;
                    return Some(document);
                }
                Kind::SlashDash => {
                    self.at += 1;
                    let off = self.node()?;
                    // The parser takes no `;` there.
                    if self.tokens.get(self.at - 1).is_some_and(|last| last.kind == Kind::Semicolon) {
                        return None;
                    }
                    // The version marker is the parser's to judge where it names another version than this.
                    let version = off.name().value() == "kdl-version";
                    if version && off.entries().first().map(KdlEntry::value) != Some(&KdlValue::Integer(2)) {
                        return None;
                    }
                }
                Kind::Word => {
                    let node = self.node()?;
                    document.nodes_mut().push(node);
                }
                _ => return None,
            }
        }
    }

    /// A node up to behind its end.
    fn node(&mut self) -> Option<KdlNode> {
        let name = self.peek().filter(|token| token.kind == Kind::Word)?;
        let mut node = KdlNode::new(identifier(name)?);
        node.set_span(name.span());
        self.at += 1;
        let mut braces = false;
        loop {
            let Some(token) = self.peek() else { return Some(node) };
            match token.kind {
                Kind::Newline if matches!(token.text, "\n" | "\r\n") => {
                    self.at += 1;
                    return Some(node);
                }
                Kind::Semicolon => {
                    self.at += 1;
                    return Some(node);
                }
                Kind::LineComment | Kind::Close => return Some(node),
                _ if braces || self.touches() => return None,
                Kind::Word => {
                    let entry = self.entry()?;
                    node.entries_mut().push(entry);
                }
                Kind::SlashDash => {
                    self.at += 1;
                    match self.peek()?.kind {
                        Kind::Word => self.entry()?,
                        _ => return None,
                    };
                }
                Kind::Open => {
                    self.at += 1;
                    let children = self.document(false)?;
                    node.set_children(children);
                    braces = true;
                }
                _ => return None,
            }
        }
    }

    fn entry(&mut self) -> Option<KdlEntry> {
        let first = self.peek()?;
        self.at += 1;
        if self.peek().is_none_or(|token| token.kind != Kind::Equals) {
            let mut entry = KdlEntry::new(value(first.text)?);
            entry.set_span(first.span());
            return Some(entry);
        }
        let key = identifier(first)?;
        if !self.touches() {
            return None;
        }
        self.at += 1;
        let second = self.peek().filter(|token| token.kind == Kind::Word && self.touches())?;
        self.at += 1;
        let mut entry = KdlEntry::new_prop(key, value(second.text)?);
        entry.set_span(SourceSpan::from((first.at, second.end() - first.at)));
        Some(entry)
    }
}

fn identifier(token: Token<'_>) -> Option<KdlIdentifier> {
    let KdlValue::String(name) = value(token.text)? else { return None };
    let mut identifier = KdlIdentifier::from(name);
    identifier.set_span(token.span());
    Some(identifier)
}

fn value(word: &str) -> Option<KdlValue> {
    match word.as_bytes() {
        [b'"', inner @ .., b'"'] => {
            let plain =
                !inner.iter().any(|b| matches!(b, b'\\' | b'"') || (b.is_ascii_control() && *b != b'\t'));
            let text = word.get(1..word.len() - 1)?;
            // Other ends of a line end a string as well.
            let ends = |c: char| matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}');
            (plain && !text.contains(ends)).then(|| KdlValue::String(text.to_owned()))
        }
        b"#true" => Some(KdlValue::Bool(true)),
        b"#false" => Some(KdlValue::Bool(false)),
        b"#null" => Some(KdlValue::Null),
        [b'0'..=b'9', ..] | [b'-', b'0'..=b'9', ..] => {
            let digits = word.strip_prefix('-').unwrap_or(word);
            let plain = digits.len() <= 18 && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| word.parse().ok().map(KdlValue::Integer)).flatten()
        }
        [b'a'..=b'z' | b'A'..=b'Z' | b'_', rest @ ..] => {
            let plain = rest.iter().all(|b| b.is_ascii_alphanumeric() || b"_-.:".contains(b));
            let keyword = matches!(word, "true" | "false" | "null" | "inf" | "nan");
            (plain && !keyword).then(|| KdlValue::String(word.to_owned()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
