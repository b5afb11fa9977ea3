//! The page against the sources, both ways, and what the verb prints.
//!
//! How codes are found in the sources (comments and tests left out):
//! 1. written whole, `vmprof::plan::host_cannot`, in a string or in an attribute, with three words or more; one of two words
//!    only as a whole string, `"vmprof::os"`, and not where an area is named, `AREA: &str = "vmprof::plan"`;
//! 2. behind an area in a format string: `"{area}::syntax"`;
//! 3. as an argument of one of the [`MAKERS`], a literal of one word with others behind it, `findings.error("unknown_node", …)`,
//!    in the directories and files of [`AREAS`], which say what stands before it; of several such words, the last;
//! 4. in the planner, where a tuple is chosen first and handed to a maker then: `("no_such_cpu", format!(…), …)`.
//!
//! What these shapes miss is caught where a test shows it: every code in snapshots, tests and documents has an entry, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// Functions and methods that are given the last word of a code: as their first argument, or behind what step of the ladder it is.
const MAKERS: [&str; 7] = ["error", "warning", "problem", "warn", "note", "step", "remark"];

/// Directory or file → what stands before the words that makers are given there. The longest that fits counts.
const AREAS: [(&str, &[&str]); 7] = [
    // Read for profiles, and for recipes and locks.
    ("profiles/document/src", &["vmprof::profile", "vmprof::guest"]),
    // What holds the problems of any file.
    ("profiles/document/src/problem.rs", &["vmprof::profile", "vmprof::guest", "vmprof::import"]),
    ("profiles/src", &["vmprof::profile"]),
    ("profiles/src/export", &["vmprof::export"]),
    ("profiles/src/import", &["vmprof::import"]),
    ("profiles/src/resolve", &["vmprof::plan"]),
    ("guests/src", &["vmprof::guest"]),
];

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file below `directory` with this ending: its path in the checkout, and its text.
fn files(directory: &str, ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut directories = vec![checkout().join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|found| found == ending) {
                let name = path.strip_prefix(checkout()).unwrap().to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

/// The text without comments, and without the tests at its end.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| line.to_owned() + "\n")
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

/// The word of a literal that is nothing but one: `"word"`.
fn word(argument: &str) -> Option<&str> {
    let word = argument.strip_prefix('"')?.strip_suffix('"')?;
    (!word.is_empty() && word.chars().all(is_word)).then_some(word)
}

/// What stands between the commas up to the bracket that closes, which was opened before `text`.
fn arguments(text: &str) -> Vec<&str> {
    let (mut found, mut start, mut depth) = (Vec::new(), 0, 0);
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                let mut escaped = false;
                for (_, c) in chars.by_ref() {
                    match c {
                        _ if escaped => escaped = false,
                        '\\' => escaped = true,
                        '"' => break,
                        _ => {}
                    }
                }
            }
            // A bracket as a character; a lifetime has no second quote.
            '\'' if text[at + 1..].chars().nth(1) == Some('\'') => {
                chars.nth(1);
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth > 0 => depth -= 1,
            ',' | ')' | ']' | '}' if depth == 0 => {
                found.push(text[start..at].trim());
                start = at + 1;
                if c != ',' {
                    break;
                }
            }
            _ => {}
        }
    }
    // rustfmt leaves a comma behind the last argument of a long call.
    found.retain(|argument| !argument.is_empty());
    found
}

/// Whole codes, as shape 1 has them.
fn whole_codes(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in text.lines() {
        for (at, _) in line.match_indices("vmprof::") {
            let rest = &line[at..];
            let end = rest.find(|c| !is_word(c) && c != ':').unwrap_or(rest.len());
            let code = rest[..end].trim_end_matches(':');
            let quoted = line[..at].ends_with('"') && rest[end..].starts_with('"') && code.len() == end;
            let area = || line.contains("AREA") || AREAS.iter().any(|(_, areas)| areas.contains(&code));
            match code.split("::").count() {
                0 | 1 => {}
                2 if !quoted || area() => {}
                _ => {
                    found.insert(code.to_owned());
                }
            }
        }
    }
    found
}

/// The last words of codes, as shapes 2 to 4 have them.
fn last_words(code: &str, tuples: bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("}::") {
        let rest = &code[at + 3..];
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        if end > 0 && rest[end..].starts_with('"') {
            found.insert(rest[..end].to_owned());
        }
    }
    for (at, _) in code.match_indices('(') {
        let before = &code[..at];
        let name = before.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |at| at + 1);
        let maker = MAKERS.contains(&&before[name..]);
        let tuple = tuples && name == at && !before.ends_with('!');
        if !maker && !tuple {
            continue;
        }
        let arguments = arguments(&code[at + 1..]);
        let Some((_, but_last)) = arguments.split_last() else { continue };
        if maker || arguments.get(1).is_some_and(|second| second.starts_with("format!(")) {
            found
                .extend(but_last.iter().take(3).rev().find_map(|argument| word(argument)).map(str::to_owned));
        }
    }
    found
}

/// Every code that the sources make → where.
fn made() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for root in ["cli", "guests", "profiles", "vmm"] {
        for (name, text) in files(root, "rs") {
            if name.contains("/tests/") || name.ends_with("/tests.rs") || name.contains("/benches/") {
                continue;
            }
            let code = code_of(&text);
            for whole in whole_codes(&code) {
                found.insert(whole, name.clone());
            }
            let fits =
                AREAS.iter().filter(|(place, _)| name == *place || name.starts_with(&format!("{place}/")));
            let Some((_, areas)) = fits.max_by_key(|(place, _)| place.len()) else { continue };
            for word in last_words(&code, areas == &["vmprof::plan"]) {
                for area in *areas {
                    found.insert(format!("{area}::{word}"), name.clone());
                }
            }
        }
    }
    found
}

fn explained() -> BTreeSet<&'static str> {
    entries::all().into_iter().flat_map(|entry| entry.codes).collect()
}

#[test]
fn the_shapes_of_codes_are_found() {
    let source = "let a = findings\n.error(\n\"one_word\",\nformat!(\"{x}\"));\nProblem::error(format!(\"{area}::two\"), m);\n\
        // .error(\"commented\", m)\nlet (code, m) = (\"three\", format!(\"\")); kmsg::error(\"no code here\");\n\
        g.step(\"a\", cost(1, 2), \"four\", format!(\"a \\\"word\\\", {}\", x), \"help\");\n\
        Failure::said(k, \"vmprof::os\", m); const AREA: &str = \"vmprof::area\"; #[error(\"word\")] code(vmprof::a::b)\n\
        #[cfg(test)]\nmod tests { x.error(\"in_a_test\", m) }";
    let code = code_of(source);
    assert_eq!(
        last_words(&code, true).iter().map(String::as_str).collect::<Vec<_>>(),
        ["four", "one_word", "three", "two"]
    );
    let line = |text: &str| whole_codes(text).into_iter().collect::<Vec<_>>();
    assert_eq!(line("Failure::said(k, \"vmprof::os\", m)"), ["vmprof::os"]);
    assert_eq!(line("code(vmprof::a::b)"), ["vmprof::a::b"]);
    assert_eq!(line("const AREA: &str = \"vmprof::area\";"), Vec::<String>::new());
    assert_eq!(line("format!(\"vmprof::area::{code}\")"), Vec::<String>::new());
}

#[test]
fn every_code_is_explained() {
    let explained = explained();
    let made = made();
    assert!(made.len() > 100, "the scan finds next to nothing: {made:?}");
    let silent: Vec<_> = made.iter().filter(|(code, _)| !explained.contains(code.as_str())).collect();
    assert!(silent.is_empty(), "docs/codes.md lacks entries for: {silent:#?}");
}

#[test]
fn every_explained_code_is_made_somewhere() {
    let made = made();
    let gone: Vec<_> = explained().into_iter().filter(|code| !made.contains_key(*code)).collect();
    assert!(gone.is_empty(), "docs/codes.md explains codes that nothing makes: {gone:#?}");
}

#[test]
fn every_code_that_a_test_or_a_document_shows_is_explained() {
    let explained = explained();
    let mut silent = BTreeSet::new();
    for (directory, ending) in [
        ("profiles/tests", "snap"),
        ("profiles/tests", "rs"),
        ("guests/tests", "rs"),
        ("tests/suite", "rs"),
        ("docs", "md"),
    ] {
        for (name, text) in files(directory, ending) {
            let three = |code: &String| code.split("::").count() > 2;
            let codes = whole_codes(&text).into_iter().filter(three);
            silent.extend(
                codes.filter(|code| !explained.contains(code.as_str())).map(|code| (code, name.clone())),
            );
        }
    }
    assert!(silent.is_empty(), "docs/codes.md lacks entries for: {silent:#?}");
}

#[test]
fn every_entry_says_what_it_means_and_where_that_comes_from() {
    let mut seen = BTreeSet::new();
    for entry in entries::all() {
        let name = entry.codes.join(", ");
        assert!(entry.codes.iter().all(|code| seen.insert(*code)), "{name} stands twice");
        assert!(entry.codes.iter().all(|code| code.starts_with("vmprof::")), "{name}");
        assert!(entry.text.join(" ").len() > 80, "{name} says too little");
        assert!(
            entry.summary().chars().count() <= 140,
            "the first sentence of {name} is too long for the list"
        );
        assert!(!entry.source.is_empty(), "{name} names no source");
    }
}

#[test]
fn text_is_wrapped_to_the_columns_there_are() {
    let all = entries::all();
    let entries: Vec<&Entry> = all.iter().collect();
    for columns in [60, 100] {
        for line in pages(&entries, columns).lines().filter(|line| !line.starts_with("    ")) {
            assert!(line.chars().count() <= columns || !line.contains(' '), "{columns}: {line}");
        }
    }
    for columns in [40, 80, 120] {
        for line in list(&entries, Some(columns)).lines() {
            assert!(
                line.chars().count() <= columns || line.trim().starts_with("vmprof::"),
                "{columns}: {line}"
            );
        }
    }
    let codes = all.iter().map(|entry| entry.codes.len()).sum::<usize>();
    let areas = all.iter().map(|entry| entry.area).collect::<BTreeSet<_>>().len();
    assert_eq!(list(&entries, None).lines().filter(|line| !line.is_empty()).count(), codes + areas);
}

#[test]
fn a_shared_entry_answers_in_json_for_the_code_that_was_asked() {
    let all = entries::all();
    let found = entries::find(&all, "vmprof::guest::syntax").unwrap();
    let codes: Vec<&str> =
        Answer::of(&found, Some("vmprof::guest::syntax")).codes.iter().map(|one| one.code).collect();
    assert_eq!(codes, ["vmprof::guest::syntax"]);
    assert_eq!(Answer::of(&found, Some("syntax")).codes.len(), 2);
}
