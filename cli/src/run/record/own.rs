//! A run's own record: taken in its turn, written as the run goes on, removed with its end.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{LOOK_EVERY, RecordError, Run, State, is_at, read};
use crate::places::Places;
use crate::run::ending;

/// From a run's lock to its record, and what whoever looks at a lock may have it for: both are moments.
const RECORDED_WITHIN: Duration = Duration::from_secs(2);
/// How long others may take to plan: milliseconds, unless they are stopped.
const PLANNED_WITHIN: Duration = Duration::from_secs(30);

/// The turn to look at what other runs hold and to say what this one will: two at once would plan with the same CPUs. It ends when it
/// is dropped.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

impl Turn {
    pub fn take(places: &Places) -> io::Result<Turn> {
        DirBuilder::new().recursive(true).mode(0o700).create(&places.runtime)?;
        let lock = File::options().create(true).truncate(false).write(true).open(places.turn())?;
        let end = Instant::now() + PLANNED_WITHIN;
        while let Err(error) = lock.try_lock() {
            match error {
                TryLockError::WouldBlock if Instant::now() < end => thread::sleep(LOOK_EVERY),
                TryLockError::WouldBlock => {
                    let waited = format!("another `vmprof up` plans for more than {PLANNED_WITHIN:?}");
                    return Err(io::Error::other(waited));
                }
                TryLockError::Error(error) => return Err(error),
            }
        }
        Ok(Turn { _lock: lock })
    }
}

/// The record of this process's own run; dropping it removes the record.
#[derive(Debug)]
pub struct OwnRecord {
    directory: PathBuf,
    name: String,
    lock: File,
}

impl OwnRecord {
    /// Takes the name for this process, or says who has it.
    pub fn claim(places: &Places, name: &str) -> Result<OwnRecord, RecordError> {
        let directory = places.run_of(name);
        let io = |source| RecordError::Io { name: name.to_owned(), path: directory.clone(), source };
        let end = Instant::now() + RECORDED_WITHIN;
        loop {
            // Whoever reaches the sockets in it has the guest.
            let mut private = DirBuilder::new();
            private.recursive(true).mode(0o700).create(&directory).map_err(io)?;
            let path = directory.join("lock");
            let lock = match File::options().create(true).truncate(false).write(true).open(&path) {
                // The last run of the name removed its directory in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(io)?,
            };
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let pid = read(&directory).map(|run| run.pid);
                    // Nobody's yet, or a dead run's that somebody looks at.
                    let is_known = pid.is_some_and(|pid| !ending::is_ending(pid));
                    if !is_known && Instant::now() < end {
                        thread::sleep(LOOK_EVERY);
                        continue;
                    }
                    let pid = pid.map_or("not known yet".to_owned(), |pid| pid.to_string());
                    return Err(RecordError::NameInUse { name: name.to_owned(), pid });
                }
                Err(TryLockError::Error(error)) => return Err(io(error)),
            }
            if is_at(&lock, &path).map_err(io)? {
                let _ = fs::remove_file(directory.join("run.json"));
                return Ok(OwnRecord { directory, name: name.to_owned(), lock });
            }
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What holds it.
    pub fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Says what the run is; the keeper says how far it is.
    pub fn write(&self, run: Run) -> Result<Keeper, RecordError> {
        let io = |source| RecordError::Io { name: self.name.clone(), path: self.directory.clone(), source };
        write(&self.directory, &run).map_err(io)?;
        Ok(Keeper::new(self.directory.clone(), run))
    }
}

/// Keeps the state of a run in its record, from whichever thread learns of it. It must not outlive the record's owner.
#[derive(Debug, Serialize, Deserialize)]
pub struct Keeper {
    directory: PathBuf,
    run: Run,
}

impl Keeper {
    pub fn new(directory: PathBuf, run: Run) -> Keeper {
        Keeper { directory, run }
    }

    /// What lies behind the run already has come too late: in the lab two sides tell of it. A guest that reboots begins anew.
    pub fn is_at(&mut self, state: State) {
        let reboots = state == State::Starting && self.run.state != State::Stopping;
        if state == self.run.state || (state < self.run.state && !reboots) {
            return;
        }
        self.run.state = state;
        self.write();
    }

    /// That the guest stands still, and why; `None`: that it goes on.
    pub fn is_paused(&mut self, why: Option<String>) {
        self.run.paused = why;
        self.write();
    }

    /// What it is called in the emulated host that it shares with others.
    pub fn is_inside_as(&mut self, name: &str) {
        self.run.inside = Some(name.to_owned());
        self.write();
    }

    /// That its pinned threads hold these CPUs from now on. Others plan by it: what cannot be written is an error, and changes
    /// nothing.
    pub fn holds(&mut self, cpus: String) -> io::Result<()> {
        let run = Run { cpus, ..self.run.clone() };
        write(&self.directory, &run)?;
        self.run = run;
        Ok(())
    }

    fn write(&self) {
        // Whoever reads the record sees an older state then: nothing of the run depends on it.
        let _ = write(&self.directory, &self.run);
    }
}

/// A keeper for all who have a part in the run: its news are told on one thread, and the control socket is served on others.
#[derive(Debug, Clone)]
pub struct Kept(Arc<Mutex<Keeper>>);

impl Kept {
    pub fn new(keeper: Keeper) -> Kept {
        Kept(Arc::new(Mutex::new(keeper)))
    }

    pub fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the record says now.
    pub fn run(&self) -> Run {
        self.keeper().run.clone()
    }
}

fn write(directory: &Path, run: &Run) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(run)?;
    let new = directory.join("run.json.new");
    fs::write(&new, text)?;
    fs::rename(&new, directory.join("run.json"))
}

impl Drop for OwnRecord {
    fn drop(&mut self) {
        // The lock goes with the process either way; what cannot be removed is stale to whoever finds it.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
