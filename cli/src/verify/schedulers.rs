//! The block schedulers: those of the drives that the disks lie on, and those that the disks have in the guest, which only
//! the guest can say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use vmprof_job::DiskScheduler;
use vmprof_profiles::DiskPlan;

use super::{Finding, What};
use crate::run::conversation::Event;

/// How long the guest may take to answer. Its first process does little else; an emulated guest on a busy host is slow.
const GUEST_WITHIN: Duration = Duration::from_secs(10);
/// How deep stacks of dm and md are followed.
const DEPTH: u32 = 8;
/// Longer than any scheduler's name (ELV_NAME_MAX in the kernel's block/elevator.h is 16).
const LONGEST_NAME: usize = 32;

/// Has the guest say what its disks have.
pub fn ask(events: &Sender<Event>, is_paused: bool) -> Result<Vec<DiskScheduler>, String> {
    if is_paused {
        return Err("the VM is paused".to_owned());
    }
    let (answer, answered) = mpsc::channel();
    // Where nobody hears it, nobody has the other end of the answer.
    let _ = events.send(Event::SchedulersAsked { answer });
    answered.recv_timeout(GUEST_WITHIN).map_err(|error| match error {
        RecvTimeoutError::Timeout => format!("the guest gave no answer in {} s", GUEST_WITHIN.as_secs()),
        RecvTimeoutError::Disconnected => "the run is ending".to_owned(),
    })
}

pub(super) fn in_the_guest(disk: &DiskPlan, guest: Result<&[DiskScheduler], &str>) -> Finding {
    let found = guest.map_err(str::to_owned).and_then(|disks| {
        let told = disks.iter().find(|told| told.serial == disk.name);
        let told = told.ok_or_else(|| "the guest has no disk of this name".to_owned())?;
        let scheduler = told.scheduler.clone().ok_or_else(|| "the guest's kernel names none".to_owned())?;
        // It goes to a terminal.
        match is_name(&scheduler) {
            true => Ok(scheduler),
            false => Err("what the guest answers is no scheduler's name".to_owned()),
        }
    });
    Finding::new(What::GuestScheduler { disk: disk.name.clone() }, disk.scheduler.guest.clone(), found)
}

fn is_name(word: &str) -> bool {
    let is_usual = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !word.is_empty() && word.len() <= LONGEST_NAME && word.chars().all(is_usual)
}

/// Of a disk on a stack (dm, md) the drives at its bottom count, all of them.
pub(super) fn on_the_host(disk: &DiskPlan, block: &Path) -> Finding {
    let what = What::HostScheduler { disk: disk.name.clone(), device: disk.device.clone() };
    let planned = disk.scheduler.host.clone();
    let Some(device) = &disk.device else {
        return Finding::new(what, planned, Err("the drive below it is not known".to_owned()));
    };
    let mut drives = BTreeMap::new();
    drives_below(block, device, DEPTH, &mut drives);
    if let Some((drive, _)) = drives.iter().find(|(_, scheduler)| scheduler.is_none()) {
        return Finding::new(what, planned, Err(format!("{drive} does not say")));
    }
    let found: BTreeSet<&str> = drives.values().flatten().map(String::as_str).collect();
    let found = match found.first() {
        Some(one) if found.len() == 1 => (*one).to_owned(),
        _ => {
            let each = drives
                .iter()
                .map(|(drive, found)| format!("{} on {drive}", found.as_deref().unwrap_or_default()));
            each.collect::<Vec<_>>().join(", ")
        }
    };
    Finding::new(what, planned, Ok(found))
}

/// The scheduler in force of each, by the drive's name.
fn drives_below(block: &Path, device: &str, depth: u32, drives: &mut BTreeMap<String, Option<String>>) {
    let directory = block.join(device);
    let below = fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten();
    let below: Vec<String> = below.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    if below.is_empty() || depth == 0 {
        // A partition below has the queue of its drive, which its directory lies in.
        let own = directory.join("queue/scheduler");
        let text = fs::read_to_string(own).or_else(|_| fs::read_to_string(queue_of_partition(block, device)));
        drives.insert(device.to_owned(), text.ok().and_then(|text| active(&text)));
        return;
    }
    below.iter().for_each(|name| drives_below(block, name, depth - 1, drives));
}

/// /sys/block has whole drives alone: a partition's directory lies in its drive's.
fn queue_of_partition(block: &Path, partition: &str) -> std::path::PathBuf {
    let drives = fs::read_dir(block).into_iter().flatten().flatten().map(|entry| entry.path());
    let drive = drives.into_iter().find(|drive| drive.join(partition).is_dir());
    drive.unwrap_or_else(|| block.join(partition)).join("queue/scheduler")
}

/// The kernel lists all schedulers with the active one in brackets, and `none` alone without.
fn active(schedulers: &str) -> Option<String> {
    let in_brackets = schedulers.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    let mut words = schedulers.split_whitespace();
    match (in_brackets, words.next(), words.next()) {
        (Some((active, _)), ..) => Some(active.to_owned()),
        (None, Some(only), None) => Some(only.to_owned()),
        _ => None,
    }
}
