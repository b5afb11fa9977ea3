//! Why there is no server, and why a client is refused.

use std::io;
use std::path::PathBuf;

use vmprof_sys::shared::SharedError;
use vmprof_sys::vring::RingError;

use crate::backing::DiskError;
use crate::iothread::IoThreadError;
use crate::virtio::device::ActivateError;

/// Why a disk is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    IoThread(#[from] IoThreadError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("vhost-user names a virtqueue by a byte, so a disk has 1 to 256 of them, and not {asked}")]
    Queues { asked: usize },
    #[error("the server could not be given its eventfds")]
    EventFd { source: io::Error },
    #[error("the server could not wait for clients")]
    Wait { source: io::Error },
}

/// Why no one can connect where they were to.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{} cannot be the path of a socket: it has {} bytes, and the kernel takes {most}", path.display(), path.as_os_str().len())]
    TooLong { path: PathBuf, most: usize },
    #[error("{} exists and is no socket", path.display())]
    NoSocket { path: PathBuf },
    #[error("a server listens at {} already", path.display())]
    InUse { path: PathBuf },
    #[error("{} cannot be made: its directory is not there", path.display())]
    NoDirectory { path: PathBuf },
    #[error("no one can listen at {}", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// What a client asked for and does not get. It is told so where it wants an answer, and then sent away: what it believes of
/// the device would no longer be so.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("virtqueue {index} of a disk that has {queues}")]
    NoSuchQueue { index: u32, queues: usize },
    #[error("a virtqueue of {asked} entries: sizes are powers of two, here up to {most} (--queue-size)")]
    QueueSize { asked: u32, most: u16 },
    #[error("virtqueue {queue} was to {what} while it runs")]
    QueueRuns { queue: u16, what: &'static str },
    #[error("virtqueue {queue} was to start before its {missing} were set")]
    Incomplete { queue: u16, missing: &'static str },
    #[error("virtqueue {queue} has no kick, and the server never polls for requests without one")]
    NoKick { queue: u16 },
    #[error("virtqueue {queue} has its {part} at {address:#x}, where the client has no memory")]
    RingAddress { queue: u16, part: &'static str, address: u64 },
    #[error("virtqueue {queue} cannot go on at {base:#x}: a split ring's index has 16 bits")]
    Base { queue: u16, base: u32 },
    #[error("virtqueue {queue} cannot be served")]
    Ring { queue: u16, source: RingError },
    #[error(transparent)]
    Activate(#[from] ActivateError),
    #[error("features {asked:#x} of a device that offers {offered:#x}")]
    Features { asked: u64, offered: u64 },
    #[error("features were to change while virtqueues run")]
    FeaturesWhileRunning,
    #[error("{what} is not offered")]
    NotOffered { what: &'static str },
    #[error("the {kind} of virtqueue {queue} cannot be used")]
    Notifier { kind: &'static str, queue: u16, source: io::Error },
    #[error("memory at {guest:#x}, {bytes} bytes, cannot be had")]
    Region { guest: u64, bytes: u64, source: SharedError },
    #[error("memory at {guest:#x}, {bytes} bytes: {rule}")]
    RegionRule { guest: u64, bytes: u64, rule: &'static str },
    #[error("more than {most} regions of memory")]
    TooManyRegions { most: usize },
    #[error("memory regions and their files do not match")]
    FilesOfRegions,
    #[error("no file could be made for an inflight buffer")]
    InflightFile { source: io::Error },
    #[error("an inflight buffer has {bytes} bytes, and needs {needed}")]
    InflightRoom { bytes: u64, needed: u64 },
    #[error("the inflight buffer cannot be had")]
    Inflight { source: SharedError },
    #[error("virtqueue {queue} has {entries} entries, and its inflight buffer {has}")]
    InflightEntries { queue: u16, entries: u16, has: u16 },
    #[error(
        "an inflight buffer for {queues} virtqueues of {entries} entries each: this disk has {most_queues} of up to {most_entries}"
    )]
    InflightSize { queues: u16, entries: u16, most_queues: usize, most_entries: u16 },
    #[error("no memory of {bytes} bytes at {guest:#x} is there to remove")]
    NoSuchRegion { guest: u64, bytes: u64 },
}

impl Refusal {
    /// The error and what it rests on, in one line.
    pub(super) fn told(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }
}
