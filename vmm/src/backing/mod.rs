//! What a disk stands on: a regular file or a block device, opened as its cache mode says, locked against other users,
//! measured once. [`transfer`] moves the bytes of one request; [`gate`] keeps writes that share a block apart.
//!
//! Nothing here knows of virtio: another device model uses it as it is.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::sync::Arc;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::config::{self, CacheMode, Engine};

pub mod alignment;
pub mod bounce;
pub mod device;
pub mod erase;
pub mod error;
pub mod gate;
mod iopoll;
pub mod transfer;

pub use alignment::Alignment;
use device::BlockDevice;
use erase::Erase;
pub use error::DiskError;
use gate::Gate;

pub const SECTOR_BYTES: u64 = 512;

/// An open disk, shared by the IOThreads that serve its queues.
#[derive(Debug)]
pub struct Backing {
    pub file: Arc<File>,
    /// Bytes that the guest may address: the size at opening, rounded up to whole sectors.
    pub capacity_bytes: u64,
    /// The size at opening. Between it and the capacity there are zeros; a file that ends before it was cut short.
    pub size_bytes: u64,
    pub alignment: Alignment,
    pub gate: Gate,
    /// How ranges are given back; `None`: not at all.
    pub erase: Option<Erase>,
    /// What its device writes at once; 0: it is a file, or does not say.
    pub physical_bytes: u64,
    /// The transfers that its device likes best; 0: it does not say.
    pub optimal_bytes: u64,
    _lock: Option<DiskLock>,
}

/// The lock on a disk's file, held by every clone: a machine that follows another one takes over its disks without a moment in
/// which they are anybody's. Writers exclude everyone; readers share.
///
/// A description of its own: an io_uring lets go of its files some time after it is closed, and a lock in the file that it uses
/// would outlast us by that.
#[derive(Debug, Clone)]
pub struct DiskLock(Arc<File>);

impl DiskLock {
    pub fn take(disk: &config::Disk) -> Result<DiskLock, DiskError> {
        lock(disk).map(|file| DiskLock(Arc::new(file)))
    }
}

impl Backing {
    /// Opens, locks and measures the disk's file.
    pub fn open(disk: &config::Disk) -> Result<Backing, DiskError> {
        Backing::open_locked(disk, DiskLock::take(disk)?)
    }

    /// The same for a disk that is locked already; `locked` must be its own.
    pub fn open_locked(disk: &config::Disk, locked: DiskLock) -> Result<Backing, DiskError> {
        if disk.engine == Engine::Native && !disk.cache.is_direct() {
            return Err(DiskError::NativeNeedsDirect { disk: disk.name.clone(), cache: disk.cache });
        }
        if disk.iopoll {
            iopoll::agreed(disk)?;
        }
        let mut file = open(disk, disk.cache.is_direct())?;
        if identity(disk, &locked.0)? != identity(disk, &file)? {
            // What we hold is not what we would write.
            return Err(DiskError::Exchanged { disk: disk.name.clone(), path: disk.path.clone() });
        }
        // For a block device the metadata has no size, but its end is one.
        let size_bytes = file.seek(SeekFrom::End(0)).map_err(|source| DiskError::unreadable(disk, source))?;
        if size_bytes == 0 {
            return Err(DiskError::Empty { disk: disk.name.clone(), path: disk.path.clone() });
        }
        let alignment = if disk.cache.is_direct() { Alignment::probe(disk, &file)? } else { Alignment::NONE };
        if disk.iopoll {
            iopoll::probe(disk, &file, alignment)?;
        }
        let device = BlockDevice::under(&file).map_err(|source| DiskError::unreadable(disk, source))?;
        let erase = match disk.discard && !disk.read_only {
            true => Some(Erase::probe(disk, &file, size_bytes, alignment, device.as_ref())?),
            false => None,
        };
        let (physical_bytes, optimal_bytes) =
            device.map_or((0, 0), |device| (device.physical_bytes, device.optimal_bytes));
        let backing = Backing::new(disk, file, size_bytes, alignment)?;
        Ok(Backing { erase, physical_bytes, optimal_bytes, _lock: Some(locked), ..backing })
    }

    /// A file that is open, and need not be locked.
    pub(crate) fn new(
        disk: &config::Disk,
        file: File,
        size_bytes: u64,
        alignment: Alignment,
    ) -> Result<Backing, DiskError> {
        let capacity_bytes = size_bytes.next_multiple_of(SECTOR_BYTES);
        let block = alignment.offset;
        if !disk.read_only && !capacity_bytes.is_multiple_of(block) {
            // The last block could only be written whole, and the file would grow by it.
            let (disk, path) = (disk.name.clone(), disk.path.clone());
            return Err(DiskError::PartialBlock { disk, path, size_bytes, block_bytes: block });
        }
        let (file, gate) = (Arc::new(file), Gate::default());
        let (erase, physical_bytes, optimal_bytes, _lock) = (None, 0, 0, None);
        Ok(Backing {
            file,
            capacity_bytes,
            size_bytes,
            alignment,
            gate,
            erase,
            physical_bytes,
            optimal_bytes,
            _lock,
        })
    }
}

fn open(disk: &config::Disk, direct: bool) -> Result<File, DiskError> {
    let refused = |source| DiskError::Open { disk: disk.name.clone(), path: disk.path.clone(), source };
    // Looked at before it is opened, since opening a FIFO would wait for its other end.
    let kind = std::fs::metadata(&disk.path).map_err(refused)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(DiskError::NotADisk { disk: disk.name.clone(), path: disk.path.clone() });
    }
    let access = if disk.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let caching = if direct { OFlags::DIRECT } else { OFlags::empty() };
    match rustix::fs::open(&disk.path, access | caching | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => Ok(File::from(fd)),
        Err(Errno::INVAL) if direct => Err(DiskError::no_direct(disk)),
        Err(errno) => Err(refused(errno.into())),
    }
}

/// Which file it is, whatever its name.
fn identity(disk: &config::Disk, file: &File) -> Result<(u64, u64), DiskError> {
    let metadata = file.metadata().map_err(|source| DiskError::unreadable(disk, source))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Held until the file is closed.
fn lock(disk: &config::Disk) -> Result<File, DiskError> {
    // Opened for writing where the disk is: some filesystems want that of an exclusive lock.
    let file = open(disk, false)?;
    let operation = if disk.read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(&file, operation) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(DiskError::InUse { disk: disk.name.clone(), path: disk.path.clone() }),
        Err(errno) => {
            let (name, path) = (disk.name.clone(), disk.path.clone());
            Err(DiskError::Lock { disk: name, path, source: errno.into() })
        }
    }
}

/// Whether a completed write is durable at once, and what a flush does.
#[derive(Debug)]
pub struct WriteCache {
    mode: CacheMode,
    /// What the guest last chose, where it may choose: its writes may wait for a flush.
    write_back: std::sync::atomic::AtomicBool,
    lost: std::sync::atomic::AtomicBool,
}

impl WriteCache {
    pub fn new(mode: CacheMode) -> Self {
        WriteCache { mode, write_back: (!mode.writes_through()).into(), lost: false.into() }
    }

    /// A flush failed. The page cache forgets what it could not write, and says so once: the next flush would find nothing
    /// wrong, and the guest would believe that its data is safe. So no flush of this disk succeeds any more. What direct
    /// I/O wrote is beyond the page cache, and the drive may be asked again.
    pub fn flush_failed(&self) {
        if !self.mode.is_direct() {
            self.lost.store(true, std::sync::atomic::Ordering::Release);
        }
    }

    /// Whether an earlier flush failed for good.
    pub fn is_lost(&self) -> bool {
        self.lost.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Whether the guest is shown a cache that it may switch off, and must flush.
    pub fn is_offered(&self) -> bool {
        !self.mode.writes_through()
    }

    pub fn is_write_back(&self) -> bool {
        self.write_back.load(std::sync::atomic::Ordering::Acquire)
    }

    pub fn set_write_back(&self, write_back: bool) {
        self.write_back.store(write_back && self.is_offered(), std::sync::atomic::Ordering::Release);
    }

    /// Whether a write that completes now must be on stable storage.
    pub fn write_is_durable(&self) -> bool {
        self.mode != CacheMode::Unsafe && !self.is_write_back()
    }

    /// Whether a flush reaches the disk.
    pub fn flush_is_kept(&self) -> bool {
        self.mode != CacheMode::Unsafe
    }
}

#[cfg(test)]
mod tests;
