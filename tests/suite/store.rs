//! The store under many hands: builders killed at any moment, many at once, gc beside them, full disks. The guests are made
//! up on the spot and need no network. `tests/soak-store` runs the same with more of everything.

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::process::Signal;
use serde_json::Value;
use vmprof_guests::testing::{Guest, site};
use vmprof_tests::{Finished, Home, NOBODY, copy_of_binary, finish, spawn};

/// `fewer` in every test run, what the environment says in a soak.
fn how_many(variable: &str, fewer: usize) -> usize {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(fewer)
}

/// A directory of recipes, and a store that has their packages.
struct Site {
    directory: tempfile::TempDir,
    home: Home,
}

impl Site {
    /// `count` guests; each shares most of its packages with its neighbours.
    fn new(count: usize) -> Site {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::with_store(directory.path().join("store"));
        let site = Site { directory, home };
        site.write(count, "first");
        site
    }

    /// Writes the recipes, `words` into a file of each: with other words every root image is another.
    fn write(&self, count: usize, words: &str) {
        let package = |number: usize| format!("p{}", number % (count + 2));
        let guests: Vec<Guest> = (0..count)
            .map(|number| Guest {
                name: format!("g{number}"),
                packages: (number..number + 3).map(package).collect(),
                body: format!(" run \"/usr/bin/{}\"\n file \"/etc/words\" \"{words}\"\n", package(number)),
            })
            .collect();
        site(self.directory.path(), &self.store(), &guests);
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn recipe(&self, number: usize) -> String {
        self.directory.path().join(format!("g{number}.kdl")).to_str().unwrap().to_owned()
    }

    fn build(&self, number: usize) -> Command {
        self.home.vmprof(["build", "--offline", "--frozen", "--format", "json", &self.recipe(number)])
    }

    fn verb(&self, words: &[&str]) -> Finished {
        self.home.run([&["store"], words].concat())
    }

    fn names(&self, part: &str) -> Vec<String> {
        let directory = fs::read_dir(self.store().join(part)).unwrap();
        let mut names: Vec<String> =
            directory.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Nothing wrong, nothing left over, and what was built is there.
    #[track_caller]
    fn is_whole(&self) {
        self.verb(&["verify"]).expect(0);
        assert_eq!(self.names("tmp"), [""; 0]);
    }
}

fn digest(built: &str) -> String {
    let built: Value = serde_json::from_str(built).unwrap();
    built["digest"].as_str().unwrap().to_owned()
}

/// What comes to a directory by a rename, and how often: everything in a store is published that way.
struct Published(rustix::fd::OwnedFd);

impl Published {
    fn watch(directories: &[&Path]) -> Published {
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        for directory in directories {
            inotify::add_watch(&watch, *directory, WatchFlags::MOVED_TO).unwrap();
        }
        Published(watch)
    }

    fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let mut buffer = [MaybeUninit::uninit(); 64 << 10];
        let mut reader = Reader::new(&self.0, &mut buffer);
        // Until there is nothing more.
        while let Ok(event) = reader.next() {
            assert!(!event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW), "events were lost");
            let name = event.file_name().unwrap().to_str().unwrap().to_owned();
            *counts.entry(name).or_default() += 1;
        }
        counts
    }
}

#[test]
fn a_builder_killed_at_any_moment_leaves_a_whole_store_and_the_next_build_succeeds() {
    let rounds = how_many("VMPROF_KILLS", 8);
    let cold = Site::new(1);
    let begun = Instant::now();
    let wanted = digest(&finish(&mut cold.build(0)).expect(0).stdout);
    let took = begun.elapsed();
    for round in 0..rounds {
        let site = Site::new(1);
        let builder = spawn(&mut site.build(0));
        // Spread over all that a build does, and a little beyond.
        std::thread::sleep(took.mul_f64((round as f64 + 0.5) / rounds as f64 * 1.1));
        builder.signal(Signal::KILL);
        builder.finish();
        site.is_whole();
        // What the killed one made may be kept by nobody yet; packages without a root are nobody's either.
        let copy = site.names("records").len();
        site.verb(&["gc", "--dry-run"]).expect(0);
        assert_eq!(site.names("records").len(), copy, "a dry run changes nothing");
        let built = finish(&mut site.build(0)).expect(0);
        assert_eq!(digest(&built.stdout), wanted, "round {round}");
        site.verb(&["gc"]).expect(0);
        site.is_whole();
        assert_eq!(finish(&mut site.build(0)).expect(0).stdout, built.stdout);
    }
}

#[test]
fn a_gc_killed_at_any_moment_leaves_a_whole_store() {
    let rounds = how_many("VMPROF_KILLS", 8);
    let site = Site::new(2);
    for round in 0..rounds {
        site.write(2, &format!("round {round}"));
        (0..2).for_each(|number| drop(finish(&mut site.build(number)).expect(0)));
        site.write(2, &format!("after {round}"));
        let kept = finish(&mut site.build(0)).expect(0).stdout;
        let collector = spawn(&mut site.home.vmprof(["store", "gc"]));
        std::thread::sleep(std::time::Duration::from_millis(round as u64 * 3));
        collector.signal(Signal::KILL);
        collector.finish();
        site.is_whole();
        assert_eq!(finish(&mut site.build(0)).expect(0).stdout, kept);
    }
    site.verb(&["gc"]).expect(0);
    site.is_whole();
}

#[test]
fn concurrent_builds_of_overlapping_guests_agree_and_make_nothing_twice() {
    const GUESTS: usize = 4;
    let builds = how_many("VMPROF_BUILDS", 12);
    let site = Site::new(GUESTS);
    let published = Published::watch(&[&site.store(), &site.store().join("records")]);
    let builders: Vec<_> = (0..builds).map(|number| spawn(&mut site.build(number % GUESTS))).collect();
    let mut digests: BTreeMap<usize, String> = BTreeMap::new();
    for (number, builder) in builders.into_iter().enumerate() {
        let found = digest(&builder.finish().expect(0).stdout);
        let first = digests.entry(number % GUESTS).or_insert_with(|| found.clone());
        assert_eq!(*first, found, "guest {}", number % GUESTS);
    }
    let counts = published.counts();
    // A kernel and an initramfs for all of them, a root image each, the packages unpacked (the kernel's, and three of which
    // each guest shares two with its neighbour), and a record of each.
    let packages = 1 + GUESTS + 2;
    assert_eq!(counts.len(), 2 * (2 + GUESTS + packages), "{counts:#?}");
    assert!(counts.values().all(|count| *count == 1), "{counts:#?}");
    site.is_whole();
}

#[test]
fn gc_beside_builds_breaks_none_of_them() {
    const GUESTS: usize = 4;
    let builds = how_many("VMPROF_BUILDS", 12);
    let site = Site::new(GUESTS);
    // From now on every package is some root's.
    (0..GUESTS).for_each(|number| drop(finish(&mut site.build(number)).expect(0)));
    site.write(GUESTS, "second");
    let done = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let collecting = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                site.verb(&["gc"]).expect(0);
                rounds += 1;
            }
            rounds
        });
        for wave in 0..builds.div_ceil(GUESTS) {
            if wave > 0 {
                site.write(GUESTS, &format!("wave {wave}"));
            }
            let builders: Vec<_> = (0..GUESTS).map(|number| spawn(&mut site.build(number))).collect();
            let ended: Vec<Finished> = builders.into_iter().map(vmprof_tests::Running::finish).collect();
            if let Some(broken) = ended.into_iter().find(|ended| ended.status != Some(0)) {
                done.store(true, Ordering::Relaxed);
                broken.expect(0);
            }
        }
        done.store(true, Ordering::Relaxed);
        collecting.join().unwrap()
    });
    assert!(rounds > 0);
    site.verb(&["gc"]).expect(0);
    site.is_whole();
    // A root image each, and the kernel and the initramfs: older ones are gone, packages are not.
    let listing: Value =
        serde_json::from_str(&site.verb(&["ls", "--format", "json"]).expect(0).stdout).unwrap();
    assert_eq!(listing["schema"], "vmprof.store/1");
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in listing["entries"].as_array().unwrap() {
        *kinds.entry(entry["kind"].as_str().unwrap()).or_default() += 1;
        assert!(entry["roots"].as_u64() > Some(0), "{entry}");
    }
    assert_eq!((kinds["root image"], kinds["kernel"], kinds["initramfs"]), (GUESTS, 1, 1));
    assert_eq!(kinds["package"], 1 + GUESTS + 2);
}

/// A limit on the size of files stops a writer as a full disk does, wherever it is in its work, and needs no rights.
#[test]
fn a_writer_that_is_stopped_says_so_and_publishes_nothing_half() {
    for blocks in [1, 1000, 2500, 5000] {
        let site = Site::new(1);
        let before = (site.names("records"), site.names("."));
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh"]);
        let build = site.build(0);
        limited.arg(build.get_program()).args(build.get_args());
        limited.env_clear().envs(build.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let refused = finish(&mut limited).expect(1);
        assert!(refused.stderr.contains("vmprof::guest::no_space"), "{blocks}: {}", refused.stderr);
        site.is_whole();
        if blocks == 1 {
            assert_eq!((site.names("records"), site.names(".")), before);
        }
        finish(&mut site.build(0)).expect(0);
        site.is_whole();
    }
}

#[test]
fn a_full_filesystem_is_told_and_what_is_built_when_there_is_space_is_right() {
    let namespace = ["--user", "--map-root-user", "--mount"];
    let allowed =
        Command::new("unshare").args(namespace).args(["mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "skipped: a_full_filesystem_is_told: this machine gives its users no namespaces of their own"
        );
        return;
    }
    let site = Site::new(1);
    // Enough for the packages and the initramfs, not for the root image.
    let script = r#"
        mkdir "$HOME/full" && mount -t tmpfs -o size=24m none "$HOME/full" && cp -a "$VMPROF_STORE" "$HOME/full/store" || exit 90
        export VMPROF_STORE="$HOME/full/store"
        dd if=/dev/zero of="$HOME/full/filler" bs=64k 2>/dev/null
        truncate -s -1500k "$HOME/full/filler" || exit 91
        "$@"; status=$?
        "$1" store verify || exit 92
        [ -z "$(ls "$VMPROF_STORE/tmp")" ] || exit 93
        rm "$HOME/full/filler"
        "$@" >&2 || exit 94
        exit $status
    "#;
    let build = site.build(0);
    let mut full = Command::new("unshare");
    full.args(namespace).args(["sh", "-c", script, "sh"]).arg(build.get_program()).args(build.get_args());
    full.env_clear().envs(build.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let refused = finish(&mut full).expect(1);
    assert!(refused.stderr.contains("vmprof::guest::no_space"), "{}", refused.stderr);
}

#[test]
fn the_verbs_tell_who_keeps_what() {
    let site = Site::new(2);
    let (recipe, other) = (site.recipe(0), site.recipe(1));
    let none = site.verb(&["path", &recipe]).expect(1);
    assert!(none.stderr.contains("vmprof::guest::not_built"), "{}", none.stderr);
    finish(&mut site.build(0)).expect(0);
    finish(&mut site.build(1)).expect(0);
    let image = site.verb(&["path", &recipe]).expect(0).stdout.trim().to_owned();
    assert!(image.ends_with("-g0.squashfs") && Path::new(&image).is_file(), "{image}");
    assert_eq!(site.verb(&["path"]).expect(0).stdout.trim(), site.store().to_str().unwrap());

    let why = site.verb(&["why", &image]).expect(0).stdout;
    let line = format!("  {recipe} → root image of g0 → root\n");
    assert!(why.ends_with(&line), "{why}");
    let digits = &image.rsplit('/').next().unwrap()[..12];
    assert_eq!(site.verb(&["why", digits]).expect(0).stdout, why);
    let package = site.verb(&["why", "p1"]).expect(0).stdout;
    assert_eq!(package.matches(" → its lock → package p1 1 → deb").count(), 2, "{package}");
    let strange = site.verb(&["why", "absent"]).expect(1);
    assert!(strange.stderr.contains("vmprof::store::no_entry"), "{}", strange.stderr);

    // A recipe that is gone keeps nothing; what it shared with another stays.
    fs::remove_file(&recipe).unwrap();
    assert!(site.verb(&["why", &image]).expect(0).stdout.ends_with("  not reached: gc would remove it\n"));
    let would = site.verb(&["gc", "--dry-run", "--format", "json"]).expect(0).stdout;
    let would: Value = serde_json::from_str(&would).unwrap();
    let removed: Vec<&str> =
        would["removed"].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap()).collect();
    assert_eq!(removed.len(), 3, "{would}");
    assert!(removed.iter().any(|name| name.ends_with("-g0.squashfs")));
    assert!(removed.iter().any(|name| name.ends_with("-p0_1_amd64.deb")));
    assert!(removed.iter().any(|name| name.ends_with("-p0_1_amd64.tar.lz4")));
    let told = site.verb(&["gc"]).expect(0).stdout;
    assert!(
        told.contains(&format!("{recipe} keeps nothing any more")) && told.contains("freed: 3 entries"),
        "{told}"
    );
    assert!(!Path::new(&image).exists());
    site.verb(&["path", &other]).expect(0);
    site.is_whole();
}

#[test]
fn damage_is_102_and_repaired_the_next_build_makes_it_anew() {
    let site = Site::new(1);
    let built = finish(&mut site.build(0)).expect(0).stdout;
    let image = PathBuf::from(site.verb(&["path", &site.recipe(0)]).expect(0).stdout.trim());
    let mut bytes = fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&image, bytes).unwrap();
    fs::write(site.store().join("records/nonsense.json"), "[").unwrap();
    let told = site.verb(&["verify"]).expect(102).stderr;
    assert!(
        told.contains("vmprof::guest::store_damaged") && told.contains("vmprof::store::bad_record"),
        "{told}"
    );
    site.verb(&["verify", "--repair"]).expect(102);
    assert!(!image.exists());
    site.is_whole();
    assert_eq!(finish(&mut site.build(0)).expect(0).stdout, built);
    site.verb(&["gc"]).expect(0);
    assert_eq!(site.names("damaged"), [""; 0]);
    site.is_whole();
}

/// Another user may use what is built, and is told what they cannot do.
#[test]
fn another_users_store_can_be_used_and_not_written() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: another_users_store_can_be_used: this user may not become another");
        return;
    }
    let site = Site::new(1);
    let built = finish(&mut site.build(0)).expect(0).stdout;
    let program = copy_of_binary(site.directory.path());
    fs::set_permissions(site.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let recipe = site.recipe(0);
    let as_nobody = |words: &[&str]| {
        let mut command = Command::new(&program);
        command.args(words).env_clear().env("HOME", "/").env("VMPROF_STORE", site.store()).current_dir("/");
        command.uid(NOBODY).gid(NOBODY);
        finish(&mut command)
    };
    let found = as_nobody(&["build", "--offline", "--format", "json", &recipe]).expect(0);
    assert_eq!(found.stdout, built);
    as_nobody(&["store", "ls"]).expect(0);
    as_nobody(&["store", "why", "p0"]).expect(0);
    site.write(1, "other");
    for words in [&["build", "--offline", &recipe][..], &["store", "gc"]] {
        let refused = as_nobody(words).expect(1);
        assert!(refused.stderr.contains("vmprof::store::not_writable"), "{}", refused.stderr);
    }
    site.is_whole();
    finish(&mut site.build(0)).expect(0);
}

#[test]
fn a_store_that_cannot_be_one_is_refused_by_name() {
    let site = Site::new(1);
    let file = site.directory.path().join("file");
    fs::write(&file, "").unwrap();
    for place in [file.clone(), file.join("below")] {
        let refused = Home::with_store(place).run(["store", "ls"]).expect(1);
        assert!(refused.stderr.contains("vmprof::store::not_a_directory"), "{}", refused.stderr);
    }
}
