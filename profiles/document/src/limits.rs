//! What a text must keep before it goes to the KDL parser, which descends once per brace, per piece of a block comment and
//! per place that it cannot read: without limits a few kilobytes of braces end the process. No profile or recipe comes
//! near them.

use miette::SourceSpan;

use crate::problem::{MOST_PROBLEMS, Problem};

/// Larger files are no profiles, recipes or locks: the lock of a guest with a hundred packages is a tenth of it. What is not
/// plain KDL takes the parser some microseconds a byte, so this is also what bounds the time of a reading.
const MOST_BYTES: usize = 256 << 10;
/// Longer lines cannot be shown: diagnostics count columns in 16 bits.
const MOST_LINE_BYTES: usize = 32 << 10;
/// Braces inside braces, and block comments inside block comments.
const DEEPEST: usize = 64;
/// `*` and `/` in one block comment.
const MOST_COMMENT_MARKS: usize = 1000;
/// Places where a token stands that cannot.
const MOST_STRAYS: usize = 64;

/// Refuses a text that is too much for the parser, and characters that KDL forbids, which no terminal shows.
pub(crate) fn check(area: &str, text: &str) -> Result<(), Vec<Problem>> {
    let error = |code: &str, message: String| Problem::error(format!("{area}::{code}"), message);
    if text.len() > MOST_BYTES {
        let message = format!("the file has {} bytes, and {MOST_BYTES} is the most", text.len());
        return Err(vec![error("too_large", message).help("a profile or a recipe is a few kilobytes long")]);
    }
    if let Some((at, line)) = (1..).zip(text.lines()).find(|(_, line)| line.len() > MOST_LINE_BYTES) {
        let message =
            format!("line {at} has {} bytes, and {MOST_LINE_BYTES} is the most for a line", line.len());
        return Err(vec![error("too_large", message).help("write one node per line")]);
    }
    let forbidden: Vec<Problem> = text
        .char_indices()
        .filter(|(at, c)| forbidden(*c) && (*at > 0 || *c != '\u{feff}'))
        .take(MOST_STRAYS)
        .map(|(at, c)| {
            error("forbidden_character", format!("the character U+{:04X} may not stand in KDL", u32::from(c)))
                .at(SourceSpan::from((at, c.len_utf8())), "here")
                .help("remove it; it is invisible, and is not text")
        })
        .collect();
    if !forbidden.is_empty() {
        return Err(forbidden);
    }
    let place = |at: usize| SourceSpan::from((at, 1));
    let mut scan = Scan {
        bytes: text.as_bytes(),
        at: 0,
        depth: 0,
        equals: false,
        annotated: 0,
        last: b'\n',
        strays: 0,
        first_stray: 0,
    };
    match scan.run().and_then(|()| words(text)) {
        Ok(()) => Ok(()),
        Err(TooMuch::Depth(at)) => Err(vec![
            error("too_deep", format!("more than {DEEPEST} levels of braces or comments"))
                .at(place(at), "one too many")
                .help("close what was opened above"),
        ]),
        Err(TooMuch::Comment(at)) => Err(vec![
            error(
                "too_large",
                format!("a block comment with more than {MOST_COMMENT_MARKS} of the signs `*` and `/`"),
            )
            .at(place(at), "this comment")
            .help("begin its lines with `//` instead"),
        ]),
        Err(TooMuch::Words(places)) => {
            let slips = places.iter().filter(|(start, end)| crate::syntax::is_slip(&text[*start..*end]));
            let slips: Vec<Problem> = slips
                .take(MOST_PROBLEMS)
                .map(|(start, end)| crate::syntax::explain(area, text, *start, *end))
                .collect();
            if !slips.is_empty() {
                return Err(slips);
            }
            let first = places.first().map_or(0, |(start, _)| *start);
            Err(vec![
                error("syntax", format!("this is not KDL in more than {MOST_STRAYS} places"))
                    .at(place(first), "the first of them")
                    .help("quote a value that is neither a number nor a word"),
            ])
        }
        Err(TooMuch::Strays) => Err(vec![
            error("syntax", format!("this is not KDL in more than {MOST_STRAYS} places"))
                .at(place(scan.first_stray), "the first of them")
                .help("a node is a word, its values and properties, and perhaps nodes in braces"),
        ]),
    }
}

/// What KDL 2 lists as disallowed: control characters and marks that turn the direction of writing.
fn forbidden(c: char) -> bool {
    matches!(u32::from(c), 0x00..=0x08 | 0x0e..=0x1f | 0x7f | 0x200e..=0x200f | 0x202a..=0x202e | 0x2066..=0x2069 | 0xfeff)
}

enum TooMuch {
    Depth(usize),
    Comment(usize),
    Strays,
    /// Words that can be neither a name nor a value, and tokens where none can stand.
    Words(Vec<(usize, usize)>),
}

fn words(text: &str) -> Result<(), TooMuch> {
    let places = crate::shape::misplaced(text);
    if places.len() > MOST_STRAYS { Err(TooMuch::Words(places)) } else { Ok(()) }
}

/// A look at the tokens that is right for KDL, and good enough to count on for what is not.
struct Scan<'t> {
    bytes: &'t [u8],
    at: usize,
    depth: usize,
    /// Whether the word being read had an `=` already.
    equals: bool,
    /// Brackets of type annotations that are open.
    annotated: usize,
    /// The last byte that was no blank; a newline at the start of a node.
    last: u8,
    strays: usize,
    first_stray: usize,
}

impl Scan<'_> {
    fn run(&mut self) -> Result<(), TooMuch> {
        while let Some(byte) = self.bytes.get(self.at).copied() {
            let start = self.at;
            let rest = &self.bytes[start..];
            self.at += 1;
            self.equals &= !b" \t\r\n;{}".contains(&byte);
            match byte {
                b'/' if rest.starts_with(b"//") => self.skip_to(b"\n", 0),
                b'/' if rest.starts_with(b"/*") => {
                    self.comment(start)?;
                    continue;
                }
                b'/' if rest.starts_with(b"/-") => {
                    self.at += 1;
                    if matches!(rest.get(2), None | Some(b'/' | b'\n' | b'\r' | b';' | b'}')) {
                        self.stray(start)?;
                    }
                }
                b'"' => {
                    // `r"…"` was KDL 1.
                    if start > 0 && self.bytes[start - 1].is_ascii_alphanumeric() {
                        self.stray(start)?;
                    }
                    self.string(start)?;
                }
                b'#' => self.raw_string(start)?,
                b'{' => {
                    self.depth += 1;
                    if self.depth > DEEPEST {
                        return Err(TooMuch::Depth(start));
                    }
                    if b"\n;{}".contains(&self.last) {
                        self.stray(start)?;
                    }
                }
                b'}' if self.depth == 0 => self.stray(start)?,
                b'}' => self.depth -= 1,
                b'=' => {
                    let next = rest[1..].iter().find(|b| !b" \t".contains(b)).copied().unwrap_or(b'\n');
                    if std::mem::replace(&mut self.equals, true)
                        || b"\n;{}=".contains(&self.last)
                        || b"\r\n;{}=".contains(&next)
                    {
                        self.stray(start)?;
                    }
                }
                b'(' => {
                    self.annotated += 1;
                    if matches!(rest.get(1), None | Some(b'(' | b'\n' | b'\r' | b';' | b'}')) {
                        self.stray(start)?;
                    }
                }
                b')' => {
                    let next = rest[1..].iter().find(|b| !b" \t".contains(b)).copied().unwrap_or(b'\n');
                    if self.annotated == 0 || b"\r\n;{}()=".contains(&next) {
                        self.stray(start)?;
                    }
                    self.annotated = self.annotated.saturating_sub(1);
                }
                b'[' | b']' => self.stray(start)?,
                b' ' | b'\t' | b'\r' => continue,
                _ => {}
            }
            self.last = byte;
        }
        Ok(())
    }

    fn stray(&mut self, at: usize) -> Result<(), TooMuch> {
        if self.strays == 0 {
            self.first_stray = at;
        }
        self.strays += 1;
        if self.strays > MOST_STRAYS { Err(TooMuch::Strays) } else { Ok(()) }
    }

    /// Goes to the next `mark`, or past it by `beyond`; to the end where there is none.
    fn skip_to(&mut self, mark: &[u8], beyond: usize) {
        let found = self.bytes[self.at..].windows(mark.len()).position(|w| w == mark);
        self.at = found.map_or(self.bytes.len(), |n| self.at + n + beyond);
    }

    fn comment(&mut self, start: usize) -> Result<(), TooMuch> {
        let (mut depth, mut marks) = (1, 0);
        self.at = start + 2;
        while depth > 0 && self.at < self.bytes.len() {
            let rest = &self.bytes[self.at..];
            let step = match rest {
                [b'/', b'*', ..] => {
                    depth += 1;
                    2
                }
                [b'*', b'/', ..] => {
                    depth -= 1;
                    2
                }
                _ => 1,
            };
            marks += usize::from(b"*/".contains(&rest[0]));
            if depth > DEEPEST {
                return Err(TooMuch::Depth(self.at));
            }
            if marks > MOST_COMMENT_MARKS {
                return Err(TooMuch::Comment(start));
            }
            self.at += step;
        }
        Ok(())
    }

    fn string(&mut self, start: usize) -> Result<(), TooMuch> {
        let many = self.bytes[start..].starts_with(b"\"\"\"");
        self.at = start + if many { 3 } else { 1 };
        while let Some(byte) = self.bytes.get(self.at).copied() {
            match byte {
                b'\\' => {
                    self.at += 2;
                    // A backslash swallows the blanks and line ends after it.
                    if self.bytes.get(self.at - 1).is_some_and(u8::is_ascii_whitespace) {
                        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
                            self.at += 1;
                        }
                    }
                    continue;
                }
                b'"' if !many => {
                    self.at += 1;
                    return self.after_string();
                }
                b'"' if self.bytes[self.at..].starts_with(b"\"\"\"") => {
                    self.at += 3;
                    return self.after_string();
                }
                b'\n' if !many => break,
                _ => self.at += 1,
            }
        }
        self.stray(start)
    }

    fn raw_string(&mut self, start: usize) -> Result<(), TooMuch> {
        let hashes = self.bytes[start..].iter().take_while(|b| **b == b'#').count();
        let rest = &self.bytes[start + hashes..];
        if !rest.starts_with(b"\"") {
            self.at = start + hashes;
            return Ok(());
        }
        let quotes = if rest.starts_with(b"\"\"\"") { 3 } else { 1 };
        let mut end = vec![b'"'; quotes];
        end.resize(quotes + hashes, b'#');
        self.at = start + hashes + quotes;
        let from = self.at;
        self.skip_to(&end, end.len());
        let closed = self.bytes[from..self.at].ends_with(&end);
        if !closed || (quotes == 1 && self.bytes[from..self.at].contains(&b'\n')) {
            // Not closed on its line: what follows is read as if it had ended there.
            self.at = from;
            self.skip_to(b"\n", 0);
            return self.stray(start);
        }
        self.after_string()
    }

    /// A string ends a value: a letter right behind it is a stray.
    fn after_string(&mut self) -> Result<(), TooMuch> {
        match self.bytes.get(self.at) {
            None | Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' | b'}' | b'=' | b')' | b'/' | b'\\') => {
                Ok(())
            }
            Some(_) => self.stray(self.at),
        }
    }
}
