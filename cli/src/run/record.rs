//! The record of a running VM: one directory a name under the runtime place, with `lock` held by the running process for as
//! long as it lives, `run.json` saying what it is, `control.sock` and `console.sock`. A record whose lock nobody holds is a dead
//! one's, and the next `up` removes the directory.

mod killed;
mod own;
#[cfg(test)]
mod tests;

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use miette::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::places::Places;

pub use killed::{end_early, outlast_the_killed, process_of, sweep};
pub use own::{Keeper, Kept, OwnRecord, Turn};

const LOOK_EVERY: Duration = Duration::from_millis(20);

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

/// Whether that path leads to this file: its last owner may have removed it since it was opened.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let opened = file.metadata()?.ino();
    Ok(fs::metadata(path).is_ok_and(|found| found.ino() == opened))
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
