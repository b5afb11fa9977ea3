//! The record of a running VM: one directory a name under the runtime place, with `lock` held by the running process for as
//! long as it lives, `run.json` saying what it is, `control.sock` and `console.sock`. A record whose lock nobody holds is a dead
//! one's, and the next run of the name takes the directory over.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use miette::Diagnostic;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::ending;
use crate::places::Places;

/// From a run's lock to its record, and what whoever looks at a lock may have it for: both are moments.
const RECORDED_WITHIN: Duration = Duration::from_secs(2);
/// What a killed VM holds is free when its memory is, and there may be much of it.
const KILLED_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long others may take to plan: milliseconds, unless they are stopped.
const PLANNED_WITHIN: Duration = Duration::from_secs(30);

/// `run.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub schema: String,
    pub name: String,
    pub pid: u32,
    pub profile: PathBuf,
    /// `kvm` or `lab`.
    pub on: String,
    /// What the run is called in an emulated host that it shares with others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inside: Option<String>,
    #[serde(default)]
    pub state: State,
    /// Why the guest stands still, empty where somebody asked for it; `None` while it runs. The lab's guest is the inner
    /// vmprof's to know.
    #[serde(default)]
    pub paused: Option<String>,
    /// Seconds since the epoch.
    pub started: u64,
    /// CPUs of this host that pinned threads hold, as a kernel list; empty in the lab.
    pub cpus: String,
    pub disks: Vec<DiskInUse>,
    #[serde(default)]
    pub nets: Vec<NetInUse>,
}

/// How far a run is. It only goes forward, but for a reboot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The machine is made, the guest boots, its services start.
    #[default]
    Starting,
    /// The command runs.
    Running,
    /// Everything is ready, and goes on until it is stopped.
    Serving,
    /// A clean stop has begun.
    Stopping,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Serving => "serving",
            State::Stopping => "stopping",
        }
    }

    pub fn from_word(word: &str) -> Option<State> {
        [State::Starting, State::Running, State::Serving, State::Stopping]
            .into_iter()
            .find(|state| state.word() == word)
    }
}

/// What of this host's networks one run alone can have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum NetInUse {
    Tcp { port: u16 },
    Udp { port: u16 },
    Tap { name: String },
}

impl NetInUse {
    fn told(&self) -> String {
        match self {
            NetInUse::Tcp { port } => format!("tcp port {port} of this host"),
            NetInUse::Udp { port } => format!("udp port {port} of this host"),
            NetInUse::Tap { name } => format!("the tap device `{name}`"),
        }
    }
}

/// A disk by what it is, whatever path led to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInUse {
    pub name: String,
    pub path: PathBuf,
    pub device: u64,
    pub inode: u64,
}

impl Run {
    /// The record of this process. `cpus` are those that its pinned threads will hold.
    pub fn new(name: &str, profile: &Path, on: &str, cpus: String, disks: Vec<DiskInUse>) -> Run {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let (name, profile, on) = (name.to_owned(), profile.to_owned(), on.to_owned());
        Run {
            schema: "vmprof.run/1".to_owned(),
            name,
            pid: std::process::id(),
            profile,
            on,
            inside: None,
            state: State::Starting,
            paused: None,
            started,
            cpus,
            disks,
            nets: Vec::new(),
        }
    }

    pub fn with_nets(self, nets: Vec<NetInUse>) -> Run {
        Run { nets, ..self }
    }
}

impl DiskInUse {
    pub fn look(name: &str, path: &Path) -> io::Result<DiskInUse> {
        let metadata = fs::metadata(path)?;
        Ok(DiskInUse {
            name: name.to_owned(),
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    fn is_same(&self, other: &DiskInUse) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum RecordError {
    #[error("a VM named `{name}` is running already (pid {pid})")]
    #[diagnostic(
        code(vmprof::up::name_in_use),
        help("stop it with `vmprof stop {name}`, or give this one another name with `--name`")
    )]
    NameInUse { name: String, pid: String },
    #[error("disk `{disk}` ({path}) is in use by the running VM `{holder}` (pid {pid})")]
    #[diagnostic(
        code(vmprof::up::disk_in_use),
        help("stop it with `vmprof stop {holder}`, or give the profile another source")
    )]
    DiskInUse { disk: String, path: PathBuf, holder: String, pid: u32 },
    #[error("{what} is in use by the running VM `{holder}` (pid {pid})")]
    #[diagnostic(
        code(vmprof::up::net_in_use),
        help("stop it with `vmprof stop {holder}`, or give the profile another port or device")
    )]
    NetInUse { what: String, holder: String, pid: u32 },
    #[error("no VM named `{name}` is running")]
    #[diagnostic(code(vmprof::run::not_running), help("`vmprof ps` lists the running ones"))]
    NotRunning { name: String },
    #[error("the record of run `{name}` in {path} cannot be used")]
    #[diagnostic(code(vmprof::run::record))]
    Io { name: String, path: PathBuf, source: io::Error },
}

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

pub fn read(directory: &Path) -> Option<Run> {
    serde_json::from_slice(&fs::read(directory.join("run.json")).ok()?).ok()
}

/// Whether a process holds this directory's lock: the run whose record it is, or a lab's keeper.
pub fn is_held(directory: &Path) -> bool {
    let Ok(lock) = File::open(directory.join("lock")) else { return false };
    matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Every VM that runs under this user's runtime place, by name.
pub fn running(places: &Places) -> Vec<Run> {
    let Ok(entries) = fs::read_dir(&places.runtime) else { return Vec::new() };
    let live = |directory: PathBuf| if is_held(&directory) { read(&directory) } else { None };
    let mut runs: Vec<Run> = entries.flatten().filter_map(|entry| live(entry.path())).collect();
    runs.sort_by(|a, b| a.name.cmp(&b.name));
    runs
}

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

/// Whether that path leads to this file: its last owner may have removed it since it was opened.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?.ino();
    Ok(fs::metadata(path).is_ok_and(|found| found.ino() == opened))
}

/// Has a run that cannot be asked yet end: nothing of it has begun that would want a clean stop.
pub fn end_early(places: &Places, run: &Run) -> io::Result<()> {
    let pid = Pid::from_raw(run.pid as i32).ok_or(io::ErrorKind::InvalidData)?;
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        other => other?,
    };
    // While the lock is held the number is the run's, and from here on the descriptor is.
    if !is_held(&places.run_of(&run.name)) {
        return Ok(());
    }
    match pidfd_send_signal(process, Signal::TERM) {
        Err(Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
}

/// The running VM of that name.
pub fn find(places: &Places, name: &str) -> Result<Run, RecordError> {
    let found = running(places).into_iter().find(|run| run.name == name);
    found.ok_or_else(|| RecordError::NotRunning { name: name.to_owned() })
}

/// Refuses a disk that a running VM uses, naming that VM.
pub fn refuse_shared_disks(places: &Places, wanted: &[DiskInUse]) -> Result<(), RecordError> {
    for run in running(places) {
        for disk in wanted {
            if run.disks.iter().any(|used| used.is_same(disk)) {
                let (disk, path) = (disk.name.clone(), disk.path.clone());
                return Err(RecordError::DiskInUse { disk, path, holder: run.name, pid: run.pid });
            }
        }
    }
    Ok(())
}

/// Refuses a port or a tap device that a running VM has, naming that VM.
pub fn refuse_shared_nets(places: &Places, own: &str, wanted: &[NetInUse]) -> Result<(), RecordError> {
    for run in running(places).into_iter().filter(|run| run.name != own) {
        if let Some(net) = wanted.iter().find(|net| run.nets.contains(net)) {
            return Err(RecordError::NetInUse { what: net.told(), holder: run.name, pid: run.pid });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
        end_early(&places, &running(&places)[0]).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
        end_early(&places, &running(&places)[0]).unwrap();
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
}
