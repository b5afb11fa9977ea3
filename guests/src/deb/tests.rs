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

/// What dpkg makes of a package, path by path: what tar says of owners and modes, and what `dpkg-deb -x` unpacks.
mod as_dpkg {
    use std::collections::BTreeMap;
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::lock::Lock;
    use crate::store::Store;

    fn output(command: &mut Command) -> Vec<u8> {
        let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    }

    /// Path → mode and owners in tar's own words.
    fn listed(deb: &Path) -> BTreeMap<String, (String, String)> {
        let mut dpkg =
            Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn().unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--numeric-owner", "--quoting-style=literal", "-tvf", "-"]).env("LC_ALL", "C.UTF-8");
        let text = String::from_utf8(output(tar.stdin(dpkg.stdout.take().unwrap()))).unwrap();
        assert!(dpkg.wait().unwrap().success());
        let mut found = BTreeMap::new();
        for line in text.lines() {
            let mut rest = line;
            let mut word = || {
                let (word, behind) = rest.trim_start().split_once(' ').unwrap();
                rest = behind;
                word.to_owned()
            };
            let (mode, owner, _size, _day, _time) = (word(), word(), word(), word(), word());
            let name = rest.split(" -> ").next().unwrap().split(" link to ").next().unwrap();
            let plain = name.trim_start_matches("./").trim_end_matches('/').to_owned();
            found.insert(plain, (mode, owner));
        }
        found
    }

    fn mode_in_words(node: &Node) -> String {
        let mut out = String::new();
        out.push(match node.kind {
            Kind::Directory => 'd',
            Kind::File(_) => '-',
            Kind::Link(_) => 'l',
            Kind::CharDevice { .. } => 'c',
            Kind::BlockDevice { .. } => 'b',
            Kind::Fifo => 'p',
        });
        for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
            let bits = node.mode >> shift;
            out.push(if bits & 4 != 0 { 'r' } else { '-' });
            out.push(if bits & 2 != 0 { 'w' } else { '-' });
            out.push(match (bits & 1 != 0, node.mode & special != 0) {
                (true, true) => letter,
                (false, true) => letter.to_ascii_uppercase(),
                (true, false) => 'x',
                (false, false) => '-',
            });
        }
        out
    }

    /// Everything that dpkg makes of the package is what is read of it, and nothing else.
    fn compare(deb: &Path) -> usize {
        let what = deb.display().to_string();
        let read = Deb::read(&what, &std::fs::read(deb).unwrap()).unwrap();
        let listed = listed(deb);
        let dir = tempfile::tempdir().unwrap();
        output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(dir.path()));
        let paths: BTreeMap<&str, &Node> =
            read.files.iter().map(|(path, node)| (path.as_str(), node)).collect();
        assert_eq!(paths.len(), read.files.len(), "{what}: a path is there twice");
        assert_eq!(paths.keys().copied().collect::<Vec<_>>(), listed.keys().collect::<Vec<_>>(), "{what}");
        let mut groups: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        let mut ours: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (path, node) in &paths {
            let (mode, owner) = &listed[*path];
            let linked = mode.replacen('h', "-", 1);
            assert_eq!(
                (mode_in_words(node), format!("{}/{}", node.uid, node.gid)),
                (linked, owner.clone()),
                "{what}: {path}"
            );
            let at = dir.path().join(path);
            let found =
                std::fs::symlink_metadata(&at).unwrap_or_else(|error| panic!("{what}: {path}: {error}"));
            match &node.kind {
                Kind::Directory => assert!(found.is_dir(), "{what}: {path}"),
                Kind::File(content) => {
                    assert!(found.is_file() && std::fs::read(&at).unwrap() == **content, "{what}: {path}");
                    groups.entry(found.ino()).or_default().push(path);
                    ours.entry(node.inode.as_deref().unwrap_or(path)).or_default().push(path);
                    assert_eq!(found.permissions().mode() & 0o7777, u32::from(node.mode), "{what}: {path}");
                }
                Kind::Link(target) => {
                    assert_eq!(
                        std::fs::read_link(&at).unwrap().to_str(),
                        Some(target.as_str()),
                        "{what}: {path}"
                    );
                }
                Kind::Fifo => assert!(found.file_type().is_fifo(), "{what}: {path}"),
                Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                    let device = (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev()));
                    assert_eq!(device, (*major, *minor), "{what}: {path}");
                }
            }
            let mut names = [0_u8; 4096];
            let attributes = rustix::fs::llistxattr(&at, &mut names[..]).unwrap_or(0);
            assert_eq!(attributes > 0, !node.xattrs.is_empty(), "{what}: {path}");
        }
        let sorted = |groups: Vec<Vec<&str>>| {
            let mut groups: Vec<String> = groups.iter().map(|names| names.join(" = ")).collect();
            groups.sort();
            groups
        };
        assert_eq!(
            sorted(groups.into_values().collect()),
            sorted(ours.into_values().collect()),
            "{what}: names of one file"
        );
        paths.len()
    }

    #[test]
    fn a_package_of_dpkgs_own_making_is_read_as_dpkg_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        for form in ["xz", "gzip", "zstd", "none"] {
            let tree = dir.path().join(form);
            std::fs::create_dir_all(tree.join("DEBIAN")).unwrap();
            let control = "Package: trial\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@x.invalid>\nDescription: x\n";
            std::fs::write(tree.join("DEBIAN/control"), control).unwrap();
            let long = "usr/share/a very long name with blanks/".to_owned() + &"x".repeat(150);
            for (path, mode) in
                [("usr/bin/tool", 0o4755), ("usr/bin/other", 0o2711), ("etc/secret", 0o600), (&long, 0o644)]
            {
                let path = tree.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, format!("content of {}", path.display())).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            std::fs::create_dir_all(tree.join("var/spool/all")).unwrap();
            std::fs::set_permissions(tree.join("var/spool/all"), std::fs::Permissions::from_mode(0o1777))
                .unwrap();
            std::fs::hard_link(tree.join("usr/bin/tool"), tree.join("usr/bin/a-name")).unwrap();
            std::fs::hard_link(tree.join("usr/bin/tool"), tree.join("etc/another")).unwrap();
            std::os::unix::fs::symlink("/etc/secret", tree.join("usr/bin/link")).unwrap();
            std::fs::write(tree.join("usr/bin/empty"), "").unwrap();
            let deb = dir.path().join(format!("{form}.deb"));
            output(Command::new("dpkg-deb").arg(format!("-Z{form}")).arg("-b").arg(&tree).arg(&deb));
            assert!(compare(&deb) > 10);
        }
    }

    /// The packages of a guest that is shipped, where the default store has them.
    #[test]
    fn debians_packages_are_read_as_dpkg_reads_them() {
        let lock = Lock::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fio.lock.kdl")).unwrap();
        let home = std::env::var_os("HOME").unwrap_or_default();
        let data =
            std::env::var_os("XDG_DATA_HOME").map_or(Path::new(&home).join(".local/share"), Into::into);
        let root = std::env::var_os("VMPROF_STORE").map_or(data.join("vmprof/store"), Into::into);
        let store = root.is_dir().then(|| Store::open(root).unwrap());
        let found = |package| crate::fetch::find(store.as_ref()?, package);
        let here: Vec<_> = lock.packages.iter().filter_map(found).collect();
        if here.is_empty() {
            eprintln!("skipped: debians_packages_are_read_as_dpkg_reads_them: the store has none of them");
        }
        let paths: usize = here.iter().map(|entry| compare(&entry.path)).sum();
        eprintln!("compared: {paths} paths of {} packages", here.len());
    }
}
