use std::path::Path;

use super::*;
use crate::error::GuestError;
use crate::testing::{self, Thing};
use crate::tree::Kind;

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
    assemble(&recipe, &exclude, Base::Packages(debs), contents.collect())
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
        Err(GuestError::Root(RootError::NoProgram { program, because, .. })) => (program, because),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused("run \"/usr/bin/fio\""), ("/usr/bin/fio".to_owned(), None));
    assert_eq!(refused("run fio"), ("fio".to_owned(), None));
    let help = |body: &str| {
        miette::Diagnostic::help(&assembled(body, &[], Vec::new()).unwrap_err()).unwrap().to_string()
    };
    assert!(help("run \"/usr/bin/fio -v\"").ends_with("write each word for itself, \"/usr/bin/fio\" \"-v\""));
    assert!(help("run \"/usr/bin/fio\"").contains("`packages`"));
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

#[test]
fn users_owners_and_homes_are_as_declared() {
    let body = "user postgres uid=101 gid=104 home=\"/var/lib/postgresql\" groups=adm\n user alice uid=1000 home=\"/home/alice\"\n \
        user on-disk uid=300 home=\"/data/home\"\n mount \"/data\" disk=data\n \
        file \"/etc/secret\" mode=0o640 owner=postgres \"x\"\n directory \"/srv/a\" owner=\"alice:adm\"\n \
        file \"/go\" mode=0o755 \"x\"\n run \"/go\"";
    let (tree, _) = assembled(body, &[], Vec::new()).unwrap();
    let ids = |path: &str| tree.look(path).map(|(_, node)| (node.uid, node.gid, node.mode));
    assert_eq!(ids("/etc/secret"), Some((101, 104, 0o640)));
    assert_eq!(ids("/srv/a"), Some((1000, 4, 0o755)));
    assert_eq!(ids("/var/lib/postgresql"), Some((101, 104, 0o755)));
    assert_eq!(ids("/home/alice"), Some((1000, 1000, 0o700)));
    assert_eq!(ids("/data/home"), None);
    assert_eq!(ids("/etc/shadow"), Some((0, 42, 0o640)));
    assert!(content(&tree, "/etc/passwd").contains("postgres:x:101:104:"));
    assert!(content(&tree, "/etc/group").contains("adm:x:4:postgres\n"));
    assert!(content(&tree, "/etc/shadow").contains("alice:*:"));
}

#[test]
fn whom_nobody_knows_is_refused_with_those_who_are_known() {
    // Of a root from an archive nobody is known before it is read; of packages, reading the recipe finds it.
    let hash = "0".repeat(64);
    let go = format!("root tar=\"root.tar\" sha256=\"{hash}\"\n file \"/go\" mode=0o755 \"x\"");
    for (body, asked) in [
        ("file \"/x\" owner=nodoby \"y\"\n run \"/go\"", "nodoby"),
        ("file \"/x\" owner=\"root:wheel\" \"y\"\n run \"/go\"", "wheel"),
        ("user a uid=300 groups=wheel\n run \"/go\"", "wheel"),
        ("service s { exec \"/go\"; user web; }", "web"),
        ("service s { exec \"/go\"; user root group=web; }", "web"),
        ("service s { exec \"/go\"; directory \"/run/x\" owner=web; }", "web"),
        ("mount \"/x\" disk=d owner=web\n run \"/go\"", "web"),
    ] {
        match assembled(&format!("{go}\n {body}"), &[], Vec::new()) {
            Err(GuestError::Root(RootError::UnknownAccount { asked: found, known, .. })) => {
                assert_eq!(found, asked, "{body}");
                assert!(known.iter().any(|name| name == "root"), "{known:?}");
            }
            other => panic!("{body}: {other:?}"),
        }
    }
    let taken = assembled(&format!("{go}\n user web uid=33\n run \"/go\""), &[], Vec::new());
    assert!(matches!(taken, Err(GuestError::Root(RootError::TakenId { id: 33, .. }))), "{taken:?}");
}

#[test]
fn programs_of_services_and_of_mounts_are_looked_for() {
    let go = "file \"/go\" mode=0o755 \"x\"";
    for nodes in ["exec \"/no\"", "exec \"/go\"; prepare no", "exec \"/go\"; ready command \"/no\""] {
        let refused = assembled(&format!("{go}\n service s {{ {nodes} }}"), &[], Vec::new()).unwrap_err();
        assert!(refused.to_string().starts_with("service `s` of guest `trial` runs `"), "{refused}");
    }
    let format = format!("{go}\n run \"/go\"\n mount \"/d\" disk=d format=xfs");
    let refused = assembled(&format, &[], Vec::new()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "guest `trial` makes xfs on the empty disk of /d, and has no /usr/sbin/mkfs.xfs"
    );
    let mkfs = deb("xfsprogs", &[("sbin/mkfs.xfs", Thing::File(0o755, b"x"))]);
    assembled(&format, &[], vec![mkfs]).unwrap();
    // What is on a disk is there when the disk is.
    assembled("mount \"/d\" disk=d\n run \"/d/program\"", &[], Vec::new()).unwrap();
}

#[test]
fn an_archive_keeps_its_accounts_and_takes_the_recipes_to_them() {
    let mut archive = Tree::default();
    let by = Origin::Package { name: "image".to_owned(), replaces: Vec::new().into() };
    for (path, mode, text) in [
        ("etc/passwd", 0o644, "root:x:0:0::/root:/bin/ash\napp:x:10:20::/:/bin/ash\n"),
        ("etc/group", 0o644, "root:x:0:\napps:x:20:\n"),
        ("etc/hostname", 0o644, "leftover\n"),
        ("bin/serve", 0o755, "program"),
    ] {
        archive.put(path, Node::file(mode, text.as_bytes()), &by).unwrap();
    }
    let hash = "ab".repeat(32);
    let body = format!(
        "root oci=\"x\" digest=\"{hash}\"\n user more uid=30 groups=apps\n file \"/x\" owner=\"app:apps\" \"y\""
    );
    let recipe = testing::recipe(Path::new(""), &body);
    let built = |argv: &str| {
        let config = ImageConfig {
            argv: vec![argv.to_owned()],
            user: Some("app".to_owned()),
            ..ImageConfig::default()
        };
        assemble(&recipe, &[], Base::Archive { tree: archive.clone(), config }, vec![b"y".to_vec()])
    };
    let (tree, _) = built("serve").unwrap();
    assert_eq!(tree.look("/x").map(|(_, node)| (node.uid, node.gid)), Some((10, 20)));
    let passwd = content(&tree, "/etc/passwd");
    assert!(passwd.contains("/bin/ash\nmore:x:30:30:") && !passwd.contains("nobody"), "{passwd}");
    assert_eq!(content(&tree, "/etc/hostname"), "trial\n");
    assert!(tree.look("/root").is_some(), "a command starts there");
    // Its /bin is no link here, and nothing makes it one.
    assert!(tree.look("/bin").is_some_and(|(path, _)| path == "bin"));
    let refused = built("absent").unwrap_err().to_string();
    assert!(refused.starts_with("service `image` of guest `trial` runs `absent`"), "{refused}");
}

#[test]
fn systemd_gets_its_units_enabled() {
    let unit = "file \"/etc/systemd/system/own.service\" \"[Install]\\nWantedBy=multi-user.target\"";
    let body = format!("{unit}\n init systemd {{ enable \"own.service\"; mask \"apt.timer\" }}");
    let systemd = || deb("systemd", &[("lib/systemd/systemd", Thing::File(0o755, b"x"))]);
    let (tree, _) = assembled(&body, &[], vec![systemd()]).unwrap();
    assert!(tree.look("/etc/systemd/system/multi-user.target.wants/own.service").is_some());
    assert!(matches!(assembled(&body, &[], Vec::new()), Err(GuestError::Root(RootError::NoSystemd { .. }))));
}
