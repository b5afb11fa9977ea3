use std::sync::Arc;

use super::*;
use crate::testing::{Thing, deb};

fn files(deb: &Deb) -> Vec<(&str, &Kind, u16)> {
    deb.files.iter().map(|(path, node)| (path.as_str(), &node.kind, node.mode)).collect()
}

#[test]
fn every_compression_of_debian_reads_the_same() {
    for form in ["", ".xz", ".gz", ".zst"] {
        let things = [
            ("usr", Thing::Dir),
            ("usr/bin/tool", Thing::File(0o4755, b"content")),
            ("usr/bin/alias", Thing::Link("tool")),
            ("dev/null", Thing::Char(1, 3)),
        ];
        let bytes = deb("tool", "Replaces: old-tool (<< 2),\n other\nDepends: x\n", form, &things);
        let read = Deb::read("tool_1_amd64.deb", &bytes).unwrap();
        assert_eq!(read.name, "tool");
        assert_eq!(read.replaces, ["old-tool", "other"]);
        let content = Kind::File(Arc::from(*b"content"));
        assert_eq!(
            files(&read),
            [
                ("usr", &Kind::Directory, 0o755),
                ("usr/bin/tool", &content, 0o4755),
                ("usr/bin/alias", &Kind::Link("tool".to_owned()), 0o777),
                ("dev/null", &Kind::CharDevice { major: 1, minor: 3 }, 0o755),
            ],
            "{form}"
        );
    }
}

#[test]
fn a_hard_link_is_a_file_with_the_same_content() {
    let things = [("a", Thing::File(0o600, b"one")), ("b", Thing::HardLink("./a"))];
    let read = Deb::read("x", &deb("x", "", ".xz", &things)).unwrap();
    assert_eq!(read.files[0].1, read.files[1].1);
    assert_eq!(read.files[0].1.inode.as_deref(), Some("x:a"));
    let things = [("b", Thing::HardLink("./absent"))];
    let error = Deb::read("x.deb", &deb("x", "", ".xz", &things)).unwrap_err();
    assert!(error.to_string().contains("b is a hard link to absent"), "{error}");
}

#[test]
fn a_path_that_leads_upwards_is_refused() {
    let things = [("../etc/passwd", Thing::File(0o644, b"root"))];
    let error = Deb::read("evil.deb", &deb("evil", "", ".xz", &things)).unwrap_err();
    assert!(error.to_string().contains("leads upwards"), "{error}");
}

#[test]
fn torn_and_foreign_files_are_errors_that_name_the_package() {
    let whole = deb("x", "", ".xz", &[("a", Thing::File(0o600, b"content"))]);
    for bytes in [&b"not a package"[..], &whole[..whole.len() / 2], &[]] {
        let error = Deb::read("x_1_amd64.deb", bytes).unwrap_err();
        assert!(error.to_string().starts_with("x_1_amd64.deb is damaged"), "{error}");
    }
}

#[test]
fn only_wanted_files_are_kept() {
    let things =
        [("boot/vmlinuz-1", Thing::File(0o644, b"k")), ("usr/share/doc/x", Thing::File(0o644, b"d"))];
    let bytes = deb("x", "", ".xz", &things);
    let read = Deb::read_some("x", &bytes, &|path| path.starts_with("boot/")).unwrap();
    assert_eq!(read.files.len(), 1);
}

#[test]
fn a_hard_link_out_of_the_package_is_refused() {
    for target in ["/etc/shadow", "../../etc/shadow"] {
        let things = [("b", Thing::HardLink(target))];
        assert!(Deb::read("evil.deb", &deb("evil", "", "", &things)).is_err(), "{target}");
    }
}

#[test]
fn no_changed_byte_makes_the_reader_panic() {
    let things = [
        ("usr", Thing::Dir),
        ("usr/bin/tool", Thing::File(0o4755, b"content")),
        ("usr/bin/alias", Thing::Link("/tool")),
        ("usr/bin/same", Thing::HardLink("./usr/bin/tool")),
        ("dev/null", Thing::Char(1, 3)),
    ];
    for form in ["", ".xz", ".zst"] {
        let whole = deb("tool", "Replaces: other\n", form, &things);
        for at in 0..whole.len() {
            for byte in [0, b'9', 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                let _ = Deb::read("x", &bytes);
            }
            let _ = Deb::read("x", &whole[..at]);
        }
    }
}

#[test]
fn sizes_that_lead_out_of_the_package_are_refused() {
    let whole = deb("x", "", "", &[("big", Thing::File(0o644, b"content"))]);
    let at = whole.windows(6).position(|w| w == b"./big\0").unwrap();
    for size in [*b"77777777777\0", [0xff; 12], *b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"] {
        let mut bytes = whole.clone();
        let header = &mut bytes[at..at + 512];
        header[124..136].copy_from_slice(&size);
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        assert!(Deb::read("evil.deb", &bytes).is_err(), "{size:?}");
    }
}
