//! Images read back: what each format's own tools say of one, and whether they find it whole. The tools come from Debian's
//! packages into the store, so no machine needs them installed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use vmprof_guests::{Builder, Format, Realised, Silent, Store, Toolset};

use super::erofs;
use super::facts::{
    BLOCK_DEVICE, CHAR_DEVICE, DIRECTORY, FILE, Facts, LINK, Listed, TYPE, output, read_listing,
};

const SQUASHFS_TOOLS: Toolset = Toolset {
    name: "squashfs-tools",
    suites: &["bookworm"],
    packages: &["squashfs-tools"],
    programs: &["usr/bin/unsquashfs"],
    data: &[],
    linked: &[],
    layout: "1",
};

const EROFS_TOOLS: Toolset = Toolset {
    name: "erofs-tools",
    suites: &["bookworm"],
    packages: &["erofs-utils"],
    programs: &["usr/bin/fsck.erofs"],
    data: &[],
    linked: &[],
    layout: "1",
};

const EXT4_TOOLS: Toolset = Toolset {
    name: "ext4-tools",
    suites: &["bookworm"],
    packages: &["e2fsprogs"],
    // Where the package has them; both lie in /usr once that is merged.
    programs: &["sbin/e2fsck", "sbin/debugfs"],
    data: &[],
    linked: &[],
    layout: "1",
};

/// Which of an image's names are one file; a squashfs of ours has no such names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    pub number: u64,
    pub links: u64,
}

/// What an image holds.
pub struct Contents {
    pub listed: BTreeMap<String, Listed>,
    pub inodes: Option<BTreeMap<String, Inode>>,
}

/// The tools of a format.
pub struct Tools(Realised);

impl Tools {
    pub fn of(format: Format, store: &Store) -> Option<Tools> {
        let tools = match format {
            Format::Squashfs { .. } => SQUASHFS_TOOLS,
            Format::Erofs { .. } => EROFS_TOOLS,
            Format::Ext4 { .. } => EXT4_TOOLS,
        };
        tools.realise(&Builder::new(store, &Silent)).ok().map(Tools)
    }

    fn program(&self, path: &str) -> Command {
        let argv: Vec<OsString> = self.0.argv(path);
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
        command
    }

    /// Has the format's own checker find nothing, and reads the image; `extracted` gets its files.
    pub fn read(&self, format: Format, image: &Path, extracted: &Path) -> Contents {
        match format {
            Format::Squashfs { .. } => self.squashfs(image, extracted),
            Format::Erofs { .. } => self.erofs(image, extracted),
            Format::Ext4 { .. } => self.ext4(image, extracted),
        }
    }

    fn squashfs(&self, image: &Path, extracted: &Path) -> Contents {
        let program = || self.program("usr/bin/unsquashfs");
        // As root it makes devices, too; whoever is not does not need them here.
        let mut unpack = program();
        unpack.args(["-no-progress", "-quiet", "-ignore-errors", "-no-exit-code", "-d"]).arg(extracted);
        output(unpack.arg(image));
        let said = String::from_utf8(output(program().arg("-s").arg(image))).unwrap();
        assert!(said.contains("valid SQUASHFS 4:0 superblock"), "{said}");
        let text = String::from_utf8(output(program().args(["-no-progress", "-lln"]).arg(image))).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("squashfs-root")).collect();
        let mut listed = read_listing(&lines.join("\n"), "squashfs-root", extracted);
        for (major, minor) in listed.values_mut().filter_map(|listed| listed.facts.device.as_mut()) {
            // It shows the number's last byte, and all the rest of it as the major one.
            *minor |= *major >> 12 << 8;
            *major &= 0xfff;
        }
        Contents { listed, inodes: None }
    }

    fn erofs(&self, image: &Path, extracted: &Path) -> Contents {
        let mut fsck = self.program("usr/bin/fsck.erofs");
        // Reads every content, the compressed ones too.
        let mut extract = OsString::from("--extract=");
        extract.push(extracted);
        output(fsck.arg(extract).arg("--no-preserve").arg(image));
        let found = erofs::list(&fs::read(image).unwrap(), extracted);
        let inodes = found.iter().map(|(path, (_, inode))| (path.clone(), *inode)).collect();
        let listed = found.into_iter().map(|(path, (listed, _))| (path, listed)).collect();
        Contents { listed, inodes: Some(inodes) }
    }

    fn ext4(&self, image: &Path, extracted: &Path) -> Contents {
        let mut fsck = self.program("sbin/e2fsck");
        output(fsck.args(["-f", "-n"]).arg(image));
        fs::create_dir_all(extracted).unwrap();
        self.debugfs(image, &[format!("rdump / \"{}\"", extracted.display())]);

        let mut paths: BTreeMap<String, (u64, Facts)> = BTreeMap::new();
        let mut open = vec![(String::new(), 2)];
        while !open.is_empty() {
            // A level of directories at a time: `/INODE/MODE/UID/GID/NAME/SIZE/`.
            let asked: Vec<String> = open.iter().map(|(_, inode)| format!("ls -p <{inode}>")).collect();
            let said = self.debugfs(image, &asked);
            let mut next = Vec::new();
            for ((path, _), lines) in open.iter().zip(said) {
                for line in lines.lines().filter(|line| !line.is_empty()) {
                    let fields: Vec<&str> = line.split('/').collect();
                    let [_, inode, mode, uid, gid, name, ..] = fields[..] else { panic!("{line}") };
                    let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
                    let below = if name == "." { path.clone() } else { below };
                    if name == ".." || name == "." && !path.is_empty() || below == "lost+found" {
                        continue;
                    }
                    let inode = inode.parse().unwrap();
                    let mode = u32::from_str_radix(mode, 8).unwrap_or_else(|error| panic!("{error}: {line}"));
                    // It shows ids past 2^31 below zero.
                    let id = |shown: &str| shown.parse::<i64>().unwrap() as u32;
                    let (uid, gid) = (id(uid), id(gid));
                    let facts = Facts { mode, uid, gid, target: None, device: None, xattrs: BTreeMap::new() };
                    if facts.is(DIRECTORY) && name != "." {
                        next.push((below.clone(), inode));
                    }
                    assert!(paths.insert(below.clone(), (inode, facts)).is_none(), "/{below} is there twice");
                }
            }
            open = next;
        }
        self.complete(image, extracted, paths)
    }

    /// What a listing does not tell: counts of links, devices, targets and attributes.
    fn complete(&self, image: &Path, extracted: &Path, paths: BTreeMap<String, (u64, Facts)>) -> Contents {
        let inodes: Vec<u64> =
            paths.values().map(|(inode, _)| *inode).collect::<BTreeSet<_>>().into_iter().collect();
        let asked: Vec<String> = inodes.iter().map(|inode| format!("stat <{inode}>")).collect();
        let stats: BTreeMap<u64, String> = inodes.iter().copied().zip(self.debugfs(image, &asked)).collect();
        // `  user.a (3) = "abc"`, and `  user.b (0)` for a value that is empty or too long for the line.
        let attribute = |line: &str| {
            let (name, rest) = line.strip_prefix("  ")?.split_once(" (")?;
            let (size, _) = rest.split_once(')')?;
            let is_one = name.contains('.') && size.parse::<usize>().is_ok();
            is_one.then(|| name.to_owned())
        };
        let named: Vec<(u64, String)> = stats
            .iter()
            .flat_map(|(inode, said)| said.lines().filter_map(attribute).map(|name| (*inode, name)))
            .collect();
        let asked: Vec<String> =
            named.iter().map(|(inode, name)| format!("ea_get -x <{inode}> {name}")).collect();
        let mut xattrs: BTreeMap<u64, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
        for ((inode, name), said) in named.into_iter().zip(self.debugfs(image, &asked)) {
            let hex = said.split_once('=').map_or("", |(_, hex)| hex);
            let mut value: Vec<u8> =
                hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            if name.starts_with("system.posix_acl_") {
                with_undefined_ids(&mut value);
            }
            xattrs.entry(inode).or_default().insert(name, value);
        }
        let mut contents = Contents { listed: BTreeMap::new(), inodes: Some(BTreeMap::new()) };
        for (path, (number, mut facts)) in paths {
            let said = &stats[&number];
            let behind = |label: &str| said.split_once(label).map(|(_, rest)| rest);
            let links = behind("Links: ").and_then(|rest| rest.split_whitespace().next()).unwrap();
            let inode = Inode { number, links: links.parse().unwrap() };
            let at = extracted.join(&path);
            if facts.is(LINK) {
                let target = fs::read_link(&at).unwrap_or_else(|error| panic!("/{path}: {error}"));
                facts.target = Some(target.into_os_string().into_string().unwrap());
            }
            if matches!(facts.mode & TYPE, CHAR_DEVICE | BLOCK_DEVICE) {
                let device =
                    behind("Device major/minor number: ").unwrap_or_else(|| panic!("/{path}: {said}"));
                let (major, minor) = device.split_whitespace().next().unwrap().split_once(':').unwrap();
                facts.device = Some((major.parse().unwrap(), minor.parse().unwrap()));
            }
            facts.xattrs = xattrs.get(&number).cloned().unwrap_or_default();
            assert_eq!(at.is_file() && !at.is_symlink(), facts.is(FILE), "/{path}");
            contents.listed.insert(path.clone(), Listed { facts, at, same_as: None });
            contents.inodes.as_mut().unwrap().insert(path, inode);
        }
        contents
    }

    /// What debugfs answers to each command.
    fn debugfs(&self, image: &Path, commands: &[String]) -> Vec<String> {
        if commands.is_empty() {
            return Vec::new();
        }
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(script.path(), commands.join("\n") + "\n").unwrap();
        let mut debugfs = self.program("sbin/debugfs");
        let said = output(debugfs.arg("-f").arg(script.path()).arg(image));
        let said = String::from_utf8(said).unwrap();
        // It repeats every command before its answer.
        let mut answers = Vec::new();
        let mut rest = said.as_str();
        for command in commands {
            let head = format!("debugfs: {command}\n");
            let (_, behind) = rest.split_once(&head).unwrap_or_else(|| panic!("{command}: {said}"));
            rest = behind;
            answers.push(behind.split("debugfs: ").next().unwrap_or_default().to_owned());
        }
        answers
    }
}

/// An access list as the kernel gives it: the entries of owner, group, mask and others have no id on disk, which the kernel
/// says with ones and debugfs with zeros.
fn with_undefined_ids(list: &mut [u8]) {
    for entry in list[4..].chunks_mut(8) {
        if !matches!(entry[0], 0x02 | 0x08) {
            entry[4..].fill(0xff);
        }
    }
}
