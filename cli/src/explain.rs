//! The verb `explain`: what a code of a diagnostic means, why it matters and what to do. The text is docs/codes.md, which the
//! binary carries; nothing is written twice.

mod entries;

use serde::Serialize;

use crate::args::{ExplainArguments, Format};
use crate::failure::{Failure, Kind};
use crate::report::Report;
use entries::Entry;

/// Text is easier to read in lines of at most this many columns.
const WIDEST: usize = 100;
/// A sentence beside its code needs this many columns, or goes below it.
const NARROWEST: usize = 36;

pub fn explain(arguments: &ExplainArguments, report: Report) -> Result<(), Failure> {
    let all = entries::all();
    let chosen = match &arguments.code {
        None => all.iter().collect(),
        Some(code) => entries::find(&all, code).map_err(|near| unknown(code, &near))?,
    };
    match (arguments.format, &arguments.code) {
        (Format::Json, code) => report.json(&Answer::of(&chosen, code.as_deref())),
        (Format::Text, Some(_)) => {
            report.data(&pages(&chosen, report.stdout_columns().unwrap_or(WIDEST).min(WIDEST)))
        }
        // Into a pipe, a line per code, for grep.
        (Format::Text, None) => report.data(&list(&chosen, report.stdout_columns())),
    }
}

fn unknown(code: &str, near: &[&str]) -> Failure {
    let help = match near {
        [] => "`vmprof explain` lists all codes".to_owned(),
        near => {
            let near: Vec<String> = near.iter().map(|code| format!("`{code}`")).collect();
            format!("did you mean {}? `vmprof explain` lists all codes", near.join(" or "))
        }
    };
    let message = format!("no diagnostic has the code `{code}`");
    Failure::said(Kind::Failure, "vmprof::explain::unknown_code", message, help)
}

/// The whole text of these entries.
fn pages(entries: &[&Entry], columns: usize) -> String {
    let mut text = String::new();
    for entry in entries {
        if !text.is_empty() {
            text.push('\n');
        }
        for code in &entry.codes {
            text.push_str(code);
            text.push('\n');
        }
        for paragraph in entry.text.iter().map(String::as_str).chain([entry.source_line().as_str()]) {
            text.push('\n');
            text.push_str(&wrapped(paragraph, columns, ""));
        }
    }
    text
}

/// Every code with the first sentence of its entry; `columns` of a terminal, none where the reader is a program.
fn list(entries: &[&Entry], columns: Option<usize>) -> String {
    let longest = entries.iter().flat_map(|entry| &entry.codes).map(|code| code.len()).max().unwrap_or(0);
    let indent = longest + 4;
    let columns = columns.map(|columns| columns.clamp(NARROWEST + 4, WIDEST + indent));
    let mut text = String::new();
    let mut area = "";
    for entry in entries {
        if entry.area != area {
            area = entry.area;
            text.push_str(if text.is_empty() { "" } else { "\n" });
            text.push_str(&wrapped(area, columns.unwrap_or(usize::MAX), ""));
        }
        for code in &entry.codes {
            match columns {
                None => text.push_str(&format!("  {code:longest$}  {}\n", entry.summary())),
                Some(columns) if columns < indent + NARROWEST => {
                    text.push_str(&format!("  {code}\n    "));
                    text.push_str(&wrapped(entry.summary(), columns - 4, "    "));
                }
                Some(columns) => {
                    text.push_str(&format!("  {code:longest$}  "));
                    text.push_str(&wrapped(entry.summary(), columns - indent, &" ".repeat(indent)));
                }
            }
        }
    }
    text
}

/// A paragraph in lines of at most `columns` characters, each after the first behind `indent`. Lines that begin with four
/// blanks are an example and stay as they are.
fn wrapped(paragraph: &str, columns: usize, indent: &str) -> String {
    if paragraph.starts_with("    ") {
        return paragraph.to_owned() + "\n";
    }
    let mut text = String::new();
    let mut used = 0;
    for word in paragraph.split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > columns {
            text.push('\n');
            text.push_str(indent);
            used = 0;
        } else if used > 0 {
            text.push(' ');
            used += 1;
        }
        text.push_str(word);
        used += length;
    }
    text.push('\n');
    text
}

/// What `--format json` prints. Fields may be added; those here stay.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    schema: &'static str,
    codes: Vec<Explained<'a>>,
}

#[derive(Debug, Serialize)]
struct Explained<'a> {
    code: &'a str,
    area: &'a str,
    summary: &'a str,
    /// Paragraphs, with an empty line between two.
    text: String,
    source: &'a str,
}

impl<'a> Answer<'a> {
    fn of(entries: &[&'a Entry], asked: Option<&str>) -> Answer<'a> {
        let explained = |entry: &'a Entry, code: &'a str| Explained {
            code,
            area: entry.area,
            summary: entry.summary(),
            text: entry.text.join("\n\n"),
            source: &entry.source,
        };
        let codes = entries
            .iter()
            .flat_map(|entry| entry.codes.iter().map(move |code| (*entry, *code)))
            .filter(|(_, code)| asked.is_none_or(|asked| entries::answers(code, asked)));
        Answer {
            schema: "vmprof.codes/1",
            codes: codes.map(|(entry, code)| explained(entry, code)).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
