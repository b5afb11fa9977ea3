//! `up` killed at any moment leaves no process behind.

use std::time::Duration;

use rustix::process::Signal;
use vmprof_tests::{Home, eventually, finish, in_labs_of_its_own, processes_with, spawn};

/// Every process of a run in the lab has the VM's name or its channels on its command line; the name is this test's own.
fn is_running(name: &str) -> bool {
    !processes_with(name).is_empty()
}

fn start(home: &Home, name: &str) -> vmprof_tests::Running {
    let words = ["up", "--on", "lab", "--name", name, "profiles/hello.kdl", "--", "sleep", "1000"];
    spawn(&mut home.vmprof(words))
}

fn emulators_of(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie waits for its parent only: it runs no more.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn sigkill_at_any_moment_takes_the_emulated_host_along() {
    in_labs_of_its_own(|| {
        let home = Home::new();
        // Before the emulator, while it boots, and while the guest inside runs.
        for (round, delay) in [0, 300, 2_000, 9_000, 25_000].into_iter().enumerate() {
            let name = format!("killed-{round}-{}", std::process::id());
            let running = start(&home, &name);
            std::thread::sleep(Duration::from_millis(delay));
            let children = emulators_of(running.pid());
            running.signal(Signal::KILL);
            assert_eq!(running.finish().status, None, "killed by a signal");
            eventually("the end of the emulator", || {
                children.iter().all(|child| !is_alive(*child)).then_some(())
            });
            assert!(!is_running(&name), "something of {name} is left");
        }
        assert_eq!(home.run(["ps", "--format", "json"]).expect(0).stdout.trim(), "[]");
        // The name and everything else is free again.
        let words = ["up", "--on", "lab", "--name", "again", "profiles/hello.kdl", "--", "true"];
        home.run(words).expect(0);
    });
}

#[test]
fn ctrl_c_is_a_clean_stop_with_the_commands_status() {
    in_labs_of_its_own(|| {
        let home = Home::new();
        let name = format!("interrupted-{}", std::process::id());
        let running = start(&home, &name);
        eventually("a running guest", || {
            let stats = finish(&mut home.vmprof(["stats", &name, "--format", "json"]));
            (stats.status == Some(0)).then_some(())
        });
        let children = emulators_of(running.pid());
        assert!(!children.is_empty());
        running.signal(Signal::INT);
        let finished = running.finish();
        assert!(matches!(finished.status, Some(143 | 130)), "{:?}\n{}", finished.status, finished.stderr);
        assert!(children.iter().all(|child| !is_alive(*child)));
        assert!(!is_running(&name));
    });
}
