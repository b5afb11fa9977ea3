use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::error::GuestError;
use crate::progress::Silent;
use crate::store::tests::inputs;
use crate::store::{Entry, Fault, Record, Root, StoreError};

struct Site {
    dir: tempfile::TempDir,
    store: Store,
}

/// A store with a recipe's image, the package it was made of, and a directory of a toolset; and one thing nobody keeps.
fn site() -> Site {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let made = |name: &str, role: &str| {
        let entry = store.publish_bytes(name, name.as_bytes()).unwrap();
        store.remember(inputs(name), &Record::new(format!("making of {name}")).with(role, &entry)).unwrap();
    };
    made("fio_1_amd64.deb", "deb");
    made("fio.squashfs", "root");
    made("old.squashfs", "root");
    let tool = store.temp_dir().unwrap();
    tool.write("usr/bin/tool", b"tool", true).unwrap();
    let tool = store.publish_dir(tool, "tool").unwrap();
    store.remember(inputs("tool"), &Record::new("tool").with("tool", &tool)).unwrap();
    let recipe = dir.path().join("fio.kdl");
    fs::write(&recipe, "").unwrap();
    {
        let using = store.using().unwrap();
        let root = Root::of_file(&recipe).unwrap();
        using.root(&root.records([inputs("fio.squashfs")]).packages([inputs("fio_1_amd64.deb")])).unwrap();
        using.root(&Root::of_toolset("tool").records([inputs("tool")])).unwrap();
    }
    Site { dir, store }
}

fn names(entries: impl IntoIterator<Item = Listed>) -> Vec<String> {
    let mut names: Vec<String> = entries.into_iter().map(|listed| listed.short_name().to_owned()).collect();
    names.sort();
    names
}

fn there(store: &Store) -> Vec<String> {
    names(store.list().unwrap().entries)
}

fn gc(store: &Store, sweep: Sweep) -> Vec<String> {
    names(store.gc(sweep, &|| panic!("nobody builds")).unwrap().entries)
}

fn find(store: &Store, name: &str) -> Entry {
    store.entries().unwrap().into_iter().find(|entry| entry.name.ends_with(name)).unwrap()
}

#[test]
fn what_no_root_reaches_goes_with_its_record_and_the_rest_stays() {
    let Site { store, dir: _dir } = site();
    assert_eq!(gc(&store, Sweep { dry_run: true, ..Sweep::default() }), ["old.squashfs"]);
    assert_eq!(there(&store).len(), 4);
    assert_eq!(gc(&store, Sweep::default()), ["old.squashfs"]);
    assert_eq!(there(&store), ["fio.squashfs", "fio_1_amd64.deb", "tool"]);
    assert!(
        store.recall(inputs("fio.squashfs")).is_some() && store.recall(inputs("fio_1_amd64.deb")).is_some()
    );
    assert_eq!(store.recall_record(inputs("old.squashfs")), None);
    assert_eq!(store.names_in("tmp").unwrap(), [""; 0]);
    assert!(store.verify_all(&Silent).unwrap().faults.is_empty());
    assert_eq!(gc(&store, Sweep::default()), [""; 0]);
}

#[test]
fn packages_go_only_when_they_are_asked_for() {
    let Site { store, dir: _dir } = site();
    gc(&store, Sweep { packages: true, ..Sweep::default() });
    assert_eq!(there(&store), ["fio.squashfs", "tool"]);
    assert!(store.recall(inputs("fio.squashfs")).is_some());
}

#[test]
fn a_removed_recipe_keeps_nothing_and_read_only_directories_are_removed() {
    let Site { dir, store } = site();
    fs::remove_file(dir.path().join("fio.kdl")).unwrap();
    let collected = store.gc(Sweep::default(), &|| ()).unwrap();
    assert!(matches!(&collected.roots[..], [Keeper::File(_)]));
    assert_eq!(there(&store), ["tool"]);
    assert_eq!(gc(&store, Sweep { all: true, ..Sweep::default() }), ["tool"]);
    assert_eq!(store.names_in("roots").unwrap().len() + store.names_in("records").unwrap().len(), 0);
}

#[test]
fn a_running_vm_keeps_its_entries_even_when_all_goes_and_does_not_block() {
    let Site { store, dir: _dir } = site();
    let image = find(&store, "old.squashfs");
    let tool = find(&store, "tool");
    let hold =
        store.using().unwrap().hold("db", [image.path.clone(), tool.path.join("usr/bin/tool")]).unwrap();
    gc(&store, Sweep { all: true, ..Sweep::default() });
    assert_eq!(there(&store), ["old.squashfs", "tool"]);
    assert!(store.verify(&tool).is_ok());
    let listing = store.list().unwrap();
    let kept = &listing.find("old").unwrap()[0].kept;
    assert!(
        matches!(&kept[..], [chain] if chain.kept_by == Keeper::Vm("db".to_owned()) && chain.what.is_none())
    );
    drop(hold);
    gc(&store, Sweep::default());
    assert_eq!(there(&store), [""; 0]);
}

#[test]
fn gc_waits_for_a_build_and_says_so() {
    let Site { store, dir: _dir } = site();
    let using = store.using().unwrap();
    let fresh = store.publish_bytes("fresh", b"not remembered yet").unwrap();
    let (sender, said) = mpsc::channel();
    let other = store.clone();
    let collecting =
        std::thread::spawn(move || other.gc(Sweep::default(), &|| sender.send(()).unwrap()).unwrap());
    said.recv().unwrap();
    store.remember(inputs("fresh"), &Record::new("fresh").with("fresh", &fresh)).unwrap();
    using.root(&Root::of_toolset("fresh").records([inputs("fresh")])).unwrap();
    assert_eq!(said.recv_timeout(Duration::from_millis(20)), Err(mpsc::RecvTimeoutError::Timeout));
    drop(using);
    assert_eq!(names(collecting.join().unwrap().entries), ["old.squashfs"]);
    assert!(store.recall(inputs("fresh")).is_some());
}

#[test]
fn claims_that_nobody_holds_go_and_held_ones_stay() {
    let Site { store, dir: _dir } = site();
    drop(store.claim(inputs("done")).unwrap());
    let claim = store.claim(inputs("building")).unwrap();
    assert_eq!(store.gc(Sweep::default(), &|| ()).unwrap().locks, 1);
    assert_eq!(store.names_in("locks").unwrap().len(), 3);
    drop(claim);
}

/// What is left after the first `steps` of a gc, in its order: as if it had been killed there.
#[test]
fn a_gc_that_was_killed_at_any_step_leaves_a_whole_store() {
    for steps in 0..5 {
        let Site { dir, store } = site();
        fs::remove_file(dir.path().join("fio.kdl")).unwrap();
        let image = find(&store, "fio.squashfs");
        let tool = find(&store, "tool");
        let roots = store.roots().unwrap();
        let gone = roots.iter().find(|root| !root.is_alive).unwrap();
        let step: [&dyn Fn(); 4] = [
            &|| assert!(roots::forget(&gone.path).unwrap()),
            &|| remove_file(&store.root.join(format!("records/{}.json", inputs("fio.squashfs")))).unwrap(),
            &|| take_away(&image.path, &store.root.join("tmp/1-0-0")).unwrap(),
            // Between the two halves of taking a directory away.
            &|| fs::set_permissions(&tool.path, fs::Permissions::from_mode(0o755)).unwrap(),
        ];
        step.iter().take(steps).for_each(|step| step());
        let again = Store::open(store.root()).unwrap();
        let faults = again.verify_all(&Silent).unwrap().faults;
        assert!(faults.is_empty(), "after {steps}: {faults:?}");
        gc(&again, Sweep::default());
        assert_eq!(there(&again), ["tool"], "after {steps}");
        assert_eq!(again.names_in("tmp").unwrap(), [""; 0]);
    }
}

#[test]
fn a_repair_moves_away_what_is_damaged_and_what_names_it() {
    let Site { store, dir: _dir } = site();
    let image = find(&store, "fio.squashfs");
    fs::set_permissions(&image.path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&image.path, "fio.squashfX").unwrap();
    fs::remove_file(&find(&store, "old.squashfs").path).unwrap();
    fs::write(store.root.join("records/x.json"), "{").unwrap();
    fs::write(store.root.join("roots/x.json"), "{").unwrap();
    let mut verified = store.verify_all(&Silent).unwrap();
    let kinds: Vec<&str> = verified
        .faults
        .iter()
        .map(|fault| match fault {
            Fault::Entry(GuestError::Store(StoreError::Damaged { path })) if *path == image.path => "entry",
            Fault::Dangling { .. } => "dangling",
            Fault::Record { .. } => "record",
            Fault::Root(_) => "root",
            Fault::Entry(_) => "another entry",
        })
        .collect();
    let mut sorted = kinds.clone();
    sorted.sort();
    assert_eq!(sorted, ["dangling", "entry", "record", "root"]);
    store.repair(&mut verified, &|| ()).unwrap();
    // With them the record of what was moved, which would be the next fault.
    assert_eq!(verified.moved.len(), 5);
    assert_eq!(store.recall_record(inputs("fio.squashfs")), None);
    assert!(store.verify_all(&Silent).unwrap().faults.is_empty());
    let again = store.publish_bytes("fio.squashfs", b"fio.squashfs").unwrap();
    assert_eq!(again.path, image.path);
    assert!(store.verify_all(&Silent).unwrap().faults.is_empty());
    assert_eq!(store.gc(Sweep::default(), &|| ()).unwrap().damaged, 5);
    assert!(store.names_in("damaged").unwrap().is_empty());
}

#[test]
fn a_listing_finds_by_path_name_package_and_digest() {
    let Site { store, dir: _dir } = site();
    let listing = store.list().unwrap();
    let image = find(&store, "fio.squashfs");
    let found = |asked: &str| -> Vec<&str> {
        listing.find(asked).unwrap().into_iter().map(Listed::short_name).collect()
    };
    assert_eq!(found("fio"), ["fio_1_amd64.deb", "fio.squashfs"]);
    assert_eq!(found("fio.squashfs"), ["fio.squashfs"]);
    assert_eq!(found(&image.name), ["fio.squashfs"]);
    assert_eq!(found(&image.name[..12]), ["fio.squashfs"]);
    assert_eq!(found(&image.path.to_string_lossy()), ["fio.squashfs"]);
    assert_eq!(found(&find(&store, "tool").path.join("usr/bin/tool").to_string_lossy()), ["tool"]);
    assert!(matches!(listing.find("absent"), Err(GuestError::Store(StoreError::NoEntry { .. }))));
    assert!(matches!(listing.find(""), Err(GuestError::Store(StoreError::NoEntry { .. }))));
    let kinds: Vec<&str> = listing.entries.iter().map(|listed| listed.kind.as_str()).collect();
    assert_eq!(kinds, ["package", "root image", "root image", "toolset"]);
    assert_eq!(listing.entries.iter().map(Listed::roots).collect::<Vec<_>>(), [1, 1, 0, 1]);
}

#[test]
fn holes_take_nothing_of_the_disk() {
    let Site { store, dir: _dir } = site();
    let mut temp = store.temp_file().unwrap();
    temp.file().set_len(64 << 20).unwrap();
    store.publish_temp(temp, "sparse.ext4").unwrap();
    let listing = store.list().unwrap();
    let sparse = listing.find("sparse").unwrap()[0];
    assert_eq!((sparse.bytes, sparse.kind.as_str()), (64 << 20, "root image"));
    assert!(sparse.disk_bytes < 1 << 20, "{}", sparse.disk_bytes);
}
