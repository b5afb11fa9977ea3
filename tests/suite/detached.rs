//! VMs that are left on their own: `up --detach`, and what is done with them from then on.

use std::fs;

use rustix::process::{Pid, getsid};
use serde_json::Value;
use vmprof_tests::{Home, eventually, in_labs_of_its_own, processes_with, spawn};

const UP: [&str; 5] = ["up", "--detach", "--on", "lab", "profiles/hello.kdl"];

#[test]
fn a_vm_left_on_its_own_is_listed_read_and_stopped_and_leaves_its_log() {
    in_labs_of_its_own(|| {
        let home = Home::new();
        let script = "echo from the guest; echo and aside >&2; exec sleep 600";
        let up = home.run(UP.iter().chain(&["--wait", "--", "sh", "-c", script])).expect(0);
        // The host's plan came while somebody watched; what the guest says did not.
        assert!(up.stdout.is_empty() && up.stderr.contains("vcpu 0"), "{}", up.stderr);
        assert!(!up.stderr.contains("from the guest"), "{}", up.stderr);

        let listed: Value =
            serde_json::from_str(&home.run(["ps", "--format", "json"]).expect(0).stdout).unwrap();
        assert_eq!((&listed[0]["name"], &listed[0]["state"]), (&"hello".into(), &"running".into()));
        let pid = listed[0]["pid"].as_i64().unwrap();
        assert!(up.stderr.contains(&format!("hello is ready (pid {pid})")), "{}", up.stderr);
        let process = Pid::from_raw(i32::try_from(pid).unwrap());
        assert_eq!(getsid(process).ok(), process, "it leads a session of its own");
        home.run(["verify", "hello"]).expect(0);

        eventually("the command's words", || {
            let said = home.run(["logs", "hello"]).expect(0).stdout;
            (said.contains("from the guest\n") && said.contains("and aside\n")).then_some(())
        });
        let last = home.run(["logs", "hello", "-n", "1"]).expect(0).stdout;
        assert_eq!(last.lines().count(), 1, "{last}");

        let again = home.run(UP).expect(1);
        assert!(again.stderr.contains("vmprof::up::name_in_use"), "{}", again.stderr);

        let told: Value =
            serde_json::from_str(&home.run(["ask", "hello", "query-iothreads"]).expect(0).stdout).unwrap();
        assert_eq!(told[0]["id"], "iothread0");
        assert!(
            told[0]["thread-id"].as_i64().is_some_and(|tid| tid > 0) && told[0]["poll-max-ns"].is_u64(),
            "{told}"
        );

        let scraped = home.run(["stats", "hello", "--format", "prometheus"]).expect(0).stdout;
        assert!(
            scraped.contains(r#"vmprof_thread_cpu_seconds_total{vm="hello",thread="CPU 0/KVM","#),
            "{scraped}"
        );
        let mut watcher = spawn(&mut home.vmprof(["stats", "hello", "--watch=500ms"]));
        let mut rates = watcher.output_lines();
        assert!(rates.any(|line| line.starts_with("CPU 0/KVM")));

        let mut follower = spawn(&mut home.vmprof(["logs", "--follow", "hello"]));
        let mut lines = follower.output_lines();
        assert!(lines.any(|line| line == "from the guest"));
        let stopped = home.run(["stop", "--all"]).expect(0);
        assert!(stopped.stderr.contains("hello has stopped"), "{}", stopped.stderr);
        let rest: Vec<String> = lines.collect();
        assert!(rest.last().is_some_and(|line| line.starts_with("vmprof: ")), "{rest:?}");
        follower.finish().expect(0);
        assert!(watcher.finish().expect(0).stderr.contains("hello has ended"));

        assert_eq!(home.run(["ps", "--format", "json"]).expect(0).stdout.trim(), "[]");
        assert!(home.run(["logs", "hello"]).expect(0).stdout.contains("from the guest\n"));
        assert!(home.run(["stop", "hello"]).expect(1).stderr.contains("vmprof::run::not_running"));
        assert!(home.run(["stop", "--all"]).expect(0).stderr.contains("no VM is running"));
        let runs = home.path().join(".local/state/vmprof/run");
        assert!(!fs::exists(runs.join("hello")).unwrap());
        let home_path = home.path().to_str().unwrap();
        eventually("nothing of it to run", || processes_with(home_path).is_empty().then_some(()));
    });
}

#[test]
fn what_cannot_start_says_so_where_it_was_asked_for() {
    let home = Home::new();
    let missing = home.run(["up", "--detach", "nowhere.kdl"]).expect(3);
    assert!(missing.stderr.contains("nowhere.kdl"), "{}", missing.stderr);
    for words in [&["--detach", "--console"][..], &["--detach", "--dry-run"], &["--wait"]] {
        home.run(["up"].iter().chain(words).chain(&["profiles/hello.kdl"])).expect(64);
    }
    let none = home.run(["logs", "nobody"]).expect(1);
    assert!(none.stderr.contains("vmprof::run::no_log"), "{}", none.stderr);
    home.run(["stop"]).expect(64);
    home.run(["stop", "--all", "hello"]).expect(64);
}
