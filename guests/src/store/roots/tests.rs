use super::*;
use crate::store::Record;
use crate::store::tests::{inputs, store};

fn keepers(store: &Store) -> Vec<(Keeper, bool)> {
    store.roots().unwrap().into_iter().map(|found| (found.root.kept_by, found.is_alive)).collect()
}

#[test]
fn a_recipes_root_lives_as_long_as_its_file_and_is_replaced_by_its_next_build() {
    let (dir, store) = store();
    let recipe = dir.path().join("trial.kdl");
    fs::write(&recipe, "").unwrap();
    let using = store.using().unwrap();
    assert!(using.root(&Root::of_file(&recipe).unwrap().records([inputs("a")])).unwrap());
    assert!(using.root(&Root::of_file(&recipe).unwrap().records([inputs("b")])).unwrap());
    let found = store.roots().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].root.records, [inputs("b").to_string()]);
    let kept_by = Keeper::File(recipe.canonicalize().unwrap());
    assert_eq!(keepers(&store), [(kept_by.clone(), true)]);
    fs::remove_file(&recipe).unwrap();
    assert_eq!(keepers(&store), [(kept_by, false)]);
}

#[test]
fn the_same_recipe_by_another_way_is_one_keeper() {
    let (dir, store) = store();
    let (recipe, link) = (dir.path().join("trial.kdl"), dir.path().join("link"));
    fs::write(&recipe, "").unwrap();
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let using = store.using().unwrap();
    for path in [recipe.clone(), link.join("trial.kdl"), dir.path().join("store/../trial.kdl")] {
        using.root(&Root::of_file(&path).unwrap()).unwrap();
    }
    assert_eq!(keepers(&store).len(), 1);
}

#[test]
fn a_path_that_is_no_text_is_kept_to_the_byte() {
    let (dir, store) = store();
    let recipe = dir.path().join(OsString::from_vec(b"caf\xe9.kdl".to_vec()));
    fs::write(&recipe, "").unwrap();
    store.using().unwrap().root(&Root::of_file(&recipe).unwrap()).unwrap();
    assert_eq!(keepers(&store), [(Keeper::File(recipe.canonicalize().unwrap()), true)]);
}

#[test]
fn a_vm_keeps_its_entries_until_it_ends_and_a_killed_one_no_longer() {
    let (_dir, store) = store();
    let entry = store.publish_bytes("x", b"content").unwrap();
    let using = store.using().unwrap();
    let hold = using.hold("db", [entry.path.as_path(), Path::new("/usr/bin/qemu")]).unwrap();
    // A VM of the same name somewhere else.
    let other = using.hold("db", [&entry.path]).unwrap();
    let found = store.roots().unwrap();
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|found| found.is_alive && found.root.entries == [entry.name.clone()]));
    drop(other);
    assert_eq!(keepers(&store), [(Keeper::Vm("db".to_owned()), true)]);

    // Killed, a process lets its locks go and removes nothing.
    let left = store.roots().unwrap().remove(0);
    let text = fs::read(&left.path).unwrap();
    drop(hold);
    fs::write(&left.path, text).unwrap();
    assert_eq!(keepers(&store), [(Keeper::Vm("db".to_owned()), false)]);
}

#[test]
fn a_root_of_another_version_is_an_error_and_not_nothing() {
    let (_dir, store) = store();
    let path = store.roots_dir().join("x.json");
    for text in [
        "{",
        "{\"schema\":\"vmprof.root/9\",\"kept_by\":{\"vm\":\"x\"},\"records\":[],\"packages\":[],\"entries\":[]}",
    ] {
        fs::write(&path, text).unwrap();
        assert!(matches!(store.roots(), Err(GuestError::Store(StoreError::BadRoot { .. }))), "{text}");
        assert!(
            matches!(
                store.gc(Default::default(), &|| ()),
                Err(GuestError::Store(StoreError::BadRoot { .. }))
            ),
            "{text}"
        );
    }
}

#[test]
fn a_root_cannot_lead_out_of_the_store() {
    let (dir, store) = store();
    fs::write(dir.path().join("evil.json"), serde_json::to_vec(&Record::new("evil")).unwrap()).unwrap();
    let mut root = Root::of_toolset("x");
    root.records.push("../../evil".to_owned());
    let reach = store.reach([&root], true).unwrap();
    assert!(reach.records.is_empty() && reach.entries.is_empty());
}
