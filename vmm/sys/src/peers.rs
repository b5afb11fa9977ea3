//! What the benchmarks set beside the dataplane, as far as it needs raw pointers (feature `peers`, which the product is built
//! without): io_urings that read a file into a guest's memory and know nothing of it, requests of the virtio-driver crate, and
//! the CPU time of another process.

// UNSAFETY: the kernel, or a server in another process, writes to memory that these name by its address.
#![allow(
    unsafe_code,
    reason = "entries and requests whose memory must outlive them, and a clock by its number"
)]

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use virtio_driver::VirtioBlkQueue;
use vm_memory::VolatileSlice;

use crate::memory::GuestRam;
use crate::regions::Regions;

/// Reads into guest memory: an io_uring, and what its entries point to.
struct Reads {
    uring: IoUring,
    file: File,
    regions: Regions,
    in_flight: usize,
}

impl std::fmt::Debug for Reads {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Reads")
            .field("file", &self.file)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

fn outside() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the buffer is not in guest memory")
}

impl Reads {
    fn new(uring: IoUring, file: File, ram: &Arc<GuestRam>) -> Reads {
        Reads { uring, file, regions: Regions::new(ram), in_flight: 0 }
    }

    /// `entry` reads into memory of `regions`, by a list of segments that is kept until it has completed.
    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: guest memory is mapped as long as `regions`, and `drop` waits for every entry before it goes; the callers in
        // this file keep lists of segments as long.
        let pushed = unsafe { self.uring.submission().push(entry) };
        pushed.map_err(|_| io::Error::new(io::ErrorKind::StorageFull, "the submission queue is full"))?;
        self.in_flight += 1;
        Ok(())
    }

    fn take(&mut self) -> Option<(u64, i32)> {
        let entry = self.uring.completion().next()?;
        self.in_flight -= 1;
        Some((entry.user_data(), entry.result()))
    }

    /// Waits for what the kernel still holds.
    fn settle(&mut self) {
        while self.in_flight > 0 {
            match self.uring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    // It may write still: what it writes to stays.
                    std::mem::forget(self.regions.clone());
                    return;
                }
                _ => while self.take().is_some() {},
            }
        }
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        self.settle();
    }
}

/// The ring that the kernel likes best for one thread: SINGLE_ISSUER, DEFER_TASKRUN and a registered file.
#[derive(Debug)]
pub struct BareReads(Reads);

impl BareReads {
    /// For the calling thread.
    pub fn new(entries: u32, file: File, ram: &Arc<GuestRam>) -> io::Result<BareReads> {
        let uring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries)?;
        uring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(BareReads(Reads::new(uring, file, ram)))
    }

    /// Reads `bytes` at `offset` to `address`, to be known by `tag`.
    pub fn read(&mut self, offset: u64, address: u64, bytes: u32, tag: u64) -> io::Result<()> {
        let buffer = self.0.regions.one_piece(address, bytes as usize).ok_or_else(outside)?;
        let entry = opcode::Read::new(types::Fixed(0), buffer.as_ptr(), bytes).offset(offset).build();
        self.0.push(&entry.user_data(tag))
    }

    /// One io_uring_enter, which waits for a completion.
    pub fn submit_and_wait(&mut self) -> io::Result<()> {
        self.0.uring.submit_and_wait(1).map(drop)
    }

    /// The tag and the result of a read that ended.
    pub fn take(&mut self) -> Option<(u64, i32)> {
        self.0.take()
    }
}

/// A ring without flags, an eventfd for its completions, a descriptor that the kernel looks up, and a list of segments in a map
/// for each read.
#[derive(Debug)]
pub struct ListedReads<T> {
    reads: Reads,
    held: HashMap<u64, (T, Vec<libc::iovec>)>,
    next: u64,
}

impl<T> ListedReads<T> {
    pub fn new(entries: u32, file: File, ram: &Arc<GuestRam>, completed: RawFd) -> io::Result<Self> {
        let uring = IoUring::new(entries)?;
        uring.submitter().register_eventfd(completed)?;
        Ok(ListedReads { reads: Reads::new(uring, file, ram), held: HashMap::new(), next: 0 })
    }

    pub fn in_flight(&self) -> usize {
        self.held.len()
    }

    /// Reads from `offset` to the pieces of guest memory (address and length), for `what`.
    pub fn readv(
        &mut self,
        offset: u64,
        pieces: impl Iterator<Item = (u64, u32)>,
        what: T,
    ) -> io::Result<()> {
        let segment = |(address, bytes): (u64, u32)| {
            let base = self.reads.regions.one_piece(address, bytes as usize).ok_or_else(outside)?;
            Ok(libc::iovec { iov_base: base.as_ptr().cast(), iov_len: bytes as usize })
        };
        let segments = pieces.map(segment).collect::<io::Result<Vec<_>>>()?;
        let file = types::Fd(self.reads.file.as_raw_fd());
        let entry = opcode::Readv::new(file, segments.as_ptr(), segments.len() as u32).offset(offset).build();
        // Moved before the kernel sees the entry; their heap block stays where it is until `take` drops it.
        self.held.insert(self.next, (what, segments));
        self.reads.push(&entry.user_data(self.next))?;
        self.next += 1;
        Ok(())
    }

    pub fn submit(&mut self) -> io::Result<()> {
        self.reads.uring.submit().map(drop)
    }

    /// What a read was for that ended, and its result.
    pub fn take(&mut self) -> Option<(T, i32)> {
        let (number, result) = self.reads.take()?;
        self.held.remove(&number).map(|(what, _)| (what, result))
    }
}

impl<T> Drop for ListedReads<T> {
    fn drop(&mut self) {
        // Before the lists go.
        self.reads.settle();
    }
}

/// A virtio-blk queue of the virtio-driver crate whose requests lie in `ram`, which it keeps mapped.
pub struct DrivenQueue {
    pub queue: VirtioBlkQueue<'static, u32>,
    regions: Regions,
}

impl std::fmt::Debug for DrivenQueue {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("DrivenQueue").field("regions", &self.regions).finish_non_exhaustive()
    }
}

impl DrivenQueue {
    pub fn new(queue: VirtioBlkQueue<'static, u32>, ram: &Arc<GuestRam>) -> DrivenQueue {
        DrivenQueue { queue, regions: Regions::new(ram) }
    }

    /// Puts a request for `buffer`, a slice of the queue's memory, into the queue.
    pub fn put(&mut self, write: bool, offset: u64, buffer: &VolatileSlice<'_>, slot: u32) -> io::Result<()> {
        let (pointer, bytes) = (buffer.ptr_guard_mut().as_ptr(), buffer.len());
        if !self.regions.is_host_memory(pointer, bytes) {
            return Err(outside());
        }
        if write {
            // SAFETY: the buffer lies in memory that `regions` keeps mapped as long as the queue; the crate makes an address
            // for the server of the pointer and never follows it, and this process only ever copies to and from there.
            unsafe { self.queue.write_raw(offset, pointer, bytes, slot) }
        } else {
            // SAFETY: as above.
            unsafe { self.queue.read_raw(offset, pointer, bytes, slot) }
        }
    }
}

/// CPU time of a process, all its threads and those that ended included, to the nanosecond.
pub fn cpu_time_of(pid: u32) -> io::Result<Duration> {
    // MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) of the kernel's posix-timers.
    const CPUCLOCK_SCHED: libc::clockid_t = 2;
    let id = (!(pid as libc::clockid_t) << 3) | CPUCLOCK_SCHED;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable and outlives the call; a clock that is not there is EINVAL.
    if unsafe { libc::clock_gettime(id, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}
