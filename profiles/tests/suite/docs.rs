//! Every KDL block of the documentation on profiles and plans parses; those marked `must-fail` do not.

use vmprof_profiles::read_profile;

use crate::host::text_of;

/// The `kdl` blocks of a Markdown text: first line number, whether it must fail, the block.
fn blocks(text: &str) -> Vec<(usize, bool, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, bool, String)> = None;
    let mut other = false;
    for (number, line) in (1..).zip(text.lines()) {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => found.push(block),
            (Some(info), None) => {
                let mut words = info.split_whitespace();
                if !other && words.next() == Some("kdl") {
                    open = Some((number + 1, words.any(|w| w == "must-fail"), String::new()));
                } else {
                    other = !other;
                }
            }
            (None, Some((start, fail, mut block))) => {
                block.push_str(line);
                block.push('\n');
                open = Some((start, fail, block));
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
    for (page, least) in [("../docs/profile.md", 15), ("../docs/plan.md", 2)] {
        let blocks = blocks(&text_of(page));
        assert!(blocks.len() >= least, "{page} has {} blocks", blocks.len());
        for (line, must_fail, block) in blocks {
            let read = read_profile(page, &whole(&block));
            let why = || match &read {
                Ok(_) => "it is taken".to_owned(),
                Err(problems) => problems.iter().map(|p| format!("\n  {p}")).collect(),
            };
            assert_eq!(read.is_err(), must_fail, "{page}, line {line}: {}", why());
        }
    }
}
