use super::*;
use crate::error::GuestError;

fn package(name: &str, replaces: &[&str]) -> Origin {
    let replaces: Vec<String> = replaces.iter().map(|r| (*r).to_owned()).collect();
    Origin::Package { name: name.to_owned(), replaces: replaces.into() }
}

fn merged() -> Tree {
    let mut tree = Tree::default();
    tree.put("bin", Node::link("usr/bin"), &Origin::Builder).unwrap();
    tree.put("usr/bin", Node::directory(0o755), &Origin::Builder).unwrap();
    tree
}

fn paths(tree: &Tree) -> Vec<&str> {
    tree.iter().map(|(path, _)| path).collect()
}

#[test]
fn what_a_package_ships_under_bin_lands_under_usr() {
    let mut tree = merged();
    let by = package("dash", &[]);
    tree.put("bin", Node::directory(0o755), &by).unwrap();
    tree.put("bin/dash", Node::file(0o755, *b"x"), &by).unwrap();
    assert_eq!(paths(&tree), ["", "bin", "usr", "usr/bin", "usr/bin/dash"]);
    assert_eq!(tree.look("/bin/dash").unwrap().0, "usr/bin/dash");
}

#[test]
fn two_packages_with_different_files_at_one_path_are_refused() {
    let mut tree = Tree::default();
    tree.put("etc/x", Node::file(0o644, *b"one"), &package("a", &[])).unwrap();
    tree.put("etc/x", Node::file(0o644, *b"one"), &package("b", &[])).unwrap();
    let error = tree.put("etc/x", Node::file(0o644, *b"two"), &package("c", &[])).unwrap_err();
    assert!(
        matches!(error, GuestError::Tree(TreeError::Conflict { path, first, second }) if path == "etc/x" && first == "a" && second == "c")
    );
}

#[test]
fn a_package_that_replaces_another_wins_in_either_order() {
    let (old, new) = (package("old", &[]), package("new", &["old"]));
    for order in [[(&old, b"o"), (&new, b"n")], [(&new, b"n"), (&old, b"o")]] {
        let mut tree = Tree::default();
        for (by, content) in order {
            tree.put("x", Node::file(0o644, *content), by).unwrap();
        }
        assert_eq!(tree.look("x").unwrap().1, &Node::file(0o644, *b"n"));
    }
}

#[test]
fn the_recipe_takes_anythings_place_but_not_a_full_directorys() {
    let mut tree = Tree::default();
    tree.put("etc/x", Node::file(0o644, *b"package"), &package("a", &[])).unwrap();
    tree.put("etc/x", Node::file(0o600, *b"recipe"), &Origin::Recipe).unwrap();
    assert_eq!(tree.look("etc/x").unwrap().1, &Node::file(0o600, *b"recipe"));
    let error = tree.put("etc", Node::link("elsewhere"), &Origin::Recipe).unwrap_err();
    assert!(matches!(error, GuestError::Tree(TreeError::BadPath { .. })), "{error}");
    let error = tree.put("etc/x/below", Node::file(0o600, *b""), &Origin::Recipe).unwrap_err();
    assert!(error.to_string().contains("not a directory"), "{error}");
}

#[test]
fn links_in_a_circle_are_refused_and_not_followed_for_ever() {
    let mut tree = Tree::default();
    tree.put("a", Node::link("b"), &Origin::Recipe).unwrap();
    tree.put("b", Node::link("a"), &Origin::Recipe).unwrap();
    assert!(tree.look("a").is_none());
    assert!(tree.put("a/x", Node::file(0o644, *b""), &Origin::Recipe).is_err());
}

#[test]
fn a_link_upwards_stays_inside_the_tree() {
    let mut tree = Tree::default();
    tree.put("x", Node::link("../../../etc"), &Origin::Recipe).unwrap();
    tree.put("x/passwd", Node::file(0o644, *b""), &Origin::Recipe).unwrap();
    assert!(paths(&tree).contains(&"etc/passwd"));
}

#[test]
fn removing_a_path_takes_what_is_below_and_not_what_starts_alike() {
    let mut tree = merged();
    let by = package("p", &[]);
    for path in ["usr/share/doc/a/b", "usr/share/doc-base/c", "usr/share/doc/d"] {
        tree.put(path, Node::file(0o644, *b""), &by).unwrap();
    }
    assert!(tree.remove("/usr/share/doc"));
    assert!(!tree.remove("/usr/share/doc"));
    assert_eq!(
        paths(&tree),
        ["", "bin", "usr", "usr/bin", "usr/share", "usr/share/doc-base", "usr/share/doc-base/c"]
    );
}

proptest::proptest! {
    /// The tree must not know in which order packages came.
    #[test]
    fn any_order_of_packages_gives_the_same_tree(seed in proptest::collection::vec(0_usize..100, 6)) {
        let mut things = vec![
            ("usr/bin/a", Node::file(0o755, *b"a"), package("a", &[])),
            ("bin/b", Node::file(0o755, *b"b"), package("b", &[])),
            ("usr/share", Node::directory(0o755), package("a", &[])),
            ("usr/share", Node::directory(0o755), package("b", &[])),
            ("usr/bin/c", Node::file(0o755, *b"new"), package("c2", &["c"])),
            ("bin/c", Node::file(0o755, *b"old"), package("c", &[])),
        ];
        for (at, to) in seed.iter().enumerate() {
            things.swap(at, to % 6);
        }
        let mut tree = merged();
        for (path, node, by) in &things {
            tree.put(path, node.clone(), by).unwrap();
        }
        let all: Vec<_> = tree.iter().map(|(path, node)| (path.to_owned(), node.clone())).collect();
        proptest::prop_assert_eq!(&paths(&tree), &["", "bin", "usr", "usr/bin", "usr/bin/a", "usr/bin/b", "usr/bin/c", "usr/share"]);
        proptest::prop_assert_eq!(&all[6].1, &Node::file(0o755, *b"new"));
    }
}

#[test]
fn what_no_filesystem_can_hold_is_refused() {
    let mut tree = merged();
    let long = "x".repeat(256);
    let deep = "d/".repeat(2100);
    for (path, node) in [
        (long.as_str(), Node::directory(0o755)),
        (deep.as_str(), Node::directory(0o755)),
        ("a\0b", Node::file(0o644, *b"x")),
        ("", Node::file(0o644, *b"x")),
        ("/", Node::link("usr")),
        ("empty", Node::link("")),
        ("far", Node::link("y".repeat(4096))),
    ] {
        let error = tree.put(path, node, &package("evil", &[])).unwrap_err();
        assert!(matches!(error, GuestError::Tree(TreeError::BadPath { .. })), "{error}");
    }
    assert_eq!(paths(&tree), ["", "bin", "usr", "usr/bin"]);
}

fn linked(content: &[u8], word: &str) -> Node {
    Node { inode: Some(word.into()), ..Node::file(0o755, content) }
}

#[test]
fn a_declared_path_over_one_name_of_a_file_takes_only_that_name_out() {
    let mut tree = Tree::default();
    for path in ["a", "b", "c"] {
        tree.put(path, linked(b"1", "p:a"), &package("p", &[])).unwrap();
    }
    tree.put("b", Node::file(0o644, *b"2"), &Origin::Recipe).unwrap();
    let inode = |path: &str| tree.look(path).unwrap().1.inode.clone();
    assert_eq!((inode("a").as_deref(), inode("b"), inode("c").as_deref()), (Some("p:a"), None, Some("p:a")));
    assert_eq!(tree.look("a").unwrap().1.kind, Kind::File((*b"1").into()));
}

#[test]
fn the_hash_of_a_tree_knows_which_names_belong_together_and_not_their_word() {
    let with = |nodes: &[(&str, Node)]| {
        let mut tree = Tree::default();
        for (path, node) in nodes {
            tree.put(path, node.clone(), &Origin::Recipe).unwrap();
        }
        tree.manifest_hash()
    };
    let apart = with(&[("a", Node::file(0o755, *b"1")), ("b", Node::file(0o755, *b"1"))]);
    let together = with(&[("a", linked(b"1", "x")), ("b", linked(b"1", "x"))]);
    assert_ne!(together, apart);
    assert_eq!(with(&[("a", linked(b"1", "y")), ("b", linked(b"1", "y"))]), together);
    assert_eq!(
        with(&[("a", linked(b"1", "x")), ("b", linked(b"1", "y"))]),
        apart,
        "names whose others are gone"
    );
}

#[test]
fn two_packages_with_the_same_file_agree_however_many_names_it_has_in_one() {
    for order in [[0, 1], [1, 0]] {
        let nodes = [(linked(b"1", "a:x"), package("a", &[])), (Node::file(0o755, *b"1"), package("b", &[]))];
        let mut tree = Tree::default();
        for at in order {
            tree.put("x", nodes[at].0.clone(), &nodes[at].1).unwrap();
        }
        tree.put("y", linked(b"1", "a:x"), &package("a", &[])).unwrap();
        assert_eq!(tree.look("x").unwrap().1.inode.as_deref(), Some("a:x"), "{order:?}");
    }
}

#[test]
fn links_that_add_up_to_a_path_that_nothing_could_open_are_refused() {
    let mut tree = Tree::default();
    tree.put("l0", Node::link("x/".repeat(1500)), &Origin::Recipe).unwrap();
    tree.put("l1", Node::link(format!("l0/{}", "y/".repeat(1500))), &Origin::Recipe).unwrap();
    tree.put("l0/file", Node::file(0o644, *b""), &Origin::Recipe).unwrap();
    let before = tree.iter().count();
    let error = tree.put("l1/file", Node::file(0o644, *b""), &Origin::Recipe).unwrap_err();
    assert!(error.to_string().contains("a link above it leads"), "{error}");
    assert_eq!(tree.iter().count(), before);
}
