//! Built roots, file by file, in every format: each format's own tools say what an image holds and that it is whole. A root of
//! packages is what `dpkg-deb` unpacks of them, but for what the recipe asked for; a root of an archive is the archive. Nothing
//! here needs root or the network; without the packages of a guest or the tools in a store, a test says by name what is
//! skipped.

mod erofs;
mod facts;
mod images;
mod made;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use vmprof_guests::testing::{Guest, site};
use vmprof_guests::{
    Builder, Compression, Format, GuestError, GuestImage, Image, ImageError, Lock, Place, Recipe, Sha256,
    Silent, Store,
};
use vmprof_tests::{checkout, shared_store};

use facts::{DIRECTORY, FILE, Listed, of_package};
use images::{Contents, Tools};

/// The recipe's own is the last, so that the store keeps that one for it.
const FORMATS: [Format; 5] = [
    Format::Ext4 { bytes: None },
    Format::Erofs { compressed: false },
    Format::Erofs { compressed: true },
    Format::Squashfs { compression: Compression::Zstd },
    Format::Squashfs { compression: Compression::Lz4 },
];

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

/// A store that has everything for the guest.
fn store_with(recipe: &Recipe) -> Option<Store> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let data = std::env::var_os("XDG_DATA_HOME").map_or(Path::new(&home).join(".local/share"), Into::into);
    [shared_store(), data.join("vmprof/store")].into_iter().filter(|root| root.is_dir()).find_map(|root| {
        let store = Store::open(root).ok()?;
        Builder::new(&store, &Silent).offline(true).frozen(true).build(recipe).ok()?;
        Some(store)
    })
}

fn built(store: &Store, recipe: &Recipe) -> GuestImage {
    let built = Builder::new(store, &Silent).offline(true).frozen(true).build(recipe);
    built.unwrap_or_else(|error| panic!("{}: {error}", recipe.name))
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

/// What the packages of a guest ship: every version of a path, and which names are one file.
struct Shipped {
    packages: usize,
    paths: BTreeMap<String, BTreeSet<Listed>>,
    /// Of a further name: the first.
    same: BTreeMap<String, String>,
}

fn shipped(store: &Store, recipe: &Recipe, directory: &Path) -> Shipped {
    let lock = Lock::read(&recipe.lock_path).unwrap();
    let entries = store.entries().unwrap();
    let mut shipped =
        Shipped { packages: lock.packages.len(), paths: BTreeMap::new(), same: BTreeMap::new() };
    for package in &lock.packages {
        let ending = format!("-{}", package.file_name());
        let deb = entries.iter().find(|entry| entry.path.to_string_lossy().ends_with(&ending));
        let deb = deb.unwrap_or_else(|| panic!("{} is in the store", package.file_name()));
        for (path, listed) in of_package(&deb.path, &directory.join(&package.name)) {
            if let Some(first) = &listed.same_as {
                shipped.same.insert(merged(&path), merged(first));
            }
            shipped.paths.entry(merged(&path)).or_default().insert(listed);
        }
    }
    shipped
}

/// Names are one file where `same` says so, and nowhere else; and each file knows how many names it has.
fn names_agree(contents: &Contents, same: &BTreeMap<String, String>, format: Format) -> usize {
    let Some(inodes) = &contents.inodes else { return 0 };
    let first = |path: &str| {
        let mut first = path;
        while let Some(earlier) = same.get(first) {
            first = earlier;
        }
        first.to_owned()
    };
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut numbers: BTreeMap<u64, String> = BTreeMap::new();
    for (path, inode) in inodes.iter().filter(|(path, _)| !contents.listed[*path].facts.is(DIRECTORY)) {
        let group = first(path);
        let known = numbers.entry(inode.number).or_insert_with(|| group.clone());
        assert_eq!(*known, group, "{format:?}: /{path} is one file with another that it should not be");
        groups.entry(group).or_default().push(path);
    }
    assert_eq!(groups.len(), numbers.len(), "{format:?}: names of one file are several");
    for names in groups.values() {
        for path in names {
            assert_eq!(
                inodes[*path].links,
                names.len() as u64,
                "{format:?}: /{path} has the names {names:?}"
            );
        }
    }
    for (path, inode) in inodes.iter().filter(|(path, _)| contents.listed[*path].facts.is(DIRECTORY)) {
        let inside = |below: &&String| {
            let name = if path.is_empty() {
                Some(below.as_str())
            } else {
                below.strip_prefix(path).and_then(|rest| rest.strip_prefix('/'))
            };
            name.is_some_and(|name| !name.is_empty() && !name.contains('/'))
        };
        // One count an ext4 has more is of the root's lost+found.
        let below = contents.listed.range(path.clone()..).map(|(below, _)| below);
        let below = below.take_while(|below| below.starts_with(path.as_str())).filter(inside);
        let directories = below.filter(|below| contents.listed[*below].facts.is(DIRECTORY)).count() as u64;
        let own = u64::from(matches!(format, Format::Ext4 { .. }) && path.is_empty());
        assert_eq!(inode.links, 2 + directories + own, "{format:?}: links of /{path}");
    }
    groups.values().filter(|names| names.len() > 1).count()
}

/// The root of a guest in every format against its packages; `false` where something for it is not at hand.
fn a_root_is_its_packages(guest: &str, fewest: usize, test: &str) {
    let mut recipe = Recipe::read(&checkout().join(guest)).unwrap();
    let Image::Root { exclude, .. } = recipe.image.clone() else { panic!("{guest} has a root") };
    let Some(store) = store_with(&recipe) else {
        eprintln!("skipped: {test}: no store has the packages of {guest}");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let shipped = shipped(&store, &recipe, directory.path());
    for (number, format) in FORMATS.into_iter().enumerate() {
        let Some(tools) = Tools::of(format, &store) else {
            eprintln!("skipped in part: {test}: no tools for {format:?}, and none can be fetched");
            continue;
        };
        recipe.image = Image::Root { format, exclude: exclude.clone() };
        let root = built(&store, &recipe).root.expect("it has a root").path;
        let extracted = directory.path().join(format!("image-{number}"));
        let image = tools.read(format, &root, &extracted);
        let compared = agrees(&image, &shipped, &recipe, &exclude, format);
        assert!(compared > fewest, "{compared} paths are no guest");
        let shared = names_agree(&image, &shipped.same, format);
        let packages = shipped.packages;
        eprintln!(
            "compared: {guest} as {format:?}: {compared} paths of {packages} packages, {shared} files with several names"
        );
        fs::remove_dir_all(extracted).unwrap();
    }
}

/// Every path of the packages is in the image as one of them ships it, and everything else comes from the recipe or is the
/// builder's own. Says how many paths were compared.
fn agrees(image: &Contents, shipped: &Shipped, recipe: &Recipe, exclude: &[String], format: Format) -> usize {
    let declared =
        |path: &str| recipe.placed.iter().find(|placed| placed.path.trim_start_matches('/') == path);
    let excluded = |path: &str| exclude.iter().any(|directory| is_below(path, directory));
    let mut compared = 0;
    for (path, versions) in shipped.paths.iter().filter(|(path, _)| !path.is_empty() && !excluded(path)) {
        if declared(path).is_some() || OF_THE_BUILDER.contains(&path.as_str()) {
            continue;
        }
        let ours = image.listed.get(path);
        let ours = ours.unwrap_or_else(|| panic!("{format:?}: /{path} is in a package and not in the image"));
        let like = |theirs: &Listed| {
            ours.facts == theirs.facts && (!ours.facts.is(FILE) || ours.content() == theirs.content())
        };
        assert!(versions.iter().any(like), "{format:?}: /{path}: {ours:?} in the image, {versions:?}");
        compared += 1;
    }
    for (path, ours) in image.listed.iter().filter(|(path, _)| !path.is_empty()) {
        if shipped.paths.contains_key(path) && !excluded(path) {
            continue;
        }
        let of_builder = OF_THE_BUILDER.contains(&path.as_str()) || MERGED.contains(&path.as_str());
        let placed = declared(path);
        assert!(
            ours.facts.is(DIRECTORY) || of_builder || placed.is_some(),
            "{format:?}: /{path} came from nowhere: {ours:?}"
        );
        assert!(ours.facts.xattrs.is_empty(), "{format:?}: /{path}: {ours:?}");
        if placed.is_some() || recipe.users.iter().any(|user| user.home.trim_start_matches('/') == path) {
            continue;
        }
        // The group shadow may read it, as on every Debian.
        let gid = if path == "etc/shadow" { 42 } else { 0 };
        assert_eq!((ours.facts.uid, ours.facts.gid), (0, gid), "{format:?}: /{path}");
    }
    for placed in &recipe.placed {
        let path = placed.path.trim_start_matches('/');
        let path = if image.listed.contains_key(path) { path.to_owned() } else { merged(path) };
        let ours = image.listed.get(&path).unwrap_or_else(|| panic!("{} is declared", placed.path));
        if let Place::Text { text, mode } = &placed.what {
            assert_eq!(ours.content(), text.as_bytes(), "{format:?}: {}", placed.path);
            assert_eq!(ours.facts.mode, FILE | u32::from(*mode), "{format:?}: {}", placed.path);
        }
    }
    compared
}

#[test]
fn a_built_root_is_its_packages_as_dpkg_unpacks_them_and_what_the_recipe_says() {
    let name = "a_built_root_is_its_packages_as_dpkg_unpacks_them_and_what_the_recipe_says";
    a_root_is_its_packages("guests/fio.kdl", 300, name);
}

#[test]
#[ignore = "minutes: docs/testing.md says when"]
fn the_large_roots_are_their_packages_too() {
    for guest in ["guests/postgres.kdl", "guests/ci.kdl"] {
        a_root_is_its_packages(guest, 1000, "the_large_roots_are_their_packages_too");
    }
}

/// A guest whose root is this archive, in a store of its own.
fn guest_of(directory: &Path, tar: &[u8], format: &str) -> (Store, Recipe) {
    fs::write(directory.join("root.tar"), tar).unwrap();
    let sha256 = Sha256::of(tar);
    let body = format!(
        " root tar=\"root.tar\" sha256=\"{sha256}\"\n run \"/usr/bin/tool\"\n image root {{ format {format}; }}\n"
    );
    let path = directory.join("store");
    site(directory, &path, &[Guest { name: "made".to_owned(), packages: Vec::new(), body }]);
    (Store::open(path).unwrap(), Recipe::read(&directory.join("made.kdl")).unwrap())
}

#[test]
fn a_root_of_an_archive_has_every_kind_of_file_as_the_archive_says_in_every_format() {
    let name = "a_root_of_an_archive_has_every_kind_of_file_as_the_archive_says_in_every_format";
    let tools_store = Store::open(shared_store()).unwrap();
    for (format, words) in [
        (Format::Ext4 { bytes: None }, "ext4"),
        (Format::Erofs { compressed: false }, "erofs compression=none"),
        (Format::Erofs { compressed: true }, "erofs compression=lz4"),
        (Format::Squashfs { compression: Compression::Lz4 }, "squashfs"),
    ] {
        let Some(tools) = Tools::of(format, &tools_store) else {
            eprintln!("skipped in part: {name}: no tools for {format:?}, and none can be fetched");
            continue;
        };
        let extracts_devices =
            !matches!(format, Format::Erofs { .. }) || rustix::process::geteuid().is_root();
        if !extracts_devices {
            eprintln!("skipped in part: {name}: fsck.erofs extracts devices for root alone");
            continue;
        }
        let keeps_xattrs = !matches!(format, Format::Squashfs { .. });
        let all = made::everything(keeps_xattrs);
        let directory = tempfile::tempdir().unwrap();
        let (store, recipe) = guest_of(directory.path(), &made::tar(&all), words);
        let root: PathBuf = built(&store, &recipe).root.expect("it has a root").path;
        let image = tools.read(format, &root, &directory.path().join("image"));
        let mut same = BTreeMap::new();
        for one in &all {
            let mut first = one;
            while let made::What::Same(earlier) = &first.what {
                same.insert(one.path.clone(), earlier.clone());
                first = all.iter().find(|made| made.path == *earlier).unwrap();
            }
            let path = &one.path;
            let ours = image.listed.get(path).unwrap_or_else(|| panic!("{format:?}: /{path} is missing"));
            assert_eq!(Some(&ours.facts), first.facts().as_ref(), "{format:?}: /{path}");
            if let Some(content) = first.content() {
                assert!(ours.content() == content, "{format:?}: /{path} holds something else");
            }
        }
        let known: BTreeSet<&str> = all.iter().map(|made| made.path.as_str()).collect();
        for (path, ours) in image.listed.iter().filter(|(path, _)| !known.contains(path.as_str())) {
            let of_builder = OF_THE_BUILDER.contains(&path.as_str());
            assert!(
                of_builder || ours.facts.is(DIRECTORY),
                "{format:?}: /{path} came from nowhere: {ours:?}"
            );
        }
        let shared = names_agree(&image, &same, format);
        assert_eq!(shared, if keeps_xattrs { 4 } else { 0 }, "{format:?}");
        eprintln!("compared: {words}: {} paths of an archive", all.len());
    }
}

#[test]
fn a_squashfs_refuses_attributes_and_no_format_takes_names_that_are_no_text() {
    let directory = tempfile::tempdir().unwrap();
    let (store, recipe) = guest_of(directory.path(), &made::tar(&made::everything(true)), "squashfs");
    let error = Builder::new(&store, &Silent).offline(true).frozen(true).build(&recipe).unwrap_err();
    assert!(matches!(&error, GuestError::Image(ImageError::SquashfsXattr { .. })), "{error:?}");

    let plain = made::tar(&made::everything(false));
    let at = plain.windows(5).position(|window| window == "日本".as_bytes().get(1..6).unwrap()).unwrap();
    let mut broken = plain;
    broken[at] = 0xff;
    let (store, recipe) = guest_of(directory.path(), &broken, "ext4");
    let error = Builder::new(&store, &Silent).offline(true).frozen(true).build(&recipe).unwrap_err();
    assert!(error.to_string().contains("is not UTF-8 text"), "{error}");
}
