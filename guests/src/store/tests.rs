use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::digest::Inputs;

pub(super) fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    (dir, store)
}

pub(super) fn inputs(text: &str) -> Inputs {
    Inputs::of("test").field("text", text.as_bytes()).finish()
}

fn temporary(store: &Store) -> usize {
    fs::read_dir(store.root().join("tmp")).unwrap().count()
}

#[test]
fn an_entry_is_named_by_its_content_and_cannot_be_written() {
    let (_dir, store) = store();
    let entry = store.publish_bytes("greeting", b"hello").unwrap();
    assert_eq!(entry.name, format!("{}-greeting", blake3::hash(b"hello").to_hex()));
    assert_eq!(entry.digest(), blake3::hash(b"hello").to_hex().as_str());
    assert_eq!(fs::metadata(&entry.path).unwrap().permissions().mode() & 0o777, 0o444);
    assert_eq!(store.publish_bytes("greeting", b"hello").unwrap(), entry);
    assert_eq!(store.entries().unwrap(), [entry]);
    assert_eq!(temporary(&store), 0);
}

#[test]
fn a_record_whose_entry_is_gone_or_cut_is_not_recalled() {
    let (_dir, store) = store();
    let entry = store.publish_bytes("x", b"content").unwrap();
    store.remember(inputs("a"), &Record::new("x").with("x", &entry).fact("n", "1")).unwrap();
    let (record, entries) = store.recall(inputs("a")).unwrap();
    assert_eq!((record.facts["n"].as_str(), &entries[..]), ("1", &[entry.clone()][..]));
    assert!(store.recall(inputs("b")).is_none());

    fs::remove_file(&entry.path).unwrap();
    assert!(store.recall(inputs("a")).is_none());
    fs::write(&entry.path, b"cont").unwrap();
    assert!(store.recall(inputs("a")).is_none());
    assert!(matches!(
        store.verify(&store.entries().unwrap()[0]),
        Err(GuestError::Store(StoreError::Damaged { .. }))
    ));
}

#[test]
fn a_record_cannot_lead_out_of_the_store() {
    let (_dir, store) = store();
    let entry = store.publish_bytes("x", b"content").unwrap();
    let mut record = Record::new("x").with("x", &entry);
    record.entries[0].entry = format!("../store/{}", entry.name);
    store.remember(inputs("a"), &record).unwrap();
    assert!(store.recall(inputs("a")).is_none());
}

#[test]
fn what_a_killed_builder_left_is_cleared_and_what_a_living_one_holds_is_not() {
    let (_dir, store) = store();
    let mut held = store.temp_file().unwrap();
    let held_dir = store.temp_dir().unwrap();
    held_dir.write("a/b", b"x", false).unwrap();
    // A killed process drops its locks and nothing else.
    let abandoned = store.root().join("tmp/12345-0-0");
    fs::create_dir_all(abandoned.join("deep/er")).unwrap();
    fs::write(abandoned.join("deep/er/file"), b"half").unwrap();
    fs::set_permissions(abandoned.join("deep"), fs::Permissions::from_mode(0o555)).unwrap();
    fs::write(store.root().join("tmp/12345-1-0"), b"half").unwrap();

    let again = Store::open(store.root()).unwrap();
    assert_eq!(temporary(&again), 2);
    held.write_all(b"still mine").unwrap();
    assert!(held_dir.path().join("a/b").exists());
    drop((held, held_dir));
    assert_eq!(temporary(&again), 0);
}

#[test]
fn a_claim_keeps_a_second_builder_waiting() {
    let (_dir, store) = store();
    let claim = store.claim(inputs("a")).unwrap();
    let other = store.clone();
    let (sender, receiver) = mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let claim = other.claim(inputs("a")).unwrap();
        sender.send(()).unwrap();
        drop(claim);
    });
    store.claim(inputs("b")).unwrap();
    assert_eq!(receiver.recv_timeout(Duration::from_millis(50)), Err(mpsc::RecvTimeoutError::Timeout));
    drop(claim);
    receiver.recv().unwrap();
    waiting.join().unwrap();
}

#[test]
fn a_directory_entry_is_named_by_its_listing_whatever_the_order_and_umask() {
    let (_dir, store) = store();
    let fill = |order: &[(&str, &[u8], bool)]| {
        let dir = store.temp_dir().unwrap();
        for (path, bytes, executable) in order {
            dir.write(path, bytes, *executable).unwrap();
        }
        store.publish_dir(dir, "tree").unwrap()
    };
    let one = fill(&[("bin/a", b"a", true), ("lib/b", b"bb", false)]);
    let two = fill(&[("lib/b", b"bb", false), ("bin/a", b"a", true)]);
    let other = fill(&[("lib/b", b"bb", false), ("bin/a", b"a", false)]);
    assert_eq!(one, two);
    assert_ne!(one.name, other.name);
    store.verify(&one).unwrap();
    assert_eq!(store.size_of(&one).unwrap(), 3);
    assert_eq!(fs::metadata(one.path.join("bin")).unwrap().permissions().mode() & 0o777, 0o555);
    assert_eq!(temporary(&store), 0);

    let file = one.path.join("lib/b");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, b"xx").unwrap();
    assert!(store.verify(&one).is_err());
}

#[test]
fn nothing_is_written_outside_a_directory_that_is_being_filled() {
    let (_dir, store) = store();
    let filled = store.temp_dir().unwrap();
    for path in ["../evil", "usr/lib/../../../evil", "/evil", ""] {
        assert!(filled.write(path, b"x", false).is_err(), "{path}");
    }
    assert!(!store.root().join("tmp/evil").exists());
    filled.write("usr/lib/good", b"x", false).unwrap();
}

#[test]
fn a_store_whose_directory_its_group_may_write_is_the_groups_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    fs::create_dir(&root).unwrap();
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
    for (shared, file) in [(0o755, 0o644), (0o2775, 0o664)] {
        fs::set_permissions(&root, fs::Permissions::from_mode(shared)).unwrap();
        for part in ["records", "roots", "locks", "tmp"] {
            let _ = fs::remove_dir_all(root.join(part));
        }
        let store = Store::open(&root).unwrap();
        let using = store.using().unwrap();
        store.remember(inputs("a"), &Record::new("a")).unwrap();
        using.root(&Root::of_toolset("tool")).unwrap();
        if shared == 0o2775 {
            for part in ["records", "roots", "locks", "tmp"] {
                assert_eq!(mode(part) & 0o2070, 0o2070, "{part}");
            }
            assert_eq!(mode("locks/using") & 0o060, 0o060);
        }
        assert_eq!(mode(&format!("records/{}.json", inputs("a"))), file);
    }
}

#[test]
fn a_file_in_the_stores_place_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for place in [file.clone(), file.join("below")] {
        assert!(matches!(Store::open(place), Err(GuestError::Store(StoreError::NotADirectory { .. }))));
    }
}
