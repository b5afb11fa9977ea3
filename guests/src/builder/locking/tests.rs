use super::*;
use crate::error::GuestError;
use crate::progress::Silent;
use crate::store::Store;
use crate::testing::{self, serve_archive};

const KERNEL: (&str, &str, &str) = ("linux-image-test", "6", "");
const ONE: [(&str, &str, &str); 4] = [KERNEL, ("tool", "1", "lib"), ("lib", "1", ""), ("other", "1", "lib")];
/// The archive after some time: newer versions beside the old ones.
const TWO: [(&str, &str, &str); 8] = [
    KERNEL,
    ("linux-image-test", "7", ""),
    ("tool", "1", "lib"),
    ("tool", "2", "lib (>= 2)"),
    ("lib", "1", ""),
    ("lib", "2", ""),
    ("other", "1", "lib"),
    ("other", "2", "lib"),
];

struct Site {
    directory: tempfile::TempDir,
    store: Store,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        Self { directory, store }
    }

    fn archive(&self, packages: &[(&str, &str, &str)]) {
        serve_archive(&self.directory.path().join("archive"), packages);
    }

    fn recipe(&self, packages: &str) -> Recipe {
        let recipe =
            testing::recipe(self.directory.path(), &format!("packages {packages}\n run \"/usr/bin/tool\""));
        std::fs::write(&recipe.path, "").unwrap();
        recipe
    }

    fn lock(&self, packages: &str, update: &Update) -> Locked {
        Builder::new(&self.store, &Silent).lock(&self.recipe(packages), update).unwrap()
    }
}

fn told(locked: &Locked) -> Vec<String> {
    locked.changes.iter().map(ToString::to_string).collect()
}

fn only(name: &str) -> Update {
    Update::Packages(vec![name.to_owned()])
}

#[test]
fn a_new_lock_is_all_additions_and_the_same_lock_again_is_nothing() {
    let site = Site::new();
    site.archive(&ONE);
    let first = site.lock("tool", &Update::Nothing);
    assert_eq!(told(&first), ["added   lib 1", "added   linux-image-test 6", "added   tool 1"]);
    assert!(first.differs);
    let text = std::fs::read_to_string(&site.recipe("tool").lock_path).unwrap();
    for update in [Update::Nothing, only("tool"), Update::All] {
        let again = site.lock("tool", &update);
        assert!(!again.differs && again.changes.is_empty(), "{update:?}");
    }
    assert_eq!(std::fs::read_to_string(&site.recipe("tool").lock_path).unwrap(), text);
}

#[test]
fn a_changed_recipe_keeps_every_version_that_the_archive_still_has() {
    let site = Site::new();
    site.archive(&ONE);
    site.lock("tool", &Update::Nothing);
    site.archive(&TWO);
    assert_eq!(told(&site.lock("tool", &Update::Nothing)), Vec::<String>::new());
    assert_eq!(told(&site.lock("tool other", &Update::Nothing)), ["added   other 2"]);
    assert_eq!(told(&site.lock("other", &Update::Nothing)), ["removed tool 1"]);
}

#[test]
fn what_a_changed_recipe_needs_newer_is_taken_newer_and_nothing_else() {
    let site = Site::new();
    site.archive(&ONE);
    site.lock("other", &Update::Nothing);
    site.archive(&TWO);
    assert_eq!(told(&site.lock("other tool", &Update::Nothing)), ["changed lib 1 → 2", "added   tool 2"]);
}

#[test]
fn one_package_is_updated_with_what_it_needs() {
    let site = Site::new();
    site.archive(&ONE);
    site.lock("tool other", &Update::Nothing);
    site.archive(&TWO);
    assert_eq!(told(&site.lock("tool other", &only("tool"))), ["changed lib 1 → 2", "changed tool 1 → 2"]);
    assert_eq!(told(&site.lock("tool other", &only("linux-image-test"))), ["changed linux-image-test 6 → 7"]);
    assert_eq!(told(&site.lock("tool other", &Update::All)), ["changed other 1 → 2"]);
}

#[test]
fn a_version_that_is_gone_is_replaced_and_the_others_stay() {
    let site = Site::new();
    site.archive(&ONE);
    site.lock("tool other", &Update::Nothing);
    site.archive(&TWO.into_iter().filter(|package| *package != ("other", "1", "lib")).collect::<Vec<_>>());
    assert_eq!(told(&site.lock("tool other", &Update::Nothing)), ["changed other 1 → 2"]);
}

#[test]
fn resolving_alone_says_what_would_change_and_writes_nothing() {
    let site = Site::new();
    site.archive(&ONE);
    let recipe = site.recipe("tool");
    let locked = Builder::new(&site.store, &Silent).resolve(&recipe, &Update::Nothing).unwrap();
    assert!(locked.differs && locked.changes.len() == 3);
    assert!(!recipe.lock_path.exists());
}

#[test]
fn updating_a_package_that_is_not_locked_is_refused_with_the_one_that_was_meant() {
    let site = Site::new();
    site.archive(&ONE);
    site.lock("tool", &Update::Nothing);
    let error = Builder::new(&site.store, &Silent).lock(&site.recipe("tool"), &only("tooll")).unwrap_err();
    assert!(
        matches!(&error, GuestError::Lock(LockError::NotLocked { near, .. }) if near == &["tool"]),
        "{error:?}"
    );

    let builder = Builder::new(&site.store, &Silent);
    let error = builder.lock(&site.recipe("tool other"), &only("other")).unwrap_err();
    assert!(matches!(&error, GuestError::Lock(LockError::NotLocked { is_asked_for: true, .. })), "{error:?}");
}

#[test]
fn a_lock_that_cannot_be_read_is_made_anew() {
    let site = Site::new();
    site.archive(&ONE);
    let recipe = site.recipe("tool");
    std::fs::write(&recipe.lock_path, "lock \"trial\" schema=99 {}\n").unwrap();
    let locked = site.lock("tool", &Update::Nothing);
    assert_eq!(locked.changes.len(), 3);
    assert_eq!(Lock::read(&recipe.lock_path).unwrap(), locked.lock);
}
