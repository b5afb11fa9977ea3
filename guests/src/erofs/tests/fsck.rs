//! What `fsck.erofs` of Debian's erofs-utils says of images: a program that nobody here wrote, run from the tests' store.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use super::*;
use crate::builder::Builder;
use crate::progress::Silent;
use crate::store::Store;
use crate::toolset::{Realised, Toolset};

const EROFS_UTILS: Toolset = Toolset {
    name: "erofs-utils",
    suites: &["bookworm"],
    packages: &["erofs-utils"],
    programs: &["usr/bin/fsck.erofs"],
    data: &[],
    linked: &[],
    layout: "1",
};

/// `None`, and a word on stderr, where it is neither in the tests' store nor to be had from Debian.
fn fsck() -> Option<&'static Realised> {
    static FSCK: OnceLock<Option<Realised>> = OnceLock::new();
    let realised = FSCK.get_or_init(|| {
        let own = std::env::current_exe().unwrap();
        let store = own.ancestors().nth(3).unwrap().join("vmprof-tests/store");
        let store = Store::open(store).unwrap();
        let realised = EROFS_UTILS.realise(&Builder::new(&store, &Silent));
        realised.map_err(|error| eprintln!("skipped what needs fsck.erofs: {error}")).ok()
    });
    realised.as_ref()
}

/// What it says when it ends; its exit status is 0 even where it found the superblock damaged.
fn run(fsck: &Realised, image: &Path, extract: &str) -> Result<String, String> {
    let argv = fsck.argv("usr/bin/fsck.erofs");
    let (program, words) = argv.split_first().unwrap();
    let said = Command::new(program).args(words).args(["-d3", extract]).arg(image).output().unwrap();
    let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    let well = said.status.success() && text.contains("successfully") | text.contains("No errors found");
    if well && !text.contains("<E>") { Ok(text) } else { Err(text) }
}

/// Checked with all contents decompressed.
fn passes(fsck: &Realised, tree: &Tree) {
    let directory = tempfile::tempdir().unwrap();
    for compressed in [false, true] {
        let image = directory.path().join("image");
        std::fs::write(&image, packed(tree, compressed)).unwrap();
        run(fsck, &image, "--extract").unwrap();
    }
}

#[test]
fn fsck_finds_nothing_wrong_with_images_of_every_shape() {
    let Some(fsck) = fsck() else { return };
    passes(fsck, &files_of_every_size());
    passes(fsck, &large_directories());
    passes(fsck, &owners_and_attributes());
}

/// One of these directories fills its block of inodes to the last byte.
#[test]
fn fsck_finds_room_behind_the_last_inode() {
    let Some(fsck) = fsck() else { return };
    for files in 60..100 {
        let names: Vec<String> = (0..files).map(|number| format!("{number:02}")).collect();
        let tree = tree_of(names.iter().map(|name| (name.as_str(), Node::file(0o644, *b""))));
        passes(fsck, &tree);
    }
}

#[test]
fn fsck_sees_a_changed_byte() {
    let Some(fsck) = fsck() else { return };
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let bytes = packed(&tree_of([("text", Node::file(0o644, text(100_000)))]), true);
    // The label in the superblock, and all of the first compressed extent.
    for damaged in [1100..1101, BLOCK_BYTES..2 * BLOCK_BYTES] {
        let mut bytes = bytes.clone();
        bytes[damaged].iter_mut().for_each(|byte| *byte ^= 0xff);
        std::fs::write(&image, bytes).unwrap();
        run(fsck, &image, "--extract").unwrap_err();
    }
}

#[test]
fn fsck_extracts_what_was_packed() {
    let Some(fsck) = fsck() else { return };
    let tree = files_of_every_size();
    for compressed in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        std::fs::write(&image, packed(&tree, compressed)).unwrap();
        let to = directory.path().join("extracted");
        run(fsck, &image, &format!("--extract={}", to.display())).unwrap();
        for (path, node) in tree.iter() {
            if let Kind::File(content) = &node.kind {
                assert!(std::fs::read(to.join(path)).unwrap() == content[..], "{path}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn fsck_finds_nothing_wrong_with_any_tree(nodes in some_tree()) {
        if let Some(fsck) = fsck() {
            passes(fsck, &grown(&nodes));
        }
    }
}
