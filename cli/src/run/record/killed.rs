//! Runs that were killed, or are ended before they can be asked: what they have is waited for, what they left is removed.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{LOOK_EVERY, Run, is_at, is_held, running};
use crate::places::Places;
use crate::run::ending;

/// What a killed VM holds is free when its memory is, and there may be much of it.
const KILLED_WITHIN: Duration = Duration::from_secs(60);

/// Waits until the runs that are being killed are gone, and with them their names, disks and CPUs; `told` hears of each.
pub fn outlast_the_killed(places: &Places, mut told: impl FnMut(&Run)) {
    let killed = running(places).into_iter().filter(|run| ending::is_ending(run.pid));
    for run in killed.inspect(|run| told(run)) {
        let end = Instant::now() + KILLED_WITHIN;
        // One that stays all the same is in the way of whoever needs what it has, and is named there.
        while is_held(&places.run_of(&run.name)) && ending::is_ending(run.pid) && Instant::now() < end {
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// Removes what killed runs have left.
pub fn sweep(places: &Places) {
    let Ok(entries) = fs::read_dir(&places.runtime) else { return };
    for directory in entries.flatten().map(|entry| entry.path()) {
        // A lab's keeper looks after its own.
        let is_hidden = directory.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let Ok(lock) = File::open(directory.join("lock")) else { continue };
        if is_hidden || lock.try_lock().is_err() {
            continue;
        }
        let is_its_own = is_at(&lock, &directory.join("lock")).unwrap_or(false);
        if is_its_own {
            // What cannot be removed is stale to whoever finds it.
            let _ = fs::remove_dir_all(&directory);
        }
    }
}

/// The process of a run, which stays this one whatever its number becomes; `None`: it has ended.
pub fn process_of(places: &Places, run: &Run) -> io::Result<Option<OwnedFd>> {
    let pid = Pid::from_raw(run.pid as i32).ok_or(io::ErrorKind::InvalidData)?;
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(None),
        other => other?,
    };
    // While the lock is held the number is the run's, and from here on the descriptor is.
    Ok(is_held(&places.run_of(&run.name)).then_some(process))
}

/// Has a run that cannot be asked yet end: nothing of it has begun that would want a clean stop.
pub fn end_early(process: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(process, Signal::TERM) {
        Err(Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}
