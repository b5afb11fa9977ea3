//! The texts that ship: every guest with its lock, and every KDL block of the guests' documentation.

use std::path::{Path, PathBuf};

use vmprof_guests::{GuestError, Image, Lock, Recipe};

fn guests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Everything that ends in `.kdl` here and is no lock.
fn recipes() -> Vec<PathBuf> {
    let listing = std::fs::read_dir(guests()).unwrap().map(|item| item.unwrap().path());
    let mut found: Vec<_> = listing
        .filter(|path| {
            let name = path.to_string_lossy();
            name.ends_with(".kdl") && !name.ends_with(".lock.kdl")
        })
        .collect();
    found.sort();
    found
}

#[test]
fn every_shipped_guest_is_locked_to_one_suite_and_none_of_it_names_a_host() {
    let recipes = recipes();
    assert!(recipes.len() >= 3, "{recipes:?}");
    for path in recipes {
        let recipe = Recipe::read(&path).unwrap();
        assert!(recipe.warnings.is_empty(), "{}", recipe.warnings);
        let lock = Lock::read(&recipe.lock_path).unwrap();
        lock.check(&recipe).unwrap();
        // Only an old stable's main suite keeps what it has.
        assert_eq!(recipe.distribution.unwrap().suite, "bookworm");
        assert_eq!(lock.releases.len(), 1);
        assert_eq!(lock.kernel.len(), 1, "the kernel's package and none of its helpers");
        assert!(lock.packages.iter().all(|package| !package.name.starts_with("linux-image")));
        let text = std::fs::read_to_string(&recipe.lock_path).unwrap();
        assert!(!text.contains("://"), "{}", recipe.lock_path.display());
        assert_eq!(lock.to_text(), text, "{} is not as `vmprof lock` writes it", recipe.lock_path.display());
    }
}

#[test]
fn the_shipped_guests_share_one_kernel() {
    let kernels: Vec<_> = recipes()
        .iter()
        .map(|path| Lock::read(&Recipe::read(path).unwrap().lock_path).unwrap().kernel)
        .collect();
    assert!(kernels.windows(2).all(|pair| pair[0] == pair[1]));
}

/// Blocks marked `kdl`, with what else the mark says and the line it stands on.
fn blocks(text: &str) -> Vec<(usize, String, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(mark)) => open = Some((number + 1, mark.to_owned(), String::new())),
            (Some(_), Some(_)) => found.extend(open.take().filter(|(_, mark, _)| mark.starts_with("kdl"))),
            (Some((_, _, body)), None) => {
                body.push_str(line);
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    found
}

#[test]
fn every_block_of_the_documentation_is_what_it_says() {
    let path = guests().join("../docs/guests.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let blocks = blocks(&text);
    assert!(blocks.len() >= 8, "only {} blocks were found", blocks.len());
    // A block marked `file=NAME` is a file that another block extends.
    let files: Vec<(&str, &str)> = blocks
        .iter()
        .filter_map(|(_, mark, body)| Some((mark.split("file=").nth(1)?.trim(), body.as_str())))
        .collect();
    let load = |name: &str| {
        let file = files.iter().find(|(known, _)| *known == name);
        file.map(|(_, body)| (*body).to_owned())
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
    };
    let mut with_root = 0;
    for (line, mark, body) in &blocks {
        let place = format!("docs/guests.md:{line}");
        if mark.contains("file=") {
            continue;
        }
        if mark.contains("lock") {
            Lock::parse(Path::new(&place), body).unwrap_or_else(|error| panic!("{place}: {error:?}"));
            continue;
        }
        // A block shows the nodes it is about; what every guest has goes around it.
        let whole = if body.lines().any(|line| line.starts_with("guest ")) {
            body.clone()
        } else {
            let rest = [
                ("distribution", "distribution debian suite=bookworm"),
                ("kernel", "kernel package=linux-image-amd64"),
                ("run", "run \"/x\""),
            ];
            let has = |node: &str| body.lines().any(|line| line.split_whitespace().next() == Some(node));
            let missing =
                rest.iter().filter(|(node, _)| !(has(node) || *node == "run" && body.contains("image none")));
            let missing: Vec<_> = missing.map(|(_, text)| *text).collect();
            format!("guest shown {{\n{body}\n{}\n}}\n", missing.join("\n"))
        };
        let read = Recipe::parse_with(Path::new(&place), &whole, &load);
        if let Some((_, code)) = mark.split_once("must-fail=") {
            let Err(GuestError::Document(problems)) = read else {
                panic!("{place} is read, and should not be")
            };
            let codes: Vec<_> = problems.iter().map(|problem| problem.code()).collect();
            assert_eq!(codes, [format!("vmprof::guest::{}", code.trim())], "{place}");
        } else {
            let recipe = read.unwrap_or_else(|error| panic!("{place}: {error:?}\n{whole}"));
            with_root += usize::from(recipe.image != Image::None);
        }
    }
    assert!(with_root > 0);
}
