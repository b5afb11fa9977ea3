//! A recipe and its packages, or an archive, as one tree: the skeleton of every guest of packages, their files, less what the
//! recipe excludes, then what the recipe declares; and whether everything that it names is there. Pure but for reading an
//! archive, in `base`; packing and publishing is `builder`'s business.

mod base;
mod error;
mod people;
mod programs;
mod systemd;

use crate::accounts::Accounts;
use crate::deb::Deb;
use crate::elf;
use crate::error::Result;
use crate::recipe::{ImageConfig, Init, Place, Recipe, Root};
use crate::tree::{Node, Origin, Tree};

pub(crate) use base::Base;

pub use error::RootError;

/// Since bookworm the whole system lies under /usr (Debian's merged /usr); packages may still ship the old paths.
const MERGED: [(&str, &str); 4] =
    [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")];

/// What base-files makes when it is installed: where programs still look for what lies in /run (FHS 3.0, 5.13).
const RUN_LINKS: [(&str, &str); 2] = [("var/run", "/run"), ("var/lock", "/run/lock")];

const DIRECTORIES: [(&str, u16); 17] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/lib64", 0o755),
    ("usr/sbin", 0o755),
    ("var/lib", 0o755),
    ("var/tmp", 0o1777),
];

/// What no guest can be without: the guest's first process mounts something on these, and a command starts in `root`.
const NEEDED: [&str; 6] = ["dev", "proc", "root", "run", "sys", "tmp"];
const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n";

/// Puts the root filesystem together. `contents` are the contents of the recipe's files, in the recipe's order of `placed`
/// (empty for what is not a file). The second value names exclusions that met nothing.
pub(crate) fn assemble(
    recipe: &Recipe,
    exclude: &[String],
    base: Base,
    contents: Vec<Vec<u8>>,
) -> Result<(Tree, Vec<String>)> {
    let (mut tree, config) = match base {
        Base::Packages(debs) => (of_packages(debs)?, ImageConfig::default()),
        Base::Archive { tree, config } => (of_archive(tree)?, config),
    };
    let conduct = recipe.conduct_with(&config);
    let unmet = exclude.iter().filter(|path| !tree.remove(path)).cloned().collect();
    names(&mut tree, &conduct.hostname)?;
    let accounts = people::put(&mut tree, recipe, &contents)?;
    for (placed, content) in recipe.placed.iter().zip(contents) {
        let mut node = match &placed.what {
            Place::Directory { mode } => Node::directory(*mode),
            Place::Link { target } => Node::link(target),
            Place::Text { mode, .. } | Place::From { mode, .. } => Node::file(*mode, content),
        };
        (node.uid, node.gid) = people::owner(&accounts, &placed.owner, &placed.path)?;
        tree.put(&placed.path, node, &Origin::Recipe)?;
    }
    people::homes(&mut tree, recipe)?;
    if let Init::Systemd { enable, mask } = &conduct.init {
        systemd::put(&mut tree, &recipe.name, enable, mask)?;
    }
    people::check(&accounts, &conduct)?;
    programs::check(&tree, &conduct, &recipe.name)?;
    // Packages bring what they need, as long as nobody takes it away.
    if !recipe.packages.without.is_empty() || !exclude.is_empty() && recipe.root == Root::Packages {
        let missing = elf::missing_libraries(&tree);
        if !missing.is_empty() {
            return Err(RootError::MissingLibraries { guest: recipe.name.clone(), missing }.into());
        }
    }
    Ok((tree, unmet))
}

/// The skeleton that every guest of packages has, and the packages over it.
fn of_packages(debs: Vec<Deb>) -> Result<Tree> {
    let mut tree = Tree::default();
    let by = Origin::Builder;
    for (path, target) in MERGED {
        tree.put(path, Node::link(target), &by)?;
    }
    for (path, mode) in DIRECTORIES {
        tree.put(path, Node::directory(mode), &by)?;
    }
    for (path, target) in RUN_LINKS {
        tree.put(path, Node::link(target), &by)?;
    }
    let accounts = Accounts::debian();
    let texts = [
        ("etc/passwd", accounts.passwd()),
        ("etc/group", accounts.group()),
        ("etc/nsswitch.conf", NSSWITCH.to_owned()),
    ];
    for (path, text) in texts {
        tree.put(path, Node::file(0o644, text.into_bytes()), &by)?;
    }
    for deb in debs {
        let by = Origin::Package { name: deb.name, replaces: deb.replaces.into() };
        for (path, node) in deb.files {
            if !path.is_empty() {
                tree.put(&path, node, &by)?;
            }
        }
    }
    Ok(tree)
}

/// An archive's tree is its own affair; it only gets the directories that no guest can be without.
fn of_archive(mut tree: Tree) -> Result<Tree> {
    for (path, mode) in DIRECTORIES {
        if NEEDED.contains(&path) && tree.look(path).is_none() {
            tree.put(path, Node::directory(mode), &Origin::Builder)?;
        }
    }
    Ok(tree)
}

/// The guest's name, in its files. Those of an archive are leftovers of the machine it was made on.
fn names(tree: &mut Tree, hostname: &str) -> Result<()> {
    let hosts = format!("127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n::1\tlocalhost\n");
    for (path, text) in [("etc/hostname", format!("{hostname}\n")), ("etc/hosts", hosts)] {
        tree.put(path, Node::file(0o644, text.into_bytes()), &Origin::Recipe)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
