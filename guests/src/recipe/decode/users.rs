//! Who there is: `user`, `group`, and what names one: `owner=`, `groups=`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::slice;

use vmprof_document::{Block, Findings, Node, SourceSpan, Value, closest};

use super::{absolute, formed};
use crate::accounts::{self, Accounts, Refused};
use crate::recipe::words::ACCOUNT;
use crate::recipe::{Group, User};

/// The last id that is one: the next means "no change" to the kernel.
const LAST_ID: u64 = 0xffff_fffe;

/// What the recipe declares.
#[derive(Debug, Default)]
pub(super) struct People {
    pub(super) users: Vec<User>,
    pub(super) groups: Vec<Group>,
    /// Where each of them stands.
    places: BTreeMap<(&'static str, String), SourceSpan>,
    /// Whom the recipe names elsewhere: whether they are there is known when everything is read.
    named: RefCell<Vec<Named>>,
}

#[derive(Debug)]
struct Named {
    /// `user` or `group`.
    what: &'static str,
    name: String,
    place: SourceSpan,
}

impl People {
    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }

    /// The group that a user's files have unless another is named: its own, as far as the recipe can know.
    fn own_group(&self, user: &str) -> String {
        let declared = self.users.iter().find(|known| known.name == user || known.uid.to_string() == user);
        if let Some(user) = declared {
            return user.gid.to_string();
        }
        accounts::own_group_of(user).unwrap_or_else(|| user.to_owned())
    }

    /// `USER:GROUP`, from `owner=` of a node.
    pub(super) fn owner(&self, node: &Node<'_>) -> Owner {
        match node.prop("owner") {
            None => Owner::Unsaid,
            Some(value) => self.owner_in(node, value).map_or(Owner::Wrong, Owner::Said),
        }
    }

    fn owner_in(&self, node: &Node<'_>, value: Value<'_>) -> Option<String> {
        let text = account(&value)?;
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text.as_str(), None),
        };
        let fits = |name: &str| ACCOUNT.fits(name) || id(name);
        if !fits(user) || group.is_some_and(|group| !fits(group)) {
            let problem = value.problem("bad_owner", format!("`{text}` is no owner"));
            node.findings()
                .push(problem.help("write `owner=\"USER:GROUP\"`, names or numbers, or the user alone"));
            return None;
        }
        self.names("user", user, &value);
        if let Some(group) = group {
            self.names("group", group, &value);
        }
        Some(format!("{user}:{}", group.map_or_else(|| self.own_group(user), str::to_owned)))
    }

    fn names(&self, what: &'static str, name: &str, value: &Value<'_>) {
        self.named.borrow_mut().push(Named { what, name: name.to_owned(), place: value.span() });
    }

    /// A user or a group (`what` of the two) that runs something: a name or an id.
    pub(super) fn runner(&self, node: &Node<'_>, value: Value<'_>, what: &'static str) -> Option<String> {
        let name = account(&value)?;
        if ACCOUNT.fits(&name) || id(&name) {
            self.names(what, &name, &value);
            return Some(name);
        }
        let problem = value.problem("bad_name", format!("`{name}` cannot be {}", ACCOUNT.what));
        node.findings().push(problem.help(format!("it is made of {}; or write an id", ACCOUNT.made_of)));
        None
    }

    /// Holds everyone whom the recipe names, and every id that it gives, against the accounts of a guest made of packages:
    /// nothing that a package brings changes those.
    pub(super) fn check(&self, found: &Findings) {
        let mut accounts = Accounts::debian();
        let groups = self.groups.iter().map(|group| ("group", &group.name, (None, Some(group))));
        let users = self.users.iter().map(|user| ("user", &user.name, (Some(user), None)));
        for (what, name, (user, group)) in groups.chain(users) {
            let Some(place) = self.places.get(&(what, name.clone())) else { continue };
            match accounts.add(user.map_or(&[], slice::from_ref), group.map_or(&[], slice::from_ref)) {
                Ok(()) => {}
                Err(Refused::Taken { what, name, id, holder }) => {
                    let message = format!(
                        "{what} `{name}` shall have id {id}, which {what} `{holder}` has in the image"
                    );
                    let problem = found.error("taken_id", message).at(*place, "declared here");
                    found.push(problem.help(format!("give `{name}` another id")));
                }
                Err(Refused::Unknown { asked }) => self.unknown(found, &accounts, "group", &asked, *place),
            }
        }
        for Named { what, name, place } in &*self.named.borrow() {
            let id = if *what == "user" { accounts.uid(name) } else { accounts.gid(name) };
            if id.is_none() {
                self.unknown(found, &accounts, what, name, *place);
            }
        }
    }

    fn unknown(&self, found: &Findings, there: &Accounts, what: &'static str, name: &str, place: SourceSpan) {
        // Declared, and wrong in itself: that is said where it stands.
        let declared = |what| self.places.contains_key(&(what, name.to_owned()));
        let is_wrong = declared("user") && !self.users.iter().any(|user| user.name == name);
        if declared(what) || is_wrong {
            return;
        }
        let known = if what == "user" { there.user_names() } else { there.group_names() };
        let declare = match what {
            "user" => format!("declare it: `user {name} uid=…`"),
            _ => format!("declare it: `group {name} gid=…`"),
        };
        let help = closest(name, known.iter().map(String::as_str))
            .map_or(declare, |near| format!("did you mean `{near}`?"));
        let message = format!("`{name}` is no {what} of the guest");
        let label = format!("no such {what}");
        found.push(found.error("unknown_account", message).at(place, label).help(help));
    }
}

/// What a node says of its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    Unsaid,
    Said(String),
    /// Reported already.
    Wrong,
}

impl Owner {
    pub(super) fn or_root(self) -> Option<String> {
        match self {
            Self::Unsaid => Some("root:root".to_owned()),
            Self::Said(owner) => Some(owner),
            Self::Wrong => None,
        }
    }

    pub(super) fn said(self) -> Option<String> {
        match self {
            Self::Said(owner) => Some(owner),
            Self::Unsaid | Self::Wrong => None,
        }
    }
}

/// A name, or an id that stands there without quotes.
pub(super) fn account(value: &Value<'_>) -> Option<String> {
    if !value.poisoned() && value.raw().is_integer() {
        return value.u64(0..=LAST_ID).map(|id| id.to_string());
    }
    value.text().map(str::to_owned)
}

fn id(text: &str) -> bool {
    text.parse::<u64>().is_ok_and(|id| id <= LAST_ID)
}

pub(super) fn people(body: &Block<'_>) -> People {
    let mut groups = Vec::new();
    let mut places = BTreeMap::new();
    let mut ids = Ids::default();
    for node in body.all("group") {
        places.extend(node.first_text().map(|name| (("group", name.to_owned()), node.name_span())));
        let name = named(&node, "a group's name", "write `group NAME gid=110`");
        let gid = node.required_prop("gid", "write `gid=110`: ids are part of the image, so they are fixed");
        let gid = gid.and_then(id_of);
        if let Some((name, gid)) = name.zip(gid)
            && ids.is_new(&node, &name, gid)
        {
            groups.push(Group { name, gid });
        }
        node.finish();
    }
    let mut users = Vec::new();
    let mut ids = Ids::default();
    for node in body.all("user") {
        places.extend(node.first_text().map(|name| (("user", name.to_owned()), node.name_span())));
        let user = user(&node, &groups);
        users.extend(user.filter(|user| ids.is_new(&node, &user.name, user.uid)));
        node.finish();
    }
    for user in &users {
        let clash = groups.iter().find(|group| group.name == user.name && group.gid != user.gid);
        let has_group = groups.iter().any(|group| group.gid == user.gid);
        if let Some((group, place)) = clash.filter(|_| !has_group).zip(ids.places.get(&user.name)) {
            let message =
                format!("user `{0}` has group {1}, and group `{0}` is {2}", user.name, user.gid, group.gid);
            let problem = body.findings().error("contradiction", message).at(*place, "here");
            body.findings().push(problem.help("leave `gid=` of the user out, or give both the same number"));
        }
    }
    People { users, groups, places, named: RefCell::default() }
}

/// Names and ids so far, of users or of groups.
#[derive(Debug, Default)]
struct Ids {
    places: BTreeMap<String, SourceSpan>,
    ids: BTreeMap<u32, String>,
}

impl Ids {
    fn is_new(&mut self, node: &Node<'_>, name: &str, id: u32) -> bool {
        let (found, here) = (node.findings(), node.name_span());
        let what = node.name();
        if let Some(first) = self.places.insert(name.to_owned(), here) {
            let problem = found.error("duplicate_name", format!("{what} `{name}` stands twice"));
            let problem = problem.at(here, "again here").at(first, "first here");
            found.push(problem.help(format!("keep one `{what} {name}`")));
            return false;
        }
        if let Some(holder) = self.ids.insert(id, name.to_owned()) {
            let first = self.places.get(&holder).copied().unwrap_or(here);
            let message = format!("{what}s `{holder}` and `{name}` have the same id, {id}");
            let problem = found.error("duplicate_id", message).at(here, "again here").at(first, "first here");
            found.push(problem.help("give each a number of its own"));
            return false;
        }
        true
    }
}

fn named<'a>(node: &Node<'a>, what: &'a str, help: &str) -> Option<String> {
    node.required_arg(what, help).and_then(|v| formed(node.findings(), v, &ACCOUNT))
}

fn id_of(value: Value<'_>) -> Option<u32> {
    value.u64(0..=LAST_ID).and_then(|id| u32::try_from(id).ok())
}

fn user(node: &Node<'_>, known: &[Group]) -> Option<User> {
    let found = node.findings();
    let name = named(node, "a user's name", "write `user NAME uid=101`");
    let uid = node.required_prop("uid", "write `uid=101`: ids are part of the image, so they are fixed");
    let uid = uid.and_then(id_of);
    let gid = node.prop("gid").map(id_of);
    let home = match node.prop("home") {
        None => Some("/nonexistent".to_owned()),
        // Debian's own accounts have it, too.
        Some(value) if value.raw().as_string() == Some("/") => Some("/".to_owned()),
        Some(value) => absolute(found, value).filter(|path| in_passwd(node, value, path)),
    };
    let shell = match node.prop("shell") {
        None => Some("/usr/sbin/nologin".to_owned()),
        Some(value) => absolute(found, value).filter(|path| in_passwd(node, value, path)),
    };
    let mut groups = Vec::new();
    if let Some(value) = node.prop("groups") {
        for name in value.text().unwrap_or_default().split(',').map(str::trim) {
            if ACCOUNT.fits(name) {
                groups.push(name.to_owned());
            } else if !value.poisoned() && value.raw().is_string() {
                let problem = value.problem("bad_name", format!("`{name}` cannot be a group's name"));
                found.push(problem.help("write names with commas between them: `groups=\"adm,ssl-cert\"`"));
            }
        }
    }
    groups.sort();
    groups.dedup();
    let (name, uid) = (name?, uid?);
    let gid = match gid {
        Some(written) => written?,
        None => known.iter().find(|group| group.name == name).map_or(uid, |group| group.gid),
    };
    Some(User { name, uid, gid, groups, home: home?, shell: shell? })
}

/// The fields of /etc/passwd end at a colon.
fn in_passwd(node: &Node<'_>, value: Value<'_>, path: &str) -> bool {
    if path.contains(':') {
        let problem =
            value.problem("bad_path", format!("`{path}` has a colon, which ends a field of /etc/passwd"));
        node.findings().push(problem.help("choose a path without one"));
        return false;
    }
    true
}
