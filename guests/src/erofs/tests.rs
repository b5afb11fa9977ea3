//! Random trees there and back, every size around a block's, and images nobody wrote.

mod fsck;

use std::collections::BTreeMap;
use std::io::{Read, Seek};
use std::sync::Arc;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::tree::{Kind, Node, Origin};

fn packed(tree: &Tree, compressed: bool) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    pack(tree, compressed, &mut file).unwrap();
    file.rewind().unwrap();
    let mut image = Vec::new();
    file.read_to_end(&mut image).unwrap();
    image
}

/// Everything in it, inodes named by their first path.
fn nodes(tree: &Tree) -> Vec<(String, Node)> {
    let mut first: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::new();
    let alone =
        |word: &Arc<str>| tree.iter().filter(|(_, node)| node.inode.as_ref() == Some(word)).count() == 1;
    tree.iter()
        .map(|(path, node)| {
            let mut node = node.clone();
            node.inode = node
                .inode
                .filter(|word| node.kind != Kind::Directory && !alone(word))
                .map(|word| Arc::clone(first.entry(word).or_insert_with(|| Arc::from(path))));
            (path.to_owned(), node)
        })
        .collect()
}

fn tree_of<'a>(nodes: impl IntoIterator<Item = (&'a str, Node)>) -> Tree {
    let mut tree = Tree::default();
    for (path, node) in nodes {
        tree.put(path, node, &Origin::Recipe).unwrap();
    }
    tree
}

fn comes_back(tree: &Tree) {
    for compressed in [false, true] {
        let image = packed(tree, compressed);
        assert_eq!(image.len() % BLOCK_BYTES, 0);
        assert_eq!(nodes(&unpack(&image).unwrap()), nodes(tree), "compressed: {compressed}");
    }
}

/// Bytes that LZ4 cannot make smaller.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

fn text(bytes: usize) -> Vec<u8> {
    (0..)
        .flat_map(|line: u32| format!("line {line}, and what all lines say\n").into_bytes())
        .take(bytes)
        .collect()
}

fn files_of_every_size() -> Tree {
    let mut tree = Tree::default();
    for around in
        [0, 4032, 4064, 4096, 8192, 3 * 4096, 64 << 10, (64 << 10) + 4096, (64 << 10) + 8192, 300_000]
    {
        for bytes in (around as usize).saturating_sub(2)..around as usize + 3 {
            let mut mixed = text(bytes);
            let half = bytes / 2;
            mixed[half..].copy_from_slice(&noise(bytes - half, 1));
            for (name, content) in [
                ("text", text(bytes)),
                ("zeros", vec![0; bytes]),
                ("noise", noise(bytes, 2)),
                ("mixed", mixed),
            ] {
                tree.put(&format!("{name}/{bytes}"), Node::file(0o644, content), &Origin::Recipe).unwrap();
            }
        }
    }
    tree
}

#[test]
fn files_of_every_size_around_a_block_and_an_extent_come_back() {
    comes_back(&files_of_every_size());
}

fn large_directories() -> Tree {
    let mut tree = Tree::default();
    let mut put = |path: String, node: Node| tree.put(&path, node, &Origin::Recipe).unwrap();
    for number in 0..10_000 {
        put(format!("many/{number}"), Node::file(0o644, *b""));
    }
    for number in 0..40 {
        put(format!("long/{number:0>255}"), Node::link("x".repeat(number * 100 + 1)));
    }
    for bytes in [4031, 4032, 4033, 4063, 4064, 4065, 4094, 4095] {
        put(format!("links/{bytes}"), Node::link("x".repeat(bytes)));
    }
    for directories in 0..70 {
        put(format!("directories/{directories}"), Node::directory(0o700));
    }
    put((0..150).map(|_| "d").collect::<Vec<_>>().join("/"), Node::file(0o600, *b"deep"));
    for before_dot in ["!", "+x", "-", ".a", "..b", "...", "A"] {
        put(format!("dots/{before_dot}"), Node::file(0o600, *b"dots"));
    }
    tree
}

#[test]
fn large_directories_long_names_and_links_of_every_length_come_back() {
    comes_back(&large_directories());
}

fn owners_and_attributes() -> Tree {
    let xattrs = |names: &[(&str, usize)]| {
        names.iter().map(|(name, bytes)| ((*name).to_owned(), noise(*bytes, 3))).collect::<BTreeMap<_, _>>()
    };
    let names = [("security.capability", 20), ("user.a", 0), ("trusted.overlay.opaque", 1)];
    let large = [("user.large", 65_535), ("user.larger", 65_535), ("system.posix_acl_access", 28)];
    tree_of([
        ("", Node { xattrs: xattrs(&[("user.root", 5)]), ..Node::directory(0o1777) }),
        ("setuid", Node { uid: 65_535, gid: 65_535, ..Node::file(0o4755, noise(5000, 4)) }),
        ("large-ids", Node { uid: 65_536, gid: u32::MAX, ..Node::file(0o000, *b"tail") }),
        ("named", Node { xattrs: xattrs(&names), ..Node::file(0o755, text(9000)) }),
        ("heavy", Node { xattrs: xattrs(&large), ..Node::file(0o755, text(100)) }),
        ("directory", Node { xattrs: xattrs(&large), gid: 70_000, ..Node::directory(0o2755) }),
        ("link", Node { xattrs: xattrs(&names[2..]), ..Node::link("setuid") }),
        ("null", Node::new(Kind::CharDevice { major: 1, minor: 3 }, 0o666)),
        ("disk", Node::new(Kind::BlockDevice { major: 4095, minor: (1 << 20) - 1 }, 0o660)),
        ("pipe", Node::new(Kind::Fifo, 0o600)),
    ])
}

#[test]
fn owners_modes_devices_and_extended_attributes_come_back() {
    comes_back(&owners_and_attributes());
}

#[test]
fn what_no_image_can_hold_is_refused() {
    let with = |name: &str, bytes: usize| {
        let xattrs = BTreeMap::from([(name.to_owned(), vec![0; bytes])]);
        tree_of([("file", Node { xattrs, ..Node::file(0o644, *b"") })])
    };
    let device = tree_of([("disk", Node::new(Kind::BlockDevice { major: 4096, minor: 0 }, 0o660))]);
    for tree in [with("system.other", 1), with("user.", 1), with("user.a", 65_536), device] {
        let error = pack(&tree, false, &mut tempfile::tempfile().unwrap()).unwrap_err();
        assert!(matches!(error, GuestError::Image(ImageError::Format { format: "erofs", .. })), "{error}");
    }
}

#[test]
fn equal_contents_are_stored_once_and_hard_links_have_one_inode() {
    let file = || Node::file(0o644, noise(40_000, 5));
    let linked = || Node { inode: Some(Arc::from("a.deb 17")), ..Node::file(0o600, noise(50_000, 6)) };
    let once = packed(&tree_of([("a/1", file()), ("b/1", linked())]), false);
    let thrice =
        tree_of([("a/1", file()), ("a/2", file()), ("c", file()), ("b/1", linked()), ("b/2", linked())]);
    comes_back(&thrice);
    // Inodes and tails fit into a few more blocks than one.
    assert!(packed(&thrice, false).len() <= once.len() + 4 * BLOCK_BYTES);
    let image = packed(&thrice, true);
    assert_eq!(superblock::Superblock::read(&image).unwrap().inodes, 7);
}

#[test]
fn names_of_one_inode_that_differ_are_two_inodes() {
    let node = |mode| Node { inode: Some(Arc::from("a.deb 17")), ..Node::file(mode, *b"x") };
    let tree = tree_of([("a", node(0o600)), ("b", node(0o600)), ("c", node(0o644))]);
    let back = unpack(&packed(&tree, false)).unwrap();
    let (_, b) = back.look("b").unwrap();
    let (_, c) = back.look("c").unwrap();
    assert_eq!((b.mode, c.mode), (0o600, 0o644));
    assert!(b.inode.is_some() && c.inode.is_none());
}

/// Names that meet each other, kinds, sizes, owners, attributes and inodes of every sort.
fn some_tree() -> impl Strategy<Value = Vec<(String, Node)>> {
    let name = prop_oneof!["[a-c]", "[ -.0-~]{1,12}", "[a-z]{255}", Just("\u{fc}ber".to_owned())]
        .prop_filter("a name", |name| name != "." && name != "..");
    let path = vec(name, 1..5).prop_map(|names| names.join("/"));
    let content = prop_oneof![
        vec(any::<u8>(), 0..200),
        (0_usize..20_000).prop_map(text),
        (0_usize..20_000, 0_u64..4).prop_map(|(bytes, seed)| noise(bytes, seed)),
        (0_usize..200_000)
            .prop_map(|bytes| [text(bytes / 2), noise(bytes / 3, 1), vec![0; bytes / 6]].concat()),
    ];
    let kind = prop_oneof![
        6 => content.prop_map(|content| Kind::File(Arc::from(content))),
        2 => Just(Kind::Directory),
        2 => "[a-z/]{1,100}".prop_map(|target| Kind::Link(format!("/nowhere/{target}"))),
        1 => (0_u32..4096, 0_u32..1 << 20).prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        1 => Just(Kind::Fifo),
    ];
    let id = prop_oneof![4 => Just(0_u32), 1 => any::<u32>()];
    let xattrs = btree_map("(user|security|trusted)\\.[a-z]{1,20}", vec(any::<u8>(), 0..300), 0..3);
    let node = (kind, 0_u16..0o10000, id.clone(), id, xattrs, proptest::option::weighted(0.2, 0_u8..3));
    let node = node.prop_map(|(kind, mode, uid, gid, xattrs, inode)| {
        let inode = inode.map(|word| Arc::from(word.to_string()));
        Node { kind, mode, uid, gid, xattrs, inode }
    });
    vec((path, node), 0..40).prop_map(|mut nodes| {
        // Names of one inode are equal in everything else.
        let mut first: BTreeMap<Arc<str>, Node> = BTreeMap::new();
        for (_, node) in &mut nodes {
            if node.kind == Kind::Directory {
                node.inode = None;
            }
            if let Some(word) = &node.inode {
                *node = first.entry(Arc::clone(word)).or_insert_with(|| node.clone()).clone();
            }
        }
        nodes
    })
}

/// The nodes in a tree, those left out that do not go with the ones before.
fn grown(nodes: &[(String, Node)]) -> Tree {
    let mut tree = Tree::default();
    for (path, node) in nodes {
        let _ = tree.put(path, node.clone(), &Origin::Recipe);
    }
    tree
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_tree_comes_back(nodes in some_tree()) {
        comes_back(&grown(&nodes));
    }

    #[test]
    fn the_order_of_growing_does_not_show(nodes in some_tree(), seed in any::<u64>()) {
        let tree = grown(&nodes);
        let mut shuffled: Vec<(&str, &Node)> = tree.iter().collect();
        shuffled.sort_by_key(|(path, _)| *blake3::hash(&[path.as_bytes(), &seed.to_le_bytes()].concat()).as_bytes());
        let again = tree_of(shuffled.into_iter().map(|(path, node)| (path, node.clone())));
        for compressed in [false, true] {
            prop_assert!(packed(&tree, compressed) == packed(&again, compressed));
        }
    }

    #[test]
    fn no_bytes_stop_the_reader(
        nodes in some_tree(),
        compressed in any::<bool>(),
        changes in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20),
        length in any::<proptest::sample::Index>(),
    ) {
        let mut image = packed(&grown(&nodes), compressed);
        let meta = superblock::Superblock::read(&image).unwrap().meta_block as usize * BLOCK_BYTES;
        // Half of them where everything else is described.
        for (number, (at, byte)) in changes.iter().enumerate() {
            let from = if number % 2 == 0 { meta } else { BLOCK_BYTES };
            let at = from + at.index(image.len() - from);
            image[at] = *byte;
        }
        let _ = unpack(&image);
        let _ = unpack(&image[..length.index(image.len())]);
    }

    #[test]
    fn noise_is_no_image(bytes in vec(any::<u8>(), 0..5000)) {
        prop_assert!(unpack(&bytes).is_err());
    }
}
