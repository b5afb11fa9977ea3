//! What the machine gives a Linux guest beside disks and ports: random bytes, clocks that stand a pause, and an ear for its
//! kernel's panic.

use std::fs;
use std::time::Duration;

use vmprof_tests::{Home, checkout, in_the_lab, spawn};

const LAB: [&str; 3] = ["up", "--on", "lab"];

/// Longer than the guest's watchdog takes for a soft lockup: twice `watchdog_thresh`.
const PAUSE: Duration = Duration::from_secs(15);

/// Says which random number generator the kernel has and how many bytes came of it, and then, about once a second of its
/// own: its wall clock, its uptime, and how many soft lockups its kernel saw. Meanwhile its one CPU is busy: of one that is idle
/// the kernel's watchdog expects nothing.
const SCRIPT: &str = "echo 5 > /proc/sys/kernel/watchdog_thresh; cat /sys/class/misc/hw_random/rng_current; \
    head -c 100000 /dev/hwrng | wc -c; head -c 512 /dev/hwrng | busybox md5sum; head -c 512 /dev/hwrng | busybox md5sum; \
    yes > /dev/null & \
    while :; do read up rest < /proc/uptime; echo $(busybox date +%s) ${up%.*} \
    $(busybox dmesg | grep -c 'soft lockup'); sleep 1; done";

#[test]
fn a_guest_has_random_bytes_of_the_host_and_stands_a_pause_with_its_clocks_right() {
    in_the_lab(|| {
        let home = Home::new();
        let words = LAB.iter().chain(&["profiles/hello.kdl", "--", "sh", "-c", SCRIPT]);
        let mut running = spawn(&mut home.vmprof(words));
        let mut lines = running.output_lines();
        let mut line = || lines.next().expect("the guest goes on");
        let generator = line();
        assert!(generator.starts_with("virtio_rng"), "{generator}");
        assert_eq!(line(), "100000", "past any share of one period");
        assert_ne!(line(), line(), "other bytes each time");

        let mut clocks = || -> [u64; 3] {
            let line = line();
            let numbers: Vec<u64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
            numbers.try_into().unwrap_or_else(|_| panic!("three numbers, not `{line}`"))
        };
        let mut before = clocks();
        home.run(["pause", "hello"]).expect(0);
        std::thread::sleep(PAUSE);
        home.run(["resume", "hello"]).expect(0);
        // Time has gone on for both of its clocks: one line is that much later than the one before. Seconds are whole.
        let pause = PAUSE.as_secs() - 1;
        let leap = (0..60).find_map(|_| {
            let now = clocks();
            let [wall, up] = [0, 1].map(|clock| now[clock].saturating_sub(before[clock]));
            before = now;
            (wall >= pause || up >= pause).then_some((wall, up))
        });
        let (wall, up) = leap.expect("the pause is seen on the guest's clocks");
        assert!(wall >= pause && up >= pause, "wall clock {wall} s later, uptime {up} s");
        // The watchdog looks each two seconds.
        let after = (0..6).map(|_| clocks()).last().expect("six lines");
        assert_eq!(after[2], 0, "the guest was told that it was away");
        home.run(["stop", "hello"]).expect(0);
        drop(running);
    });
}

/// A guest that panics by itself, as what its recipe names and not as somebody's command.
const FALLING: &str = r#"
guest falling {
    distribution debian suite=bookworm arch=amd64
    lock "CHECKOUT/guests/hello.lock.kdl"
    packages busybox-static
    kernel package=linux-image-cloud-amd64
    link "/usr/bin/sh" to="busybox"
    link "/usr/bin/sleep" to="busybox"
    file "/usr/bin/fall" mode=0o755 """
        #!/bin/sh
        echo c > /proc/sysrq-trigger
        sleep 1000
        """
    service fall { exec "/usr/bin/fall"; }
}
"#;

/// By the pvpanic device, which the kernel's own driver finds through ACPI: a reboot, which follows a panic here, has
/// another message.
#[test]
fn a_guest_that_panics_without_a_command_ends_with_1_and_is_heard_to_panic() {
    in_the_lab(|| {
        let home = Home::new();
        fs::write(home.path().join("falling.kdl"), FALLING.replace("CHECKOUT", checkout().to_str().unwrap()))
            .unwrap();
        let profile = home.path().join("profile.kdl");
        let text = "profile falling {\n    guest \"falling.kdl\"\n    vcpu 1\n    memory \"256MiB\"\n    iothreads 1\n}\n";
        fs::write(&profile, text).unwrap();
        let finished = home.run(LAB.iter().chain(&[profile.to_str().unwrap()])).expect(1);
        assert!(finished.stderr.contains("the guest's kernel panicked"), "{}", finished.stderr);
    });
}
