//! Which filesystem lies on which disk and where the guest mounts it: the profile says it of its disks, the recipe of what
//! its services need, and here the two become one list. Where both speak they must agree; what neither the image nor its
//! kernel can do is refused before anything boots.

use std::collections::BTreeMap;

use vmprof_guests::{Abilities, Conduct, GuestMount};
use vmprof_job::{Filesystem, Mount, Mounted};
use vmprof_profiles::{Disk, Problem, Problems, Profile};

use crate::failure::{Failure, Kind};

/// What profile and recipe ask for together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystems {
    /// By the disk's name: made on it where it is empty.
    made: BTreeMap<String, Filesystem>,
    /// In the order in which the guest makes them: what lies below another comes after it.
    mounts: Vec<Mount>,
}

/// Whose problems the list is: they point into the profile.
const AREA: &str = "vmprof::profile";

impl Filesystems {
    /// What `profile` and the recipe ask for, or everything in which they do not fit together. `recipe` is what messages
    /// call the recipe: its file.
    pub fn agreed(profile: &Profile, conduct: &Conduct, recipe: &str) -> Result<Filesystems, Failure> {
        let mut problems = Vec::new();
        let mut made = BTreeMap::new();
        let mut mounts = Vec::new();
        for own in &conduct.mounts {
            let Mounted::Disk { serial } = &own.mount.what else {
                mounts.push(own.mount.clone());
                continue;
            };
            match profile.disks.iter().find(|disk| disk.name.value == *serial) {
                None if own.optional => continue,
                None => problems.push(no_such_disk(profile, serial, &own.mount.path, recipe)),
                Some(disk) if disk.readonly && writes(own) => problems.push(readonly(disk, own, recipe)),
                Some(_) => {
                    mounts.push(own.mount.clone());
                    if let Some(filesystem) = own.format {
                        made.entry(serial.clone()).or_insert(filesystem);
                    }
                }
            }
        }
        let by_recipe = mounts.len();
        for disk in &profile.disks {
            let Some(format) = &disk.format else { continue };
            let name = &disk.name.value;
            match filesystem(&format.value.filesystem) {
                Some(filesystem) => {
                    made.insert(name.clone(), filesystem);
                }
                None => problems.push(unknown(disk, &format.value.filesystem)),
            }
            let Some(path) = &format.value.mount else { continue };
            let recipes = mounts.get(..by_recipe).unwrap_or_default();
            let own: Vec<&Mount> = recipes.iter().filter(|mount| is_of(mount, name)).collect();
            match own.first() {
                Some(_) if own.iter().any(|mount| plain(&mount.path) == plain(path)) => {}
                Some(elsewhere) => problems.push(mounted_elsewhere(disk, path, &elsewhere.path, recipe)),
                None if mounts.iter().any(|mount| plain(&mount.path) == plain(path)) => {
                    problems.push(mounted_twice(disk, path, recipe));
                }
                None => mounts.push(Mount {
                    path: path.clone(),
                    what: Mounted::Disk { serial: name.clone() },
                    options: Vec::new(),
                    owner: None,
                    mode: None,
                }),
            }
        }
        // Stable: the recipe's order stays where it decides nothing.
        mounts.sort_by_key(|mount| plain(&mount.path).matches('/').count());
        refused(profile, problems)?;
        Ok(Filesystems { made, mounts })
    }

    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// What is made on the disk of that name where it is empty.
    pub fn made_on(&self, disk: &str) -> Option<Filesystem> {
        self.made.get(disk).copied()
    }

    /// Refuses what the built guest can neither make nor mount. `recipe` as in [`Filesystems::agreed`].
    pub fn possible(&self, profile: &Profile, able: &Abilities, recipe: &str) -> Result<(), Failure> {
        let mut problems = Vec::new();
        for (name, filesystem) in &self.made {
            let word = filesystem.name();
            let mut problem = |message: String, help: String| {
                let format = profile.disks.iter().filter(|disk| disk.name.value == *name);
                let span = format.filter_map(|disk| Some(disk.format.as_ref()?.span)).next();
                let problem = Problem::error("vmprof::up::no_filesystem", message).help(help);
                problems.push(match span {
                    Some(span) => problem.at(span, "asked here"),
                    None => problem,
                });
            };
            if !able.makes.contains(filesystem) {
                problem(
                    format!("disk `{name}` is to get {word}, and the guest has no program mkfs.{word}"),
                    format!("add `packages {}` to {recipe}", package(*filesystem)),
                );
            }
            let mounted = self.mounts.iter().any(|mount| is_of(mount, name));
            if mounted && !able.mounts.contains(filesystem) {
                problem(
                    format!(
                        "disk `{name}` is to be mounted with {word}, and the guest's kernel does not load it"
                    ),
                    format!("add `modules {word}` to {recipe}"),
                );
            }
        }
        refused(profile, problems)
    }
}

fn refused(profile: &Profile, problems: Vec<Problem>) -> Result<(), Failure> {
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(Kind::Invalid, Problems::new(AREA, profile.source().clone(), problems))),
    }
}

/// The profile's word; `None` for one of another version's plan.
fn filesystem(word: &str) -> Option<Filesystem> {
    [Filesystem::Ext4, Filesystem::Xfs].into_iter().find(|filesystem| filesystem.name() == word)
}

/// Debian's package with the program that makes it.
fn package(filesystem: Filesystem) -> &'static str {
    match filesystem {
        Filesystem::Ext4 => "e2fsprogs",
        Filesystem::Xfs => "xfsprogs",
    }
}

fn plain(path: &str) -> &str {
    path.trim_end_matches('/')
}

fn is_of(mount: &Mount, disk: &str) -> bool {
    matches!(&mount.what, Mounted::Disk { serial } if serial == disk)
}

/// Whether the recipe's mount needs a disk that can be written.
fn writes(own: &GuestMount) -> bool {
    own.format.is_some() || !own.mount.options.iter().any(|option| option == "ro")
}

fn no_such_disk(profile: &Profile, disk: &str, path: &str, recipe: &str) -> Problem {
    let names: Vec<String> = profile.disks.iter().map(|disk| format!("`{}`", disk.name.value)).collect();
    let has = match names.is_empty() {
        true => "no disk".to_owned(),
        false => format!("only {}", names.join(", ")),
    };
    let message =
        format!("{recipe} mounts the disk `{disk}` at {path}, and the profile `{}` has {has}", profile.name);
    Problem::error("vmprof::up::no_such_disk", message).help(format!(
        "add it to the profile: `disk {disk} {{ source file=\"{disk}.raw\" size=\"8GiB\"; }}`; its name is what the guest finds it by"
    ))
}

fn readonly(disk: &Disk, own: &GuestMount, recipe: &str) -> Problem {
    let wish = match own.format {
        Some(filesystem) => format!("makes {} on it where it is empty", filesystem.name()),
        None => format!("mounts it at {} to write", own.mount.path),
    };
    let message = format!("disk `{}` may only be read, and {recipe} {wish}", disk.name.value);
    Problem::error("vmprof::up::readonly_disk", message)
        .at(disk.name.span, "`readonly` here")
        .help("remove `readonly` from the disk, or let the recipe mount it with the option `ro` and without a format")
}

fn unknown(disk: &Disk, word: &str) -> Problem {
    let message = format!("disk `{}`: `{word}` is no filesystem that a guest makes", disk.name.value);
    Problem::error("vmprof::up::no_filesystem", message).help("write `format ext4` or `format xfs`")
}

fn mounted_elsewhere(disk: &Disk, path: &str, elsewhere: &str, recipe: &str) -> Problem {
    let message = format!(
        "disk `{}` has two places: the profile mounts it at {path}, and {recipe} at {elsewhere}",
        disk.name.value
    );
    pointing(disk, Problem::error("vmprof::up::mounted_elsewhere", message), path).help(format!(
        "leave `mount` out of `format`, and {elsewhere} holds; or write the same path in both files"
    ))
}

fn mounted_twice(disk: &Disk, path: &str, recipe: &str) -> Problem {
    let message = format!(
        "disk `{}` is to be mounted at {path}, and {recipe} mounts something else there",
        disk.name.value
    );
    pointing(disk, Problem::error("vmprof::up::mounted_twice", message), path)
        .help("the second would hide the first: give the disk another path, or leave `mount` out")
}

fn pointing(disk: &Disk, problem: Problem, path: &str) -> Problem {
    match &disk.format {
        Some(format) => problem.at(format.span, format!("at {path}")),
        None => problem,
    }
}

#[cfg(test)]
mod tests {
    use miette::Diagnostic;
    use vmprof_guests::Init;
    use vmprof_profiles::read_profile;

    use super::*;

    const RECIPE: &str = "guests/g.kdl";

    /// A profile with a disk `data` and a disk `log`, with these words in them.
    fn profile(data: &str, log: &str) -> Profile {
        let text = format!(
            "profile p {{\n guest \"g.kdl\"\n vcpu 1\n memory \"1GiB\"\n iothreads 1\n \
             disk data {{ source file=\"d.raw\"; {data}; }}\n disk log {{ source file=\"l.raw\"; {log}; }}\n}}\n"
        );
        read_profile("p.kdl", &text).unwrap().0
    }

    fn mount(disk: &str, path: &str, format: Option<Filesystem>) -> GuestMount {
        let what = Mounted::Disk { serial: disk.to_owned() };
        let mount = Mount { path: path.to_owned(), what, options: vec![], owner: None, mode: None };
        GuestMount { mount, format, optional: false }
    }

    fn conduct(mounts: Vec<GuestMount>) -> Conduct {
        Conduct {
            hostname: "g".into(),
            env: vec![],
            sysctl: vec![],
            mounts,
            init: Init::Vmprof,
            services: vec![],
            stop_within_ms: 1,
            run: vec![],
        }
    }

    fn agreed(profile: &Profile, mounts: Vec<GuestMount>) -> Filesystems {
        Filesystems::agreed(profile, &conduct(mounts), RECIPE).unwrap()
    }

    fn places(filesystems: &Filesystems) -> Vec<&str> {
        filesystems.mounts().iter().map(|mount| mount.path.as_str()).collect()
    }

    /// The last word of each problem's code, and its message.
    fn refused<T: std::fmt::Debug>(outcome: Result<T, Failure>) -> Vec<(String, String)> {
        let failure = outcome.unwrap_err();
        assert_eq!(failure.kind, Kind::Invalid);
        let related: Vec<_> = failure.problem.related().unwrap().collect();
        assert!(related.iter().all(|one| one.help().is_some()));
        let code =
            |one: &dyn Diagnostic| one.code().unwrap().to_string().rsplit("::").next().unwrap().to_owned();
        related.iter().map(|one| (code(*one), one.to_string())).collect()
    }

    #[test]
    fn the_profiles_filesystem_wins_and_its_path_is_added_where_the_recipe_has_none() {
        let filesystems = agreed(
            &profile("format xfs", "format ext4 mount=\"/var/log\""),
            vec![mount("data", "/var/lib/db", Some(Filesystem::Ext4))],
        );
        assert_eq!(filesystems.made_on("data"), Some(Filesystem::Xfs));
        assert_eq!(filesystems.made_on("log"), Some(Filesystem::Ext4));
        assert_eq!(places(&filesystems), ["/var/log", "/var/lib/db"]);
    }

    #[test]
    fn the_recipes_filesystem_holds_where_the_profile_names_none() {
        let own = mount("data", "/srv", Some(Filesystem::Xfs));
        let filesystems = agreed(&profile("readonly #false", "queues 1"), vec![own]);
        assert_eq!((filesystems.made_on("data"), filesystems.made_on("log")), (Some(Filesystem::Xfs), None));
    }

    #[test]
    fn a_mount_below_another_comes_after_it() {
        let below = mount("data", "/srv/db/wal", None);
        let filesystems = agreed(&profile("queues 1", "format ext4 mount=\"/srv\""), vec![below]);
        assert_eq!(places(&filesystems), ["/srv", "/srv/db/wal"]);
    }

    #[test]
    fn the_same_path_in_both_files_is_one_mount_and_another_is_refused() {
        let own = || vec![mount("data", "/srv/", None)];
        let same = agreed(&profile("format ext4 mount=\"/srv\"", "queues 1"), own());
        assert_eq!(places(&same), ["/srv/"]);
        let other = profile("format ext4 mount=\"/data\"", "queues 1");
        let refused = refused(Filesystems::agreed(&other, &conduct(own()), RECIPE));
        assert_eq!(refused[0].0, "mounted_elsewhere");
        for word in ["`data`", "/data", RECIPE, "/srv/"] {
            assert!(refused[0].1.contains(word), "{}", refused[0].1);
        }
    }

    #[test]
    fn two_disks_in_one_place_are_refused() {
        let log = profile("queues 1", "format ext4 mount=\"/srv\"");
        let own = conduct(vec![mount("data", "/srv", None)]);
        assert_eq!(refused(Filesystems::agreed(&log, &own, RECIPE))[0].0, "mounted_twice");
    }

    #[test]
    fn a_disk_the_profile_lacks_is_refused_unless_it_is_optional() {
        let profile = profile("queues 1", "queues 1");
        let missing = mount("cache", "/var/cache", None);
        let optional = GuestMount { optional: true, ..missing.clone() };
        let refused = refused(Filesystems::agreed(&profile, &conduct(vec![missing]), RECIPE));
        assert_eq!(refused[0].0, "no_such_disk");
        for word in ["`cache`", "`p`", "`data`, `log`", RECIPE] {
            assert!(refused[0].1.contains(word), "{}", refused[0].1);
        }
        assert_eq!(places(&agreed(&profile, vec![optional])), [""; 0]);
    }

    #[test]
    fn a_disk_that_may_only_be_read_is_neither_formatted_nor_mounted_to_write() {
        let profile = profile("readonly", "queues 1");
        let plain = mount("data", "/srv", None);
        let mut reading = plain.clone();
        reading.mount.options = vec!["noatime".into(), "ro".into()];
        let made = GuestMount { format: Some(Filesystem::Ext4), ..reading.clone() };
        for own in [plain, made] {
            let refused = refused(Filesystems::agreed(&profile, &conduct(vec![own]), RECIPE));
            assert_eq!(refused[0].0, "readonly_disk");
        }
        assert_eq!(places(&agreed(&profile, vec![reading])), ["/srv"]);
    }

    #[test]
    fn what_the_guest_cannot_make_or_mount_is_refused_with_what_to_add() {
        let profile = profile("format xfs mount=\"/srv\"", "format ext4");
        let filesystems = agreed(&profile, vec![]);
        let able = |mounts: &[Filesystem], makes: &[Filesystem]| Abilities {
            mounts: mounts.to_vec(),
            makes: makes.to_vec(),
            shell: false,
        };
        let both = [Filesystem::Ext4, Filesystem::Xfs];
        filesystems.possible(&profile, &able(&[Filesystem::Xfs], &both), RECIPE).unwrap();
        let failure = filesystems.possible(&profile, &able(&both, &[]), RECIPE).unwrap_err();
        let helps: Vec<String> =
            failure.problem.related().unwrap().map(|one| one.help().unwrap().to_string()).collect();
        assert!(
            helps[0].contains("packages xfsprogs") && helps[1].contains("packages e2fsprogs"),
            "{helps:?}"
        );
        let unmounted = refused(filesystems.possible(&profile, &able(&[], &both), RECIPE));
        assert_eq!(unmounted.len(), 1, "nobody mounts `log`: {unmounted:?}");
        assert!(unmounted[0].1.contains("kernel"), "{unmounted:?}");
    }
}
