use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::super::failed::FailedUnit;
use super::*;
use crate::reap::{Children, ONE_FAMILY_AT_A_TIME};

#[test]
fn a_target_that_is_not_active_is_named_with_the_units_that_failed() {
    assert_eq!(reached("Id=graphical.target\nActiveState=active\n"), Ok(()));
    let target = reached("Id=multi-user.target\nActiveState=inactive\n").unwrap_err();
    let failed = ["a.service", "b.mount"].map(FailedUnit::made);
    assert_eq!(
        not_reached(&target, &failed),
        "multi-user.target was not reached; units that failed: a.service, b.mount"
    );
    assert_eq!(reached(""), Err("default.target".into()));
}

/// A systemctl of the test's own, a script that is told the question as its first argument; and a journal.
struct Guest {
    units: Units,
    children: Children,
    last_call: UnixStream,
    asked: tempfile::TempDir,
    _alone: Box<dyn std::any::Any>,
}

fn guest(script: &str) -> Guest {
    let alone = ONE_FAMILY_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let directory = tempfile::tempdir().unwrap();
    for (name, script) in [("systemctl", script), ("journalctl", "[ $1 = --sync ] || echo it is; echo cold")]
    {
        let program = directory.path().join(name);
        fs::write(&program, format!("#!/bin/sh\necho \"$*\" >>asked\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let active = directory.path().join("active");
    fs::create_dir(&active).unwrap();
    fs::write(active.join("invocation:late.service"), "").unwrap();
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let surroundings = Surroundings {
        environment: vec![("PATH".into(), path.into())],
        directory: directory.path().to_owned(),
    };
    let (last_call, inside) = UnixStream::pair().unwrap();
    inside.set_nonblocking(true).unwrap();
    let units = Units::new(LastCall::made(inside.into()), Endings::watch(&active), surroundings);
    let children = Children::watch().unwrap();
    Guest { units, children, last_call, asked: directory, _alone: Box::new(alone) }
}

impl Guest {
    /// Goes on until this holds; what was told.
    fn until(&mut self, done: impl Fn(&Units, &[FromGuest]) -> bool) -> Vec<FromGuest> {
        let mut told = Vec::new();
        loop {
            let now = Instant::now();
            for (pid, status) in self.children.reap() {
                assert!(self.units.ended(pid, status));
            }
            told.extend(self.units.step(now));
            if done(&self.units, &told) {
                return told;
            }
            let mut wait = Wait::default();
            self.children.expect(&mut wait);
            self.units.expect(&mut wait);
            wait.sleep();
        }
    }

    fn asked(&self) -> String {
        fs::read_to_string(Path::new(self.asked.path()).join("asked")).unwrap()
    }
}

fn ready(units: &Units, _: &[FromGuest]) -> bool {
    units.are_ready()
}

fn power_off_was_asked_for(units: &Units) -> bool {
    units.stopping.as_ref().is_some_and(|one| one.asking.is_none() && one.look_until.is_none())
}

fn failed(message: &FromGuest) -> Option<(&str, &str)> {
    match message {
        FromGuest::Service { name, state: ServiceState::Failed { because } } => Some((name, because)),
        _ => None,
    }
}

const DEGRADED: &str = r#"case $1 in
is-system-running) echo degraded; exit 1 ;;
show) case $3 in
    default.target) echo Id=multi-user.target; echo ActiveState=active ;;
    *) echo Id=broken.service; echo Result=exit-code; echo ExecMainStatus=3; echo InvocationID=abc ;;
    esac ;;
esac"#;

#[test]
fn a_degraded_system_is_ready_and_its_failed_units_are_named() {
    let mut guest = guest(DEGRADED);
    let told = guest.until(ready);
    let [starting, broken, ready] = told.as_slice() else { panic!("{told:?}") };
    let because = "it exited with status 3; the last it wrote:\n  it is\n  cold";
    assert_eq!(failed(broken), Some(("broken.service", because)));
    assert!([starting, ready].iter().all(|message| failed(message).is_none()), "{told:?}");
    let asked = guest.asked();
    assert!(asked.find("--sync") < asked.find(" _SYSTEMD_UNIT=broken.service\n"), "{asked}");
}

/// Nothing failed until the test says so.
const LATE: &str = r#"case $1 in
is-system-running) echo running ;;
show) case $3 in
    default.target) echo Id=multi-user.target; echo ActiveState=active ;;
    *) [ ! -e late ] || echo Id=late.service; echo Result=signal; echo ExecMainStatus=11 ;;
    esac ;;
esac"#;

#[test]
fn a_unit_that_fails_after_the_guest_is_ready_is_told_when_it_ends_and_not_again() {
    let mut guest = guest(LATE);
    let told = guest.until(ready);
    assert!(told.iter().all(|message| failed(message).is_none()), "{told:?}");
    let at = guest.asked.path();
    fs::write(at.join("late"), "").unwrap();
    fs::remove_file(at.join("active/invocation:late.service")).unwrap();
    let told = guest.until(|_, told| !told.is_empty());
    assert_eq!(
        told.iter().filter_map(failed).collect::<Vec<_>>(),
        [("late.service", "it was killed by signal 11")]
    );
    guest.units.stop(Duration::from_secs(3_600), Instant::now());
    let told = guest.until(|units, _| units.look.is_none() && power_off_was_asked_for(units));
    assert_eq!(told, []);
}

#[test]
fn what_failed_is_looked_at_once_more_before_power_off_is_asked_for() {
    let mut guest = guest(LATE);
    guest.until(ready);
    fs::write(guest.asked.path().join("late"), "").unwrap();
    guest.units.stop(Duration::from_secs(3_600), Instant::now());
    let told = guest.until(|units, _| power_off_was_asked_for(units));
    assert_eq!(told.iter().filter_map(failed).count(), 1, "{told:?}");
    let asked = guest.asked();
    assert!(asked.rfind("--state=failed") < asked.find("poweroff.target"), "{asked}");
}

#[test]
fn a_target_that_was_not_reached_is_a_failure() {
    let mut guest = guest(&DEGRADED.replace("ActiveState=active", "ActiveState=inactive"));
    guest.until(|units, _| units.failure().is_some());
    let message = guest.units.failure().unwrap().message();
    assert!(message.contains("multi-user.target") && message.contains("broken.service"), "{message}");
    assert!(!guest.units.are_ready());
}

#[test]
fn a_systemd_that_does_not_listen_yet_is_asked_again() {
    let mut guest = guest(&format!("[ -e tried ] || {{ : >tried; echo offline; exit 1; }}\n{DEGRADED}"));
    guest.until(ready);
    assert_eq!(guest.asked().matches("is-system-running").count(), 2);
}

#[test]
fn it_is_over_when_the_last_call_comes_and_power_off_is_asked_for_once() {
    let mut guest = guest(DEGRADED);
    guest.until(ready);
    for _ in 0..2 {
        guest.units.stop(Duration::from_secs(3_600), Instant::now());
    }
    guest.until(|units, _| power_off_was_asked_for(units));
    assert!(!guest.units.are_over());
    guest.last_call.write_all(b"x").unwrap();
    let told = guest.until(|units, _| units.are_over());
    assert_eq!(told, [stopped(false)]);
    assert!(guest.units.is_orderly() && guest.units.killed().is_empty());
    assert_eq!(guest.asked().matches("poweroff.target").count(), 1);
}

#[test]
fn a_stop_that_takes_too_long_is_over_all_the_same_and_not_orderly() {
    let mut guest = guest(DEGRADED);
    guest.until(ready);
    guest.units.stop(Duration::ZERO, Instant::now());
    let told = guest.until(|units, _| units.are_over() && power_off_was_asked_for(units));
    assert_eq!(told, [stopped(true)]);
    assert!(!guest.units.is_orderly());
    assert_eq!(guest.units.killed(), ["systemd"]);
}
