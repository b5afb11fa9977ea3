//! A text cut into the tokens of KDL 2. Blanks are left out; line ends are tokens. Right for a text that is KDL, and good
//! enough to count on for one that is not.

use miette::SourceSpan;

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Newline,
    Semicolon,
    Open,
    Close,
    Equals,
    OpenType,
    CloseType,
    /// `/-`, which switches off what follows.
    SlashDash,
    /// `// …`, without its line end.
    LineComment,
    /// `/* … */`.
    BlockComment,
    /// A backslash at the end of a line, with what stands behind it up to the line's end.
    Continued,
    /// A name, a value or a string, as it was written.
    Word,
}

/// One token and its text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Token<'t> {
    pub(crate) kind: Kind,
    pub(crate) text: &'t str,
    /// Where it begins.
    pub(crate) at: usize,
}

impl Token<'_> {
    /// Where it ends.
    pub(crate) fn end(self) -> usize {
        self.at + self.text.len()
    }

    /// Its place.
    pub(crate) fn span(self) -> SourceSpan {
        SourceSpan::from((self.at, self.text.len()))
    }

    /// Whether a block comment ends where it began to.
    pub(crate) fn is_closed_comment(self) -> bool {
        // One sign more, and an open one would go on over it.
        block_comment(&format!("{}x", self.text)) == self.text.len()
    }

    /// Whether a word can be a name: no number, and none of the words with a hash.
    pub(crate) fn is_name(self) -> bool {
        let digits = self.text.strip_prefix(['+', '-']).unwrap_or(self.text);
        !digits.starts_with(|c: char| c.is_ascii_digit())
            && (!digits.starts_with('#') || digits.contains('"'))
    }

    /// Whether a word can be a name or a value at all. One that cannot stops the parser, which then looks for the next
    /// place to go on.
    pub(crate) fn is_sound(self) -> bool {
        let digit = |rest: &[u8]| rest.first().is_some_and(u8::is_ascii_digit);
        let word = self.text.as_bytes();
        match word {
            [b'"', ..] => {
                word.len() > 1
                    && word.ends_with(b"\"")
                    && escapes_are_sound(self.text)
                    && lines_are_sound(self.text)
            }
            [b'#', ..] => {
                let known = ["#true", "#false", "#null", "#inf", "#-inf", "#nan"];
                known.contains(&self.text)
                    || (self.text.contains('"') && lines_are_sound(self.text.trim_matches('#')))
            }
            [b'/' | b'\\', ..] => false,
            [b'.', rest @ ..] | [b'+' | b'-', b'.', rest @ ..] => !digit(rest),
            [b'0'..=b'9', ..] | [b'+' | b'-', b'0'..=b'9', ..] => {
                let digits = self.text.trim_start_matches(['+', '-']).trim_end_matches('_');
                let float = digits.replace('_', "");
                let radix = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().any(|(prefix, radix)| {
                    let digits = float.strip_prefix(prefix);
                    digits.is_some_and(|digits| i128::from_str_radix(digits, radix).is_ok())
                });
                radix || (float.parse::<f64>().is_ok() && !float.ends_with('.') && !float.contains(".e"))
            }
            _ => {
                !matches!(self.text, "true" | "false" | "null" | "inf" | "-inf" | "nan")
                    && !word.iter().any(|b| b"[]#".contains(b))
            }
        }
    }
}

/// Whether every backslash in a string stands before something that it can stand before.
fn escapes_are_sound(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            continue;
        }
        let right = match chars.next() {
            Some('u') => chars.as_str().starts_with('{'),
            Some(c) => "\"\\bfnrts/".contains(c) || is_newline(c) || is_blank(c),
            None => false,
        };
        if !right {
            return false;
        }
    }
    true
}

/// Whether a string of three quotes begins with a line's end, and ends with a line of its own.
fn lines_are_sound(text: &str) -> bool {
    let Some(inner) = text.strip_prefix("\"\"\"") else { return true };
    let Some(inner) = inner.strip_suffix("\"\"\"") else { return text == "\"\"" };
    let last = inner.rsplit(is_newline).next().unwrap_or_default();
    inner.starts_with(is_newline) && (last.trim().is_empty() || last.contains('\\') || inner.contains('\\'))
}

/// The tokens of `text`, in order.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(first) = text.get(at..).and_then(|rest| rest.chars().next()) {
        let rest = &text[at..];
        let token = match first {
            _ if is_newline(first) => Some((Kind::Newline, newline(rest))),
            _ if is_blank(first) => None,
            ';' => Some((Kind::Semicolon, 1)),
            '{' => Some((Kind::Open, 1)),
            '}' => Some((Kind::Close, 1)),
            '=' => Some((Kind::Equals, 1)),
            '(' => Some((Kind::OpenType, 1)),
            ')' => Some((Kind::CloseType, 1)),
            '/' if rest.starts_with("/-") => Some((Kind::SlashDash, 2)),
            '/' if rest.starts_with("//") => Some((Kind::LineComment, to_line_end(rest))),
            '/' if rest.starts_with("/*") => Some((Kind::BlockComment, block_comment(rest))),
            '\\' => Some((Kind::Continued, continued(rest))),
            _ => Some((Kind::Word, word(rest))),
        };
        let Some((kind, length)) = token else {
            at += first.len_utf8();
            continue;
        };
        let length = length.max(1);
        let end = (at + length).min(text.len());
        tokens.push(Token { kind, text: text.get(at..end).unwrap_or_default(), at });
        at = end;
    }
    tokens
}

/// What KDL 2 counts as the end of a line.
fn is_newline(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{85}' | '\u{b}' | '\u{c}' | '\u{2028}' | '\u{2029}')
}

fn is_blank(c: char) -> bool {
    matches!(
        c,
        '\t' | ' ' | '\u{a0}' | '\u{1680}' | '\u{2000}'
            ..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' | '\u{feff}'
    )
}

/// The length of the line end that `rest` begins with.
fn newline(rest: &str) -> usize {
    if rest.starts_with("\r\n") { 2 } else { rest.chars().next().map_or(0, char::len_utf8) }
}

fn to_line_end(rest: &str) -> usize {
    rest.find(is_newline).unwrap_or(rest.len())
}

/// A backslash, blanks and comments, and the line's end.
fn continued(rest: &str) -> usize {
    let mut at = 1;
    while let Some(tail) = rest.get(at..) {
        match tail.chars().next() {
            Some(c) if is_blank(c) => at += c.len_utf8(),
            Some('/') if tail.starts_with("/*") => at += block_comment(tail),
            Some('/') if tail.starts_with("//") => at += to_line_end(tail),
            Some(c) if is_newline(c) => return at + newline(tail),
            _ => break,
        }
    }
    at
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    let bytes = rest.as_bytes();
    while at < bytes.len() {
        match &bytes[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                at += 2;
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    rest.len()
}

fn word(rest: &str) -> usize {
    let hashes = rest.bytes().take_while(|b| *b == b'#').count();
    let body = &rest[hashes..];
    if !body.starts_with('"') {
        let ends = |c: char| is_newline(c) || is_blank(c) || ";{}()=\"/\\".contains(c);
        return hashes + body.find(ends).unwrap_or(body.len());
    }
    let quotes = if body.starts_with("\"\"\"") { 3 } else { 1 };
    let closing = format!("{}{}", &body[..quotes], &rest[..hashes]);
    let mut at = hashes + quotes;
    while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
        if tail.starts_with(&closing) {
            return at + closing.len();
        }
        // In a raw string a backslash stands for itself.
        let escape = hashes == 0 && tail.starts_with('\\');
        at += tail.chars().take(if escape { 2 } else { 1 }).map(char::len_utf8).sum::<usize>();
    }
    rest.len()
}
