//! A recipe and its packages as one tree: the skeleton every guest has, the packages' files, less what the recipe excludes,
//! then what the recipe declares. Pure; packing and publishing is `builder`'s business.

use crate::base::Base;
use crate::deb::Deb;
use crate::elf;
use crate::error::{GuestError, Result};
use crate::recipe::{Place, Recipe};
use crate::tree::{Kind, Node, Origin, Tree};

/// Since bookworm the whole system lies under /usr (Debian's merged /usr); packages may still ship the old paths.
const MERGED: [(&str, &str); 4] =
    [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")];

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

/// Debian's base-passwd knows these ids; a guest needs the two that everything takes for granted.
const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n";

/// What the guest's first process mounts on; a foreign root need not have them.
const MOUNT_POINTS: [(&str, u16); 5] =
    [("dev", 0o755), ("proc", 0o755), ("run", 0o755), ("sys", 0o755), ("tmp", 0o1777)];

/// Puts the root filesystem together, from a base where there is one and else from the skeleton. `texts` are the contents of the recipe's files, in the recipe's order of `placed`
/// (empty for what is not a file). The second value names exclusions that met nothing.
pub(crate) fn assemble(
    recipe: &Recipe,
    exclude: &[String],
    base: Option<Base>,
    debs: Vec<Deb>,
    contents: Vec<Vec<u8>>,
) -> Result<(Tree, Vec<String>)> {
    let mut tree = Tree::default();
    let is_debian = base.is_none();
    match base {
        None => skeleton(&mut tree, recipe)?,
        Some(base) => lay_base(&mut tree, base)?,
    }
    for deb in debs {
        let by = Origin::Package { name: deb.name, replaces: deb.replaces.into() };
        for (path, node) in deb.files {
            if !path.is_empty() {
                tree.put(&path, node, &by)?;
            }
        }
    }
    let unmet = exclude.iter().filter(|path| !tree.remove(path)).cloned().collect();
    for (placed, content) in recipe.placed.iter().zip(contents) {
        let node = match &placed.what {
            Place::Directory { mode } => Node::directory(*mode),
            Place::Link { target } => Node::link(target),
            Place::Text { mode, .. } | Place::From { mode, .. } => Node::file(*mode, content),
        };
        tree.put(&placed.path, node, &Origin::Recipe)?;
    }
    check_program(&tree, recipe)?;
    // Packages bring what they need, as long as nobody takes it away.
    if is_debian && (!recipe.packages.without.is_empty() || !exclude.is_empty()) {
        let missing = elf::missing_libraries(&tree);
        if !missing.is_empty() {
            return Err(GuestError::MissingLibraries { guest: recipe.name.clone(), missing });
        }
    }
    Ok((tree, unmet))
}

/// A base is kept as it is, its own layout included; only what is mounted on is added.
fn lay_base(tree: &mut Tree, base: Base) -> Result<()> {
    let by = Origin::Package { name: base.name.clone(), replaces: [].into() };
    for (path, node) in base.files {
        if path.is_empty() {
            let bad = |problem| GuestError::BadArchive { what: base.name.clone(), problem };
            tree.lay("", node).map_err(bad)?;
        } else {
            tree.put(&path, node, &by)?;
        }
    }
    for (path, mode) in MOUNT_POINTS {
        if tree.look(path).is_none() {
            tree.put(path, Node::directory(mode), &Origin::Builder)?;
        }
    }
    Ok(())
}

fn skeleton(tree: &mut Tree, recipe: &Recipe) -> Result<()> {
    let by = Origin::Builder;
    for (path, target) in MERGED {
        tree.put(path, Node::link(target), &by)?;
    }
    for (path, mode) in DIRECTORIES {
        tree.put(path, Node::directory(mode), &by)?;
    }
    let hosts = format!("127.0.0.1\tlocalhost\n127.0.1.1\t{0}\n::1\tlocalhost\n", recipe.conduct.hostname);
    let texts = [
        ("etc/passwd", PASSWD.to_owned()),
        ("etc/group", GROUP.to_owned()),
        ("etc/nsswitch.conf", NSSWITCH.to_owned()),
        ("etc/hostname", format!("{}\n", recipe.conduct.hostname)),
        ("etc/hosts", hosts),
    ];
    for (path, text) in texts {
        tree.put(path, Node::file(0o644, text.into_bytes()), &by)?;
    }
    Ok(())
}

/// What `run` names must be there, and so must the interpreter of a script.
fn check_program(tree: &Tree, recipe: &Recipe) -> Result<()> {
    let Some(program) = recipe.conduct.run.first() else { return Ok(()) };
    let missing = |program: &str, because: Option<String>| GuestError::NoProgram {
        guest: recipe.name.clone(),
        program: program.to_owned(),
        because,
    };
    let candidates: Vec<String> = if program.contains('/') {
        vec![program.clone()]
    } else {
        let path = recipe.conduct.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
        path.split(':').map(|dir| format!("{dir}/{program}")).collect()
    };
    let found =
        candidates.iter().find_map(|path| tree.look(path).filter(|(_, node)| node.kind != Kind::Directory));
    let Some((at, node)) = found else { return Err(missing(program, None)) };
    if node.mode & 0o111 == 0 {
        return Err(missing(
            program,
            Some(format!("/{at} is there, but not executable; give it `mode=0o755`")),
        ));
    }
    let Kind::File(content) = &node.kind else { return Ok(()) };
    if let Some(line) = content.strip_prefix(b"#!").and_then(|rest| rest.split(|byte| *byte == b'\n').next())
    {
        let line = String::from_utf8_lossy(line);
        let interpreter = line.split_whitespace().next().unwrap_or_default();
        if tree.look(interpreter).is_none_or(|(_, node)| node.kind == Kind::Directory) {
            return Err(missing(interpreter, Some(format!("/{at} is a script for it"))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
