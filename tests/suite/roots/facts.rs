//! What a path of a root is, as far as anybody can ask: the words in which packages, archives and images of every format are
//! compared. Listings of `tar` and `unsquashfs` are read here; other readers are beside this.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub const TYPE: u32 = 0o170_000;
pub const FILE: u32 = 0o100_000;
pub const DIRECTORY: u32 = 0o040_000;
pub const LINK: u32 = 0o120_000;
pub const CHAR_DEVICE: u32 = 0o020_000;
pub const BLOCK_DEVICE: u32 = 0o060_000;
pub const FIFO: u32 = 0o010_000;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Facts {
    /// With the type, as stat(2) has it.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub target: Option<String>,
    pub device: Option<(u32, u32)>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Facts {
    pub fn is(&self, kind: u32) -> bool {
        self.mode & TYPE == kind
    }
}

/// One path, and where its content is if it is a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    pub facts: Facts,
    pub at: PathBuf,
    /// Of a further name of a file: the name it was said to be.
    pub same_as: Option<String>,
}

impl Listed {
    pub fn content(&self) -> Vec<u8> {
        // Unpacked by whoever runs the tests: its own, and maybe not readable for its owner, which root need not mind.
        let mode = fs::metadata(&self.at).map_or(0, |found| found.mode());
        if mode & 0o400 == 0 {
            let _ = fs::set_permissions(&self.at, Permissions::from_mode(mode | 0o400));
        }
        fs::read(&self.at).unwrap_or_else(|error| panic!("{}: {error}", self.at.display()))
    }
}

pub fn output(command: &mut Command) -> Vec<u8> {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&out.stderr);
    let more = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{command:?}: {said}{}", more.chars().take(2000).collect::<String>());
    out.stdout
}

/// `-rwsr-xr-x` as a number.
fn mode(word: &str) -> u32 {
    let kind = match word.as_bytes()[0] {
        b'-' | b'h' => FILE,
        b'd' => DIRECTORY,
        b'l' => LINK,
        b'c' => CHAR_DEVICE,
        b'b' => BLOCK_DEVICE,
        b'p' => FIFO,
        other => panic!("{word}: `{}` is of no known kind", char::from(other)),
    };
    word.bytes().skip(1).enumerate().fold(kind, |mode, (at, byte)| {
        let special = [(2, 0o4000), (5, 0o2000), (8, 0o1000)].into_iter().find(|(place, _)| *place == at);
        let special = special.map_or(0, |(_, bit)| bit);
        let own = 0o400 >> at;
        mode | match byte {
            b'-' => 0,
            b's' | b't' => own | special,
            b'S' | b'T' => special,
            _ => own,
        }
    })
}

/// Lines as tar and unsquashfs write them: mode, owner, size or device, day, time, name and what a link leads to.
pub fn read_listing(text: &str, below: &str, unpacked: &Path) -> BTreeMap<String, Listed> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut rest = line;
        let mut word = || {
            let (word, behind) = rest.trim_start().split_once(' ').unwrap_or_else(|| panic!("{line}"));
            rest = behind;
            word.to_owned()
        };
        let (mode, owner) = (mode(&word()), word());
        let mut size = word();
        if size.ends_with(',') {
            size += &word();
        }
        let (_day, _time) = (word(), word());
        let is_device = matches!(mode & TYPE, CHAR_DEVICE | BLOCK_DEVICE);
        let device = is_device.then(|| {
            let (major, minor) = size.split_once(',').unwrap_or_else(|| panic!("{line}"));
            (major.parse().unwrap(), minor.trim().parse().unwrap())
        });
        let plain = |name: &str| name.strip_prefix(below).unwrap_or(name).trim_matches('/').to_owned();
        let (name, target) = match rest.split_once(" -> ") {
            Some((name, target)) if mode & TYPE == LINK => (name, Some(target.to_owned())),
            _ => (rest, None),
        };
        let (name, same_as) = match name.split_once(" link to ") {
            Some((name, first)) if line.starts_with('h') => (name, Some(plain(first))),
            _ => (name, None),
        };
        let (uid, gid) = owner.split_once('/').unwrap_or_else(|| panic!("{line}"));
        let (uid, gid) = (uid.parse().unwrap(), gid.parse().unwrap());
        let facts = Facts { mode, uid, gid, target, device, xattrs: BTreeMap::new() };
        let path = plain(name);
        found.insert(path.clone(), Listed { facts, at: unpacked.join(path), same_as });
    }
    found
}

/// What dpkg makes of a package. dpkg knows no extended attributes: a package that has them sets them in a script.
pub fn of_package(deb: &Path, unpacked: &Path) -> BTreeMap<String, Listed> {
    fs::create_dir_all(unpacked).unwrap();
    output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(unpacked));
    let mut dpkg =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn().unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--quoting-style=literal", "-tvf", "-"]).env("LC_ALL", "C.UTF-8");
    let text = output(tar.stdin(dpkg.stdout.take().unwrap()));
    assert!(dpkg.wait().unwrap().success());
    read_listing(&String::from_utf8(text).unwrap(), ".", unpacked)
}
