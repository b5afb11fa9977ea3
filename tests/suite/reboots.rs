//! Guests that reboot: started anew in the same run, with what they wrote to their disks.

use std::fs;

use serde_json::Value;
use vmprof_tests::{Home, checkout, eventually, in_the_lab};

/// A guest that writes to its root and to its disk, says what it finds there, and reboots the first time.
const GUEST: &str = r#"
guest rebooting {
    distribution debian suite=bookworm arch=amd64
    lock "CHECKOUT/guests/hello.lock.kdl"
    packages busybox-static
    kernel package=linux-image-cloud-amd64
    link "/usr/bin/sh" to="busybox"
    link "/usr/bin/basename" to="busybox"
    link "/usr/bin/cat" to="busybox"
    link "/usr/bin/dd" to="busybox"
    link "/usr/bin/dirname" to="busybox"
    link "/usr/bin/grep" to="busybox"
    link "/usr/bin/head" to="busybox"
    link "/usr/bin/reboot" to="busybox"
    link "/usr/bin/sleep" to="busybox"
    link "/usr/bin/test" to="busybox"
    image root { format ext4 size="64MiB"; }
    file "/usr/bin/boot" mode=0o755 """
        #!/bin/sh
        disk=/dev/$(basename $(dirname $(grep -lx data /sys/block/*/serial)))
        if test -e /booted; then
            echo "root: $(cat /booted), disk: $(head -c 7 $disk)"
            exit 0
        fi
        echo before > /booted
        echo -n written | dd of=$disk conv=fsync
        dd if=/booted of=/booted conv=notrunc,fsync
        until test -e "$1"; do sleep 1; done
        reboot -f
        """
    HOW
}
"#;

fn profile(home: &Home, how: &str) -> String {
    let (guest, profile) = (home.path().join("rebooting.kdl"), home.path().join("profile.kdl"));
    fs::write(&guest, GUEST.replace("CHECKOUT", checkout().to_str().unwrap()).replace("HOW", how)).unwrap();
    let text = "profile rebooting {\n    guest \"rebooting.kdl\"\n    vcpu 2\n    memory \"256MiB\"\n    iothreads 1\n    \
                disk data { source file=\"data.raw\" size=\"1MiB\"; driver raw cache=none; }\n}\n";
    fs::write(&profile, text).unwrap();
    profile.to_str().unwrap().to_owned()
}

const LAB: [&str; 3] = ["up", "--on", "lab"];

#[test]
fn a_guest_that_reboots_goes_on_with_its_disks_and_is_left_alone_where_that_is_asked_for() {
    in_the_lab(|| {
        let home = Home::new();
        let profile = profile(&home, r#"run "/usr/bin/boot" "/""#);
        let once = home.run(LAB.iter().chain(&["--no-reboot", &profile])).expect(0);
        assert_eq!(once.stdout, "", "{}", once.stderr);
        assert!(once.stderr.contains("the guest asked for a reboot: the run ends here"), "{}", once.stderr);

        let twice = home.run(LAB.iter().chain(&[&*profile])).expect(0);
        // The root is a run's own and the disk is the user's, and neither is a boot's.
        assert_eq!(twice.stdout, "root: before, disk: written\n", "{}", twice.stderr);
        assert_eq!(twice.stderr.matches("rebooting reboots\n").count(), 1, "{}", twice.stderr);

        let command = home.run(LAB.iter().chain(&[&profile, "--", "reboot", "-f"])).expect(125);
        assert!(command.stderr.contains("rebooted before the command had ended"), "{}", command.stderr);
    });
}

#[test]
fn a_vm_that_was_left_on_its_own_is_the_same_run_before_and_after_its_guest_reboots() {
    in_the_lab(|| {
        let home = Home::new();
        let serving = r#"service first {
            exec "/bin/sh" "-c" "/usr/bin/boot /go && exec sleep 1000"
            ready command "/usr/bin/test" "-e" "/booted"
        }"#;
        let profile = profile(&home, serving);
        home.run(LAB.iter().chain(&["--detach", "--wait", &profile])).expect(0);
        let listed = || -> Value {
            serde_json::from_str(&home.run(["ps", "--format", "json"]).expect(0).stdout).unwrap()
        };
        let first = listed();
        let change =
            ["iothread", "rebooting", "0", "--cpuset", "3", "--poll-max-ns", "12345", "--format", "json"];
        let changed: Value = serde_json::from_str(&home.run(change).expect(0).stdout).unwrap();
        assert_ne!(changed["before"], changed["after"]);
        home.run(["exec", "rebooting", "--", "sh", "-c", ": > /go"]).expect(0);
        eventually("the guest to reboot", || {
            let said = home.run(["logs", "rebooting"]).expect(0).stdout;
            said.contains("rebooting reboots").then_some(())
        });
        // It takes seconds to be ready again.
        eventually("ps to show it", || (listed()[0]["state"] == "starting").then_some(()));
        eventually("the guest to serve again", || {
            let said = home.run(["logs", "rebooting"]).expect(0).stdout;
            let (_, after) = said.split_once("vmprof: rebooting reboots\n")?;
            after.contains("rebooting is ready after").then_some(())
        });
        let mut second = listed();
        assert_eq!((&second[0]["name"], &second[0]["state"]), (&"rebooting".into(), &"serving".into()));
        assert_eq!(second.as_array().unwrap().len(), 1);
        second[0]["state"] = first[0]["state"].clone();
        assert_eq!(first, second, "the process, the disks, since when: all of it");
        // Threads that the first machine did not have are where the plan in force has them.
        home.run(["verify", "rebooting"]).expect(0);
        let is: Value =
            serde_json::from_str(&home.run(change[..3].iter().chain(&change[7..])).expect(0).stdout).unwrap();
        assert_eq!(is["before"], changed["after"], "what was changed stays changed");
        let told: Value =
            serde_json::from_str(&home.run(["ask", "rebooting", "query-iothreads"]).expect(0).stdout)
                .unwrap();
        assert_eq!(told[0]["poll-max-ns"], 12_345);
        let clash = home.run(LAB.iter().chain(&["--detach", &profile])).expect(1);
        assert!(clash.stderr.contains("vmprof::up::name_in_use"), "{}", clash.stderr);
        home.run(["stop", "rebooting"]).expect(0);
        let said = home.run(["logs", "rebooting"]).expect(0).stdout;
        assert_eq!(said.matches("rebooting reboots").count(), 1, "{said}");
    });
}
