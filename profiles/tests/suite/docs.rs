//! Every KDL block of the documentation on profiles and plans parses; those marked
//! `must-fail=CODE`, or with several codes and commas between them, fail with exactly these.

use std::collections::BTreeMap;
use std::io;

use vmprof_profiles::read_profile_with;

use crate::host::text_of;

/// A `kdl` block of a Markdown text.
#[derive(Default)]
struct Block {
    /// Its first line.
    line: usize,
    /// The last words of the codes with which it fails, in the order of the text; none where it is right.
    must_fail: Vec<String>,
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
                    must_fail: info
                        .split_whitespace()
                        .find_map(|word| word.strip_prefix("must-fail"))
                        .map(|codes| codes.trim_start_matches('=').split(',').map(str::to_owned).collect())
                        .unwrap_or_default(),
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
        let mut wrong = Vec::new();
        for block in blocks.iter().filter(|block| block.file.is_none()) {
            let read = read_profile_with(page, &whole(&block.text), &load);
            let found: Vec<&str> = match &read {
                Ok(_) => Vec::new(),
                Err(problems) => {
                    problems.iter().map(|p| p.code().rsplit("::").next().unwrap_or_default()).collect()
                }
            };
            if found != block.must_fail {
                let codes = found.join(",");
                wrong.push(format!(
                    "{page}, line {}: {codes}, not {}",
                    block.line,
                    block.must_fail.join(",")
                ));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
