//! Who has a place in a lab that stays, and the drives that were plugged in for them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use vmprof_job::Bytes;

use super::emulated::{FREE_PORTS, block_node, free_port, slot_of};
use super::qmp::Qmp;
use super::standing::{Join, Joined, Tenant, Wanted};
use super::{Media, PathsInside, exec};
use crate::run::ending;

/// How long a run may take to its end once nobody outside has it any more: a clean stop of its guest's services.
const LEAVES_WITHIN: Duration = Duration::from_secs(150);
/// From pulling a drive to QEMU's word that it is gone. The kernel gives a user five seconds to change his mind.
const PULLED_WITHIN: Duration = Duration::from_secs(30);
/// How long a new run waits for what the last one of its name or its disks still has.
const WAIT_FOR_OTHERS: Duration = Duration::from_secs(170);

pub struct Tenants {
    /// Where the lab's sockets are.
    directory: PathBuf,
    monitor: Mutex<Qmp>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    held: BTreeMap<u64, Place>,
    free: Vec<usize>,
    is_closing: bool,
}

#[derive(Debug)]
struct Place {
    /// What its user calls it, and what it is called inside.
    wanted: String,
    name: String,
    pid: u32,
    drives: Vec<Plugged>,
    is_leaving: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Plugged {
    port: usize,
    /// Of what lies behind it, by device and inode; `None`: nothing of the host's.
    behind: Option<(u64, u64)>,
    read_only: bool,
}

/// The id of a drive's device.
fn device_id(place: u64, index: usize) -> String {
    format!("place{place}.{index}")
}

/// The name of the block node behind it.
fn node_name(place: u64, index: usize) -> String {
    format!("node-place{place}-{index}")
}

/// By which a drive is found inside: of at most 20 bytes, as NVMe and virtio have it.
fn serial(place: u64, index: usize) -> String {
    format!("place{place}-{index}")
}

fn behind(media: &Media) -> io::Result<Option<(u64, u64)>> {
    match media {
        Media::Empty => Ok(None),
        Media::File(path) | Media::BlockDevice(path) => {
            fs::metadata(path).map(|found| Some((found.dev(), found.ino())))
        }
    }
}

/// Why a run has to wait, or cannot have a place at all.
#[derive(Debug, PartialEq, Eq)]
enum No {
    NotYet(String),
    Never(String),
}

impl State {
    /// What stands in the way of these drives and this name.
    fn in_the_way(&self, name: &str, drives: &[(Option<(u64, u64)>, bool)]) -> Result<(), No> {
        if self.is_closing {
            return Err(No::Never("it is being stopped".to_owned()));
        }
        let no = |place: &Place, why: String| {
            if place.is_leaving { Err(No::NotYet(why)) } else { Err(No::Never(why)) }
        };
        for place in self.held.values() {
            if place.is_leaving && place.wanted == name {
                return Err(No::NotYet(format!("the last run of `{name}` has not gone yet")));
            }
            for plugged in &place.drives {
                let clashes = |(behind, read_only): &(Option<(u64, u64)>, bool)| {
                    behind.is_some() && *behind == plugged.behind && !(*read_only && plugged.read_only)
                };
                if drives.iter().any(clashes) {
                    return no(place, format!("a disk is in use by the run `{}`", place.name));
                }
            }
        }
        if drives.len() > FREE_PORTS {
            return Err(No::Never(format!(
                "{} drives are asked for, and it has room for {FREE_PORTS}",
                drives.len()
            )));
        }
        if drives.len() > self.free.len() {
            let why = format!(
                "{} drives are asked for, and of its {FREE_PORTS} ports {} are free",
                drives.len(),
                self.free.len()
            );
            let some_leave = self.held.values().any(|place| place.is_leaving);
            return Err(if some_leave { No::NotYet(why) } else { No::Never(why) });
        }
        Ok(())
    }

    /// A run that was killed leaves, though its connection has not closed yet.
    fn note_the_killed(&mut self) {
        for place in self.held.values_mut() {
            place.is_leaving |= ending::is_ending(place.pid);
        }
    }

    /// The name itself, or with a number where another's run has it.
    fn name_for(&self, wanted: &str) -> String {
        let is_taken = |name: &str| self.held.values().any(|place| place.name == name);
        let numbered = (2..).map(|number| format!("{wanted}.{number}"));
        std::iter::once(wanted.to_owned()).chain(numbered).find(|name| !is_taken(name)).unwrap_or_default()
    }
}

impl Tenants {
    pub fn new(directory: &Path, monitor: Qmp) -> Tenants {
        let state = State { free: (0..FREE_PORTS).rev().collect(), ..State::default() };
        let (directory, monitor, state) = (directory.to_owned(), Mutex::new(monitor), Mutex::new(state));
        Tenants { directory, monitor, state, changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a run of process `pid`, with its drives plugged in; with the number by which it is given back.
    pub fn join(&self, join: &Join, pid: u32) -> Result<(u64, Joined), String> {
        let refused = |what: &str, error: io::Error| format!("{what}: {error}");
        let behind = join.drives.iter().map(|wanted| Ok((behind(&wanted.media)?, wanted.read_only)));
        let behind = behind.collect::<io::Result<Vec<_>>>();
        let behind = behind.map_err(|error| refused("a disk cannot be looked at", error))?;
        let end = Instant::now() + WAIT_FOR_OTHERS;
        let mut state = self.state();
        loop {
            state.note_the_killed();
            match state.in_the_way(&join.name, &behind) {
                Ok(()) => break,
                Err(No::Never(why)) => return Err(why),
                Err(No::NotYet(why)) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(why);
                    }
                    let waited = self.changed.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        let (number, name) = (state.next, state.name_for(&join.name));
        state.next += 1;
        let ports = state.free.len() - behind.len();
        let ports = state.free.split_off(ports);
        let plugged = |((behind, read_only), port): ((Option<(u64, u64)>, bool), usize)| Plugged {
            port,
            behind,
            read_only,
        };
        let drives: Vec<Plugged> = behind.into_iter().zip(ports).map(plugged).collect();
        let place = Place {
            wanted: join.name.clone(),
            name: name.clone(),
            pid,
            drives: drives.clone(),
            is_leaving: false,
        };
        state.held.insert(number, place);
        drop(state);

        let all = join.drives.iter().zip(&drives).enumerate();
        for (index, (wanted, drive)) in all {
            if let Err(error) = self.plug(number, index, wanted, drive) {
                let why = refused("a drive cannot be plugged in", error);
                self.leave(number);
                return Err(why);
            }
        }
        let serials = (0..drives.len()).map(|index| serial(number, index)).collect();
        Ok((number, Joined { name, serials }))
    }

    fn plug(&self, place: u64, index: usize, wanted: &Wanted, drive: &Plugged) -> io::Result<()> {
        let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, node) = (device_id(place, index), node_name(place, index));
        monitor.run("blockdev-add", block_node(&node, &wanted.media, wanted.read_only))?;
        let driver = if wanted.is_nvme { "nvme" } else { "virtio-blk-pci" };
        let device = json!({
            "driver": driver, "id": id, "serial": serial(place, index), "drive": node,
            "bus": free_port(drive.port),
        });
        monitor.run("device_add", device).map(drop).inspect_err(|_| {
            // Nobody has it.
            let _ = monitor.run("blockdev-del", json!({ "node-name": node }));
        })
    }

    /// Gives a place back, once what ran there has ended. What it had is free again only when it is.
    pub fn leave(&self, number: u64) {
        let (name, drives) = {
            let mut state = self.state();
            let Some(place) = state.held.get_mut(&number) else { return };
            place.is_leaving = true;
            (place.name.clone(), place.drives.clone())
        };
        let mut argv: Vec<Bytes> = [PathsInside::VMPROF, "inside", "leave", &name].map(Bytes::from).into();
        argv.extend(drives.iter().map(|drive| slot_of(drive.port).to_string().as_str().into()));
        if let Err(error) = exec::run(&self.directory, argv, LEAVES_WITHIN) {
            eprintln!("vmprof: what is left of `{name}` cannot be cleared away: {error}");
        }
        let mut free = Vec::new();
        for (index, drive) in drives.iter().enumerate() {
            match self.pull(number, index) {
                Ok(()) => free.push(drive.port),
                // A port that is lost; the others go on.
                Err(error) => eprintln!("vmprof: a drive of `{name}` cannot be pulled: {error}"),
            }
        }
        let mut state = self.state();
        state.held.remove(&number);
        state.free.extend(free);
        drop(state);
        self.changed.notify_all();
    }

    /// The host has turned its slot off, which pulls it; where it has not, it is asked to.
    fn pull(&self, place: u64, index: usize) -> io::Result<()> {
        let (id, node) = (device_id(place, index), node_name(place, index));
        let departures = self.monitor.lock().unwrap_or_else(PoisonError::into_inner).departures();
        if !departures.wait(&id, Duration::from_secs(2)) {
            let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
            // One that was never there, or went a moment ago, is an error, and what is wanted.
            if monitor.run("device_del", json!({ "id": id })).is_ok() {
                drop(monitor);
                if !departures.wait(&id, PULLED_WITHIN) {
                    return Err(io::Error::other("the host does not let go of it"));
                }
            }
        }
        let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
        match monitor.run("blockdev-del", json!({ "node-name": node })) {
            Err(error) if error.to_string().contains("Failed to find node") => Ok(()),
            other => other.map(drop),
        }
    }

    pub fn all(&self) -> Vec<Tenant> {
        let tenant =
            |place: &Place| Tenant { name: place.name.clone(), pid: place.pid, is_leaving: place.is_leaving };
        self.state().held.values().map(tenant).collect()
    }

    /// From here on nobody joins.
    pub fn close(&self) {
        self.state().is_closing = true;
        self.changed.notify_all();
    }

    /// Whether all places were given back within that time.
    pub fn are_empty_within(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), time, |state| !state.held.is_empty());
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, is_leaving: bool, drives: &[(u64, bool)]) -> Place {
        let drives = drives.iter().map(|(inode, read_only)| Plugged {
            port: 0,
            behind: Some((1, *inode)),
            read_only: *read_only,
        });
        Place { wanted: name.into(), name: name.into(), pid: 7, drives: drives.collect(), is_leaving }
    }

    fn state(places: impl IntoIterator<Item = Place>) -> State {
        let held = places.into_iter().zip(0..).map(|(place, number)| (number, place)).collect();
        State { held, free: vec![0, 1], ..State::default() }
    }

    #[test]
    fn a_name_is_waited_for_while_its_last_run_leaves_and_numbered_while_another_has_it() {
        let of_others = state([place("db", false, &[]), place("db.2", false, &[])]);
        assert_eq!(of_others.in_the_way("db", &[]), Ok(()));
        assert_eq!((of_others.name_for("db"), of_others.name_for("ci")), ("db.3".into(), "ci".into()));
        let leaving = state([place("db", true, &[])]);
        assert!(matches!(leaving.in_the_way("db", &[]), Err(No::NotYet(_))));
        assert_eq!(leaving.in_the_way("ci", &[]), Ok(()));
    }

    #[test]
    fn a_disk_has_one_writer_or_readers() {
        let state = state([place("db", false, &[(5, false), (6, true)]), place("old", true, &[(8, false)])]);
        let clash = |inode, read_only| state.in_the_way("ci", &[(Some((1, inode)), read_only)]);
        assert!(matches!(clash(5, true), Err(No::Never(_))));
        assert!(matches!(clash(6, false), Err(No::Never(_))));
        assert!(matches!(clash(8, false), Err(No::NotYet(_))));
        assert_eq!((clash(6, true), clash(7, false)), (Ok(()), Ok(())));
        assert_eq!(state.in_the_way("ci", &[(None, false)]), Ok(()), "nothing is behind it");
    }

    #[test]
    fn ports_are_waited_for_where_some_will_be_free() {
        let drives = [(None, false); 3];
        let never = state([place("db", false, &[])]).in_the_way("ci", &drives);
        assert!(matches!(never, Err(No::Never(why)) if why.contains("2 are free")));
        let later = state([place("db", true, &[])]).in_the_way("ci", &drives);
        assert!(matches!(later, Err(No::NotYet(_))));
        let too_many = state([]).in_the_way("ci", &[(None, false); FREE_PORTS + 1]);
        assert!(matches!(too_many, Err(No::Never(_))));
        let closing = State { is_closing: true, ..state([]) };
        assert!(matches!(closing.in_the_way("ci", &[]), Err(No::Never(_))));
    }

    #[test]
    fn a_serial_fits_into_twenty_bytes() {
        assert!(serial(99_999_999, 15).len() <= 20);
    }
}
