//! Any text given as a recipe, with the recipes that it extends, is read or refused with its problems, each of them placed
//! inside a text. The files stand behind each other, a line `%% NAME` before each but the first.

#![no_main]

use std::io;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vmprof_guests::{GuestError, ImageConfig, Recipe};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut parts = text.split("\n%% ");
    let first = parts.next().unwrap_or_default();
    let files: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('\n')).collect();
    let load = |name: &str| match files.iter().find(|(file, _)| *file == name) {
        Some((_, text)) => Ok((*text).to_owned()),
        None => Err(io::ErrorKind::NotFound.into()),
    };
    match Recipe::parse_with(Path::new("fuzz.kdl"), first, &load) {
        Ok(recipe) => {
            let conduct = recipe.conduct_with(&ImageConfig::default());
            assert!(!conduct.run.is_empty() || recipe.conduct.run.is_empty());
        }
        Err(GuestError::Document(problems)) => {
            for problem in problems.iter() {
                assert!(!problem.to_string().is_empty());
                // Its place is in one of the files, whichever that is.
                if let Some(span) = problem.first_span() {
                    assert_eq!(problems.sources().written(span).len(), span.len(), "{problem}");
                }
            }
        }
        Err(other) => panic!("{other}"),
    }
});
