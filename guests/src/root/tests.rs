use std::path::Path;

use super::*;
use crate::testing::{self, Thing};

fn deb(name: &str, things: &[(&str, Thing<'_>)]) -> Deb {
    Deb::read(name, &testing::deb(name, "", "", things)).unwrap()
}

fn assembled(body: &str, exclude: &[&str], debs: Vec<Deb>) -> Result<(Tree, Vec<String>)> {
    let recipe = testing::recipe(Path::new(""), body);
    let contents = recipe.placed.iter().map(|placed| match &placed.what {
        Place::Text { text, .. } => text.clone().into_bytes(),
        _ => Vec::new(),
    });
    let exclude: Vec<String> = exclude.iter().map(|path| (*path).to_owned()).collect();
    assemble(&recipe, &exclude, None, debs, contents.collect())
}

fn content(tree: &Tree, path: &str) -> String {
    match tree.look(path) {
        Some((_, Node { kind: Kind::File(content), .. })) => String::from_utf8_lossy(content).into_owned(),
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn packages_skeleton_and_recipe_come_together() {
    let dash = deb(
        "dash",
        &[("bin/sh", Thing::File(0o755, b"shell")), ("usr/share/doc/dash", Thing::File(0o644, b"words"))],
    );
    let body = "hostname \"box\"\n file \"/etc/passwd\" \"root::0:0::/:/bin/sh\"\n file \"/usr/bin/go\" mode=0o755 \"#!/bin/sh\"\n run \"go\"";
    let (tree, unmet) = assembled(body, &["/usr/share/doc", "/usr/share/absent"], vec![dash]).unwrap();
    assert_eq!(content(&tree, "/usr/bin/sh"), "shell");
    assert_eq!(content(&tree, "/etc/hostname"), "box\n");
    assert_eq!(content(&tree, "/etc/passwd"), "root::0:0::/:/bin/sh\n");
    assert!(content(&tree, "/etc/group").contains("nogroup:x:65534:"));
    assert!(tree.look("usr/share/doc/dash").is_none());
    assert_eq!(unmet, ["/usr/share/absent"]);
    let mode = |path: &str| tree.look(path).map(|(_, node)| node.mode);
    assert_eq!((mode("tmp"), mode("root"), mode("proc")), (Some(0o1777), Some(0o700), Some(0o755)));
}

#[test]
fn a_program_that_is_not_there_is_refused_before_anything_boots() {
    let refused = |body: &str| match assembled(body, &[], Vec::new()) {
        Err(GuestError::NoProgram { program, because, .. }) => (program, because),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused("run \"/usr/bin/fio\""), ("/usr/bin/fio".to_owned(), None));
    assert_eq!(refused("run fio"), ("fio".to_owned(), None));
    let (_, because) = refused("file \"/x\" \"#!/bin/sh\"\n run \"/x\"");
    assert!(because.unwrap().contains("not executable"));
    let (program, because) = refused("file \"/x\" mode=0o755 \"#!/bin/sh -e\"\n run \"/x\"");
    assert_eq!((program.as_str(), because.as_deref()), ("/bin/sh", Some("/x is a script for it")));
}

#[test]
fn a_library_that_was_left_out_is_missed() {
    let program = elf::tests::dynamic(&["libpresent.so.1", "libabsent.so.2"]);
    let present = elf::tests::dynamic(&["libdeeper.so.3"]);
    let debs = || {
        vec![
            deb("tool", &[("usr/bin/tool", Thing::File(0o755, &program))]),
            deb("lib", &[("lib/x86_64-linux-gnu/libpresent.so.1", Thing::File(0o644, &present))]),
        ]
    };
    let error = assembled("packages tool { without libabsent2 }\n run tool", &[], debs()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "programs of guest `trial` need libraries that are not in its image: libabsent.so.2 (for /usr/bin/tool), \
         libdeeper.so.3 (for /usr/lib/x86_64-linux-gnu/libpresent.so.1)"
    );
    assembled("packages tool\n run tool", &[], debs()).unwrap();
}
