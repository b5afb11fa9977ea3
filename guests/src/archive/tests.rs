use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::process::Command;

use super::*;

/// A header and its data; fields are the standard's.
struct Raw {
    name: &'static str,
    kind: u8,
    link: &'static str,
    uid: [u8; 8],
    size: Option<&'static [u8]>,
    data: Vec<u8>,
}

const FILE: Raw = Raw { name: "", kind: b'0', link: "", uid: *b"0000000\0", size: None, data: Vec::new() };

fn file(name: &'static str, data: &[u8]) -> Raw {
    Raw { name, data: data.to_vec(), ..FILE }
}

fn pax(records: &[(&str, &[u8])]) -> Raw {
    let mut data = Vec::new();
    for (key, value) in records {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let digits = if body.len() + 2 < 100 { 2 } else { 3 };
        data.extend_from_slice(format!("{:0digits$}", body.len() + digits).as_bytes());
        data.extend_from_slice(&body);
    }
    Raw { name: "pax", kind: b'x', data, ..FILE }
}

fn open_archive(members: &[Raw]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, member.name.as_bytes());
        put(100, b"0000644\0");
        put(108, &member.uid);
        put(116, b"0000000\0");
        let size = format!("{:011o}\0", member.data.len());
        put(124, member.size.unwrap_or(size.as_bytes()));
        put(148, b"        ");
        put(156, &[member.kind]);
        put(157, member.link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(&member.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out
}

fn archive(members: &[Raw]) -> Vec<u8> {
    [open_archive(members), vec![0; 1024]].concat()
}

fn all(bytes: &[u8]) -> Result<Vec<(String, Node)>, String> {
    read("a", bytes, &|_| true)
}

#[test]
fn what_is_not_to_be_trusted_is_refused_and_says_why() {
    let link = |name, link| Raw { name, kind: b'1', link, ..FILE };
    let symlink = |link| Raw { name: "s", kind: b'2', link, ..FILE };
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (archive(&[file("../x", b"")]), "leads upwards"),
        (archive(&[file("a/../../x", b"")]), "leads upwards"),
        (archive(&[file("/etc/x", b"")]), "is absolute"),
        (archive(&[file("", b"")]), "has no name"),
        (archive(&[file("./", b"")]), ""),
        (archive(&[file("a\u{e4}", b"")]), ""),
        (archive(&[file("x", b"1"), file("./x", b"1")]), "x is in it twice"),
        (archive(&[link("l", "/etc/shadow")]), "is absolute"),
        (archive(&[link("l", "../shadow")]), "leads upwards"),
        (archive(&[link("l", "absent")]), "l is a hard link to absent, which is not in the archive"),
        (archive(&[link("l", "x"), file("x", b"")]), "not in the archive before it"),
        (archive(&[link("l", "l")]), "not in the archive before it"),
        (archive(&[Raw { kind: b'5', ..file("d", b"") }, link("l", "d")]), "hard link to a directory"),
        (archive(&[Raw { data: vec![1], ..link("l", "d") }]), "is not a file, but has 1 bytes"),
        (archive(&[symlink("")]), "link to nowhere"),
        (archive(&[Raw { kind: b'V', ..file("label", b"") }]), "of a kind that is not known: `V`"),
        (archive(&[Raw { size: Some(b"77777777777\0"), ..file("big", b"x") }]), "big is cut off"),
        (archive(&[Raw { size: Some(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), ..FILE }]), "no name"),
        (archive(&[Raw { uid: *b"\x80\0\0\x01\0\0\0\0", ..file("x", b"") }]), "uid 4294967296 is no id"),
        (archive(&[Raw { uid: *b"\xff\xff\xff\xff\xff\xff\xff\xff", ..file("x", b"") }]), "the owner"),
        (archive(&[pax(&[("uid", b"4294967295")]), file("x", b"")]), "uid 4294967295 is no id"),
        (archive(&[pax(&[("size", b"many")]), file("x", b"")]), "size `many` is not a number"),
        (archive(&[pax(&[("path", b"/x")]), file("y", b"")]), "is absolute"),
        (archive(&[pax(&[("path", b"a\0b")]), file("y", b"")]), "is not UTF-8 text"),
        (archive(&[pax(&[("path", b"\xff")]), file("y", b"")]), "is not UTF-8 text"),
        (archive(&[pax(&[("SCHILY.xattr.nospace", b"1")]), file("y", b"")]), "not the name of an extended"),
        (archive(&[pax(&[("SCHILY.acl.access", b"user::rwx")]), file("y", b"")]), "access list"),
        (archive(&[pax(&[("a", b"1")]), pax(&[("a", b"1")]), file("y", b"")]), "belong to one member"),
        (archive(&[pax(&[("path", b"x")])]), "belongs to a next member"),
        (open_archive(&[file("x", b"1")]), "cut off"),
        ([archive(&[file("x", b"1")]), b"more".to_vec()].concat(), "follows behind its end"),
        (b"no archive".to_vec(), "cut off"),
        (vec![b'x'; 2048], "checksum"),
        (Vec::new(), "cut off"),
    ];
    for (bytes, wanted) in cases {
        match all(&bytes) {
            Err(error) => assert!(error.contains(wanted) && !wanted.is_empty(), "{error}: wanted {wanted}"),
            Ok(files) => assert_eq!(wanted, "", "{files:?}"),
        }
    }
}

#[test]
fn global_headers_that_every_member_would_have_to_look_through_are_refused() {
    let global = |bytes: usize| Raw { kind: b'g', ..pax_of(b"comment", &vec![b'x'; bytes]) };
    let few = archive(&[global(30_000), global(30_000), file("x", b"1")]);
    assert_eq!(all(&few).unwrap().len(), 1);
    let many = archive(&[global(30_000), global(30_000), global(30_000), file("x", b"1")]);
    assert!(all(&many).unwrap_err().contains("global headers have more than"));
}

/// A record of any length.
fn pax_of(key: &[u8], value: &[u8]) -> Raw {
    let body = [b" ", key, b"=", value, b"\n"].concat();
    let length =
        (1..9).map(|digits| body.len() + digits).find(|all| body.len() + all.to_string().len() == *all);
    Raw { name: "pax", kind: b'x', data: [length.unwrap().to_string().as_bytes(), &body].concat(), ..FILE }
}

#[test]
fn a_directory_said_again_is_one_and_said_otherwise_is_refused() {
    let directory = |uid: &[u8; 8]| Raw { name: "d/", kind: b'5', uid: *uid, ..FILE };
    assert_eq!(all(&archive(&[directory(b"0000001\0"), directory(b"0000001\0")])).unwrap().len(), 1);
    assert!(all(&archive(&[directory(b"0000001\0"), directory(b"0000002\0")])).is_err());
}

#[test]
fn extended_headers_say_what_the_fields_have_no_room_for() {
    let long = "d/".repeat(200) + "x";
    let global = Raw { kind: b'g', ..pax(&[("uid", b"7"), ("comment", b"all")]) };
    let files = all(&archive(&[
        global,
        pax(&[
            ("path", long.as_bytes()),
            ("uid", b"3000000000"),
            ("SCHILY.xattr.security.capability", b"\x01\n\0\n=\x02"),
            ("SCHILY.xattr.user.empty", b""),
            ("LIBARCHIVE.xattr.user.t%C3%A4st", b"AAEK"),
            ("LIBARCHIVE.xattr.user.empty", b"AAEK"),
        ]),
        file("short", b"1"),
        file("next", b"2"),
        Raw { name: "long", kind: b'L', data: [b"y".repeat(150), vec![0]].concat(), ..FILE },
        Raw { name: "long", kind: b'K', data: b"z".repeat(150), ..FILE },
        Raw { name: "short", kind: b'2', link: "short", ..FILE },
    ]))
    .unwrap();
    let (path, node) = &files[0];
    assert_eq!((path, node.uid), (&long, 3_000_000_000));
    let xattrs: Vec<(&str, &[u8])> = node.xattrs.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
    assert_eq!(
        xattrs,
        [
            ("security.capability", &b"\x01\n\0\n=\x02"[..]),
            ("user.empty", b""),
            ("user.t\u{e4}st", b"\0\x01\n")
        ]
    );
    assert_eq!((files[1].0.as_str(), files[1].1.uid, files[1].1.xattrs.len()), ("next", 7, 0));
    assert_eq!(files[2].0, "y".repeat(150));
    assert_eq!(files[2].1.kind, Kind::Link("z".repeat(150)));
}

#[test]
fn names_of_one_file_share_an_inode_and_a_link_to_a_link_joins() {
    let link = |name, link| Raw { name, kind: b'1', link, ..FILE };
    let bytes = archive(&[
        file("a", b"1"),
        file("lone", b"1"),
        link("b", "./a"),
        link("c", "b"),
        Raw { name: "s", kind: b'2', link: "a", ..FILE },
        link("t", "s"),
    ]);
    let files = all(&bytes).unwrap();
    let inodes: Vec<_> = files.iter().map(|(path, node)| (path.as_str(), node.inode.as_deref())).collect();
    let (one, two) = (Some("a:a"), Some("a:s"));
    assert_eq!(inodes, [("a", one), ("lone", None), ("b", one), ("c", one), ("s", two), ("t", two)]);
    assert_eq!(files[0].1, files[3].1);
    // What is left out leaves its content to the names that stay.
    let files = read("a", &bytes, &|path| path == "b" || path == "c").unwrap();
    assert_eq!(files.len(), 2);
    assert_eq!(files[0].1, Node { inode: Some("a:a".into()), ..Node::file(0o644, *b"1") });
    let files = read("a", &bytes, &|path| path == "c").unwrap();
    assert_eq!(files, [("c".to_owned(), Node::file(0o644, *b"1"))]);
}

#[test]
fn a_sparse_file_that_claims_too_much_is_refused() {
    for (records, wanted) in [
        (&[("GNU.sparse.size", &b"99999999999999"[..]), ("GNU.sparse.map", b"0,1")][..], "more than"),
        (&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,1,0,0")], "does not fit"),
        (&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"10,1")], "does not fit"),
        (&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"0,1,2")], "map is damaged"),
        (&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"5,0")], "does not fit"),
        (&[("GNU.sparse.map", b"0,1")], "no size"),
        (&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")], "no size"),
        (&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")], "form that is not known"),
        (
            &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")],
            "map is damaged",
        ),
        (&[("GNU.sparse.size", b"9"), ("GNU.sparse.numbytes", b"1"), ("GNU.sparse.offset", b"1")], "damaged"),
    ] {
        let error = all(&archive(&[pax(records), file("x", b"1")])).unwrap_err();
        assert!(error.contains(wanted), "{error}: wanted {wanted}");
    }
}

/// What the system's tar packs of a directory with all that an ordinary user may make, in every format it has.
#[test]
fn every_format_of_gnu_tar_reads_as_the_directory_it_was_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("plain"), b"content").unwrap();
    std::fs::set_permissions(root.join("plain"), std::fs::Permissions::from_mode(0o4751)).unwrap();
    std::fs::hard_link(root.join("plain"), root.join("same")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", root.join("link")).unwrap();
    let holes = std::fs::File::create(root.join("holes")).unwrap();
    for part in 0..40 {
        holes.write_all_at(b"data", part * 100_000).unwrap();
    }
    holes.set_len(5_000_000).unwrap();
    let owner = std::fs::metadata(root.join("plain")).unwrap();

    let formats: [(&[&str], bool); 8] = [
        (&["--format=v7"], false),
        (&["--format=ustar"], false),
        (&["--format=gnu"], true),
        (&["--format=gnu", "--sparse"], true),
        (&["--format=posix"], true),
        (&["--format=posix", "--sparse", "--sparse-version=0.0"], true),
        (&["--format=posix", "--sparse", "--sparse-version=0.1"], true),
        (&["--format=posix", "--sparse", "--sparse-version=1.0"], true),
    ];
    for (format, has_long) in formats {
        // The old formats, which come first, have no room for these.
        if has_long && !root.join(&long).exists() {
            std::fs::create_dir(root.join("d".repeat(120))).unwrap();
            std::fs::write(root.join(&long), b"far away").unwrap();
            assert!(Command::new("mkfifo").arg(root.join("pipe")).status().unwrap().success());
        }
        let mut tar = Command::new("tar");
        tar.args(format).args(["--sort=name", "--numeric-owner", "-cf", "-", "-C"]).arg(&root).arg(".");
        let out = tar.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let files: BTreeMap<String, Node> = all(&out.stdout).unwrap().into_iter().collect();
        let is = |path: &str| files.get(path).unwrap_or_else(|| panic!("{format:?} has no {path}"));
        assert_eq!(is("").kind, Kind::Directory);
        assert_eq!(is("plain").kind, Kind::File(Arc::from(*b"content")), "{format:?}");
        assert_eq!((is("plain").mode, is("plain").uid), (0o4751, owner.uid()));
        assert_eq!(is("plain").inode, is("same").inode);
        assert!(is("plain").inode.is_some());
        assert_eq!(is("link").kind, Kind::Link("../elsewhere".to_owned()));
        let Kind::File(content) = &is("holes").kind else { panic!("{format:?}: holes") };
        assert!(**content == *std::fs::read(root.join("holes")).unwrap(), "{format:?}");
        if has_long {
            assert_eq!(is(&long).kind, Kind::File(Arc::from(*b"far away")), "{format:?}");
            assert_eq!(is("pipe").kind, Kind::Fifo);
        }
    }
}

fn sample() -> Vec<u8> {
    let link = Raw { name: "usr/b", kind: b'1', link: "usr/a", ..FILE };
    let map = b"1\n100\n4\n".to_vec();
    let mut sparse = map;
    sparse.resize(512, 0);
    sparse.extend_from_slice(b"data");
    archive(&[
        Raw { name: "usr/", kind: b'5', ..FILE },
        file("usr/a", b"content"),
        link,
        pax(&[("path", b"usr/attr"), ("SCHILY.xattr.user.x", b"1"), ("uid", b"70000")]),
        file("x", b"more"),
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"holes"),
            ("GNU.sparse.realsize", b"200"),
        ]),
        file("y", &sparse),
        Raw { name: "dev/null", kind: b'3', ..FILE },
    ])
}

#[test]
fn the_sample_is_whole_and_no_beginning_of_it_is() {
    let whole = sample();
    assert_eq!(all(&whole).unwrap().len(), 6);
    let ends = whole.len() - 1024;
    for at in 0..ends + 512 {
        assert!(all(&whole[..at]).is_err(), "cut at {at} of {}", whole.len());
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

    /// Whatever comes, an answer: and what is taken has plain paths, each once.
    #[test]
    fn changed_bytes_are_read_or_refused(changes in proptest::collection::vec((0_usize..6000, 0_u8..=255), 1..6), fix: bool) {
        let mut bytes = sample();
        for (at, byte) in changes {
            let length = bytes.len();
            bytes[at % length] = byte;
        }
        if fix {
            fix_checksums(&mut bytes);
        }
        if let Ok(files) = all(&bytes) {
            let mut paths: Vec<&String> = files.iter().map(|(path, _)| path).collect();
            for path in &paths {
                proptest::prop_assert!(!path.starts_with('/') && path.split('/').all(|part| part != ".."));
            }
            let count = paths.len();
            paths.sort();
            paths.dedup();
            proptest::prop_assert_eq!(paths.len(), count);
        }
    }

    #[test]
    fn arbitrary_blocks_are_read_or_refused(mut bytes in proptest::collection::vec(0_u8..=255, 0..3000)) {
        let _ = all(&bytes);
        fix_checksums(&mut bytes);
        let _ = all(&bytes);
    }
}

/// Makes every block's checksum right, so that changes reach what is behind that check.
fn fix_checksums(bytes: &mut [u8]) {
    let (blocks, _) = bytes.as_chunks_mut::<512>();
    for block in blocks.iter_mut().filter(|block| block[257..262] == *b"ustar" || block[0] > 0x7f) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
