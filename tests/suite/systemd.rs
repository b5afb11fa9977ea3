//! A guest of the distribution's systemd, really booted: vmprof's first process hands over, and goes on as one of its services.

use std::fs;

use vmprof_tests::{Home, checkout, in_the_lab};

#[test]
fn systemd_boots_with_journal_and_network_and_a_command_has_its_own_streams_and_status() {
    in_the_lab(|| {
        let home = Home::new();
        let profile = home.path().join("profile.kdl");
        let guest = checkout().join("guests/systemd.kdl");
        let text = format!(
            "profile systemd {{\n    guest {guest:?}\n    vcpu 1\n    memory \"512MiB\"\n    iothreads 1\n}}\n"
        );
        fs::write(&profile, text).unwrap();
        let script = "systemctl is-system-running\n\
                  /usr/lib/systemd/systemd-networkd-wait-online --quiet --interface=dummy0 --timeout=120 || exit 1\n\
                  networkctl --no-legend --no-pager list dummy0\n\
                  journalctl --boot --quiet --no-pager --output=cat --unit=multi-user.target\n\
                  systemd-run --quiet --unit=late sh -c 'echo why >&2; exit 4'\n\
                  cat /proc/1/comm; echo err >&2; exit 7";
        let words =
            ["up", "--on", "lab", "--name", "systemd", profile.to_str().unwrap(), "--", "sh", "-c", script];
        let finished = home.run(words).expect(7);
        let lines: Vec<Vec<&str>> =
            finished.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        let [state, link, reached, first] = lines.as_slice() else { panic!("{}", finished.stdout) };
        assert_eq!(state, &["running"]);
        assert_eq!(link[1..], ["dummy0", "ether", "routable", "configured"]);
        assert_eq!(reached[..3], ["Reached", "target", "multi-user.target"]);
        assert_eq!(first, &["systemd"]);
        let at = |what: &str| {
            finished.stderr.find(what).unwrap_or_else(|| panic!("no `{what}`: {}", finished.stderr))
        };
        at("late.service: failed: it exited with status 4; the last it wrote:\n  why\n");
        let order =
            ["systemd: starting", "systemd: ready", "its command starts", "err\n", "systemd: stopped"];
        assert!(order.map(at).is_sorted(), "{}", finished.stderr);
    });
}
