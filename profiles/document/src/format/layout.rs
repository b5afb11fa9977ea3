//! Tokens → nodes and comments in their groups → text.

use std::iter::Peekable;
use std::slice::Iter;

use crate::token::{Kind, Token};

const INDENT: usize = 4;
/// Braces that stood on one line stay there up to this column.
const WIDEST: usize = 100;

/// The nodes and comments of a file, or between two braces.
#[derive(Default)]
struct Body<'t> {
    /// A comment right behind the opening brace.
    head: Option<&'t str>,
    items: Vec<Item<'t>>,
    /// Whether a line ended in here, or a comment stands in here.
    broken: bool,
}

struct Item<'t> {
    /// Whether an empty line stands before it.
    apart: bool,
    what: What<'t>,
    /// A comment behind it on its line.
    trailing: Option<&'t str>,
}

impl Item<'_> {
    fn is_line_comment(&self) -> bool {
        matches!(self.what, What::Comment(text) if text.starts_with("//"))
    }
}

enum What<'t> {
    Comment(&'t str),
    Node(Vec<Part<'t>>),
}

enum Part<'t> {
    Token(Kind, &'t str),
    Braces(Body<'t>),
}

/// The canonical text of `tokens`.
pub(super) fn layout(tokens: &[Token<'_>]) -> String {
    let mut tokens = tokens.iter().peekable();
    let body = read_body(&mut tokens, true);
    let mut text = String::new();
    write_items(&mut text, &body.items, 0);
    text
}

type Tokens<'a, 't> = Peekable<Iter<'a, Token<'t>>>;

fn read_body<'t>(tokens: &mut Tokens<'_, 't>, file: bool) -> Body<'t> {
    let mut body = Body::default();
    // Line ends since the last item, or since the brace.
    let mut lines = 0;
    while let Some(token) = tokens.peek() {
        let what = match token.kind {
            Kind::Newline => {
                tokens.next();
                lines += 1;
                body.broken = true;
                continue;
            }
            Kind::Close if !file => {
                tokens.next();
                break;
            }
            Kind::Continued if continued_comment(token.text).is_some() => {
                let text = continued_comment(token.text).unwrap_or_default();
                tokens.next();
                body.broken = true;
                What::Comment(text)
            }
            // A line continued between nodes, and stray signs, which a text that parses does not have.
            Kind::Semicolon | Kind::Close | Kind::Continued => {
                tokens.next();
                continue;
            }
            Kind::LineComment => {
                let text = token.text.trim_end();
                tokens.next();
                body.broken = true;
                match body.items.last_mut() {
                    None if lines == 0 && !file => {
                        body.head = Some(text);
                        continue;
                    }
                    // Behind a line that was continued, a comment may come without an end of line between.
                    Some(last) if lines == 0 && last.trailing.is_none() && !last.is_line_comment() => {
                        last.trailing = Some(text);
                        continue;
                    }
                    _ => What::Comment(text),
                }
            }
            Kind::BlockComment => {
                let text = token.text;
                tokens.next();
                body.broken = true;
                What::Comment(text)
            }
            _ => What::Node(read_node(tokens)),
        };
        body.items.push(Item { apart: lines > 1 && !body.items.is_empty(), what, trailing: None });
        lines = 0;
    }
    body
}

fn read_node<'t>(tokens: &mut Tokens<'_, 't>) -> Vec<Part<'t>> {
    let mut parts: Vec<Part<'t>> = Vec::new();
    while let Some(token) = tokens.peek() {
        // What `/-` switches off may stand on a later line.
        let switching = matches!(parts.last(), Some(Part::Token(Kind::SlashDash | Kind::LineComment, _)));
        match token.kind {
            Kind::Newline if switching => {
                tokens.next();
            }
            Kind::LineComment if switching => {
                parts.push(Part::Token(Kind::LineComment, token.text.trim_end()));
                tokens.next();
            }
            Kind::Newline | Kind::Semicolon | Kind::Close | Kind::LineComment => break,
            Kind::Open => {
                tokens.next();
                parts.push(Part::Braces(read_body(tokens, false)));
            }
            kind => {
                parts.push(Part::Token(kind, token.text));
                tokens.next();
            }
        }
    }
    while matches!(parts.last(), Some(Part::Token(Kind::Continued, text)) if continued_comment(text).is_none())
    {
        parts.pop();
    }
    parts
}

/// The comment behind a backslash that continues a line.
pub(super) fn continued_comment(text: &str) -> Option<&str> {
    text.find("//").or_else(|| text.find("/*")).map(|at| text[at..].trim_end())
}

fn write_items(out: &mut String, items: &[Item<'_>], depth: usize) {
    for item in items {
        if item.apart {
            out.push('\n');
        }
        indent(out, depth);
        match &item.what {
            What::Comment(text) => out.push_str(text),
            What::Node(parts) => write_node(out, parts, depth),
        }
        if let Some(comment) = item.trailing {
            out.push(' ');
            out.push_str(comment);
        }
        out.push('\n');
    }
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n(' ', depth * INDENT));
}

fn write_node(out: &mut String, parts: &[Part<'_>], depth: usize) {
    if let Some(flat) = flat(parts).filter(|flat| depth * INDENT + flat.chars().count() <= WIDEST) {
        out.push_str(&flat);
        return;
    }
    write_parts(out, parts, depth, |out, body| {
        if body.items.is_empty() && body.head.is_none() {
            out.push_str("{}");
            return;
        }
        out.push('{');
        if let Some(head) = body.head {
            out.push(' ');
            out.push_str(head);
        }
        out.push('\n');
        write_items(out, &body.items, depth + 1);
        indent(out, depth);
        out.push('}');
    });
}

/// The node on one line, where it stood on one.
fn flat(parts: &[Part<'_>]) -> Option<String> {
    let on_one_line = |part: &Part<'_>| match part {
        Part::Token(Kind::LineComment | Kind::Continued, _) => false,
        Part::Token(_, text) => !text.contains('\n'),
        Part::Braces(body) => !body.broken || (body.items.is_empty() && body.head.is_none()),
    };
    if !parts.iter().all(on_one_line) {
        return None;
    }
    let mut whole = true;
    let mut out = String::new();
    write_parts(&mut out, parts, 0, |out, body| {
        let nodes: Option<Vec<String>> = body
            .items
            .iter()
            .map(|item| match &item.what {
                What::Node(parts) => flat(parts),
                What::Comment(_) => None,
            })
            .collect();
        match nodes {
            Some(nodes) if nodes.is_empty() => out.push_str("{}"),
            Some(nodes) => {
                out.push_str("{ ");
                out.push_str(&nodes.join("; "));
                out.push_str(" }");
            }
            None => whole = false,
        }
    });
    whole.then_some(out)
}

fn write_parts<'p, 't>(
    out: &mut String,
    parts: &'p [Part<'t>],
    depth: usize,
    mut braces: impl FnMut(&mut String, &'p Body<'t>),
) {
    // Whether the next part follows without a blank.
    let mut close = true;
    for (at, part) in parts.iter().enumerate() {
        let (kind, text) = match part {
            Part::Token(kind, text) => (*kind, *text),
            Part::Braces(body) => {
                if !close {
                    out.push(' ');
                }
                braces(out, body);
                close = false;
                continue;
            }
        };
        match kind {
            Kind::Equals | Kind::CloseType => {
                out.push_str(text);
                close = true;
            }
            Kind::Continued | Kind::LineComment => {
                out.push_str(if kind == Kind::Continued { " \\" } else { "" });
                let comment = if kind == Kind::Continued { continued_comment(text) } else { Some(text) };
                if let Some(comment) = comment {
                    out.push(' ');
                    out.push_str(comment);
                }
                out.push('\n');
                indent(out, depth + 1);
                close = true;
            }
            _ => {
                if !close {
                    out.push(' ');
                }
                out.push_str(text);
                close = matches!(kind, Kind::OpenType | Kind::SlashDash);
                // A node that is switched off: the version marker needs the blank, the others look like it.
                if kind == Kind::SlashDash && at == 0 {
                    out.push(' ');
                }
            }
        }
    }
}
