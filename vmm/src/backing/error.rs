//! Why a disk cannot be had as its profile asks.

use std::io;
use std::path::PathBuf;

use vmprof_sys::ring::SetupError;

use crate::config::{self, CacheMode, Engine};

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "disk `{disk}` asks for aio={engine}, and iothread `{iothread}`, which serves it, was started without that engine"
    )]
    EngineNotHere { disk: String, engine: Engine, iothread: String },
    #[error(
        "disk `{disk}` asks for aio=native with cache={}: Linux AIO blocks on files that go through the page cache; take \
         cache=none or cache=directsync, or aio=io_uring",
        cache_word(*cache)
    )]
    NativeNeedsDirect { disk: String, cache: CacheMode },
    #[error(
        "disk `{disk}` asks for iopoll=on, and iothread `{iothread}`, which serves it, was started without"
    )]
    IopollNotHere { disk: String, iothread: String },
    #[error("disk `{disk}` asks for iopoll=on with aio={engine}: only aio=io_uring can look at a drive")]
    IopollNeedsIoUring { disk: String, engine: Engine },
    #[error(
        "disk `{disk}` asks for iopoll=on with cache={}: only direct I/O can be looked for; take cache=none or cache=directsync",
        cache_word(*cache)
    )]
    IopollNeedsDirect { disk: String, cache: CacheMode },
    #[error(
        "disk `{disk}` asks for iopoll=on, and the filesystem of {} lies on no one drive that could be looked at",
        path.display()
    )]
    NoDriveBelow { disk: String, path: PathBuf },
    #[error(
        "disk `{disk}` asks for iopoll=on, and {device}, where {} lies, has no queues to be looked at \
         (/sys/block/*/queue/io_poll says 0)",
        path.display()
    )]
    NoPollQueues { disk: String, path: PathBuf, device: String },
    #[error("disk `{disk}` asks for iopoll=on, and there is no io_uring that looks at drives")]
    IopollRing { disk: String, source: SetupError },
    #[error("disk `{disk}` asks for iopoll=on, and a trial read of {} by looking at its drive failed", path.display())]
    Iopoll { disk: String, path: PathBuf, source: io::Error },
    #[error("disk `{disk}`: {} could not be opened", path.display())]
    Open { disk: String, path: PathBuf, source: io::Error },
    #[error("disk `{disk}`: {} is neither a regular file nor a block device", path.display())]
    NotADisk { disk: String, path: PathBuf },
    #[error("disk `{disk}`: {} is in use by someone else", path.display())]
    InUse { disk: String, path: PathBuf },
    #[error("disk `{disk}`: {} is not the file any more that was locked for it", path.display())]
    Exchanged { disk: String, path: PathBuf },
    #[error("disk `{disk}`: {} could not be locked", path.display())]
    Lock { disk: String, path: PathBuf, source: io::Error },
    #[error("disk `{disk}`: {} is empty; a disk holds at least one sector", path.display())]
    Empty { disk: String, path: PathBuf },
    #[error("disk `{disk}`: {} could not be read", path.display())]
    Unreadable { disk: String, path: PathBuf, source: io::Error },
    #[error(
        "disk `{disk}` asks for cache={}, but the filesystem of {} has no direct I/O; cache={} goes through the page cache",
        cache_word(*cache), path.display(), cache_word(buffered(*cache))
    )]
    NoDirect { disk: String, path: PathBuf, cache: CacheMode },
    #[error(
        "disk `{disk}`: {} has {size_bytes} bytes, but direct I/O writes it in blocks of {block_bytes}; \
         make its size a multiple of that, or use cache=writeback",
        path.display()
    )]
    PartialBlock { disk: String, path: PathBuf, size_bytes: u64, block_bytes: u64 },
    #[error(
        "disk `{disk}` asks for logical blocks of {block_bytes} bytes: they are powers of two from 512 to {most}"
    )]
    LogicalBlock { disk: String, block_bytes: u32, most: u32 },
    #[error(
        "disk `{disk}` asks for physical blocks of {block_bytes} bytes: they are powers of two, from its logical blocks' \
         {least} bytes to {most}"
    )]
    PhysicalBlock { disk: String, block_bytes: u32, least: u32, most: u32 },
    #[error(
        "disk `{disk}`: {} has {size_bytes} bytes, which is no whole number of its logical blocks of {block_bytes}",
        path.display()
    )]
    PartialLogicalBlock { disk: String, path: PathBuf, size_bytes: u64, block_bytes: u32 },
    #[error("disk `{disk}`: {} wants direct I/O in blocks of {block_bytes} bytes, and vmprof goes up to {most}", path.display())]
    BlocksTooLarge { disk: String, path: PathBuf, block_bytes: u64, most: u64 },
    #[error(
        "disk `{disk}` asks for discard=unmap, and {} cannot give space back: {why}; discard=ignore keeps what the guest frees",
        path.display()
    )]
    NoDiscard { disk: String, path: PathBuf, why: &'static str },
    #[error("disk `{disk}` asks for discard=unmap, and {} refused a trial of it", path.display())]
    Discard { disk: String, path: PathBuf, source: io::Error },
    #[error(
        "disk `{disk}` is to pause the machine at a failed request (rerror or werror), and there is no machine to pause here; \
         report and ignore are what there is"
    )]
    NothingToPause { disk: String },
    #[error(
        "disk `{disk}`: the guest finds it by its serial, which has at most 20 bytes; give it a shorter name"
    )]
    NameTooLong { disk: String },
    #[error(
        "disk `{disk}` has queues of {size} entries: a request takes three, and sizes are powers of two up to 32768"
    )]
    QueueSize { disk: String, size: u16 },
    #[error("disk `{disk}` has no virtqueue")]
    NoQueue { disk: String },
    #[error("disk `{disk}`: virtqueue {queue} is mapped to iothread {iothread}, which is not there")]
    NoSuchIoThread { disk: String, queue: usize, iothread: u32 },
}

impl DiskError {
    pub(super) fn no_direct(disk: &config::Disk) -> Self {
        DiskError::NoDirect { disk: disk.name.clone(), path: disk.path.clone(), cache: disk.cache }
    }

    pub(super) fn unreadable(disk: &config::Disk, source: io::Error) -> Self {
        DiskError::Unreadable { disk: disk.name.clone(), path: disk.path.clone(), source }
    }
}

fn cache_word(cache: CacheMode) -> &'static str {
    match cache {
        CacheMode::None => "none",
        CacheMode::Directsync => "directsync",
        CacheMode::Writeback => "writeback",
        CacheMode::Writethrough => "writethrough",
        CacheMode::Unsafe => "unsafe",
    }
}

/// The mode that promises the same without direct I/O.
fn buffered(cache: CacheMode) -> CacheMode {
    if cache.writes_through() { CacheMode::Writethrough } else { CacheMode::Writeback }
}
