//! What runs beside the command: services, in the order their needs give, and the filesystems they find. A recipe declares
//! them, the first process keeps them; both use these types.

use serde::{Deserialize, Serialize};

use crate::Bytes;

/// A filesystem that a guest makes on an empty disk, and mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filesystem {
    Ext4,
    Xfs,
}

impl Filesystem {
    pub fn name(self) -> &'static str {
        match self {
            Filesystem::Ext4 => "ext4",
            Filesystem::Xfs => "xfs",
        }
    }
}

/// A mount the guest makes before any service starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute; made where it is missing.
    pub path: String,
    pub what: Mounted,
    /// The kernel's words, as behind `mount -o`: `noatime`.
    pub options: Vec<String>,
    /// Owner of the mounted root, `USER:GROUP`, set at every boot; `None` leaves it.
    pub owner: Option<String>,
    /// Mode of the mounted root, set at every boot; `None` leaves it.
    pub mode: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mounted {
    /// The filesystem on the disk with this serial. An empty disk gets the one that the job's `Disk::format` names.
    Disk { serial: String },
    /// In memory, `bytes` at most.
    Tmpfs { bytes: u64 },
}

/// A process, or several in a row, that the first process keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    /// Services that are ready before this one starts, and that stop after it.
    pub after: Vec<String>,
    /// Made at every start, mode and owner set: for what lies under /run or on a fresh disk.
    pub directories: Vec<Directory>,
    /// Run one after the other before `exec`, each to success, at every start.
    pub prepare: Vec<Step>,
    pub exec: Step,
    pub kind: ServiceKind,
    pub restart: Restart,
    pub ready: Ready,
    /// From start to ready; later counts as failed.
    pub ready_within_ms: u64,
    pub stop: Stop,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    pub path: String,
    pub mode: u16,
    /// `USER:GROUP`.
    pub owner: String,
}

/// One process to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub argv: Vec<Bytes>,
    /// A name of /etc/passwd, or a number. Its group and its further groups are /etc/passwd's and /etc/group's.
    pub user: String,
    /// Instead of the user's own.
    pub group: Option<String>,
    /// The whole environment.
    pub env: Vec<(Bytes, Bytes)>,
    pub directory: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceKind {
    /// Runs until it is stopped.
    Daemon,
    /// Runs once, to its end; ready when it ended well.
    Once,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    pub when: RestartWhen,
    pub delay_ms: u64,
    /// More restarts than this within `window_ms` are a failure of the service; before it was ever ready none is forgotten.
    pub most: u32,
    pub window_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartWhen {
    Never,
    OnFailure,
    Always,
}

/// How a service shows that it can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// It has been started (a daemon) or has ended well (once).
    Started,
    /// It says READY=1 on the datagram socket that NOTIFY_SOCKET names (sd_notify(3)).
    Notify,
    /// This ends with 0; tried again until it does.
    Command(Step),
    /// A stream socket at this path takes a connection.
    Unix { path: String },
    /// This port of the loopback interface takes a connection.
    Tcp { port: u16 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Sent to the service's main process; SIGKILL follows to its whole cgroup, or process group where there are none. A
    /// signal with a name: real-time signals have none.
    pub signal: i32,
    pub within_ms: u64,
}

/// What a service is at; what the guest tells the outside of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    Starting,
    Ready {
        after_ms: u64,
    },
    /// It ended and is started again.
    Restarting {
        because: String,
        in_ms: u64,
    },
    /// It is not started again.
    Failed {
        because: String,
    },
    /// Of a daemon also: it ended by itself, with 0, and is not to be restarted.
    Stopped {
        /// It had to be killed.
        killed: bool,
    },
}
