//! The accounts of a tree: its /etc/passwd, /etc/group and /etc/shadow with what the recipe declares, whom its owners stand
//! for, and home directories.

use super::RootError;
use crate::accounts::{Accounts, Refused};
use crate::error::{GuestError, Result};
use crate::recipe::{Conduct, Place, Recipe, Root, steps};
use crate::tree::{Kind, Node, Origin, Tree};

/// Where adduser ends what it calls system accounts: their homes are open to read, those of people are not (Debian's
/// adduser.conf, SYS_DIR_MODE and DIR_MODE).
const FIRST_PERSON: u32 = 1000;
/// The group that may read /etc/shadow, where there is one.
const SHADOW: &str = "shadow";
/// Where a home is never made.
const NO_HOMES: [&str; 6] = ["/", "/nonexistent", "/dev", "/proc", "/run", "/sys"];

/// Writes the accounts into the tree. `contents` belong to the recipe's `placed`: who writes /etc/passwd there, decides.
pub(super) fn put(tree: &mut Tree, recipe: &Recipe, contents: &[Vec<u8>]) -> Result<Accounts> {
    let text = |path: &str| {
        let placed = recipe.placed.iter().zip(contents).find(|(placed, _)| {
            placed.path == path && matches!(placed.what, Place::Text { .. } | Place::From { .. })
        });
        match (placed, tree.look(path)) {
            (Some((_, content)), _) => String::from_utf8_lossy(content).into_owned(),
            (None, Some((_, Node { kind: Kind::File(content), .. }))) => {
                String::from_utf8_lossy(content).into_owned()
            }
            (None, _) => String::new(),
        }
    };
    // A root from elsewhere may be one program and nothing else: it runs as root all the same.
    let or_root = |text: String, root: &str| if text.trim().is_empty() { root.to_owned() } else { text };
    let passwd = or_root(text("/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n");
    let mut accounts = Accounts::read(&passwd, &or_root(text("/etc/group"), "root:x:0:\n"));
    let shadow = text("/etc/shadow");
    accounts.add(&recipe.users, &recipe.groups).map_err(|refused| match refused {
        Refused::Taken { what, name, id, holder } => RootError::TakenId { what, name, id, holder }.into(),
        Refused::Unknown { asked } => unknown(&accounts, "group", &asked, "`groups=` of a user"),
    })?;
    if recipe.root != Root::Packages && recipe.users.is_empty() && recipe.groups.is_empty() {
        // A root from elsewhere is taken as it is.
        return Ok(accounts);
    }
    let by = &Origin::Recipe;
    let shadow_gid = accounts.gid(SHADOW);
    let mode = if shadow_gid.is_some() { 0o640 } else { 0o600 };
    let mut node = Node::file(mode, accounts.shadow(&shadow).into_bytes());
    node.gid = shadow_gid.unwrap_or(0);
    tree.put("etc/shadow", node, by)?;
    tree.put("etc/passwd", Node::file(0o644, accounts.passwd().into_bytes()), by)?;
    tree.put("etc/group", Node::file(0o644, accounts.group().into_bytes()), by)?;
    Ok(accounts)
}

/// Makes the home directories of the recipe's users, where nothing is yet and no mount will be.
pub(super) fn homes(tree: &mut Tree, recipe: &Recipe) -> Result<()> {
    for user in &recipe.users {
        let below = |over: &str| user.home.strip_prefix(over).is_some_and(|rest| rest.starts_with('/'));
        let nowhere = NO_HOMES.iter().any(|none| user.home == *none || *none != "/" && below(none));
        let mounted = recipe.conduct.mounts.iter().any(|m| m.mount.path == user.home || below(&m.mount.path));
        if nowhere || mounted || tree.look(&user.home).is_some() {
            continue;
        }
        let mut node = Node::directory(if user.uid < FIRST_PERSON { 0o755 } else { 0o700 });
        (node.uid, node.gid) = (user.uid, user.gid);
        tree.put(&user.home, node, &Origin::Recipe)?;
    }
    Ok(())
}

/// The ids of `USER:GROUP`; `of` says what is owned.
pub(super) fn owner(accounts: &Accounts, owner: &str, of: &str) -> Result<(u32, u32)> {
    let (user, group) = owner.split_once(':').unwrap_or((owner, owner));
    let uid = accounts.uid(user).ok_or_else(|| unknown(accounts, "user", user, of))?;
    let gid = accounts.gid(group).ok_or_else(|| unknown(accounts, "group", group, of))?;
    Ok((uid, gid))
}

/// Everyone that services and mounts name must be there.
pub(super) fn check(accounts: &Accounts, conduct: &Conduct) -> Result<()> {
    for mount in &conduct.mounts {
        if let Some(asked) = &mount.mount.owner {
            owner(accounts, asked, &format!("the mount at {}", mount.mount.path))?;
        }
    }
    for service in &conduct.services {
        let of = format!("service `{}`", service.name);
        for directory in &service.directories {
            owner(accounts, &directory.owner, &of)?;
        }
        for step in steps(service) {
            accounts.uid(&step.user).ok_or_else(|| unknown(accounts, "user", &step.user, &of))?;
            if let Some(group) = &step.group {
                accounts.gid(group).ok_or_else(|| unknown(accounts, "group", group, &of))?;
            }
        }
    }
    Ok(())
}

fn unknown(accounts: &Accounts, what: &'static str, asked: &str, of: &str) -> GuestError {
    let known = if what == "user" { accounts.user_names() } else { accounts.group_names() };
    RootError::UnknownAccount { what, asked: asked.to_owned(), of: of.to_owned(), known }.into()
}
