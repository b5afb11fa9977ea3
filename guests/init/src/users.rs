//! Users and groups of the guest, from the texts of its /etc/passwd and /etc/group; there is no other place they could
//! come from. A name is looked up, a number is taken as it is.

use std::fs;
use std::path::Path;

use crate::failure::Failure;

/// What a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ids {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The further groups, sorted, without `gid`.
    pub(crate) groups: Vec<u32>,
}

/// The two files' texts.
#[derive(Debug, Default)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

/// One line of passwd, as far as it matters.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

/// What a user's own processes find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Profile<'a> {
    pub(crate) name: &'a str,
    pub(crate) home: &'a str,
    pub(crate) shell: &'a str,
}

impl Accounts {
    /// Of the system below `root`. A guest without these files has root, and numbers.
    pub(crate) fn read(root: &Path) -> Self {
        let read = |path| {
            let bytes = fs::read(root.join(path)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Accounts { passwd: read("etc/passwd"), group: read("etc/group") }
    }

    /// `group` instead of the user's own; the further groups stay those of the user.
    pub(crate) fn ids(&self, user: &str, group: Option<&str>) -> Result<Ids, Failure> {
        let account = self.account(user)?;
        let gid = match (group, &account) {
            (Some(group), _) => self.gid(group)?,
            (None, Known::Listed(account)) => account.gid,
            (None, Known::Number(0)) => 0,
            (None, Known::Number(uid)) => return Err(Failure::NoGroupOfUser(*uid)),
        };
        let groups = match &account {
            Known::Listed(account) => self.groups_with(account.name, gid),
            Known::Number(_) => Vec::new(),
        };
        Ok(Ids { uid: account.uid(), gid, groups })
    }

    /// `USER:GROUP`; the user alone has its own group.
    pub(crate) fn owner(&self, text: &str) -> Result<(u32, u32), Failure> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let ids = self.ids(user, group)?;
        Ok((ids.uid, ids.gid))
    }

    /// Of a user with a line in passwd. What that leaves open is `/` and `/bin/sh`, as login(1) has it.
    pub(crate) fn profile(&self, user: &str) -> Option<Profile<'_>> {
        let Ok(Known::Listed(Account { name, home, shell, .. })) = self.account(user) else { return None };
        let home = if home.is_empty() { "/" } else { home };
        let shell = if shell.is_empty() { "/bin/sh" } else { shell };
        Some(Profile { name, home, shell })
    }

    fn account(&self, user: &str) -> Result<Known<'_>, Failure> {
        let number = user.parse::<u32>().ok();
        let listed = self.passwd.lines().filter_map(account).find(|account| match number {
            Some(uid) => account.uid == uid,
            None => account.name == user,
        });
        match (listed, number) {
            (Some(account), _) => Ok(Known::Listed(account)),
            (None, Some(uid)) => Ok(Known::Number(uid)),
            (None, None) if user == "root" => Ok(Known::Number(0)),
            (None, None) => Err(Failure::NoUser(user.to_owned())),
        }
    }

    fn gid(&self, group: &str) -> Result<u32, Failure> {
        if let Ok(number) = group.parse() {
            return Ok(number);
        }
        let listed = self.group.lines().find_map(|line| {
            let (name, gid, _) = group_line(line)?;
            (name == group).then_some(gid)
        });
        match listed {
            Some(gid) => Ok(gid),
            None if group == "root" => Ok(0),
            None => Err(Failure::NoGroup(group.to_owned())),
        }
    }

    fn groups_with(&self, member: &str, except: u32) -> Vec<u32> {
        let listed = self.group.lines().filter_map(group_line);
        let mut groups: Vec<u32> = listed
            .filter(|(_, gid, members)| *gid != except && members.split(',').any(|name| name == member))
            .map(|(_, gid, _)| gid)
            .collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }
}

enum Known<'a> {
    Listed(Account<'a>),
    Number(u32),
}

impl Known<'_> {
    fn uid(&self) -> u32 {
        match self {
            Known::Listed(account) => account.uid,
            Known::Number(uid) => *uid,
        }
    }
}

/// passwd(5): name, password, uid, gid, a comment, home, shell; a line may end early.
fn account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let mut text = fields.skip(1).map(str::trim_end);
    let mut next = || text.next().unwrap_or_default();
    Some(Account { name, uid, gid, home: next(), shell: next() })
}

/// group(5): name, password, gid, members.
fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or_default().trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nbroken\npostgres:x:105:110::/var/lib/postgresql:/bin/sh\n"
                .into(),
            group: "root:x:0:\ntape:x:26:\nssl-cert:x:104:www,postgres\npostgres:x:110:postgres\nkvm:x:90:postgres\n"
                .into(),
        }
    }

    fn ids(user: &str, group: Option<&str>) -> Result<(u32, u32, Vec<u32>), String> {
        let found = accounts().ids(user, group).map_err(|failure| failure.message())?;
        Ok((found.uid, found.gid, found.groups))
    }

    #[test]
    fn a_name_has_its_group_and_further_groups() {
        assert_eq!(ids("postgres", None), Ok((105, 110, vec![90, 104])));
        assert_eq!(ids("postgres", Some("kvm")), Ok((105, 90, vec![104, 110])));
        assert_eq!(ids("root", None), Ok((0, 0, vec![])));
    }

    #[test]
    fn a_number_is_a_user_of_the_file_or_nobody_in_particular() {
        assert_eq!(ids("105", None), Ok((105, 110, vec![90, 104])));
        assert_eq!(ids("1000", Some("26")), Ok((1000, 26, vec![])));
        assert_eq!(
            ids("1000", None),
            Err("user 1000 has no line in /etc/passwd: name a group with it, or give it a line".into())
        );
    }

    #[test]
    fn a_name_that_is_nowhere_is_refused() {
        assert_eq!(ids("mysql", None), Err("no user `mysql` in /etc/passwd".into()));
        assert_eq!(ids("root", Some("mysql")), Err("no group `mysql` in /etc/group".into()));
        assert_eq!(ids("", None), Err("no user `` in /etc/passwd".into()));
    }

    #[test]
    fn root_needs_no_file() {
        let none = Accounts::read(Path::new("/nonexistent"));
        assert_eq!(none.owner("root:root").unwrap(), (0, 0));
        assert_eq!(none.owner("0").unwrap(), (0, 0));
        assert_eq!(accounts().owner("postgres:ssl-cert").unwrap(), (105, 104));
        assert_eq!(accounts().owner("postgres").unwrap(), (105, 110));
    }
}
