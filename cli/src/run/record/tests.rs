//! Who has a name, what a run holds, and what a killed one leaves.

use std::thread;

use super::*;
use crate::run::ending;

fn places() -> (tempfile::TempDir, Places) {
    let directory = tempfile::tempdir().unwrap();
    let below = |name| directory.path().join(name);
    let places =
        Places { store: below("store"), state: below("state"), runtime: below("run"), lab: below("lab") };
    (directory, places)
}

fn run(name: &str, disks: Vec<DiskInUse>) -> Run {
    Run { pid: 1, ..Run::new(name, Path::new("p.kdl"), "kvm", String::new(), disks) }
}

#[test]
fn a_name_has_one_owner_and_is_free_again_after_it() {
    let (_keep, places) = places();
    let own = OwnRecord::claim(&places, "db").unwrap();
    own.write(run("db", vec![])).unwrap();
    let error = OwnRecord::claim(&places, "db").unwrap_err();
    assert!(matches!(error, RecordError::NameInUse { pid, .. } if pid == "1"));
    assert_eq!(running(&places).len(), 1);
    drop(own);
    assert!(running(&places).is_empty() && !places.run_of("db").exists());
    OwnRecord::claim(&places, "db").unwrap();
}

#[test]
fn who_plans_while_another_does_waits_for_his_turn() {
    let (_keep, places) = places();
    let first = Turn::take(&places).unwrap();
    let (done, is_done) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| done.send(Turn::take(&places).map(drop)).unwrap());
        assert!(is_done.recv_timeout(Duration::from_millis(200)).is_err(), "it has not waited");
        assert!(running(&places).is_empty(), "a turn is no run");
        drop(first);
        is_done.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
    });
}

#[test]
fn a_name_that_is_only_looked_at_is_waited_for() {
    let (_keep, places) = places();
    // What a killed run leaves, and somebody who asks whether it is held.
    fs::create_dir_all(places.run_of("db")).unwrap();
    let looking = File::create(places.run_of("db").join("lock")).unwrap();
    looking.lock_shared().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(100));
            looking.unlock().unwrap();
        });
        OwnRecord::claim(&places, "db").unwrap();
    });
}

#[test]
fn a_killed_run_is_waited_for_to_its_end() {
    let (_keep, places) = places();
    let own = OwnRecord::claim(&places, "db").unwrap();
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    own.write(Run { pid: child.id(), ..run("db", vec![]) }).unwrap();
    let mut told = Vec::new();
    outlast_the_killed(&places, |run| told.push(run.name.clone()));
    assert!(told.is_empty(), "it lives");
    child.kill().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(100));
            drop(own);
        });
        while !ending::is_ending(child.id()) {
            thread::yield_now();
        }
        outlast_the_killed(&places, |run| told.push(run.name.clone()));
        assert!(!places.run_of("db").join("lock").exists());
    });
    assert_eq!(told, ["db"]);
    child.wait().unwrap();
}

#[test]
fn what_a_killed_run_left_is_swept_and_a_live_ones_is_not() {
    let (_keep, places) = places();
    let own = OwnRecord::claim(&places, "live").unwrap();
    for (name, file) in [("dead", "lock"), (".lab", "lock"), ("other", "text")] {
        fs::create_dir_all(places.run_of(name)).unwrap();
        fs::write(places.run_of(name).join(file), "").unwrap();
    }
    sweep(&places);
    let there = ["live", "dead", ".lab", "other"].map(|name| places.run_of(name).exists());
    assert_eq!(there, [true, false, true, true]);
    assert!(is_held(own.directory()));
}

#[test]
fn a_run_that_cannot_be_asked_yet_is_ended() {
    let (_keep, places) = places();
    let own = OwnRecord::claim(&places, "db").unwrap();
    let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    own.write(Run { pid: child.id(), ..run("db", vec![]) }).unwrap();
    let run = running(&places).remove(0);
    let process = process_of(&places, &run).unwrap().unwrap();
    end_early(&process).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    end_early(&process).unwrap();
    assert!(process_of(&places, &run).unwrap().is_none(), "it has ended");
    drop(own);
    let of_another = Run { pid: std::process::id(), ..run };
    assert!(process_of(&places, &of_another).unwrap().is_none(), "the number is another's by now");
}

#[test]
fn a_record_shows_how_far_its_run_is() {
    let (_keep, places) = places();
    let own = OwnRecord::claim(&places, "db").unwrap();
    let mut keeper = own.write(run("db", vec![])).unwrap();
    let state = || running(&places)[0].state;
    assert_eq!(state(), State::Starting);
    keeper.is_at(State::Serving);
    assert_eq!(state(), State::Serving);
    keeper.is_paused(Some("no space".to_owned()));
    assert_eq!((state(), running(&places)[0].paused.as_deref()), (State::Serving, Some("no space")));
    keeper.is_paused(None);
    assert_eq!(running(&places)[0].paused, None);
    keeper.is_at(State::Starting);
    assert_eq!(state(), State::Starting, "the guest reboots");
    keeper.is_at(State::Serving);
    keeper.is_at(State::Stopping);
    for late in [State::Serving, State::Starting] {
        keeper.is_at(late);
        assert_eq!(state(), State::Stopping, "a run does not go back");
    }
}

#[test]
fn a_dead_runs_record_is_taken_over() {
    let (_keep, places) = places();
    fs::create_dir_all(places.run_of("db")).unwrap();
    for leftover in ["lock", "run.json"] {
        fs::write(places.run_of("db").join(leftover), "").unwrap();
    }
    assert!(running(&places).is_empty());
    let own = OwnRecord::claim(&places, "db").unwrap();
    assert!(!own.directory().join("run.json").exists());
}

#[test]
fn a_port_or_a_tap_in_use_is_refused_and_its_holder_named() {
    let (_keep, places) = places();
    let own = OwnRecord::claim(&places, "first").unwrap();
    let tap = NetInUse::Tap { name: "tap0".into() };
    own.write(run("first", vec![]).with_nets(vec![NetInUse::Tcp { port: 8080 }, tap.clone()])).unwrap();
    for (wanted, told) in
        [(NetInUse::Tcp { port: 8080 }, "tcp port 8080 of this host"), (tap, "the tap device `tap0`")]
    {
        let error = refuse_shared_nets(&places, "second", &[wanted]).unwrap_err();
        assert_eq!(error.to_string(), format!("{told} is in use by the running VM `first` (pid 1)"));
    }
    refuse_shared_nets(&places, "second", &[NetInUse::Udp { port: 8080 }]).unwrap();
}

#[test]
fn a_disk_in_use_is_refused_whatever_path_leads_to_it() {
    let (keep, places) = places();
    let (disk, alias) = (keep.path().join("data.raw"), keep.path().join("alias.raw"));
    fs::write(&disk, "").unwrap();
    fs::hard_link(&disk, &alias).unwrap();
    let own = OwnRecord::claim(&places, "first").unwrap();
    own.write(run("first", vec![DiskInUse::look("data", &disk).unwrap()])).unwrap();
    let error = refuse_shared_disks(&places, &[DiskInUse::look("log", &alias).unwrap()]).unwrap_err();
    assert!(matches!(error, RecordError::DiskInUse { holder, .. } if holder == "first"));
    drop(own);
    refuse_shared_disks(&places, &[DiskInUse::look("log", &alias).unwrap()]).unwrap();
}
