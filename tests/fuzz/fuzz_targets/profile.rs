//! Any text given as a profile is read or refused with its problems, each of them placed inside the text: nothing
//! panics, nothing hangs.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmprof_document::{Document, first_node};
use vmprof_profiles::{Problems, read_profile};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match read_profile("fuzz.kdl", text) {
        Ok((_, warnings)) => check(&warnings, text),
        Err(problems) => check(&problems, text),
    }
    if let Ok(document) = Document::parse("vmprof::guest", "fuzz.kdl", text) {
        let found = document.findings();
        document.root(&found).finish();
        if let Err(problems) = document.conclude(found, Some(())) {
            check(&problems, text);
        }
    }
    first_node(text);
});

fn check(problems: &Problems, text: &str) {
    for problem in problems.iter() {
        assert!(!problem.to_string().is_empty());
        if let Some(span) = problem.first_span() {
            assert!(span.offset() + span.len() <= text.len(), "{problem}");
        }
    }
}
