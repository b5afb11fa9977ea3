//! What a built guest can do that its recipe does not say: which filesystems its kernel mounts, which its programs make,
//! and whether it has a shell. Found while it is built and kept as facts of the store's records, so that a warm build knows
//! them without opening an image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmprof_job::{Filesystem, Mounted};

use crate::modules::{Module, Modules, normal_name};
use crate::recipe::{Format, Image, Recipe};
use crate::tree::{Kind, Tree};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// Filesystems that the kernel mounts, with what the initramfs loads.
    pub mounts: Vec<Filesystem>,
    /// Filesystems that a program of the root image makes.
    pub makes: Vec<Filesystem>,
    /// The root image has a /bin/sh.
    pub shell: bool,
}

/// All that there are.
const FILESYSTEMS: [Filesystem; 2] = [Filesystem::Ext4, Filesystem::Xfs];
/// Taken where the kernel has it, and before any filesystem: the checksum that `libcrc32c` and ext4 ask the kernel for by name
/// when they load, where Debian's general kernel has that as a module.
const CHECKSUMS: [&str; 1] = ["crc32c_generic"];
/// Where the guest's first process finds the program that makes a filesystem, less the filesystem's name.
const MAKER: &str = "/usr/sbin/mkfs.";

/// The modules that the guest's root and the disks it mounts need; which of them the kernel has built in does not matter.
pub(crate) fn filesystem_modules(recipe: &Recipe, kernel: &Modules) -> Vec<&'static str> {
    let mut names = kernel.known(&CHECKSUMS);
    match &recipe.image {
        Image::None => {}
        // One that is mounted as it is needs no overlay.
        Image::Root { format: format @ Format::Ext4 { .. }, .. } => names.push(format.name()),
        Image::Root { format, .. } => names.extend([format.name(), "overlay"]),
    }
    for mount in &recipe.conduct.mounts {
        match (&mount.mount.what, mount.format) {
            (Mounted::Tmpfs { .. }, _) => {}
            (Mounted::Disk { .. }, Some(filesystem)) => names.push(filesystem.name()),
            // Whatever the disk holds, as far as the kernel has it.
            (Mounted::Disk { .. }, None) => names.extend(kernel.known(&FILESYSTEMS.map(Filesystem::name))),
        }
    }
    names
}

/// The same wishes as words, for the digest of an initramfs's inputs.
pub(crate) fn filesystem_inputs(recipe: &Recipe) -> Vec<&'static str> {
    let root = match &recipe.image {
        Image::None => "no root",
        Image::Root { format, .. } => format.name(),
    };
    let disks = recipe.conduct.mounts.iter().filter_map(|mount| match (&mount.mount.what, mount.format) {
        (Mounted::Tmpfs { .. }, _) => None,
        (Mounted::Disk { .. }, Some(filesystem)) => Some(filesystem.name()),
        (Mounted::Disk { .. }, None) => Some("any"),
    });
    std::iter::once(root).chain(disks).collect()
}

/// Which filesystems a kernel mounts that loads `loaded`, as words.
pub(crate) fn mounts(kernel: &Modules, loaded: &[Module]) -> String {
    let can = |filesystem: &Filesystem| {
        let name = filesystem.name();
        let built_in = || kernel.in_order(&[name]).is_ok_and(|needed| needed.is_empty());
        loaded.iter().any(|module| module.name == normal_name(name)) || built_in()
    };
    // Nobody says what a kernel without modules has built in.
    words(FILESYSTEMS.into_iter().filter(|filesystem| kernel.are_all_built_in() || can(filesystem)))
}

/// What a root image's record says of it.
pub(crate) type RootFacts = [(&'static str, String); 2];

pub(crate) fn root_facts(root: &Tree) -> RootFacts {
    let shell = if is_program(root, "/bin/sh") { "yes" } else { "" };
    [("makes", makes(root)), ("shell", shell.to_owned())]
}

/// What the records of a guest say: its kernel's facts, and its root's where it has one.
pub(crate) fn of_facts(
    kernel: &BTreeMap<String, String>,
    root: Option<&BTreeMap<String, String>>,
) -> Abilities {
    let filesystems = |facts: Option<&BTreeMap<String, String>>, name: &str| {
        let words = facts.and_then(|facts| facts.get(name)).map_or("", String::as_str);
        // A word of another version is none of ours.
        let known = |word| FILESYSTEMS.into_iter().find(|filesystem| filesystem.name() == word);
        words.split_whitespace().filter_map(known).collect()
    };
    Abilities {
        mounts: filesystems(Some(kernel), "mounts"),
        makes: filesystems(root, "makes"),
        shell: root.and_then(|facts| facts.get("shell")).is_some_and(|word| !word.is_empty()),
    }
}

/// Which filesystems the root's programs make, as words.
fn makes(root: &Tree) -> String {
    let can = |filesystem: &Filesystem| is_program(root, &format!("{MAKER}{}", filesystem.name()));
    words(FILESYSTEMS.into_iter().filter(can))
}

fn words(filesystems: impl Iterator<Item = Filesystem>) -> String {
    filesystems.map(Filesystem::name).collect::<Vec<_>>().join(" ")
}

fn is_program(root: &Tree, path: &str) -> bool {
    let found = root.look(path);
    found.is_some_and(|(_, node)| matches!(node.kind, Kind::File(_)) && node.mode & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::modules::made::module;
    use crate::tree::{Node, Origin};

    #[test]
    fn a_filesystem_is_mounted_when_it_is_built_in_or_loaded() {
        let mut kernel = Modules::new("6.1-test");
        kernel.take("lib/modules/6.1-test/kernel/fs/xfs/xfs.ko", &module("libcrc32c"));
        kernel.take("lib/modules/6.1-test/kernel/lib/libcrc32c.ko", &module(""));
        kernel.take("lib/modules/6.1-test/modules.builtin", &Arc::from(*b"kernel/fs/ext4/ext4.ko\n"));
        assert_eq!(mounts(&kernel, &[]), "ext4");
        assert_eq!(mounts(&kernel, &kernel.in_order(&["xfs"]).unwrap()), "ext4 xfs");
        assert_eq!(mounts(&Modules::new("6.1-test"), &[]), "");
    }

    #[test]
    fn programs_are_found_through_links_and_must_be_executable() {
        let mut root = Tree::default();
        let mut put = |path: &str, node: Node| root.put(path, node, &Origin::Builder).unwrap();
        put("sbin", Node::link("usr/sbin"));
        put("bin", Node::link("usr/bin"));
        put("usr/bin/dash", Node::file(0o755, *b"a shell"));
        put("usr/bin/sh", Node::link("dash"));
        put("usr/sbin/mke2fs", Node::file(0o755, *b"a program"));
        put("usr/sbin/mkfs.ext4", Node::link("mke2fs"));
        put("usr/sbin/mkfs.xfs", Node::file(0o644, *b"a text"));
        assert_eq!(makes(&root), "ext4");
        let facts = |root: &Tree| root_facts(root).map(|(name, value)| (name.to_owned(), value)).into();
        let kernel = [("mounts".to_owned(), "ext4 zonefs xfs".to_owned())].into();
        let able = of_facts(&kernel, Some(&facts(&root)));
        assert_eq!((&able.mounts[..], &able.makes[..]), (&FILESYSTEMS[..], &[Filesystem::Ext4][..]));
        assert!(able.shell && !of_facts(&kernel, Some(&facts(&Tree::default()))).shell);
        assert!(!of_facts(&kernel, None).shell);
    }
}
