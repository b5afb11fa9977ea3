//! Images: the same bytes whoever builds them, wherever.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use serde_json::Value;
use vmprof_tests::{Home, NOBODY, binary, checkout, finish};

fn digests(built: &str) -> (String, String, String) {
    let built: Value = serde_json::from_str(built).unwrap();
    let word = |key: &str| {
        let path = built[key].as_str().unwrap().to_owned();
        path.rsplit('/').next().unwrap().to_owned()
    };
    (word("kernel"), word("initramfs"), word("root"))
}

fn copy_guests(to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(checkout().join("guests")).unwrap().flatten() {
        if entry.path().extension().is_some_and(|ending| ending == "kdl") {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Two stores, two directories, two users where this one may become another, two umasks, locales and time zones.
#[test]
fn a_guest_has_the_same_digests_wherever_and_by_whomever_it_is_built() {
    let first = Home::new();
    let one = first.run(["build", "guests/hello.kdl", "--format", "json"]).expect(0).stdout;

    let second = Home::with_store(Home::new().path().join("no-such-place-yet/store"));
    let elsewhere = second.path().join("a longer path with spaces/guests");
    copy_guests(&elsewhere);
    let copy = second.path().join("vmprof");
    fs::copy(binary(), &copy).unwrap();
    let store = second.path().join("store");
    fs::create_dir(&store).unwrap();
    for (path, mode) in [(second.path(), 0o755), (&store, 0o777), (&copy, 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = std::process::Command::new(&copy);
    command.args(["build", "hello.kdl", "--format", "json"]).current_dir(&elsewhere).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", &store);
    command.env("VMPROF_STORE", store.join("s")).env("TZ", "Pacific/Kiritimati").env("LC_ALL", "C.UTF-8");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    } else {
        println!(
            "skipped in part: a_guest_has_the_same_digests: one user only, this one may not become another"
        );
    }
    let two = finish(&mut command).expect(0).stdout;
    assert_eq!(digests(&one), digests(&two));
}

#[test]
fn a_build_checked_again_is_the_same() {
    let home = Home::new();
    let checked = home.run(["build", "guests/hello.kdl", "--check"]).expect(0);
    assert!(checked.stderr.contains("the same bytes"), "{}", checked.stderr);
}

#[test]
fn a_warm_build_needs_no_network_and_no_programs() {
    let home = Home::new();
    let cold = home.run(["build", "profiles/hello.kdl"]).expect(0).stdout;
    let warm = finish(home.vmprof(["build", "--frozen", "--offline", "profiles/hello.kdl"]).env("PATH", ""))
        .expect(0)
        .stdout;
    assert_eq!(cold, warm);
    let empty = Home::with_store(home.path().join("empty"));
    let refused = empty.run(["build", "--offline", "profiles/hello.kdl"]).expect(1);
    assert!(refused.stderr.contains("offline"), "{}", refused.stderr);
}

#[test]
fn an_invalid_recipe_is_3() {
    let home = Home::new();
    let recipe = home.path().join("bad.kdl");
    fs::write(
        &recipe,
        "guest bad {\n    distribution debian suite=bookworm arch=amd64\n    pakages fio\n}\n",
    )
    .unwrap();
    let stderr = home.run(["build", recipe.to_str().unwrap()]).expect(3).stderr;
    assert!(stderr.contains("pakages") && stderr.contains("packages"), "{stderr}");
}
