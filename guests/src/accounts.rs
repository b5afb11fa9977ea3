//! The accounts of a guest made of packages: the users and groups that every Debian system begins with (base-passwd's
//! fixed ids, Debian policy 9.2.2), and the texts of /etc/passwd and its relatives taken apart and put together. Pure; which
//! tree they belong to is `root`'s business.

use crate::recipe::{Group, User};

/// name, uid, gid, home. Their shell is nologin, but for root.
const USERS: [(&str, u32, u32, &str); 18] = [
    ("root", 0, 0, "/root"),
    ("daemon", 1, 1, "/usr/sbin"),
    ("bin", 2, 2, "/bin"),
    ("sys", 3, 3, "/dev"),
    ("sync", 4, 65534, "/bin"),
    ("games", 5, 60, "/usr/games"),
    ("man", 6, 12, "/var/cache/man"),
    ("lp", 7, 7, "/var/spool/lpd"),
    ("mail", 8, 8, "/var/mail"),
    ("news", 9, 9, "/var/spool/news"),
    ("uucp", 10, 10, "/var/spool/uucp"),
    ("proxy", 13, 13, "/bin"),
    ("www-data", 33, 33, "/var/www"),
    ("backup", 34, 34, "/var/backups"),
    ("list", 38, 38, "/var/list"),
    ("irc", 39, 39, "/run/ircd"),
    ("_apt", 42, 65534, "/nonexistent"),
    ("nobody", 65534, 65534, "/nonexistent"),
];

const GROUPS: [(&str, u32); 38] = [
    ("root", 0),
    ("daemon", 1),
    ("bin", 2),
    ("sys", 3),
    ("adm", 4),
    ("tty", 5),
    ("disk", 6),
    ("lp", 7),
    ("mail", 8),
    ("news", 9),
    ("uucp", 10),
    ("man", 12),
    ("proxy", 13),
    ("kmem", 15),
    ("dialout", 20),
    ("fax", 21),
    ("voice", 22),
    ("cdrom", 24),
    ("floppy", 25),
    ("tape", 26),
    ("sudo", 27),
    ("audio", 29),
    ("dip", 30),
    ("www-data", 33),
    ("backup", 34),
    ("operator", 37),
    ("list", 38),
    ("irc", 39),
    ("src", 40),
    ("shadow", 42),
    ("utmp", 43),
    ("video", 44),
    ("sasl", 45),
    ("plugdev", 46),
    ("staff", 50),
    ("games", 60),
    ("users", 100),
    ("nogroup", 65534),
];

/// The group that `chown USER:` would give to an account that every guest of packages has.
pub(crate) fn own_group_of(user: &str) -> Option<String> {
    let (_, _, gid, _) = USERS.iter().find(|(name, uid, ..)| *name == user || uid.to_string() == user)?;
    GROUPS.iter().find(|(_, known)| known == gid).map(|(name, _)| (*name).to_owned())
}

/// The accounts of one guest.
#[derive(Debug, Clone)]
pub(crate) struct Accounts {
    users: Vec<PasswdLine>,
    groups: Vec<GroupLine>,
}

/// The fields of a line; what is no line of the file's form is kept as it is.
#[derive(Debug, Clone)]
struct PasswdLine {
    name: String,
    uid: Option<u32>,
    text: String,
}

#[derive(Debug, Clone)]
struct GroupLine {
    name: String,
    gid: Option<u32>,
    members: Vec<String>,
    /// Everything before the members.
    head: String,
}

/// Why a recipe's user or group cannot be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// An id that another has.
    Taken { what: &'static str, name: String, id: u32, holder: String },
    /// A group that nobody declares.
    Unknown { asked: String },
}

impl Accounts {
    pub(crate) fn debian() -> Self {
        let users = USERS.iter().map(|(name, uid, gid, home)| {
            let shell = if *uid == 0 { "/bin/sh" } else { "/usr/sbin/nologin" };
            format!("{name}:x:{uid}:{gid}:{name}:{home}:{shell}\n")
        });
        let groups = GROUPS.iter().map(|(name, gid)| format!("{name}:x:{gid}:\n"));
        Self::read(&users.collect::<String>(), &groups.collect::<String>())
    }

    /// From the texts of /etc/passwd and /etc/group.
    pub(crate) fn read(passwd: &str, group: &str) -> Self {
        let lines = |text: &str| -> Vec<String> {
            text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
        };
        let users = lines(passwd).into_iter().map(|text| {
            let fields: Vec<&str> = text.split(':').collect();
            let field = |at: usize| fields.get(at).copied().unwrap_or_default();
            PasswdLine { name: field(0).to_owned(), uid: field(2).parse().ok(), text: text.clone() }
        });
        let groups = lines(group).into_iter().map(|text| {
            let mut fields = text.splitn(4, ':');
            let head: Vec<&str> = fields.by_ref().take(3).collect();
            let members = fields.next().unwrap_or_default();
            GroupLine {
                name: head.first().map_or(String::new(), |name| (*name).to_owned()),
                gid: head.get(2).and_then(|gid| gid.parse().ok()),
                members: members.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
                head: head.join(":"),
            }
        });
        Self { users: users.collect(), groups: groups.collect() }
    }

    /// Adds what a recipe declares; a user or a group of a name that is there takes its place.
    pub(crate) fn add(&mut self, users: &[User], groups: &[Group]) -> Result<(), Refused> {
        for group in groups {
            self.add_group(&group.name, group.gid)?;
        }
        for user in users {
            if let Some(holder) =
                self.users.iter().find(|there| there.uid == Some(user.uid) && there.name != user.name)
            {
                return Err(Refused::Taken {
                    what: "user",
                    name: user.name.clone(),
                    id: user.uid,
                    holder: holder.name.clone(),
                });
            }
            if !self.groups.iter().any(|group| group.gid == Some(user.gid)) {
                self.add_group(&user.name, user.gid)?;
            }
            let User { name, uid, gid, home, shell, .. } = user;
            let line = PasswdLine {
                name: name.clone(),
                uid: Some(*uid),
                text: format!("{name}:x:{uid}:{gid}:{name}:{home}:{shell}"),
            };
            match self.users.iter_mut().find(|there| there.name == *name) {
                Some(there) => *there = line,
                None => self.users.push(line),
            }
        }
        for user in users {
            for asked in &user.groups {
                let Some(group) = self.groups.iter_mut().find(|group| group.name == *asked) else {
                    return Err(Refused::Unknown { asked: asked.clone() });
                };
                if !group.members.contains(&user.name) {
                    group.members.push(user.name.clone());
                }
            }
        }
        Ok(())
    }

    fn add_group(&mut self, name: &str, gid: u32) -> Result<(), Refused> {
        let other = self.groups.iter().find(|group| group.gid == Some(gid) && group.name != name);
        if let Some(holder) = other {
            let holder = holder.name.clone();
            return Err(Refused::Taken { what: "group", name: name.to_owned(), id: gid, holder });
        }
        let head = format!("{name}:x:{gid}");
        match self.groups.iter_mut().find(|group| group.name == name) {
            Some(there) => (there.gid, there.head) = (Some(gid), head),
            None => self.groups.push(GroupLine {
                name: name.to_owned(),
                gid: Some(gid),
                members: Vec::new(),
                head,
            }),
        }
        Ok(())
    }

    /// The id of a user, given by name or as a number.
    pub(crate) fn uid(&self, user: &str) -> Option<u32> {
        let named = self.users.iter().find(|there| there.name == user).and_then(|there| there.uid);
        named.or_else(|| user.parse().ok())
    }

    /// The id of a group, given by name or as a number.
    pub(crate) fn gid(&self, group: &str) -> Option<u32> {
        let named = self.groups.iter().find(|there| there.name == group).and_then(|there| there.gid);
        named.or_else(|| group.parse().ok())
    }

    pub(crate) fn user_names(&self) -> Vec<String> {
        self.users.iter().map(|user| user.name.clone()).collect()
    }

    pub(crate) fn group_names(&self) -> Vec<String> {
        self.groups.iter().map(|group| group.name.clone()).collect()
    }

    pub(crate) fn passwd(&self) -> String {
        self.users.iter().map(|user| format!("{}\n", user.text)).collect()
    }

    pub(crate) fn group(&self) -> String {
        self.groups.iter().map(|group| format!("{}:{}\n", group.head, group.members.join(","))).collect()
    }

    /// /etc/shadow: the lines of `there`, and for each other user one with a password that nothing matches.
    pub(crate) fn shadow(&self, there: &str) -> String {
        let mut lines: Vec<String> =
            there.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
        for user in &self.users {
            let begins = format!("{}:", user.name);
            if !user.name.is_empty() && !lines.iter().any(|line| line.starts_with(&begins)) {
                lines.push(format!("{begins}*:::::::"));
            }
        }
        lines.into_iter().map(|line| line + "\n").collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, uid: u32, gid: u32, groups: &[&str]) -> User {
        User {
            name: name.to_owned(),
            uid,
            gid,
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            home: "/nonexistent".to_owned(),
            shell: "/usr/sbin/nologin".to_owned(),
        }
    }

    #[test]
    fn a_user_gets_a_line_a_group_and_its_further_groups() {
        let mut accounts = Accounts::debian();
        let groups = [Group { name: "ssl-cert".to_owned(), gid: 110 }];
        accounts.add(&[user("postgres", 101, 104, &["adm", "ssl-cert"])], &groups).unwrap();
        assert!(accounts.passwd().ends_with("postgres:x:101:104:postgres:/nonexistent:/usr/sbin/nologin\n"));
        let group = accounts.group();
        for line in ["adm:x:4:postgres", "ssl-cert:x:110:postgres", "postgres:x:104:"] {
            assert!(group.lines().any(|one| one == line), "{line} is not in {group}");
        }
        assert_eq!((accounts.uid("postgres"), accounts.gid("ssl-cert")), (Some(101), Some(110)));
        assert_eq!((accounts.uid("7"), accounts.uid("absent")), (Some(7), None));
    }

    #[test]
    fn an_id_that_another_has_is_refused() {
        let taken = Accounts::debian().add(&[user("web", 33, 200, &[])], &[]).unwrap_err();
        assert!(
            matches!(taken, Refused::Taken { what: "user", id: 33, ref holder, .. } if holder == "www-data")
        );
        let taken = Accounts::debian().add(&[], &[Group { name: "mine".to_owned(), gid: 4 }]).unwrap_err();
        assert!(matches!(taken, Refused::Taken { what: "group", id: 4, ref holder, .. } if holder == "adm"));
        let unknown = Accounts::debian().add(&[user("web", 200, 200, &["wheel"])], &[]).unwrap_err();
        assert_eq!(unknown, Refused::Unknown { asked: "wheel".to_owned() });
    }

    #[test]
    fn a_user_of_a_known_name_takes_its_place_and_shares_a_group_that_is_there() {
        let mut accounts = Accounts::debian();
        accounts.add(&[user("www-data", 33, 33, &[]), user("guest", 300, 65534, &[])], &[]).unwrap();
        assert_eq!(accounts.passwd().matches("\nwww-data:").count(), 1);
        assert!(!accounts.group().contains("guest:"));
    }

    #[test]
    fn what_an_archive_says_stays_as_it_is_and_nobody_gets_a_password() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nodd line\n";
        let mut accounts = Accounts::read(passwd, "root:x:0:\nstaff:x:50:a,b\n");
        accounts.add(&[user("c", 300, 300, &["staff"])], &[]).unwrap();
        assert!(accounts.passwd().starts_with(passwd));
        assert!(accounts.group().contains("staff:x:50:a,b,c\n"));
        let shadow = accounts.shadow("root:$6$x:1::::::\n");
        assert!(shadow.starts_with("root:$6$x:1::::::\n") && shadow.contains("\nc:*:::::::\n"), "{shadow}");
    }
}
