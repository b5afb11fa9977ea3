//! Lines of words: wrapping to a width, tables whose last column wraps below itself, and the terminal's colours.

use std::fmt::Write;

/// Narrower than this nothing is wrapped: a column of single words is worse than a long line.
const NARROWEST: usize = 30;

/// `text` in lines of at most `width` characters, broken at blanks; a longer word stands alone.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(NARROWEST);
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Appends `text` behind `first`, wrapped; further lines stand below the text's own beginning.
pub(super) fn hang(out: &mut String, first: &str, text: &str, width: usize) {
    let indent = first.chars().count();
    let mut lines = wrap(text, width.saturating_sub(indent)).into_iter();
    let _ = writeln!(out, "{first}{}", lines.next().unwrap_or_default());
    for line in lines {
        let _ = writeln!(out, "{:indent$}{line}", "");
    }
}

/// One line of a table and what stands below it.
pub(super) struct Row {
    pub name: String,
    pub value: String,
    pub because: String,
    /// Shown below, such as the best rejected alternative.
    pub below: Option<String>,
}

/// The widest first and second column of a table: beyond that a row runs over rather than push all others away.
const WIDEST: usize = 40;

/// Appends rows whose columns line up; the last column wraps below itself.
pub(super) fn table(out: &mut String, rows: &[Row], width: usize) {
    let widest = |column: fn(&Row) -> &str| {
        rows.iter().map(|row| column(row).chars().count()).filter(|n| *n <= WIDEST).max().unwrap_or(0)
    };
    let (first, second) = (widest(|row| &row.name), widest(|row| &row.value));
    let beside = first + second + 6;
    // Where too little room is left beside them, reasons stand below.
    let fits = beside + NARROWEST <= width;
    let indent = if fits { beside } else { 6 };
    for row in rows {
        let head = format!("  {:<first$}  {:<second$}  ", row.name, row.value);
        match row.because.is_empty() {
            true => {
                let _ = writeln!(out, "{}", head.trim_end());
            }
            // A list of CPUs that is too long for its column has a line of its own.
            false if !fits || head.chars().count() > beside => {
                let _ = writeln!(out, "{}", head.trim_end());
                hang(out, &" ".repeat(indent), &row.because, width);
            }
            false => hang(out, &head, &row.because, width),
        }
        if let Some(below) = &row.below {
            hang(out, &" ".repeat(indent), below, width);
        }
    }
}

/// `word` in a terminal colour (the parameters of SGR), or as it is.
pub(super) fn painted(word: &str, paint: &str, colour: bool) -> String {
    match colour && !paint.is_empty() {
        true => format!("\u{1b}[{paint}m{word}\u{1b}[0m"),
        false => word.to_owned(),
    }
}

/// `1 CPU`, `2 CPUs`.
pub(super) fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A size for people: whole GiB where there are many, one decimal where there are few.
pub(super) fn about(bytes: u64) -> String {
    let gib = bytes as f64 / (1u64 << 30) as f64;
    match gib {
        _ if gib >= 16.0 => format!("{gib:.0}GiB"),
        _ if gib >= 1.0 => format!("{gib:.1}GiB"),
        _ => format!("{}MiB", bytes >> 20),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_never_cut() {
        let long = "x".repeat(50);
        assert_eq!(wrap(&format!("a {long} b"), 40), ["a", &long, "b"]);
        assert_eq!(wrap("one two", 80), ["one two"]);
        assert!(wrap("", 80).is_empty());
    }

    #[test]
    fn later_lines_stand_below_the_first() {
        let mut out = String::new();
        hang(&mut out, "  help: ", "this sentence is longer than one line can be", 40);
        assert_eq!(out, "  help: this sentence is longer than one\n        line can be\n");
    }
}
