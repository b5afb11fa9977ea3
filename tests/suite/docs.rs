//! Every KDL block of the documentation is parsed by a test: those of README.md here, those of the language pages in the
//! crates whose language they show.

use std::fs;
use std::path::PathBuf;

use vmprof_tests::{Home, checkout};

/// Pages whose blocks are parsed beside their language: by `profiles/tests` and `guests/tests`.
const ELSEWHERE: [&str; 3] = ["docs/profile.md", "docs/plan.md", "docs/guests.md"];

fn pages() -> Vec<PathBuf> {
    let mut pages = vec![checkout().join("README.md")];
    let mut directories = vec![checkout().join("docs")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => directories.push(path),
                path if path.extension().is_some_and(|ending| ending == "md") => pages.push(path),
                _ => {}
            }
        }
    }
    pages
}

#[test]
fn every_kdl_block_is_parsed() {
    let home = Home::new();
    for page in pages() {
        let name = page.strip_prefix(checkout()).unwrap().to_str().unwrap().to_owned();
        if ELSEWHERE.contains(&name.as_str()) {
            continue;
        }
        let text = fs::read_to_string(&page).unwrap();
        for (number, block) in text.split("```kdl\n").skip(1).enumerate() {
            let block = block.split("```").next().unwrap();
            let file = home.path().join(format!("block{number}.kdl"));
            fs::write(&file, block).unwrap();
            let checked = home.run(["check", file.to_str().unwrap()]);
            assert_eq!(checked.status, Some(0), "{name}, block {number}:\n{}", checked.stderr);
        }
    }
}
