//! Every KDL block of the documentation on profiles and plans parses; those marked `must-fail` do not.

use std::collections::BTreeMap;
use std::io;

use vmprof_profiles::read_profile_with;

use crate::host::text_of;

/// A `kdl` block of a Markdown text.
#[derive(Default)]
struct Block {
    /// Its first line.
    line: usize,
    must_fail: bool,
    /// The name under which other blocks extend it; such a block need not be whole.
    file: Option<String>,
    text: String,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    let mut other = false;
    for (number, line) in (1..).zip(text.lines()) {
        match (line.strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(info), None) if !other && info.split_whitespace().next() == Some("kdl") => {
                let file = info.split_whitespace().find_map(|word| word.strip_prefix("file="));
                open = Some(Block {
                    line: number + 1,
                    must_fail: info.split_whitespace().any(|w| w == "must-fail"),
                    file: file.map(str::to_owned),
                    text: String::new(),
                });
            }
            (Some(_), None) => other = !other,
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}

/// A block that shows some nodes of a profile stands inside one that has the nodes every profile must have.
fn whole(block: &str) -> String {
    if block.lines().any(|line| line.starts_with("profile")) {
        return block.to_owned();
    }
    let has = |name: &str| block.lines().any(|line| line.starts_with(name));
    let mut text = "profile example {\n".to_owned();
    for (name, node) in
        [("guest", "guest \"g.kdl\"\n"), ("vcpu", "vcpu 4\n"), ("memory", "memory \"1GiB\"\n")]
    {
        if !has(name) {
            text.push_str(node);
        }
    }
    if !has("iothreads") {
        text.push_str("iothreads 4\n");
    }
    text + block + "}\n"
}

#[test]
fn every_block_does_what_the_page_says() {
    for (page, least) in [("../docs/profile.md", 50), ("../docs/plan.md", 2)] {
        let blocks = blocks(&text_of(page));
        assert!(blocks.len() >= least, "{page} has {} blocks", blocks.len());
        let files: BTreeMap<&str, &str> =
            blocks.iter().filter_map(|b| Some((b.file.as_deref()?, b.text.as_str()))).collect();
        let load = |path: &str| {
            files
                .get(path)
                .map(|text| (*text).to_owned())
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        for block in blocks.iter().filter(|block| block.file.is_none()) {
            let read = read_profile_with(page, &whole(&block.text), &load);
            let why = || match &read {
                Ok(_) => "it is taken".to_owned(),
                Err(problems) => problems.iter().map(|p| format!("\n  {p}")).collect(),
            };
            assert_eq!(read.is_err(), block.must_fail, "{page}, line {}: {}", block.line, why());
        }
    }
}
