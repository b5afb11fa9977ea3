//! The lab that stays: several VMs in it that plan around each other, what a killed one leaves to the next, and its verbs where there
//! is none.

use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use vmprof_tests::{Finished, Home, checkout, eventually, finish, in_labs_of_its_own, in_the_lab, spawn};

/// vmprof with a lab of this home's own.
fn vmprof(home: &Home, words: &[&str]) -> Finished {
    finish(home.vmprof(words).env("VMPROF_LAB", home.path().join("lab")))
}

fn json(finished: &Finished) -> serde_json::Value {
    serde_json::from_str(&finished.stdout).expect("it prints JSON")
}

#[test]
fn without_a_lab_its_verbs_say_so() {
    let home = Home::new();
    for words in [&["lab", "status"][..], &["lab", "stop"]] {
        let finished = vmprof(&home, words).expect(1);
        assert!(finished.stderr.contains("no lab is up"), "{}", finished.stderr);
        assert_eq!(finished.stdout, "");
    }
    let status = vmprof(&home, &["lab", "status", "--format", "json"]).expect(1);
    assert_eq!(json(&status)["up"], false);
    let shape = vmprof(&home, &["lab", "start", "--lab", "nodes=0"]).expect(64);
    assert!(shape.stderr.contains("out of range"), "{}", shape.stderr);
}

/// A lab of the home's own, which goes with the test however that ends.
struct Lab<'a>(&'a Home);

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        // Most tests have stopped it.
        let _ = vmprof(self.0, &["lab", "stop"]);
    }
}

/// One vCPU and a disk of a size that boots fast.
fn profile(home: &Home) -> String {
    let text = format!(
        "profile disk {{\n guest \"{}\"\n vcpu 1\n memory \"256MiB\"\n iothreads 1\n \
         disk data {{ source file=\"d.raw\" size=\"8MiB\"; }}\n}}\n",
        checkout().join("guests/hello.kdl").display()
    );
    let path = home.path().join("disk.kdl");
    std::fs::write(&path, text).expect("the home can be written to");
    path.to_str().expect("a temporary path is text").to_owned()
}

fn pid_of(home: &Home, name: &str) -> Pid {
    let runs = json(&vmprof(home, &["ps", "--format", "json"]).expect(0));
    let run = runs.as_array().expect("a list").iter().find(|run| run["name"] == name).expect("it runs");
    Pid::from_raw(run["pid"].as_i64().expect("a pid") as i32).expect("a pid")
}

#[test]
fn vms_in_one_lab_plan_around_each_other_and_a_killed_one_stops_nobody() {
    in_labs_of_its_own(|| {
        let home = Home::new();
        let _lab = Lab(&home);
        vmprof(&home, &["lab", "start"]).expect(0);
        let again = vmprof(&home, &["lab", "start"]).expect(0);
        assert!(again.stderr.contains("is up already"), "{}", again.stderr);
        let other = vmprof(&home, &["lab", "start", "--lab", "nodes=4"]).expect(1);
        assert!(other.stderr.contains("of another shape is up"), "{}", other.stderr);

        let up = |name: &str, profile: &str, command: &str| {
            let words = ["up", "--detach", "--wait", "--on", "lab", "--name", name, profile];
            let mut up = home.vmprof([&words[..], &["--", "sh", "-c", command]].concat());
            spawn(up.env("VMPROF_LAB", home.path().join("lab")))
        };
        let disk = profile(&home);
        // At once: whichever plans second sees the other.
        let both = [
            up("one", &disk, "echo kept > /dev/vdb; sync; touch /tmp/written; exec sleep 600"),
            up("two", "profiles/hello.kdl", "exec sleep 600"),
        ];
        let both = both.map(|up| up.finish().expect(0).stderr);
        assert_eq!(both.iter().filter(|said| said.contains("held by another VM")).count(), 1, "{both:?}");
        let runs = json(&vmprof(&home, &["ps", "--format", "json"]).expect(0));
        assert_eq!(runs.as_array().expect("a list").len(), 2);
        for name in ["one", "two"] {
            vmprof(&home, &["verify", name]).expect(0);
        }
        let status = json(&vmprof(&home, &["lab", "status", "--format", "json"]).expect(0));
        assert_eq!((&status["up"], status["runs"].as_array().map(Vec::len)), (&true.into(), Some(2)));
        let twice = vmprof(&home, &["up", "--on", "lab", "--name", "third", &disk, "--", "true"]).expect(125);
        assert!(twice.stderr.contains("is in use by the running VM"), "{}", twice.stderr);

        // That its command has begun does not say that the guest has written.
        eventually("the guest to have written", || {
            let asked = vmprof(&home, &["exec", "one", "--", "test", "-e", "/tmp/written"]);
            (asked.status != Some(1)).then(|| asked.expect(0))
        });
        // Whoever comes next waits until nothing of it is left, and finds what it wrote.
        kill_process(pid_of(&home, "one"), Signal::KILL).expect("it runs");
        let words = ["up", "--on", "lab", "--name", "one", &disk, "--", "head", "-c", "4", "/dev/vdb"];
        assert_eq!(vmprof(&home, &words).expect(0).stdout, "kept");
        eventually("the run's drives to be pulled", || {
            let status = json(&vmprof(&home, &["lab", "status", "--format", "json"]).expect(0));
            (status["runs"].as_array().map(Vec::len) == Some(1)).then_some(())
        });

        // A clean stop of all that is in it, and nothing stays.
        let stopped = vmprof(&home, &["lab", "stop"]).expect(0);
        assert!(stopped.stderr.contains("stopping two"), "{}", stopped.stderr);
        vmprof(&home, &["lab", "status"]).expect(1);
        assert_eq!(json(&vmprof(&home, &["ps", "--format", "json"]).expect(0)), serde_json::json!([]));
        let log = std::fs::read_to_string(home.path().join(".local/state/vmprof/lab.log"));
        assert!(log.expect("the keeper has a log").contains("the lab has stopped"));
    });
}

#[test]
fn a_lab_whose_keeper_is_killed_takes_its_vms_along_and_is_no_hindrance() {
    in_labs_of_its_own(|| {
        let home = Home::new();
        let _lab = Lab(&home);
        vmprof(&home, &["lab", "start"]).expect(0);
        let words = ["up", "--detach", "--wait", "--on", "lab", "profiles/hello.kdl", "--", "sleep", "600"];
        vmprof(&home, &words).expect(0);
        let status = json(&vmprof(&home, &["lab", "status", "--format", "json"]).expect(0));
        let keeper = Pid::from_raw(status["pid"].as_i64().expect("a pid") as i32).expect("a pid");
        kill_process(keeper, Signal::KILL).expect("it runs");
        eventually("the run to end", || {
            let runs = json(&vmprof(&home, &["ps", "--format", "json"]).expect(0));
            (runs == serde_json::json!([])).then_some(())
        });
        let log = vmprof(&home, &["logs", "hello"]).expect(0);
        assert!(log.stdout.contains("the emulated host ended before its work was done"), "{}", log.stdout);
        vmprof(&home, &["lab", "status"]).expect(1);
        vmprof(&home, &["lab", "start"]).expect(0);
        vmprof(&home, &["lab", "stop"]).expect(0);
    });
}

/// A sample of the command in docs/testing.md.
#[test]
fn ten_times_up_exec_cp_stop_and_some_killed_leave_nothing() {
    in_the_lab(|| {
        let mut soak = Command::new(Path::new(checkout()).join("tests/soak-detached"));
        soak.args(["--joined", "10"]).env("VMPROF_BINARY", vmprof_tests::binary());
        soak.env("VMPROF_STORE", vmprof_tests::shared_store());
        let finished = finish(&mut soak).expect(0);
        assert!(finished.stdout.contains("10 runs, 0 failures"), "{}", finished.stdout);
    });
}
