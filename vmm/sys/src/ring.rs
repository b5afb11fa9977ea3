//! An io_uring that owns each operation, with its buffers, until the kernel has completed it: no caller can free, reuse or
//! move away memory that the kernel still writes. One thread makes it, submits to it and waits in it.
//!
//! What waits besides I/O are *watches*: multishot polls on eventfds and on other files, so that one `io_uring_enter` waits for
//! doorbells, commands, packets and completions alike.

// UNSAFETY: the kernel reads and writes the memory that submitted entries point to.
#![allow(unsafe_code, reason = "pushing entries whose memory must outlive them")]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, squeue};

use crate::aligned::AlignedBuffer;
use crate::memory::GuestRam;
use crate::segments::GuestBuffers;
use crate::slab::Slab;

mod entrance;
mod entry;
mod files;
mod registered;
mod remote;
mod setup;
mod watched;

use entrance::Entrance;
use entry::CANCELLATION;
pub use files::FileId;
use files::Files;
pub use registered::RegisterError;
use registered::Registered;
pub use setup::{Completions, Options, SetupError, SubmissionThread};
pub use watched::Watched;

/// Completions taken from the kernel's queue at once.
const BATCH: usize = 32;

/// The memory of one operation; the ring has it from `start` to the completion.
#[derive(Debug)]
pub enum Buffers {
    /// Flushes have none.
    None,
    /// The guest's own, all that is left in them. Boxed: they change hands several times for each request.
    Guest(Box<GuestBuffers>),
    /// The first `bytes` of a buffer of ours.
    Bounce { buffer: AlignedBuffer, bytes: usize },
}

/// What the kernel is to do. Offsets are bytes from the start of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read {
        offset: u64,
    },
    /// `durable` (RWF_DSYNC): complete only when the data is on stable storage.
    Write {
        offset: u64,
        durable: bool,
    },
    /// fdatasync(2).
    Sync,
    /// Gives the range back to the host (fallocate(2), FALLOC_FL_PUNCH_HOLE): it reads as zeros from then on.
    Discard {
        offset: u64,
        bytes: u64,
    },
    /// Has the range read as zeros (FALLOC_FL_ZERO_RANGE), and keeps its space.
    WriteZeroes {
        offset: u64,
        bytes: u64,
    },
}

/// How long [`Ring::enter`] may sleep when nothing has completed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Never,
    Forever,
    AtMost(Duration),
}

#[derive(Debug)]
pub enum Completion<T> {
    /// An operation ended: bytes moved, or the kernel's error. Its buffers come back.
    Done { token: T, result: io::Result<u32>, buffers: Buffers },
    /// What is watched has changed: an eventfd was written, say.
    Rang { token: T },
    /// A watch has ended, and its descriptor is closed: as asked (`None`), or because the kernel gave it up.
    Unwatched { token: T, error: Option<io::Error> },
}

/// A watch, to end it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchId(usize);

#[derive(Debug)]
enum Held<T> {
    Operation { token: T, buffers: Buffers },
    Watch { token: T, watched: Watched, ending: bool },
}

/// See the module. `T` is how the owner knows an operation again.
#[derive(Debug)]
pub struct Ring<T: Copy> {
    uring: Uring,
    entrance: Entrance,
    completions: Completions,
    files: Files,
    registered: Option<Registered>,
    /// Everything the kernel has, or is about to get, by the index in its user_data.
    slots: Slab<Held<T>>,
    /// Entries that found the submission queue full, in order.
    overflow: VecDeque<squeue::Entry>,
    /// SINGLE_ISSUER: the ring stays on the thread that made it.
    _thread: PhantomData<*const ()>,
}

struct Uring(IoUring);

impl std::fmt::Debug for Uring {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "io_uring {}", self.0.as_raw_fd())
    }
}

impl<T: Copy> Ring<T> {
    /// A ring for the calling thread.
    pub fn new() -> Result<Self, SetupError> {
        Ring::with(&Options::default())
    }

    /// The same as `options` say.
    pub fn with(options: &Options) -> Result<Self, SetupError> {
        let (uring, completions) = setup::ring(options)?;
        setup::allow_workers(&uring);
        let (entrance, files) = (Entrance::new(&uring), Files::new(&uring));
        Ok(Ring {
            uring: Uring(uring),
            entrance,
            completions,
            files,
            registered: None,
            slots: Slab::new(),
            overflow: VecDeque::new(),
            _thread: PhantomData,
        })
    }

    /// Pins the guest's memory in the kernel, for the operations that follow. Once for a ring; the same memory again is
    /// registered already.
    pub fn register_memory(&mut self, ram: &Arc<GuestRam>) -> Result<(), RegisterError> {
        if self.registered.as_ref().is_none_or(|registered| !registered.is_of(ram)) {
            self.registered = Some(Registered::new(&self.uring.0, ram)?);
        }
        Ok(())
    }

    pub fn completions(&self) -> Completions {
        self.completions
    }

    /// Confines the kernel's worker threads of the calling thread to `cpus`; an empty list leaves them alone.
    pub fn confine_workers(&self, cpus: &[u32]) -> io::Result<()> {
        if cpus.is_empty() { Ok(()) } else { setup::confine_workers(&self.uring.0, cpus) }
    }

    /// Makes a file known to the ring; the same file again gives the same id.
    pub fn add_file(&mut self, file: Arc<File>) -> io::Result<FileId> {
        self.files.add(&self.uring.0, file)
    }

    /// Undoes one [`add_file`](Self::add_file), once no operation of that user is in flight.
    pub fn remove_file(&mut self, file: FileId) {
        self.files.remove(&self.uring.0, file);
    }

    /// Takes an operation; it reaches the kernel with the next [`enter`](Self::enter). Buffers that are empty, or of the
    /// wrong kind for the operation, are the caller's mistake and move nothing.
    pub fn start(&mut self, file: FileId, operation: Operation, buffers: Buffers, token: T) {
        let (fd, flags) = self.files.target(file);
        let index = self.slots.insert(Held::Operation { token, buffers });
        let Some(Held::Operation { buffers, .. }) = self.slots.get_mut(index) else { return };
        let entry = entry::operation(fd, operation, buffers, self.registered.as_ref());
        let entry = entry.flags(flags).user_data(index as u64);
        self.push(entry);
    }

    /// Watches a file until [`unwatch`](Self::unwatch), and tells of what is there already. An eventfd is never read: polls
    /// that fire more than once fire for each write, whatever the count.
    pub fn watch(&mut self, watched: impl Into<Watched>, token: T) -> WatchId {
        let watched = watched.into();
        let (fd, events) = (watched.as_fd().as_raw_fd(), watched.events());
        let index = self.slots.insert(Held::Watch { token, watched, ending: false });
        self.push(entry::poll(fd, events, index));
        WatchId(index)
    }

    /// Ends a watch; [`Completion::Unwatched`] says when it has ended.
    pub fn unwatch(&mut self, WatchId(index): WatchId) {
        if let Some(Held::Watch { ending, .. }) = self.slots.get_mut(index)
            && !*ending
        {
            *ending = true;
            self.push(entry::cancellation(index));
        }
    }

    /// Operations and watches that have not ended.
    pub fn busy(&self) -> usize {
        self.slots.used()
    }

    /// Whether what is started is in the kernel's hands at once, and may end before any [`enter`](Self::enter): a thread of the
    /// kernel's looks for it (IORING_SETUP_SQPOLL, io_uring_setup(2)).
    pub fn takes_at_once(&self) -> bool {
        self.uring.0.params().is_setup_sqpoll()
    }

    /// Whether a call of [`enter`](Self::enter) has something to submit.
    pub fn has_submissions(&mut self) -> bool {
        !self.overflow.is_empty() || !self.uring.0.submission().is_empty()
    }

    /// Whether the kernel has completions that only a call of [`enter`](Self::enter) brings out.
    pub fn holds_back(&mut self) -> bool {
        let submission = self.uring.0.submission();
        submission.taskrun() || submission.cq_overflow()
    }

    /// Whether something completed, as far as can be seen without a system call.
    pub fn has_completions(&mut self) -> bool {
        self.holds_back() || !self.uring.0.completion().is_empty()
    }

    /// One system call: submits what was started, and waits for a completion as long as it may. An interrupted or timed
    /// out wait is no error. Whether there was a call: a thread of the kernel's that looks by itself needs none.
    pub fn enter(&mut self, wait: Wait) -> io::Result<bool> {
        // Everything is handed over before anyone sleeps: what stayed behind could be the only thing to wake us.
        while self.refill() {
            if !forgivable(self.entrance.enter(&mut self.uring.0, Wait::Never))? {
                // The kernel takes no more before completions were taken.
                return Ok(true);
            }
        }
        match self.entrance.enter(&mut self.uring.0, wait) {
            Ok(None) => Ok(false),
            other => forgivable(other).map(|_| true),
        }
    }

    /// Takes every completion that is there.
    pub fn reap(&mut self, into: &mut Vec<Completion<T>>) {
        loop {
            // The queue's indices are read and written once for so many.
            let mut room = [const { MaybeUninit::<cqueue::Entry>::uninit() }; BATCH];
            let batch = self.uring.0.completion().fill(&mut room);
            for entry in batch.iter() {
                let (index, result) = ((entry.user_data() & !CANCELLATION) as usize, entry.result());
                if entry.user_data() & CANCELLATION != 0 {
                    self.cancelled(index, result);
                } else if let Some(completion) = self.complete(index, result, entry.flags()) {
                    into.push(completion);
                }
            }
            if batch.len() < BATCH {
                return;
            }
        }
    }

    /// A cancellation that came while its poll was firing may find it busy: asked again, or its end is on its way.
    fn cancelled(&mut self, index: usize, result: i32) {
        if result == -libc::EALREADY
            && matches!(self.slots.get_mut(index), Some(Held::Watch { ending: true, .. }))
        {
            self.push(entry::cancellation(index));
        }
    }

    fn complete(&mut self, index: usize, result: i32, flags: u32) -> Option<Completion<T>> {
        match self.slots.get_mut(index)? {
            Held::Operation { .. } => {
                let Some(Held::Operation { token, buffers }) = self.slots.remove(index) else { return None };
                let result =
                    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()));
                Some(Completion::Done { token, result, buffers })
            }
            Held::Watch { token, .. } if cqueue::more(flags) => Some(Completion::Rang { token: *token }),
            Held::Watch { token, watched, ending: false } if result >= 0 => {
                // The kernel ends a poll that finds no room for its completion: begin it anew, and look.
                let (token, fd, events) = (*token, watched.as_fd().as_raw_fd(), watched.events());
                self.push(entry::poll(fd, events, index));
                Some(Completion::Rang { token })
            }
            Held::Watch { .. } => {
                let Some(Held::Watch { token, ending, .. }) = self.slots.remove(index) else { return None };
                let error = (!ending).then(|| io::Error::from_raw_os_error(result.wrapping_neg()));
                Some(Completion::Unwatched { token, error })
            }
        }
    }

    /// Puts an entry into the submission queue, or behind those that found it full. Its memory is in a slot by now.
    fn push(&mut self, entry: squeue::Entry) {
        if !self.overflow.is_empty() {
            return self.overflow.push_back(entry);
        }
        // SAFETY: what `entry` points to is in `slots` or static, and a slot is vacated only by the entry's completion, or
        // never when the ring must be given up with entries in the kernel.
        let pushed = unsafe { self.uring.0.submission().push(&entry) };
        if pushed.is_err() {
            self.overflow.push_back(entry);
        }
    }

    /// Moves what waits into the submission queue. Whether more is left than fits.
    fn refill(&mut self) -> bool {
        while let Some(entry) = self.overflow.pop_front() {
            // SAFETY: as in `push`.
            let pushed = unsafe { self.uring.0.submission().push(&entry) };
            if pushed.is_err() {
                self.overflow.push_front(entry);
                return true;
            }
        }
        false
    }
}

impl<T: Copy> Drop for Ring<T> {
    /// Waits until the kernel has let go of every operation. Closing the ring would not: work in the kernel's threads goes
    /// on writing to memory after it.
    fn drop(&mut self) {
        for index in 0..self.slots.bound() {
            self.unwatch(WatchId(index));
        }
        let mut ended = Vec::new();
        while self.busy() > 0 {
            if self.enter(Wait::Forever).is_err() {
                // The kernel may still hold these: leaked, they stay good.
                std::mem::forget(std::mem::replace(&mut self.slots, Slab::new()));
                std::mem::forget(self.registered.take());
                break;
            }
            self.reap(&mut ended);
            ended.clear();
        }
        self.entrance.close();
    }
}

/// Whether a submission got on; an error only when trying again cannot help.
fn forgivable(outcome: io::Result<Option<usize>>) -> io::Result<bool> {
    match outcome {
        Ok(submitted) => Ok(submitted.is_none_or(|submitted| submitted > 0)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(false),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests;
