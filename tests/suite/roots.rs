//! A built root against its packages, file by file: `unsquashfs` says what the image holds, `dpkg-deb` and `tar` what the
//! packages do, and every difference must be one that the recipe asked for. Nothing here needs root or the network; without the
//! packages of the guest in a store, a test says by name that it is skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vmprof_guests::{Builder, GuestImage, Image, Lock, Place, Recipe, Silent, Store, Toolset};
use vmprof_tests::{checkout, shared_store};

const SQUASHFS_TOOLS: Toolset = Toolset {
    name: "squashfs-tools",
    suites: &["bookworm"],
    packages: &["squashfs-tools"],
    programs: &["usr/bin/unsquashfs"],
    data: &[],
    linked: &[],
    layout: "1",
};

/// What every guest has besides its packages and what its recipe declares (docs/guests.md).
const OF_THE_BUILDER: [&str; 10] = [
    "var/lock",
    "var/run",
    "etc/passwd",
    "etc/group",
    "etc/shadow",
    "etc/gshadow",
    "etc/nsswitch.conf",
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
];

/// Directories that packages ship in, and where they lie since /usr was merged.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// One path as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    mode: String,
    owner: String,
    link: Option<String>,
    /// Below the directory it was unpacked to; where the content is.
    at: PathBuf,
}

fn output(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Lines as tar and unsquashfs write them: mode, owner, size, day, time, name and what a link leads to.
fn read_listing(text: &str, below: &str, unpacked: &Path) -> BTreeMap<String, Listed> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut rest = line;
        let mut word = || {
            let (word, behind) = rest.trim_start().split_once(' ').unwrap_or_else(|| panic!("{line}"));
            rest = behind;
            word.to_owned()
        };
        let (mode, owner, _size, _day, _time) = (word(), word(), word(), word(), word());
        let (name, link) = match rest.split_once(" -> ") {
            Some((name, link)) => (name, Some(link.to_owned())),
            None => (rest.split(" link to ").next().unwrap_or(rest), None),
        };
        let path = name.strip_prefix(below).unwrap_or(name).trim_matches('/').to_owned();
        let at = unpacked.join(&path);
        // A further name of a file is a file; which ones belong together is another matter.
        let listed = Listed { mode: mode.replacen('h', "-", 1), owner, link, at };
        found.insert(path, listed);
    }
    found
}

fn of_package(deb: &Path, unpacked: &Path) -> BTreeMap<String, Listed> {
    fs::create_dir_all(unpacked).unwrap();
    output(Command::new("dpkg-deb").arg("-x").arg(deb).arg(unpacked));
    let mut dpkg =
        Command::new("dpkg-deb").arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn().unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--quoting-style=literal", "-tvf", "-"]).env("LC_ALL", "C.UTF-8");
    let text = output(tar.stdin(dpkg.stdout.take().unwrap()));
    assert!(dpkg.wait().unwrap().success());
    read_listing(&text, ".", unpacked)
}

fn of_image(unsquashfs: &[OsString], image: &Path, unpacked: &Path) -> BTreeMap<String, Listed> {
    let program = || {
        let mut command = Command::new(&unsquashfs[0]);
        command.args(&unsquashfs[1..]).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
        command
    };
    output(program().args(["-no-progress", "-quiet", "-d"]).arg(unpacked).arg(image));
    let text = output(program().args(["-no-progress", "-lln"]).arg(image));
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("squashfs-root")).collect();
    read_listing(&lines.join("\n"), "squashfs-root", unpacked)
}

/// A store that has everything for the guest, and the guest as it is built there.
fn built(recipe: &Recipe) -> Option<(Store, GuestImage)> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let data = std::env::var_os("XDG_DATA_HOME").map_or(Path::new(&home).join(".local/share"), Into::into);
    [shared_store(), data.join("vmprof/store")].into_iter().filter(|root| root.is_dir()).find_map(|root| {
        let store = Store::open(root).ok()?;
        let image = Builder::new(&store, &Silent).offline(true).frozen(true).build(recipe).ok()?;
        Some((store, image))
    })
}

fn unsquashfs(store: &Store) -> Option<Vec<OsString>> {
    let realised = SQUASHFS_TOOLS.realise(&Builder::new(store, &Silent));
    realised.ok().map(|tools| tools.argv("usr/bin/unsquashfs"))
}

/// Where a package's path lies in an image with /usr merged.
fn merged(path: &str) -> String {
    let under_usr = MERGED.iter().any(|dir| path == *dir || path.starts_with(&format!("{dir}/")));
    if under_usr { format!("usr/{path}") } else { path.to_owned() }
}

fn is_below(path: &str, directory: &str) -> bool {
    let directory = directory.trim_start_matches('/');
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[test]
fn a_built_root_is_its_packages_as_dpkg_unpacks_them_and_what_the_recipe_says() {
    let name = "a_built_root_is_its_packages_as_dpkg_unpacks_them_and_what_the_recipe_says";
    let recipe = Recipe::read(&checkout().join("guests/fio.kdl")).unwrap();
    let Some((store, image)) = built(&recipe) else {
        eprintln!("skipped: {name}: no store has the packages of guests/fio.kdl");
        return;
    };
    let Some(unsquashfs) = unsquashfs(&store) else {
        eprintln!("skipped: {name}: no unsquashfs, and none can be fetched");
        return;
    };
    let lock = Lock::read(&recipe.lock_path).unwrap();
    let Image::Root { exclude, .. } = &recipe.image else { panic!("fio has a root") };
    let entries = store.entries().unwrap();
    let directory = tempfile::tempdir().unwrap();

    // Every version of a path that some package ships.
    let mut shipped: BTreeMap<String, BTreeSet<Listed>> = BTreeMap::new();
    for package in &lock.packages {
        let ending = format!("-{}", package.file_name());
        let deb = entries.iter().find(|entry| entry.path.to_string_lossy().ends_with(&ending));
        let deb = deb.unwrap_or_else(|| panic!("{} is in the store", package.file_name()));
        for (path, listed) in of_package(&deb.path, &directory.path().join(&package.name)) {
            shipped.entry(merged(&path)).or_default().insert(listed);
        }
    }
    let root = image.root.expect("fio has a root").path;
    let image = of_image(&unsquashfs, &root, &directory.path().join("image"));
    let declared =
        |path: &str| recipe.placed.iter().find(|placed| placed.path.trim_start_matches('/') == path);
    let excluded = |path: &str| exclude.iter().any(|directory| is_below(path, directory));

    let mut compared = 0;
    for (path, versions) in shipped.iter().filter(|(path, _)| !path.is_empty() && !excluded(path)) {
        if declared(path).is_some() || OF_THE_BUILDER.contains(&path.as_str()) {
            continue;
        }
        let ours = image.get(path).unwrap_or_else(|| panic!("/{path} is in a package and not in the image"));
        let like = |theirs: &&Listed| {
            let same = (&ours.mode, &ours.owner, &ours.link) == (&theirs.mode, &theirs.owner, &theirs.link);
            let is_file = ours.mode.starts_with('-');
            same && (!is_file || fs::read(&ours.at).unwrap() == fs::read(&theirs.at).unwrap())
        };
        assert!(versions.iter().any(|theirs| like(&theirs)), "/{path}: {ours:?} in the image, {versions:?}");
        compared += 1;
    }
    assert!(compared > 300, "{compared} paths are no guest");

    for (path, ours) in image.iter().filter(|(path, _)| !path.is_empty() && !shipped.contains_key(*path)) {
        let is_directory = ours.mode.starts_with('d');
        let of_builder = OF_THE_BUILDER.contains(&path.as_str()) || MERGED.contains(&path.as_str());
        assert!(
            is_directory || of_builder || declared(path).is_some(),
            "/{path} came from nowhere: {ours:?}"
        );
        // The group shadow may read it, as on every Debian.
        let owner = if path == "etc/shadow" { "0/42" } else { "0/0" };
        assert_eq!(ours.owner, owner, "/{path}");
    }
    for placed in &recipe.placed {
        let path = placed.path.trim_start_matches('/');
        let ours = image.get(path).unwrap_or_else(|| panic!("{} is declared", placed.path));
        if let Place::Text { text, .. } = &placed.what {
            assert_eq!(fs::read(&ours.at).unwrap(), text.as_bytes(), "{}", placed.path);
        }
    }
    eprintln!("compared: {compared} paths of {} packages", lock.packages.len());
}
