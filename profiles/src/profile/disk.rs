//! `disk`: where its bytes lie, and how they are moved.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmprof_document::Line;

use super::Written;

/// `disk NAME`.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The name, which is the serial the guest sees.
    pub name: Written<String>,
    /// Where its bytes lie.
    pub source: DiskSource,
    /// How the host's page cache is used.
    pub cache: CacheMode,
    /// Which engine moves the bytes.
    pub aio: Aio,
    /// The engine to take where the host lacks the first.
    pub aio_fallback: Option<Aio>,
    /// Whether its IOThreads look at the drive for what ended, instead of waiting for its interrupt (`iopoll=on`).
    pub iopoll: bool,
    /// Whether the guest's discards free space (`discard=unmap`).
    pub discard: bool,
    /// What a failed read does.
    pub rerror: ErrorPolicy,
    /// What a failed write or flush does.
    pub werror: ErrorPolicy,
    /// The guest's unit of addressing, bytes; `None` is 512.
    pub logical_block_bytes: Option<u32>,
    /// The unit that the guest is told to write whole, bytes; `None` is what direct I/O on the source asks for.
    pub physical_block_bytes: Option<u32>,
    /// The filesystem made on it when it is empty, and where the guest mounts it.
    pub format: Option<Written<Format>>,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// How many virtqueues.
    pub queues: u32,
    /// The line that says so; `None` where it follows from the vCPUs.
    pub queues_line: Option<Line>,
    /// Descriptors per virtqueue.
    pub queue_size: u16,
    /// Whether the guest is offered packed virtqueues (`ring=packed`).
    pub packed: bool,
    /// Which IOThread serves which virtqueue.
    pub mapping: Mapping,
    /// `scheduler host=`: checked on the host, never set.
    pub host_scheduler: Option<Written<String>>,
    /// `scheduler guest=`: set inside the guest.
    pub guest_scheduler: Option<String>,
}

/// Where a disk's bytes lie.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskSource {
    /// A raw image file.
    File {
        /// The path as written.
        path: String,
        /// How large to make it when it does not exist.
        bytes: Option<u64>,
    },
    /// A block device of the host.
    #[serde(rename = "dev")]
    Device {
        /// The path as written.
        path: String,
    },
}

/// libvirt's and QEMU's cache modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// O_DIRECT, the guest flushes.
    None,
    /// O_DIRECT, every write durable.
    Directsync,
    /// Page cache, the guest flushes.
    Writeback,
    /// Page cache, every write durable.
    Writethrough,
    /// Page cache, flushes ignored.
    Unsafe,
}

impl CacheMode {
    /// The word of the language.
    pub fn word(self) -> &'static str {
        match self {
            CacheMode::None => "none",
            CacheMode::Directsync => "directsync",
            CacheMode::Writeback => "writeback",
            CacheMode::Writethrough => "writethrough",
            CacheMode::Unsafe => "unsafe",
        }
    }

    /// Whether the source is opened with O_DIRECT.
    pub fn direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }

    /// Whether the guest sees a volatile write cache, and so must flush.
    pub fn write_cache(self) -> bool {
        !matches!(self, CacheMode::Directsync | CacheMode::Writethrough)
    }
}

/// The engine that moves a disk's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aio {
    /// io_uring.
    IoUring,
    /// Linux native AIO.
    Native,
    /// A pool of threads.
    Threads,
}

/// Which IOThread serves which virtqueue of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mapping {
    /// Round robin over all IOThreads.
    RoundRobin,
    /// Each queue to an IOThread in the L3 cache of the vCPU that submits to it, else on its node.
    Locality,
    /// Round robin over these, in this order.
    Over(Vec<u32>),
    /// Exactly so: IOThread and its virtqueues.
    Exact(Vec<(u32, Vec<u32>)>),
}

/// What a failed request does, in QEMU's words (`rerror`, `werror`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ErrorPolicy {
    /// The guest is told.
    #[default]
    Report,
    /// The guest is told that all is well.
    Ignore,
    /// The VM pauses, and the request is tried again when it goes on.
    Stop,
    /// The VM pauses where the host's disk is full; any other error is told to the guest. For writes only.
    Enospc,
}

impl ErrorPolicy {
    /// The word of the language.
    pub fn word(self) -> &'static str {
        match self {
            ErrorPolicy::Report => "report",
            ErrorPolicy::Ignore => "ignore",
            ErrorPolicy::Stop => "stop",
            ErrorPolicy::Enospc => "enospc",
        }
    }
}

/// `format ext4 mount="/srv"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Format {
    /// `ext4` or `xfs`.
    pub filesystem: String,
    /// Where the guest mounts it; `None` leaves that to the recipe.
    pub mount: Option<String>,
}
