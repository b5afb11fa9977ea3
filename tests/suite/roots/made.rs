//! A root that no package has: every kind of file, and each of them at the end of what it may be. It is written as a tar of
//! the POSIX form, whose bytes are made here, so that no right of this machine is needed for devices and attributes.

use std::collections::BTreeMap;

use super::facts::{BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, FIFO, FILE, Facts, LINK};

pub enum What {
    Directory,
    File(Vec<u8>),
    /// A file of zeros with some bytes in it: where, and which. The archive holds no more than those.
    Sparse(usize, Vec<(usize, Vec<u8>)>),
    /// A further name of an earlier path.
    Same(String),
    Link(String),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

pub struct Made {
    pub path: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub what: What,
}

impl Made {
    fn new(path: impl Into<String>, mode: u32, what: What) -> Made {
        Made { path: path.into(), mode, uid: 0, gid: 0, xattrs: BTreeMap::new(), what }
    }

    fn owned(self, uid: u32, gid: u32) -> Made {
        Made { uid, gid, ..self }
    }

    fn with(mut self, name: &str, value: impl Into<Vec<u8>>) -> Made {
        self.xattrs.insert(name.to_owned(), value.into());
        self
    }

    /// As an image should have it; `None` for a further name.
    pub fn facts(&self) -> Option<Facts> {
        let (kind, target, device) = match &self.what {
            What::Directory => (DIRECTORY, None, None),
            What::File(_) | What::Sparse(..) => (FILE, None, None),
            What::Same(_) => return None,
            What::Link(target) => (LINK, Some(target.clone()), None),
            What::Char(major, minor) => (CHAR_DEVICE, None, Some((*major, *minor))),
            What::Block(major, minor) => (BLOCK_DEVICE, None, Some((*major, *minor))),
            What::Fifo => (FIFO, None, None),
        };
        let xattrs = self.xattrs.clone();
        Some(Facts { mode: kind | self.mode, uid: self.uid, gid: self.gid, target, device, xattrs })
    }

    pub fn content(&self) -> Option<Vec<u8>> {
        match &self.what {
            What::File(bytes) => Some(bytes.clone()),
            What::Sparse(size, parts) => {
                let mut out = vec![0; *size];
                for (at, part) in parts {
                    out[*at..at + part.len()].copy_from_slice(part);
                }
                Some(out)
            }
            _ => None,
        }
    }
}

/// Bytes that do not pack, and are the same each time.
fn noise(bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// A path comes after its directory and a further name after the first. A squashfs of ours has neither attributes nor links
/// of more than 255 bytes: without `all_there_is` there are none.
pub fn everything(all_there_is: bool) -> Vec<Made> {
    let mut all = vec![
        Made::new("usr", 0o755, What::Directory),
        Made::new("usr/bin", 0o755, What::Directory),
        Made::new("usr/bin/tool", 0o755, What::File(b"a program".to_vec())),
        Made::new("usr/bin/setuid", 0o4755, What::File(b"setuid".to_vec())).owned(0, 42),
        Made::new("usr/bin/setgid", 0o2711, What::File(b"setgid".to_vec())).owned(70_000, 4_000_000_000),
        Made::new("tmp", 0o1777, What::Directory),
        Made::new("closed", 0o700, What::Directory).owned(1000, 1000),
        // Three names in two directories, and one whose mode is 0.
        Made::new("closed/one", 0o640, What::File(noise(10_000, 1))).owned(7, 8),
        Made::new("usr/two", 0, What::Same("closed/one".to_owned())),
        Made::new("usr/three", 0, What::Same("usr/two".to_owned())),
        Made::new("closed/none", 0, What::File(b"nobody's".to_vec())),
        Made::new("pipe", 0o620, What::Fifo).owned(0, 5),
        Made::new("pipe-again", 0, What::Same("pipe".to_owned())),
        Made::new("dev", 0o755, What::Directory),
        Made::new("dev/null", 0o666, What::Char(1, 3)),
        Made::new("dev/far", 0o660, What::Block(259, 70_000)).owned(0, 6),
        Made::new("link", 0o777, What::Link("usr/bin/tool".to_owned())),
        Made::new("link-again", 0, What::Same("link".to_owned())),
        Made::new("nowhere", 0o777, What::Link("/no/such file -> at all".to_owned())),
        Made::new("many", 0o755, What::Directory),
        Made::new("deep", 0o755, What::Directory),
        Made::new("names", 0o755, What::Directory),
        Made::new("sizes", 0o755, What::Directory),
    ];
    // Links as long as the formats' own ends: within an inode, in a block, and as long as Linux has any.
    for length in [59, 60, 61, 255, 256, 3000, 4080, 4095] {
        if length > 255 && !all_there_is {
            continue;
        }
        let target = "x/".repeat(length / 2) + if length % 2 == 1 { "y" } else { "" };
        all.push(Made::new(format!("sizes/link-{length}"), 0o777, What::Link(target)));
    }
    for size in [0, 1, 511, 512, 513, 4095, 4096, 4097, 131_071, 131_072, 131_073] {
        all.push(Made::new(format!("sizes/noise-{size}"), 0o644, What::File(noise(size, 3))));
        let text = b"words that come again and again\n".iter().cycle().take(size).copied().collect();
        all.push(Made::new(format!("sizes/words-{size}"), 0o644, What::File(text)));
    }
    let parts = vec![(0, noise(10, 4)), (70_000, noise(5000, 5)), (2_999_990, noise(10, 6))];
    all.push(Made::new("sizes/holes", 0o644, What::Sparse(3_000_000, parts)));
    all.push(Made::new("sizes/all-hole", 0o644, What::Sparse(1_000_000, Vec::new())));
    for number in 0..2000 {
        all.push(Made::new(
            format!("many/entry-{number}"),
            0o644,
            What::File(number.to_string().into_bytes()),
        ));
    }
    let names = ["b c", "a\\b", "ünï", "日本", "-dash", "tab\there", "'quoted'", "*?[", "a:b"];
    for name in names {
        all.push(Made::new(format!("names/{name}"), 0o644, What::File(name.as_bytes().to_vec())));
    }
    all.push(Made::new(format!("names/{}", "n".repeat(255)), 0o644, What::File(b"long".to_vec())));
    let mut deep = "deep".to_owned();
    for level in 0..60 {
        deep += &format!("/level-{level}");
        all.push(Made::new(deep.clone(), 0o755, What::Directory));
    }
    all.push(Made::new(deep + "/bottom", 0o644, What::File(b"down here".to_vec())));
    if all_there_is {
        let capability = [&[1, 0, 0, 2, 0, 0x20, 0, 0][..], &[0; 12]].concat();
        let list = [
            &[2, 0, 0, 0][..],
            &[
                1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255,
                255,
            ],
        ]
        .concat();
        all.push(
            Made::new("usr/bin/capable", 0o755, What::File(b"ping".to_vec()))
                .with("security.capability", capability.clone()),
        );
        all.push(
            Made::new("labelled", 0o750, What::Directory)
                .with("security.selinux", &b"system_u:object_r:etc_t:s0\0"[..])
                .with("user.empty", Vec::new())
                .with("trusted.overlay.opaque", &b"y"[..])
                .with("system.posix_acl_default", list),
        );
        // More than fits behind an inode.
        all.push(
            Made::new("labelled/large", 0o644, What::File(noise(9000, 9)))
                .with("user.large", noise(3000, 10))
                .with("security.capability", capability),
        );
        all.push(Made::new("labelled/same", 0, What::Same("labelled/large".to_owned())));
        all.push(
            Made::new("labelled/link", 0o777, What::Link("x".to_owned()))
                .with("trusted.of-a-link", &b"1"[..]),
        );
    }
    all
}

/// The archive.
pub fn tar(all: &[Made]) -> Vec<u8> {
    let mut out = Vec::new();
    for made in all {
        let mut records: Vec<(String, Vec<u8>)> = vec![
            ("path".to_owned(), made.path.clone().into_bytes()),
            ("uid".to_owned(), made.uid.to_string().into_bytes()),
            ("gid".to_owned(), made.gid.to_string().into_bytes()),
        ];
        records
            .extend(made.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone())));
        let (kind, target, data, device) = match &made.what {
            What::Directory => (b'5', "", Vec::new(), None),
            What::File(bytes) => (b'0', "", bytes.clone(), None),
            What::Sparse(size, parts) => {
                records.push(("GNU.sparse.major".to_owned(), b"1".to_vec()));
                records.push(("GNU.sparse.minor".to_owned(), b"0".to_vec()));
                records.push(("GNU.sparse.realsize".to_owned(), size.to_string().into_bytes()));
                let mut map = format!("{}\n", parts.len());
                parts.iter().for_each(|(at, part)| map += &format!("{at}\n{}\n", part.len()));
                let mut data = map.into_bytes();
                data.resize(data.len().next_multiple_of(512), 0);
                parts.iter().for_each(|(_, part)| data.extend(part));
                (b'0', "", data, None)
            }
            What::Same(first) => (b'1', first.as_str(), Vec::new(), None),
            What::Link(target) => (b'2', target.as_str(), Vec::new(), None),
            What::Char(major, minor) => (b'3', "", Vec::new(), Some((*major, *minor))),
            What::Block(major, minor) => (b'4', "", Vec::new(), Some((*major, *minor))),
            What::Fifo => (b'6', "", Vec::new(), None),
        };
        if !target.is_empty() {
            records.push(("linkpath".to_owned(), target.as_bytes().to_vec()));
        }
        let extended: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        member(&mut out, b'x', 0o644, None, &extended);
        member(&mut out, kind, made.mode, device, &data);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// `LENGTH KEY=VALUE\n`, the length with its own digits.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn member(out: &mut Vec<u8>, kind: u8, mode: u32, device: Option<(u32, u32)>, data: &[u8]) {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"short");
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{:011o}", data.len()).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    if let Some((major, minor)) = device {
        put(329, format!("{major:07o}").as_bytes());
        put(337, format!("{minor:07o}").as_bytes());
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}
