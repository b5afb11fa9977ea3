use super::*;
use crate::error::GuestError;
use crate::testing;

fn lock() -> Lock {
    let recipe = testing::recipe(Path::new(""), "packages a b { without c }\n run \"/x\"");
    let mut package = testing::locked("libstdc++6", b"bytes");
    package.version = "2:1.0~rc1+b2-3".to_owned();
    testing::lock(&recipe, testing::locked("linux-image-test", b"kernel"), vec![package])
}

#[test]
fn a_lock_reads_what_it_writes() {
    let lock = lock();
    let text = lock.to_text();
    assert_eq!(Lock::parse(Path::new("x.lock.kdl"), &text).unwrap(), lock);
    let lines = text.lines().filter(|line| line.trim_start().starts_with("package \"")).count();
    assert_eq!(lines, 2, "one line a package");
    insta::assert_snapshot!(text);
}

#[test]
fn a_recipe_that_asks_for_something_else_makes_the_lock_stale() {
    let lock = lock();
    let stale = |body: &str| {
        let recipe = testing::recipe(Path::new(""), &format!("{body}\n run \"/x\""));
        match lock.check(&recipe) {
            Err(GuestError::Lock(LockError::Stale { changed, .. })) => changed,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(stale("packages a d { without c }"), "`d` is new, `b` is gone");
    assert_eq!(stale("packages a b"), "without `c` is gone");
    assert_eq!(stale("packages a b recommends=#true { without c }"), "recommends is now true");
    lock.check(&testing::recipe(Path::new(""), "packages b a { without c }\n run \"/y\"")).unwrap();
}

#[test]
fn a_lock_that_names_places_outside_the_archive_is_refused() {
    let text = lock().to_text();
    for (good, evil) in [
        ("pool/main/t/libstdc++6/", "../../etc/"),
        ("pool/main/t/libstdc++6/", "/pool/"),
        ("pool/main/t/libstdc++6/", "pool/-o/"),
        ("2:1.0~rc1+b2-3", "1.0 -o Dir=/"),
        ("sha256=\"", "sha256=\"x"),
        ("size=5", "size=0"),
    ] {
        let text = text.replace(good, evil);
        let error = Lock::parse(Path::new("x.lock.kdl"), &text).unwrap_err();
        assert_eq!(error.class(), crate::FailureClass::Invalid, "{evil}");
    }
}

#[test]
fn a_lock_of_a_later_schema_is_refused_by_its_number() {
    let text = lock().to_text().replace("schema=1", "schema=2");
    let Err(GuestError::Document(problems)) = Lock::parse(Path::new("x.lock.kdl"), &text) else { panic!() };
    let messages: Vec<&str> = problems.iter().map(|problem| problem.message()).collect();
    assert_eq!(messages, ["the lock is of schema 2; this vmprof reads schema 1"]);
}

#[test]
fn a_lock_that_is_not_text_is_an_invalid_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.lock.kdl");
    std::fs::write(&path, b"lock \xff").unwrap();
    let error = Lock::read(&path).unwrap_err();
    assert_eq!(error.class(), crate::FailureClass::Invalid);
    assert!(error.to_string().ends_with("x.lock.kdl is not text: byte 5 is not UTF-8"), "{error}");
}
