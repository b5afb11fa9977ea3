//! Whole images: read back, held against e2fsck and debugfs, damaged.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use tempfile::NamedTempFile;

use super::crc32c::crc32c;
use super::fields::{Get as _, Put as _};
use super::geometry::Geometry;
use super::population::ROOT;
use super::*;
use crate::tree::{Kind, Node, Origin, TreeError};

fn image(tree: &Tree, bytes: Option<u64>) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    pack(tree, bytes, "test", file.as_file()).unwrap();
    file
}

fn bytes_of(file: &NamedTempFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.reopen().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// All nodes, with the words of shared inodes replaced by the first path that has them.
fn nodes(tree: &Tree) -> BTreeMap<String, Node> {
    let mut first: BTreeMap<Arc<str>, (String, u32)> = BTreeMap::new();
    for (path, node) in tree.iter() {
        if let Some(word) = &node.inode {
            first.entry(word.clone()).or_insert((path.to_owned(), 0)).1 += 1;
        }
    }
    tree.iter()
        .map(|(path, node)| {
            let inode = node.inode.as_ref().and_then(|word| match &first[word] {
                (_, 1) => None,
                (path, _) => Some(Arc::from(path.as_str())),
            });
            (path.to_owned(), Node { inode, ..node.clone() })
        })
        .collect()
}

fn tree_of(things: impl IntoIterator<Item = (String, Node)>) -> Tree {
    let mut tree = Tree::default();
    for (path, node) in things {
        tree.put(&path, node, &Origin::Recipe).unwrap();
    }
    tree
}

/// Everything a root may hold, one of each.
fn everything() -> Tree {
    let xattr = |name: &str, length: usize| BTreeMap::from([(name.to_owned(), vec![0xa5; length])]);
    let hole = [vec![1; 5000], vec![0; 300_000], vec![2; 70_000], vec![0; 100_000]].concat();
    let shared = Node { inode: Some(Arc::from("one")), ..Node::file(0o644, *b"shared\n") };
    tree_of(
        [
            ("", Node { gid: 7, ..Node::directory(0o1755) }),
            ("bin", Node::link("usr/bin")),
            ("etc/empty", Node::file(0o644, *b"")),
            ("etc/small", Node { uid: 70_000, gid: 4_000_000_000, ..Node::file(0o4711, *b"small\n") }),
            ("etc/hole", Node::file(0o600, hole)),
            ("etc/zeros", Node::file(0o600, vec![0; 3 << 20])),
            ("usr/bin/ping", Node { xattrs: xattr("security.capability", 20), ..Node::file(0o755, *b"x") }),
            ("usr/bin/long", Node { xattrs: xattr("user.long", 3000), ..Node::directory(0o2755) }),
            ("usr/link59", Node::link("a".repeat(59))),
            ("usr/link60", Node { xattrs: xattr("trusted.x", 200), ..Node::link("b".repeat(60)) }),
            ("usr/link4095", Node::link("c/".repeat(2047) + "c")),
            ("dev/null", Node::new(Kind::CharDevice { major: 1, minor: 3 }, 0o666)),
            ("dev/far", Node::new(Kind::BlockDevice { major: 259, minor: 70_000 }, 0o660)),
            ("run/pipe", Node::new(Kind::Fifo, 0o600)),
            ("srv/shared", shared.clone()),
            ("etc/shared", shared.clone()),
            ("srv/ä/ü", shared),
        ]
        .map(|(path, node)| (path.to_owned(), node)),
    )
}

fn many(directory: &str, count: usize, name: impl Fn(usize) -> String, node: &Node) -> Tree {
    tree_of((0..count).map(|n| (format!("{directory}/{}", name(n)), node.clone())))
}

/// Runs one of e2fsprogs' programs, which Debian's base system has; `None`, and a word on stderr, where it is missing.
fn e2fsprogs(program: &str, arguments: &[&str], image: &Path) -> Option<(i32, String)> {
    let found =
        ["/usr/sbin", "/sbin"].iter().map(|dir| Path::new(dir).join(program)).find(|path| path.exists());
    let Some(found) = found else {
        eprintln!("skipped: no {program} on this machine");
        return None;
    };
    let output = Command::new(found).args(arguments).arg(image).env("LC_ALL", "C").output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Some((output.status.code().unwrap_or(-1), text))
}

fn assert_clean(what: &str, file: &NamedTempFile) {
    if let Some((code, output)) = e2fsprogs("e2fsck", &["-f", "-n"], file.path()) {
        // Its five passes and the count; a remark of any kind is one line more.
        let remarks: Vec<_> = output
            .lines()
            .filter(|line| !line.starts_with("Pass ") && !line.starts_with("e2fsck 1."))
            .collect();
        assert!(
            code == 0 && remarks.len() == 1 && remarks[0].contains(" files ("),
            "{what}: {code}\n{output}"
        );
    }
}

fn assert_read_back(what: &str, tree: &Tree, file: &NamedTempFile) {
    let back = unpack(&bytes_of(file).as_slice()).unwrap();
    let (back, tree) = (nodes(&back), nodes(tree));
    for (path, node) in &tree {
        assert_eq!(back.get(path), Some(node), "{what}: /{path}");
    }
    assert_eq!(back.len(), tree.len(), "{what}");
}

#[test]
fn every_kind_of_node_is_read_back_and_clean() {
    let tree = everything();
    let file = image(&tree, None);
    assert_eq!(file.as_file().metadata().unwrap().len(), LEAST_BYTES);
    assert_clean("everything", &file);
    assert_read_back("everything", &tree, &file);
}

#[test]
fn images_of_every_size_are_clean() {
    let tree = everything();
    for mib in [8, 9, 63, 127, 128, 129, 131, 160, 256, 1023, 2048, 2049, 2055, 5000, 40_000] {
        let file = image(&tree, Some(mib << 20));
        assert_eq!(file.as_file().metadata().unwrap().len(), mib << 20);
        assert_clean(&format!("{mib} MiB"), &file);
    }
}

#[test]
fn directories_of_every_size_are_clean() {
    let short = |n: usize| format!("{n}");
    let long = |n: usize| format!("{n:0255}");
    let file = Node::file(0o644, *b"");
    for (what, tree) in [
        ("names that just fit into one block", many("d", 340, |n| format!("{n:03}"), &file)),
        ("one name more", many("d", 341, |n| format!("{n:03}"), &file)),
        ("short names", many("d", 3000, short, &file)),
        ("the longest names", many("d", 500, long, &file)),
        ("an index of two levels", many("d", 8000, long, &file)),
        ("names with high bytes", many("d", 2000, |n| format!("{}{n}", "é".repeat(n % 40)), &file)),
        ("names at the top", many("", 2000, short, &file)),
    ] {
        let image = image(&tree, None);
        assert_clean(what, &image);
        assert_read_back(what, &tree, &image);
    }
}

#[test]
fn a_hundred_thousand_names_are_clean() {
    let tree = many("d", 100_000, |n| format!("file-{n}"), &Node::file(0o644, *b""));
    let image = image(&tree, None);
    assert_clean("100,000 files", &image);
    assert_read_back("100,000 files", &tree, &image);
}

#[test]
fn more_subdirectories_than_links_can_count_are_clean() {
    // With its own two, one more than ext4 counts.
    let image = image(&many("d", 64_999, |n| n.to_string(), &Node::directory(0o755)), None);
    assert_clean("64,999 directories", &image);
}

#[test]
fn files_in_many_extents_are_clean() {
    // Every second stretch is a hole: 5 need a block for the tree, 1361 a second level.
    for pieces in [4, 5, 340, 1361] {
        let stretch = [vec![7; BLOCK], vec![0; 16 * BLOCK]].concat();
        let tree = tree_of([("file".to_owned(), Node::file(0o644, stretch.repeat(pieces)))]);
        let image = image(&tree, None);
        assert_clean(&format!("{pieces} extents"), &image);
        assert_read_back(&format!("{pieces} extents"), &tree, &image);
    }
}

#[test]
fn a_file_goes_on_behind_the_metadata_of_the_next_groups() {
    // Two groups of 128 MiB, and a byte in each block that says which it is.
    let mut content = vec![1; 260 << 20];
    for (number, block) in content.chunks_mut(BLOCK).enumerate() {
        block[0] = number as u8;
    }
    let tree = tree_of([("large".to_owned(), Node::file(0o644, content))]);
    let image = image(&tree, None);
    assert_clean("260 MiB", &image);
    assert_read_back("260 MiB", &tree, &image);
}

#[test]
fn a_tree_keeps_its_own_lost_and_found() {
    for node in [Node::directory(0o700), Node::file(0o644, *b"no directory")] {
        let tree = tree_of([("lost+found".to_owned(), node)]);
        let image = image(&tree, None);
        assert_read_back("lost+found", &tree, &image);
        assert_clean("lost+found", &image);
    }
}

#[test]
fn an_empty_image_takes_no_space_however_large() {
    let image = image(&Tree::default(), Some(2 << 40));
    let metadata = image.as_file().metadata().unwrap();
    assert_eq!(metadata.len(), 2 << 40);
    // Descriptors and their backups; on a filesystem without holes it would not have fitted at all.
    assert!(metadata.blocks() * 512 < 64 << 20, "{} sectors", metadata.blocks());
    assert_clean("2 TiB", &image);
}

#[test]
fn the_order_of_insertion_does_not_matter() {
    let there = everything();
    let mut things: Vec<_> = there.iter().map(|(path, node)| (path.to_owned(), node.clone())).collect();
    things.reverse();
    let back = tree_of(things);
    assert!(bytes_of(&image(&there, None)) == bytes_of(&image(&back, None)));
}

#[test]
fn another_tree_has_another_uuid() {
    let uuid = |tree: &Tree| Identity::of(&tree.manifest_hash()).uuid;
    assert_ne!(uuid(&everything()), uuid(&Tree::default()));
}

#[test]
fn too_small_a_size_says_what_is_needed() {
    let tree = tree_of([("large".to_owned(), Node::file(0o644, vec![1; 20 << 20]))]);
    let file = NamedTempFile::new().unwrap();
    let needed = match pack(&tree, Some(10 << 20), "test", file.as_file()) {
        Err(GuestError::Image(ImageError::TooSmall { asked, needed, .. })) => {
            assert_eq!(asked, 10 << 20);
            needed
        }
        other => panic!("{other:?}"),
    };
    assert!((20 << 20..30 << 20).contains(&needed) && needed % MIB == 0, "{needed}");
    assert_clean("the least size", &image(&tree, Some(needed)));
    assert!(pack(&tree, Some(needed - MIB), "test", file.as_file()).is_err());
    assert!(pack(&tree, Some(0), "test", file.as_file()).is_err());
    assert!(pack(&tree, Some(u64::MAX), "test", file.as_file()).is_err());
}

#[test]
fn what_ext4_cannot_hold_is_refused() {
    let refused = |things: Vec<(&str, Node)>| {
        let tree = tree_of(things.into_iter().map(|(path, node)| (path.to_owned(), node)));
        let file = NamedTempFile::new().unwrap();
        match pack(&tree, None, "test", file.as_file()) {
            Err(GuestError::Tree(TreeError::BadPath { reason, .. })) => reason,
            other => panic!("{other:?}"),
        }
    };
    let xattr = |name: &str| Node {
        xattrs: BTreeMap::from([(name.to_owned(), vec![1; 5000])]),
        ..Node::file(0o644, *b"")
    };
    assert!(refused(vec![("f", xattr("user.x"))]).contains("extended attributes"));
    assert!(refused(vec![("f", xattr("other.x"))]).contains("other.x"));
    let device = Node::new(Kind::CharDevice { major: 4096, minor: 0 }, 0o600);
    assert!(refused(vec![("f", device)]).contains("4096:0"));
    let shared = |mode| Node { inode: Some(Arc::from("one")), ..Node::file(mode, *b"") };
    assert!(refused(vec![("a", shared(0o600)), ("b", shared(0o644))]).contains("/a"));
}

#[test]
fn debugfs_sees_what_the_tree_holds() {
    let file = image(&everything(), None);
    let ask = |command: &str| Some(e2fsprogs("debugfs", &["-R", command], file.path())?.1);
    let holds = |command: &str, words: &[&str]| {
        let Some(answer) = ask(command) else { return };
        for word in words {
            assert!(answer.contains(word), "{command}: no {word:?} in\n{answer}");
        }
    };
    holds("cat /etc/small", &["small\n"]);
    holds("stat /etc/small", &["User: 70000", "Group: -294967296", "Mode:  04711", "Links: 1"]);
    holds("stat /srv/shared", &["Links: 3"]);
    holds("stat /usr/link59", &[&format!("Fast link dest: \"{}\"", "a".repeat(59))]);
    holds("stat /dev/far", &["Type: block special", "259:70000"]);
    holds("ea_list /usr/bin/ping", &["security.capability (20)"]);
    holds("ea_list /usr/bin/long", &["user.long (3000)"]);
    holds("stat /etc/hole", &["Size: 475000", "(0-1)", "(74-"]);
    holds("show_super_stats -h", &["has_journal", "metadata_csum", "clean", "half_md4"]);
}

fn node() -> impl Strategy<Value = Node> {
    let content = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        (1usize..200_000, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
        proptest::collection::vec((0usize..40, any::<bool>()), 0..8).prop_map(|stretches| {
            stretches.into_iter().flat_map(|(blocks, zero)| vec![u8::from(!zero); blocks * BLOCK]).collect()
        }),
    ];
    let kind = prop_oneof![
        4 => content.prop_map(|bytes: Vec<u8>| Kind::File(Arc::from(bytes))),
        2 => Just(Kind::Directory),
        1 => "[a-z]{1,200}".prop_map(Kind::Link),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        1 => Just(Kind::Fifo),
    ];
    let xattrs = proptest::collection::btree_map(
        "(user|security|trusted)\\.[a-z]{1,9}",
        proptest::collection::vec(any::<u8>(), 0..120),
        0..3,
    );
    (kind, 0u16..0o10000, any::<u32>(), any::<u32>(), xattrs)
        .prop_map(|(kind, mode, uid, gid, xattrs)| Node { uid, gid, xattrs, ..Node::new(kind, mode) })
}

/// Paths that lead through no link, so that the tree holds what was asked for.
fn trees() -> impl Strategy<Value = Tree> {
    let path = proptest::collection::vec("[a-cé]{1,2}", 1..4).prop_map(|parts| parts.join("/"));
    proptest::collection::vec((path, node(), proptest::option::of(0usize..5)), 0..40).prop_map(|things| {
        let mut tree = Tree::default();
        for (number, (path, node, twin)) in things.into_iter().enumerate() {
            // Whatever does not go there for what is above it is left out.
            let put = tree.put(&path, node.clone(), &Origin::Recipe);
            if let (Ok(()), Some(twin), false) = (put, twin, node.kind == Kind::Directory) {
                let shared = Node { inode: Some(Arc::from(format!("{number}"))), ..node };
                tree.remove(&path);
                for name in [path, format!("twin{twin}")] {
                    tree.remove(&name);
                    tree.put(&name, shared.clone(), &Origin::Recipe).unwrap();
                }
            }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn random_trees_are_read_back_and_clean(tree in trees()) {
        let file = image(&tree, Some(16 << 20));
        assert_clean("random", &file);
        assert_read_back("random", &tree, &file);
    }
}

#[test]
fn a_cut_image_is_refused() {
    let whole = bytes_of(&image(&everything(), Some(8 << 20)));
    for end in [0, 1, 1024, 2047, 2048, 4096, 8192, 100_000, whole.len() / 2, whole.len() - 1] {
        assert!(unpack(&&whole[..end]).is_err(), "{end} bytes");
    }
}

#[test]
fn a_changed_byte_of_an_inode_is_noticed() {
    let mut bytes = bytes_of(&image(&everything(), Some(8 << 20)));
    let root = Geometry::new(8 << 20, 0).unwrap().inode_offset(ROOT) as usize;
    for at in [0, 0x28, 0x7c, 0x90, 0xff] {
        bytes[root + at] ^= 0x10;
        assert!(unpack(&bytes.as_slice()).is_err(), "byte {at:#x} of the root's inode");
        bytes[root + at] ^= 0x10;
    }
    unpack(&bytes.as_slice()).unwrap();
}

#[test]
fn a_mounted_image_is_refused_with_the_reason() {
    let mut bytes = bytes_of(&image(&everything(), Some(8 << 20)));
    // The flag that a mount sets: the journal has to be replayed.
    bytes[superblock::OFFSET + 0x60] |= 0x4;
    let sum = crc32c(u32::MAX, &bytes[superblock::OFFSET..superblock::OFFSET + 0x3fc]);
    bytes.put_u32(superblock::OFFSET + 0x3fc, sum);
    assert!(unpack(&bytes.as_slice()).unwrap_err().to_string().contains("journal"));
}

static SMALL: LazyLock<Vec<u8>> = LazyLock::new(|| bytes_of(&image(&everything(), Some(8 << 20))));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// An attacker's sums are right, so the fields themselves must be looked at.
    #[test]
    fn inodes_with_any_fields_and_right_sums_are_read_or_refused(
        number in prop_oneof![Just(ROOT), 11u32..40],
        changes in proptest::collection::vec((0usize..INODE_BYTES, any::<u8>()), 1..6),
    ) {
        let mut bytes = SMALL.clone();
        let at = Geometry::new(8 << 20, 0).unwrap().inode_offset(number) as usize;
        for (offset, value) in changes {
            bytes[at + offset] = value;
        }
        let record = &mut bytes[at..at + INODE_BYTES];
        record.put_halves_u32(0x7c, 0x82, 0);
        let generation = record.u32(0x64).unwrap();
        let sums = Identity::of(&everything().manifest_hash()).sums();
        let sum = crc32c(sums.inode_seed(number, generation), record);
        record.put_halves_u32(0x7c, 0x82, sum);
        if let Ok(tree) = unpack(&bytes.as_slice()) {
            // A directory may now show what lies in another one, but nothing is read without end.
            prop_assert!(tree.iter().count() <= 4 * everything().iter().count());
        }
    }

    #[test]
    fn blocks_with_any_bytes_are_read_or_refused(
        number in 0usize..400,
        at in 0usize..BLOCK - 64,
        noise in proptest::collection::vec(any::<u8>(), 1..64),
    ) {
        let mut bytes = SMALL.clone();
        bytes.put(number * BLOCK + at, &noise);
        if let Ok(tree) = unpack(&bytes.as_slice()) {
            prop_assert_eq!(tree.iter().count(), everything().iter().count());
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(unpack(&bytes.as_slice()).is_err());
    }
}
