//! docs/codes.md, read: `##` begins an area, `###` an entry with its codes, a paragraph that begins with `Source:` ends it.

use vmprof_document::closest;

/// The one text on codes.
const PAGE: &str = include_str!("../../../docs/codes.md");

/// What is said about a code, or about several that mean the same in files of different kinds.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub area: &'static str,
    /// Whole codes, such as `vmprof::plan::dense_host`.
    pub codes: Vec<&'static str>,
    /// Paragraphs without line breaks, and examples as they stand.
    pub text: Vec<String>,
    /// Where the advice comes from.
    pub source: String,
}

impl Entry {
    /// The first sentence.
    pub fn summary(&self) -> &str {
        let first = self.text.first().map_or("", String::as_str);
        first.find(". ").map_or(first, |end| &first[..=end])
    }

    pub fn source_line(&self) -> String {
        format!("Source: {}", self.source)
    }
}

/// Every entry, in the order of the page.
pub fn all() -> Vec<Entry> {
    read(PAGE)
}

fn read(page: &'static str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut area = "";
    for block in page.split("\n\n").map(|block| block.trim_matches('\n')) {
        if let Some(name) = block.strip_prefix("## ") {
            area = name;
        } else if let Some(codes) = block.strip_prefix("### ") {
            let codes = codes.split(", ").collect();
            entries.push(Entry { area, codes, text: Vec::new(), source: String::new() });
        } else if let Some(entry) = entries.last_mut().filter(|entry| entry.area == area) {
            match block.strip_prefix("Source: ") {
                Some(source) => entry.source = joined(source),
                None if block.starts_with("    ") => entry.text.push(block.to_owned()),
                None => entry.text.push(joined(block)),
            }
        }
    }
    entries
}

fn joined(block: &str) -> String {
    block.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether `code` is what `asked` names: the whole code, or its last words (`dense_host`, `plan::dense_host`). Brackets
/// around it, as the plan prints them, are no part of it.
pub fn answers(code: &str, asked: &str) -> bool {
    let asked = asked.trim_matches(['[', ']', '`', ' ']).trim_start_matches("::");
    match code.strip_suffix(asked) {
        Some("") => !asked.is_empty(),
        Some(before) => !asked.is_empty() && before.ends_with("::"),
        None => false,
    }
}

/// The entries that `asked` names; where there are none, the codes that may have been meant, the likeliest first.
pub fn find<'e>(entries: &'e [Entry], asked: &str) -> Result<Vec<&'e Entry>, Vec<&'static str>> {
    let found: Vec<&Entry> =
        entries.iter().filter(|entry| entry.codes.iter().any(|code| answers(code, asked))).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let word = last_word(asked.trim_matches(['[', ']', '`', ' ']));
    let codes_with = |fits: &dyn Fn(&str) -> bool| -> Vec<&'static str> {
        let codes = entries.iter().flat_map(|entry| entry.codes.iter().copied());
        codes.filter(|code| fits(last_word(code))).take(MOST_GUESSES).collect()
    };
    // Right in its last word, but of another area; then misspelt; then a part of one.
    let near = closest(word, entries.iter().flat_map(|entry| &entry.codes).map(|code| last_word(code)));
    let guesses = [
        codes_with(&|last| last == word),
        codes_with(&|last| word.len() > 2 && Some(last) == near),
        codes_with(&|last| word.len() > 2 && last.contains(word)),
    ];
    Err(guesses.into_iter().find(|guess| !guess.is_empty()).unwrap_or_default())
}

/// So many guesses are a help; more are a list.
const MOST_GUESSES: usize = 4;

fn last_word(code: &str) -> &str {
    code.rsplit("::").next().unwrap_or(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "# Codes\n\nAbout.\n\n## One area\n\nOn the area.\n\n### vmprof::a::x, vmprof::b::x\n\nFirst\nsentence. Second\none.\n\n    an example\n\nSource: somewhere\nelse.\n\n## Two\n\n### vmprof::b::late_word\n\nText.\n\nSource: rule.\n";

    #[test]
    fn the_page_is_read_into_areas_entries_and_paragraphs() {
        let entries = read(SMALL);
        assert_eq!(entries.len(), 2);
        assert_eq!(
            (entries[0].area, entries[0].codes.as_slice()),
            ("One area", ["vmprof::a::x", "vmprof::b::x"].as_slice())
        );
        assert_eq!(entries[0].text, ["First sentence. Second one.", "    an example"]);
        assert_eq!(entries[0].summary(), "First sentence.");
        assert_eq!(entries[0].source, "somewhere else.");
        assert_eq!(entries[1].summary(), "Text.");
    }

    #[test]
    fn a_code_is_found_whole_by_its_last_words_and_in_brackets() {
        let entries = read(SMALL);
        for asked in
            ["vmprof::b::late_word", "late_word", "b::late_word", "[vmprof::b::late_word]", "::late_word"]
        {
            assert_eq!(find(&entries, asked).unwrap(), [&entries[1]], "{asked}");
        }
        assert_eq!(find(&entries, "x").unwrap(), [&entries[0]]);
        assert_eq!(find(&entries, "word"), Err(vec!["vmprof::b::late_word"]));
    }

    #[test]
    fn a_near_miss_names_what_was_meant() {
        let entries = read(SMALL);
        assert_eq!(find(&entries, "late_wrod"), Err(vec!["vmprof::b::late_word"]));
        assert_eq!(find(&entries, "vmprof::a::late_word"), Err(vec!["vmprof::b::late_word"]));
        assert_eq!(find(&entries, "entirely_different"), Err(vec![]));
        assert_eq!(find(&entries, ""), Err(vec![]));
    }
}
