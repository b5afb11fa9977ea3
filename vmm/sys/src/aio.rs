//! Linux AIO (`aio=native`): operations that the kernel carries out beside us, for files opened with O_DIRECT; on others it
//! would block. As the ring does, it owns each operation with its buffers until the kernel has completed it. One thread
//! makes it, submits to it and takes from it; completions are seen in memory that the kernel shares, and told by an eventfd.

// UNSAFETY: the kernel reads and writes the memory that submitted control blocks point to, and shares its completions.
#![allow(unsafe_code, reason = "system calls without a safe interface, and the ring of completions")]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_long, c_ulong, iocb};
use vmm_sys_util::eventfd::EventFd;

use crate::ring::{Buffers, Completion, Operation};
use crate::slab::Slab;

/// Operations that the kernel takes at a time; more wait here.
const MOST_IN_KERNEL: u32 = 1_024;

/// linux/aio_abi.h.
const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FDSYNC: u16 = 3;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;
const FLAG_RESFD: u32 = 1;
const MAGIC: u32 = 0xa10a_10a1;

/// What the kernel maps into us: fs/aio.c has it as `struct aio_ring`, unchanged since Linux 2.6.
#[repr(C)]
struct Header {
    id: u32,
    entries: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
    compatible: u32,
    incompatible: u32,
    bytes: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Event {
    data: u64,
    control_block: u64,
    result: i64,
    result2: i64,
}

/// Why there is no Linux AIO here. No other engine takes its place unless the disk names one.
#[derive(Debug, thiserror::Error)]
pub enum AioError {
    #[error("this kernel has no Linux AIO; it is built without CONFIG_AIO")]
    Absent { source: io::Error },
    #[error(
        "all of the host's Linux AIO is in use: fs.aio-max-nr is {limit}; `sysctl fs.aio-max-nr=1048576` allows more"
    )]
    Exhausted { limit: u64 },
    #[error("this kernel's Linux AIO lacks {feature}; Linux 4.18 or newer is needed")]
    TooOld { feature: &'static str },
    #[error("Linux AIO could not be set up")]
    Other { source: io::Error },
}

#[derive(Debug)]
struct Held<T> {
    token: T,
    buffers: Buffers,
}

/// See the module. `T` is how the owner knows an operation again.
#[derive(Debug)]
pub struct Aio<T: Copy> {
    context: Context,
    held: Slab<Held<T>>,
    /// Operations that the kernel has not taken yet.
    staged: VecDeque<Staged>,
    pointers: Vec<*mut iocb>,
    in_kernel: usize,
    /// Those that it refused to take.
    refused: Vec<(usize, i32)>,
    bell: EventFd,
}

struct Staged(iocb);

impl std::fmt::Debug for Staged {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "operation {} at {}", self.0.aio_lio_opcode, self.0.aio_offset)
    }
}

/// An aio_context_t: also the address of its completions.
#[derive(Debug)]
struct Context {
    id: c_ulong,
    header: NonNull<Header>,
    entries: u32,
}

impl Context {
    fn new() -> Result<Self, AioError> {
        let mut id: c_ulong = 0;
        // SAFETY: the kernel writes one aio_context_t to `id`.
        let outcome = unsafe { libc::syscall(libc::SYS_io_setup, MOST_IN_KERNEL, &raw mut id) };
        if outcome < 0 {
            let source = io::Error::last_os_error();
            return Err(match source.raw_os_error() {
                Some(libc::ENOSYS) => AioError::Absent { source },
                Some(libc::EAGAIN) => AioError::Exhausted { limit: sysctl() },
                _ => AioError::Other { source },
            });
        }
        let unknown = || AioError::Other { source: io::ErrorKind::Unsupported.into() };
        let header = NonNull::new(id as *mut Header).ok_or_else(unknown)?;
        // SAFETY: io_setup mapped its ring at the address that it gave as the context, and it stays until io_destroy.
        let shown = unsafe { header.as_ref() };
        let entries = shown.entries;
        let known = shown.magic == MAGIC
            && shown.incompatible == 0
            && shown.bytes as usize == size_of::<Header>()
            && entries > 0;
        let context = Context { id, header, entries };
        if known { Ok(context) } else { Err(unknown()) }
    }

    fn header(&self) -> &Header {
        // SAFETY: as in `new`; the fields that the kernel changes are atomics.
        unsafe { self.header.as_ref() }
    }

    fn is_empty(&self) -> bool {
        let header = self.header();
        header.head.load(Ordering::Relaxed) == header.tail.load(Ordering::Acquire)
    }

    fn next(&self) -> Option<Event> {
        let header = self.header();
        let head = header.head.load(Ordering::Relaxed);
        // Acquire: the event that the index covers was written before it.
        if head == header.tail.load(Ordering::Acquire) {
            return None;
        }
        let slot = (head % self.entries) as usize;
        let events = self.header.as_ptr().wrapping_add(1).cast::<Event>();
        // SAFETY: the kernel's mapping holds `entries` events right behind the header, and `slot` is below that.
        let event = unsafe { events.wrapping_add(slot).read() };
        // Release: the kernel may use the place again only once it was read.
        header.head.store((head + 1) % self.entries, Ordering::Release);
        Some(event)
    }
}

impl Drop for Context {
    /// Returns when the kernel has nothing in flight.
    fn drop(&mut self) {
        // SAFETY: a context of ours that nobody uses any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

impl<T: Copy> Aio<T> {
    /// For the calling thread; every operation that is used has been tried.
    pub fn new(token: T) -> Result<Self, AioError> {
        let refused = |source| AioError::Other { source };
        let bell = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(refused)?;
        let mut aio = Aio {
            context: Context::new()?,
            held: Slab::new(),
            staged: VecDeque::new(),
            pointers: Vec::new(),
            in_kernel: 0,
            refused: Vec::new(),
            bell,
        };
        aio.probe(token)?;
        Ok(aio)
    }

    /// Has the kernel do what disks need, on a file in memory.
    fn probe(&mut self, token: T) -> Result<(), AioError> {
        let refused = |source| AioError::Other { source };
        let file = rustix::fs::memfd_create("vmprof probes aio", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(file.map_err(|errno| refused(errno.into()))?);
        let bounce = || Buffers::Bounce { buffer: crate::aligned::AlignedBuffer::new(512, 512), bytes: 512 };
        let write = Operation::Write { offset: 0, durable: true };
        let wanted = [
            ("writes that are durable at once", write, bounce()),
            ("reads", Operation::Read { offset: 0 }, bounce()),
            ("fdatasync", Operation::Sync, Buffers::None),
        ];
        let mut ended = Vec::new();
        for (feature, operation, buffers) in wanted {
            self.start(&file, operation, buffers, token);
            self.submit().map_err(refused)?;
            while self.held.used() > 0 {
                self.wait().map_err(refused)?;
                self.reap(&mut ended);
            }
            let well = matches!(ended.pop(), Some(Completion::Done { result: Ok(_), .. }));
            if !well {
                return Err(AioError::TooOld { feature });
            }
        }
        // What the probes rang.
        let _ = self.bell.read();
        Ok(())
    }

    /// Rings when an operation has ended.
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Whether it can do an operation: it has none that allocates or frees space.
    pub fn knows(operation: Operation) -> bool {
        !matches!(operation, Operation::Discard { .. } | Operation::WriteZeroes { .. })
    }

    /// Takes an operation on a file that stays open until it ended; it reaches the kernel with the next
    /// [`submit`](Self::submit). One that it does not know ends with EOPNOTSUPP.
    pub fn start(&mut self, file: &File, operation: Operation, buffers: Buffers, token: T) {
        let index = self.held.insert(Held { token, buffers });
        let Some(Held { buffers, .. }) = self.held.get_mut(index) else { return };
        match control_block(file.as_fd(), &self.bell, operation, buffers) {
            Some(mut block) => {
                block.aio_data = index as u64;
                self.staged.push_back(Staged(block));
            }
            None => self.refused.push((index, libc::EOPNOTSUPP)),
        }
    }

    /// Hands over what was started, as much as the kernel takes. How many system calls that were.
    pub fn submit(&mut self) -> io::Result<u32> {
        let mut calls = 0;
        while !self.staged.is_empty() {
            self.pointers.clear();
            self.pointers.extend(self.staged.iter_mut().map(|staged| &raw mut staged.0));
            let (count, first) = (self.pointers.len() as c_long, self.pointers.as_mut_ptr());
            calls += 1;
            // SAFETY: `first` points to `count` pointers to control blocks that live for the call, which the kernel
            // copies; the memory they name is in `held` until their completion was taken.
            let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.context.id, count, first) };
            match usize::try_from(taken) {
                Ok(taken) => {
                    self.staged.drain(..taken);
                    self.in_kernel += taken;
                }
                Err(_) => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => {}
                    // It takes more once some have ended, which rings.
                    Some(libc::EAGAIN) if self.in_kernel > 0 => break,
                    errno => {
                        // What it says is of the first alone.
                        if let Some(first) = self.staged.pop_front() {
                            self.refused.push((first.0.aio_data as usize, errno.unwrap_or(libc::EIO)));
                        }
                    }
                },
            }
        }
        Ok(calls)
    }

    /// Whether something ended; seen without a system call.
    pub fn has_completions(&self) -> bool {
        !self.refused.is_empty() || !self.context.is_empty()
    }

    /// Whether the kernel is to be given something.
    pub fn has_submissions(&self) -> bool {
        !self.staged.is_empty()
    }

    /// Takes every completion that is there.
    pub fn reap(&mut self, into: &mut Vec<Completion<T>>) {
        while let Some(event) = self.context.next() {
            self.in_kernel = self.in_kernel.saturating_sub(1);
            let Some(Held { token, buffers }) = self.held.remove(event.data as usize) else { continue };
            let result = u32::try_from(event.result)
                .map_err(|_| io::Error::from_raw_os_error(event.result.wrapping_neg() as i32));
            into.push(Completion::Done { token, result, buffers });
        }
        for (index, errno) in std::mem::take(&mut self.refused) {
            let Some(Held { token, buffers }) = self.held.remove(index) else { continue };
            into.push(Completion::Done { token, result: Err(io::Error::from_raw_os_error(errno)), buffers });
        }
    }

    /// Sleeps until something ended.
    fn wait(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, poll};
        while !self.has_completions() {
            let bell = crate::eventfd::borrowed(&self.bell);
            match poll(&mut [PollFd::new(&bell, PollFlags::IN)], None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            // The next wait is for what ends from here on.
            if !self.has_completions() {
                let _ = self.bell.read();
            }
        }
        Ok(())
    }
}

impl<T: Copy> Drop for Aio<T> {
    /// Waits until the kernel has let go of every operation: what was started is carried out.
    fn drop(&mut self) {
        let mut ended = Vec::new();
        loop {
            let outcome = self.submit();
            if self.held.used() == 0 {
                return;
            }
            if outcome.and_then(|_| self.wait()).is_err() {
                // The kernel may still hold these: leaked, they stay good.
                std::mem::forget(std::mem::replace(&mut self.held, Slab::new()));
                return;
            }
            self.reap(&mut ended);
            ended.clear();
        }
    }
}

/// What the kernel is told of an operation whose buffers are where they will stay.
fn control_block(
    file: BorrowedFd<'_>,
    bell: &EventFd,
    operation: Operation,
    buffers: &mut Buffers,
) -> Option<iocb> {
    // SAFETY: numbers and padding alone, for which zeros are good.
    let mut block: iocb = unsafe { std::mem::zeroed() };
    (block.aio_fildes, block.aio_flags) = (file.as_raw_fd() as u32, FLAG_RESFD);
    block.aio_resfd = bell.as_raw_fd() as u32;
    let (one, many, offset) = match operation {
        Operation::Read { offset } => (PREAD, PREADV, offset),
        Operation::Write { offset, durable } => {
            if durable {
                block.aio_rw_flags = libc::RWF_DSYNC;
            }
            (PWRITE, PWRITEV, offset)
        }
        Operation::Sync => {
            block.aio_lio_opcode = FDSYNC;
            return Some(block);
        }
        Operation::Discard { .. } | Operation::WriteZeroes { .. } => return None,
    };
    block.aio_offset = offset as i64;
    let (opcode, memory, length) = match buffers {
        Buffers::None => (many, 0, 0),
        Buffers::Guest(guest) => match guest.segments() {
            [segment] => (one, segment.iov_base as u64, segment.iov_len as u64),
            segments => (many, segments.as_ptr() as u64, segments.len() as u64),
        },
        Buffers::Bounce { buffer, bytes } => {
            let length = (*bytes).min(buffer.size()) as u64;
            (one, buffer.as_mut_slice().as_mut_ptr() as u64, length)
        }
    };
    (block.aio_lio_opcode, block.aio_buf, block.aio_nbytes) = (opcode, memory, length);
    Some(block)
}

fn sysctl() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/fs/aio-max-nr").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

#[cfg(test)]
mod tests;
