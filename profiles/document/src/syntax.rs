//! Text → KDL nodes, with the parser's generic messages replaced where vmprof knows what was meant.
//!
//! A slip such as `memory 8GiB` or `readonly true` stops the parser. Here it becomes a problem that says what to
//! write, a stand-in of the same length takes its place, and parsing goes on, so that spans stay right and the rest
//! of the file is checked in the same run.

use kdl::{KdlDiagnostic, KdlDocument};
use miette::SourceSpan;

use crate::problem::{MOST_PROBLEMS, Problem};

/// How often a file is parsed again after standing in for slips; each round can uncover new ones.
const ROUNDS: usize = 32;
/// What all rounds may read together: the largest text is not read 32 times.
const MOST_BYTES_READ: usize = 512 << 10;

/// Parses `text`; the second value holds the slips that were stood in for. Fails with all problems where something
/// is left that no stand-in mends.
pub(crate) fn parse(area: &str, text: &str) -> Result<(KdlDocument, Vec<Problem>), Vec<Problem>> {
    if text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).starts_with('<') {
        let at = text.find('<').unwrap_or_default();
        let problem = Problem::error(format!("{area}::syntax"), "this is XML, not KDL");
        let help = "`vmprof import libvirt FILE` makes a profile of a libvirt domain";
        return Err(vec![problem.at(SourceSpan::from((at, 1)), "here").help(help)]);
    }
    crate::limits::check(area, text)?;
    if let Some(document) = crate::quick::parse(text) {
        return Ok((document, Vec::new()));
    }
    let rounds = (MOST_BYTES_READ / text.len().max(1)).clamp(2, ROUNDS);
    let mut patched = text.to_owned();
    let mut slips: Vec<Problem> = Vec::new();
    for _ in 0..rounds {
        let error = match KdlDocument::parse_v2(&patched) {
            Ok(document) => return Ok((document, slips)),
            Err(error) => error,
        };
        let mut places: Vec<(usize, usize)> =
            error.diagnostics.iter().filter_map(|d| slip_at(&patched, d.span)).collect();
        places.sort_unstable();
        places.dedup();
        // Each round reads the whole file again: past the first hundred slips that is time for nothing.
        if places.is_empty() || slips.len() + places.len() > MOST_PROBLEMS {
            slips.extend(
                places.iter().take(MOST_PROBLEMS).map(|(start, end)| explain(area, text, *start, *end)),
            );
            if !places.is_empty() {
                return Err(slips);
            }
            slips.extend(generic(area, &patched, &error.diagnostics));
            return Err(slips);
        }
        for (start, end) in places {
            slips.push(explain(area, text, start, end));
            patched.replace_range(start..end, &"x".repeat(end - start));
        }
    }
    Err(slips)
}

/// The bounds of the word that a diagnostic is about, if it is a slip we know.
fn slip_at(text: &str, span: SourceSpan) -> Option<(usize, usize)> {
    let stop = (span.offset() + span.len()).min(text.len());
    // Behind an open quote, the quote is what is wrong.
    let is_quoted = |start: usize, end: usize| {
        let line = text[..start].rsplit('\n').next().unwrap_or_default();
        line.ends_with(['"', '\'']) || (text[start..end].contains('/') && line.matches('"').count() % 2 == 1)
    };
    // The parser marks the word itself, everything from the node's name up to into the word, or what stands before it.
    let (start, end) = [span.offset(), stop.saturating_sub(1), stop]
        .into_iter()
        .filter_map(|at| word_around(text, at))
        .filter(|(start, end)| !is_quoted(*start, *end))
        .find(|(start, end)| is_slip(&text[*start..*end]))?;
    Some((start, end))
}

fn word_around(text: &str, at: usize) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    // A slash that begins a comment, or switches something off, is part of no word.
    let marks = |i: usize| {
        let pair =
            |i: usize| bytes.get(i) == Some(&b'/') && matches!(bytes.get(i + 1), Some(b'/' | b'*' | b'-'));
        pair(i)
            || bytes.get(i) == Some(&b'/')
                && i.checked_sub(1).is_some_and(|i| bytes[i] == b'/' || bytes[i] == b'*')
    };
    let part = |i: usize| {
        let b = bytes[i];
        b.is_ascii_alphanumeric() || b",.-+_^:%".contains(&b) || (b == b'/' && !marks(i))
    };
    if at >= bytes.len() || !part(at) {
        return None;
    }
    let start = (0..at).rev().take_while(|i| part(*i)).last().unwrap_or(at);
    let end = (at..bytes.len()).take_while(|i| part(*i)).last().unwrap_or(at) + 1;
    Some((start, end))
}

pub(crate) fn is_slip(word: &str) -> bool {
    is_keyword(word)
        || word.contains('/')
        || (word.starts_with(|c: char| c.is_ascii_digit()) && word.parse::<i128>().is_err())
}

fn is_keyword(word: &str) -> bool {
    matches!(word, "true" | "false" | "null")
}

pub(crate) fn explain(area: &str, text: &str, start: usize, end: usize) -> Problem {
    let word = &text[start..end];
    let span = SourceSpan::from((start, end - start));
    if is_keyword(word) {
        return Problem::error(format!("{area}::bare_keyword"), format!("a bare `{word}` is not KDL"))
            .at(span, format!("write `#{word}`"))
            .help(format!("KDL 2 writes `#{word}`"));
    }
    let value = word.trim_end_matches(',');
    if value.len() < word.len() && !is_slip(value) {
        return comma(area)
            .at(SourceSpan::from((start + value.len(), word.len() - value.len())), "remove it");
    }
    let word = value;
    if word.bytes().all(|b| b.is_ascii_digit()) {
        return Problem::error(
            format!("{area}::out_of_range"),
            format!("`{word}` is larger than any number"),
        )
        .at(span, "too large")
        .help("write a smaller number");
    }
    let what = if word.bytes().all(|b| b.is_ascii_digit() || b",-^".contains(&b)) {
        "a list of numbers"
    } else if word.contains('/') {
        "a word with a slash"
    } else if crate::size::parse_size(word).is_ok() {
        "a size"
    } else {
        "a word that starts with a digit"
    };
    Problem::error(
        format!("{area}::missing_quotes"),
        format!("`{word}` needs quotes: {what} does not parse bare"),
    )
    .at(span, "not quoted")
    .help(format!("write \"{word}\""))
}

fn comma(area: &str) -> Problem {
    Problem::error(format!("{area}::syntax"), "a comma separates nothing in KDL")
        .help("remove it: blanks separate values, and a line's end or `;` separates nodes")
}

/// What is left of the parser's own messages once echoes of the same mistake are dropped.
fn generic(area: &str, text: &str, diagnostics: &[KdlDiagnostic]) -> Vec<Problem> {
    let message = |d: &KdlDiagnostic| d.message.clone().unwrap_or_else(|| "this is not KDL".to_owned());
    let unclosed = diagnostics.iter().any(|d| message(d).starts_with("No closing '}'"));
    let mut problems: Vec<Problem> = Vec::new();
    for diagnostic in diagnostics {
        let said = message(diagnostic);
        if unclosed && said.starts_with("Closing '}'") {
            continue;
        }
        let stray = said == "Expected end of document";
        let found = text.get(diagnostic.span.offset()..).and_then(|rest| rest.chars().next());
        let marked = text.get(diagnostic.span.offset()..).unwrap_or_default();
        let behind = marked.get(diagnostic.span.len()..).unwrap_or_default();
        let marked = marked.get(..diagnostic.span.len()).unwrap_or_default();
        let (said, help) = match found {
            _ if marked.ends_with(',') || behind.starts_with(',') => {
                let comma = comma(area);
                (comma.message().to_owned(), comma.help_text().map(str::to_owned))
            }
            Some('#') if marked.trim_end() == "#" => {
                ("a `#` begins no comment in KDL".to_owned(), Some("write `// …`".to_owned()))
            }
            Some('"') if said.starts_with("Unexpected newline in single-line") => (
                "this string is not closed on its line".to_owned(),
                Some("write the `\"` that ends it".to_owned()),
            ),
            _ if marked.starts_with("r\"") || marked.starts_with("r#") => (
                "raw strings have no `r` in KDL 2".to_owned(),
                Some("write \"…\", or #\"…\"# where backslashes stand for themselves".to_owned()),
            ),
            Some('}') if stray => (
                "a `}` closes nothing".to_owned(),
                Some("remove it, or look above for the `{` it should close".to_owned()),
            ),
            Some('=') if stray => (
                "this `=` stands where none can".to_owned(),
                Some("quote a value that contains `=`".to_owned()),
            ),
            _ if said.starts_with("Expected property value") => (
                "a property has no value that can be read".to_owned(),
                Some(
                    "write `key=value`; sizes, CPU sets and anything that starts with a digit go in quotes"
                        .to_owned(),
                ),
            ),
            _ if said.starts_with("No closing '}'") => {
                (said, Some("write the `}` that ends these nodes".to_owned()))
            }
            _ => {
                let shape = "a node is a word, its values and properties, and perhaps nodes in braces";
                (said, Some(diagnostic.help.clone().unwrap_or_else(|| shape.to_owned())))
            }
        };
        let label = diagnostic.label.clone().unwrap_or_else(|| "here".to_owned());
        let mut problem = Problem::error(format!("{area}::syntax"), said).at(diagnostic.span, label);
        if let Some(help) = help {
            problem = problem.help(help);
        }
        let echo = problems.iter().any(|p| p.first_span() == problem.first_span());
        if !echo {
            problems.push(problem);
        }
    }
    problems
}
