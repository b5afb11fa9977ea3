//! What a machine is: plain data, comparable and printable, made by the caller from a plan and an image. Nothing here is
//! open, running or looked up; [`crate::Vm`] is built from it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// CPUs of the host that a thread may run on; empty leaves the affinity of the process.
pub type Cpus = Vec<u32>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    pub name: String,
    pub boot: Boot,
    pub memory: Memory,
    /// Numbered from 0 without a gap.
    pub vcpus: Vec<Vcpu>,
    /// How many vCPUs in a row the guest sees as the SMT siblings of one core: 1, 2, 4 or 8.
    pub threads_per_core: u32,
    /// The thread `vmprof`: device emulation that is not an IOThread's.
    pub emulator_cpus: Cpus,
    pub iothreads: Vec<IoThread>,
    /// In the order in which the guest finds them on the PCI bus.
    pub disks: Vec<Disk>,
    /// In the order in which the guest finds them, after the disks.
    #[serde(default)]
    pub nets: Vec<Net>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// An ELF vmlinux with a PVH entry note.
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub cmdline: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// A multiple of 4 KiB, and of the huge page where one is asked for.
    pub bytes: u64,
    /// NUMA nodes of the host that the guest's memory comes from; empty leaves the process's policy.
    pub nodes: Vec<u32>,
    /// How it is bound to them.
    pub mode: MemoryMode,
    /// 2 MiB or 1 GiB pages of hugetlbfs; `None` is ordinary memory.
    pub hugepage_bytes: Option<u64>,
}

/// libvirt's words of `numatune`: how firmly memory belongs to its nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryMode {
    /// From these nodes and no other (MPOL_BIND).
    #[default]
    Strict,
    /// From these nodes while they have room (MPOL_PREFERRED, and of several MPOL_PREFERRED_MANY, which is Linux 5.15's).
    Preferred,
    /// From these nodes in turn (MPOL_INTERLEAVE).
    Interleave,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vcpu {
    pub id: u32,
    pub cpus: Cpus,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoThread {
    pub id: u32,
    /// As the plan prints it (`iothread0`); the OS thread is `IO iothread0`.
    pub name: String,
    pub cpus: Cpus,
    /// Whether vCPUs may run on its CPUs too: then it finds out whether it may take these from them as it wakes.
    #[serde(default)]
    pub shares_cpus: bool,
    pub polling: Polling,
    /// The engines of its disks, tried when it starts. Without io_uring among them it has no ring and waits in epoll.
    pub engines: Vec<Engine>,
    /// What its ring is given beyond the usual.
    pub ring: RingOptions,
}

impl IoThread {
    /// One for io_uring, with nothing special about it.
    pub fn named(id: u32, name: &str) -> Self {
        IoThread {
            id,
            name: name.to_owned(),
            cpus: Vec::new(),
            shares_cpus: false,
            polling: Polling::default(),
            engines: vec![Engine::IoUring],
            ring: RingOptions::default(),
        }
    }
}

/// Ways to spend memory or a CPU on cheaper requests of io_uring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingOptions {
    /// The guest's memory is pinned and mapped once for all requests, before the guest starts.
    pub registered_memory: bool,
    /// A thread of the kernel's takes requests by looking for them.
    pub sqpoll: Option<SqPoll>,
    /// A second ring beside it, for disks that ask for iopoll: while requests are in flight there, the thread looks at
    /// their drives and does not sleep.
    #[serde(default)]
    pub iopoll: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SqPoll {
    /// Its CPU.
    pub cpu: u32,
    /// How long it looks in vain before it sleeps.
    pub idle_ms: u32,
}

/// How an IOThread looks for work before it sleeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Polling {
    /// Longest busy wait, in nanoseconds; 0 never polls.
    pub max_ns: u64,
    /// What the wait is multiplied by when work came a little later; 0 is built in, which doubles.
    pub grow: u32,
    /// What it is divided by when none came; 0 starts again from nothing.
    pub shrink: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The plan's name of the disk, and the serial that the guest reads through GET_ID (virtio 1.3, 5.2.6).
    pub name: String,
    /// A regular file or a block device.
    pub path: PathBuf,
    pub read_only: bool,
    pub cache: CacheMode,
    pub engine: Engine,
    /// Reads and writes are completed by looking at the drive, which must have queues for it, and not by its interrupt. For
    /// direct I/O with io_uring.
    #[serde(default)]
    pub iopoll: bool,
    /// Entries of each virtqueue, a power of two up to 32,768.
    pub queue_size: u16,
    /// Offers the guest's driver the packed format of virtqueues (virtio 1.3, 2.8), which it may take or not.
    pub packed: bool,
    /// The unit in which the guest addresses the disk, a power of two from 512 to 4,096; `None` is 512 on every host.
    pub logical_block_bytes: Option<u32>,
    /// The unit that the guest is told to write whole, a power of two; `None` is the one that direct I/O asks for here.
    pub physical_block_bytes: Option<u32>,
    /// Whether the guest may give back what it no longer needs, and have ranges zeroed without writing them. A disk whose
    /// backing cannot is refused; on a read-only disk this says nothing.
    pub discard: bool,
    pub on_error: OnError,
    /// Which IOThread serves each virtqueue: element k is the id of virtqueue k's. Its length is the number of queues.
    pub virtqueues: Vec<u32>,
}

impl Disk {
    /// A writable one for io_uring and direct I/O, with nothing special about it.
    pub fn named(name: &str, path: &Path, virtqueues: Vec<u32>) -> Self {
        Disk {
            name: name.to_owned(),
            path: path.to_owned(),
            read_only: false,
            cache: CacheMode::None,
            engine: Engine::IoUring,
            iopoll: false,
            queue_size: 128,
            packed: false,
            logical_block_bytes: None,
            physical_block_bytes: None,
            discard: false,
            on_error: OnError::default(),
            virtqueues,
        }
    }
}

/// Header, at least one data buffer, status: the least that a queue of a disk can hold is the next power of two.
pub const FEWEST_QUEUE_ENTRIES: u16 = 4;
/// Linux takes no larger logical block than its page.
pub const LARGEST_LOGICAL_BLOCK_BYTES: u32 = 4_096;
/// The device tells the guest in sixteen bits how many of the smallest logical blocks it is.
pub const LARGEST_PHYSICAL_BLOCK_BYTES: u32 = 2 << 20;

/// A network device (virtio 1.3, 5.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// The plan's name of it: `net0`.
    pub name: String,
    /// The guest's address: no group's, and not all zeros.
    pub mac: [u8; 6],
    pub backend: NetBackend,
    /// Entries of each virtqueue, a power of two from [`FEWEST_NET_QUEUE_ENTRIES`] to 32,768.
    pub queue_size: u16,
    /// The longest payload of a frame that the guest is told of, from [`LEAST_MTU`] bytes on; `None` tells it none.
    pub mtu: Option<u16>,
    /// Which IOThread serves each virtqueue: receive 2k and transmit 2k+1 of pair k, the control queue last. A stream has one
    /// pair, and so three.
    pub virtqueues: Vec<u32>,
}

/// What carries the frames of a network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetBackend {
    /// A tap device that exists; with several queue pairs one of several queues (IFF_MULTI_QUEUE).
    Tap { name: String },
    /// A stream socket, which the caller gives in [`Channels`](crate::Channels): the next of its `nets`.
    Stream,
}

/// A frame's header and data: what a queue holds at least.
pub const FEWEST_NET_QUEUE_ENTRIES: u16 = 2;
/// virtio 1.3, 5.1.4.1: a device tells of no smaller one.
pub const LEAST_MTU: u16 = 68;

/// QEMU's cache modes: whether the host's page cache is used, and what a completed write or flush promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// O_DIRECT; durable after a flush.
    None,
    /// O_DIRECT; every write durable.
    Directsync,
    /// Page cache; durable after a flush.
    Writeback,
    /// Page cache; every write durable.
    Writethrough,
    /// Page cache; flushes ignored.
    Unsafe,
}

/// QEMU's `aio` words: how requests reach the host's block layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    IoUring,
    Native,
    Threads,
}

/// What becomes of a request that the backing fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnError {
    pub read: ErrorPolicy,
    /// Of writes, and of all that is to change the disk: flushes, discards, write zeroes.
    pub write: ErrorPolicy,
}

impl OnError {
    /// Whether a request may stop the machine.
    pub fn may_stop(self) -> bool {
        [self.read, self.write].iter().any(|policy| matches!(policy, ErrorPolicy::Stop | ErrorPolicy::Enospc))
    }
}

/// QEMU's words of `rerror` and `werror`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorPolicy {
    /// The guest is told.
    #[default]
    Report,
    /// The guest is told that all is well.
    Ignore,
    /// The request is kept and the machine pauses; when it goes on, the request is tried again.
    Stop,
    /// `Stop` where the host has no space left, and `Report` for any other error.
    Enospc,
}

/// The word of `aio`.
impl std::fmt::Display for Engine {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Engine::IoUring => "io_uring",
            Engine::Native => "native",
            Engine::Threads => "threads",
        })
    }
}

impl CacheMode {
    /// Whether the backing is opened with O_DIRECT.
    pub fn is_direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }

    /// Whether each write is durable when it completes, so that the guest is shown no write cache.
    pub fn writes_through(self) -> bool {
        matches!(self, CacheMode::Directsync | CacheMode::Writethrough)
    }
}
