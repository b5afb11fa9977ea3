use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::*;
use crate::reap::{Children, ONE_FAMILY_AT_A_TIME};

#[test]
fn failed_units_are_read_with_how_they_failed() {
    let text = "Id=a.service\nResult=exit-code\n\nResult=\nId=dev-sda.swap\n\nnonsense\n";
    let unit = |name: &str, result: &str| FailedUnit { name: name.into(), result: result.into() };
    assert_eq!(failed_units(text), [unit("a.service", "exit-code"), unit("dev-sda.swap", "failed")]);
    assert_eq!(failed_units(""), []);
}

#[test]
fn a_target_that_is_not_active_is_named_with_the_units_that_failed() {
    assert_eq!(reached("Id=graphical.target\nActiveState=active\n"), Ok(()));
    let target = reached("Id=multi-user.target\nActiveState=inactive\n").unwrap_err();
    let failed = failed_units("Id=a.service\nResult=timeout\n\nId=b.mount\nResult=exit-code\n");
    assert_eq!(
        not_reached(&target, &failed),
        "multi-user.target was not reached; units that failed: a.service, b.mount"
    );
    assert_eq!(reached(""), Err("default.target".into()));
}

/// A systemctl of the test's own: a script that is told the question as its first argument.
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
    let program = directory.path().join("systemctl");
    fs::write(&program, format!("#!/bin/sh\necho \"$*\" >>asked\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let surroundings = Surroundings {
        environment: vec![("PATH".into(), path.into())],
        directory: directory.path().to_owned(),
    };
    let (last_call, inside) = UnixStream::pair().unwrap();
    inside.set_nonblocking(true).unwrap();
    let units = Units::new(LastCall::made(inside.into()), surroundings);
    let children = Children::watch().unwrap();
    Guest { units, children, last_call, asked: directory, _alone: Box::new(alone) }
}

impl Guest {
    /// Goes on until this holds; what was told.
    fn until(&mut self, done: impl Fn(&Units) -> bool) -> Vec<FromGuest> {
        let mut told = Vec::new();
        loop {
            let now = Instant::now();
            for (pid, status) in self.children.reap() {
                assert!(self.units.ended(pid, status));
            }
            told.extend(self.units.step(now));
            if done(&self.units) {
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

const DEGRADED: &str = r#"case $1 in
is-system-running) echo degraded; exit 1 ;;
show) case $3 in
    default.target) echo Id=multi-user.target; echo ActiveState=active ;;
    *) echo Id=broken.service; echo Result=exit-code ;;
    esac ;;
esac"#;

#[test]
fn a_degraded_system_is_ready_and_its_failed_units_are_named() {
    let mut guest = guest(DEGRADED);
    let told = guest.until(Units::are_ready);
    let names: Vec<_> = told
        .iter()
        .map(|message| match message {
            FromGuest::Service { name, state } => {
                (name.as_str(), matches!(state, ServiceState::Failed { .. }))
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, [("systemd", false), ("broken.service", true), ("systemd", false)]);
}

#[test]
fn a_target_that_was_not_reached_is_a_failure() {
    let mut guest = guest(&DEGRADED.replace("ActiveState=active", "ActiveState=inactive"));
    guest.until(|units| units.failure().is_some());
    let message = guest.units.failure().unwrap().message();
    assert!(message.contains("multi-user.target") && message.contains("broken.service"), "{message}");
    assert!(!guest.units.are_ready());
}

#[test]
fn a_systemd_that_does_not_listen_yet_is_asked_again() {
    let mut guest = guest(&format!("[ -e tried ] || {{ : >tried; echo offline; exit 1; }}\n{DEGRADED}"));
    guest.until(Units::are_ready);
    assert_eq!(guest.asked().matches("is-system-running").count(), 2);
}

#[test]
fn it_is_over_when_the_last_call_comes_and_power_off_is_asked_for_once() {
    let mut guest = guest(DEGRADED);
    guest.until(Units::are_ready);
    for _ in 0..2 {
        guest.units.stop(Duration::from_secs(3_600), Instant::now());
    }
    guest.until(|units| units.stopping.as_ref().is_some_and(|stopping| stopping.asking.is_none()));
    assert!(!guest.units.are_over());
    guest.last_call.write_all(b"x").unwrap();
    let told = guest.until(Units::are_over);
    assert_eq!(told, [stopped(false)]);
    assert!(guest.units.is_orderly() && guest.units.killed().is_empty());
    assert_eq!(guest.asked().matches("poweroff.target").count(), 1);
}

#[test]
fn a_stop_that_takes_too_long_is_over_all_the_same_and_not_orderly() {
    let mut guest = guest(DEGRADED);
    guest.until(Units::are_ready);
    guest.units.stop(Duration::ZERO, Instant::now());
    let told = guest
        .until(|units| units.are_over() && units.stopping.as_ref().is_some_and(|one| one.asking.is_none()));
    assert_eq!(told, [stopped(true)]);
    assert!(!guest.units.is_orderly());
    assert_eq!(guest.units.killed(), ["systemd"]);
}
