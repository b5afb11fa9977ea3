//! io_uring_enter(2), the one system call of the hot path, by a ring that the kernel has in a table of the thread's own: no
//! lookup and no reference count of the descriptor for each call.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use io_uring::IoUring;

use super::Wait;

const GETEVENTS: libc::c_uint = 1;
const SQ_WAKEUP: libc::c_uint = 1 << 1;
const EXT_ARG: libc::c_uint = 1 << 3;
const REGISTERED_RING: libc::c_uint = 1 << 4;
const REGISTER_RING_FDS: libc::c_uint = 20;
const UNREGISTER_RING_FDS: libc::c_uint = 21;

/// `struct io_uring_rsrc_update`.
#[repr(C)]
struct Update {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// `struct io_uring_getevents_arg`.
#[repr(C)]
struct Timeout<'time> {
    sigmask: u64,
    sigmask_size: u32,
    min_wait_usec: u32,
    time: &'time [i64; 2],
}

/// How the thread that made the ring calls it.
#[derive(Debug)]
pub(super) struct Entrance {
    ring: RawFd,
    /// Its place in the thread's table. A kernel before 5.18, or a thread with sixteen rings, calls by the descriptor.
    place: Option<u32>,
    /// Each call looks at the devices (IOPOLL).
    iopoll: bool,
}

impl Entrance {
    pub(super) fn new(uring: &IoUring) -> Self {
        let ring = uring.as_raw_fd();
        let mut update = Update { offset: u32::MAX, reserved: 0, data: ring as u64 };
        let known = register(ring, REGISTER_RING_FDS, &mut update);
        let iopoll = uring.params().is_setup_iopoll();
        Entrance { ring, place: known.then_some(update.offset), iopoll }
    }

    /// Takes the ring out of the table, which would hold it until the thread ends.
    pub(super) fn close(&self) {
        if let Some(place) = self.place {
            register(self.ring, UNREGISTER_RING_FDS, &mut Update { offset: place, reserved: 0, data: 0 });
        }
    }

    /// Submits what is queued and waits as it may; how many entries the kernel took, or `None` if it needed no call.
    pub(super) fn enter(&self, uring: &mut IoUring, wait: Wait) -> io::Result<Option<usize>> {
        let polled = uring.params().is_setup_sqpoll();
        let submission = uring.submission();
        let (queued, held_back) = (submission.len(), submission.taskrun() || submission.cq_overflow());
        // With a thread of the kernel's that looks at the queue, a call is for waking it or for waiting.
        let asleep = polled && submission.need_wakeup();
        drop(submission);
        if polled && !asleep && !held_back && wait == Wait::Never {
            return Ok(None);
        }
        let mut flags = if asleep { SQ_WAKEUP } else { 0 };
        // Work that the kernel deferred to us is done by a call that asks for completions.
        if held_back || self.iopoll || wait != Wait::Never {
            flags |= GETEVENTS;
        }
        let least = u32::from(wait != Wait::Never);
        let outcome = match wait {
            Wait::Never | Wait::Forever => self.call(queued, least, flags, std::ptr::null(), 0),
            Wait::AtMost(time) => {
                let time = [time.as_secs() as i64, i64::from(time.subsec_nanos())];
                let argument = Timeout { sigmask: 0, sigmask_size: 0, min_wait_usec: 0, time: &time };
                let argument: *const Timeout<'_> = &argument;
                self.call(queued, least, flags | EXT_ARG, argument.cast(), size_of::<Timeout<'_>>())
            }
        };
        outcome.map(Some)
    }

    fn call(
        &self,
        queued: usize,
        least: u32,
        flags: libc::c_uint,
        argument: *const libc::c_void,
        bytes: usize,
    ) -> io::Result<usize> {
        let (ring, flags) = match self.place {
            Some(place) => (place as i32, flags | REGISTERED_RING),
            None => (self.ring, flags),
        };
        // SAFETY: entries in the queue point to memory that `Ring` keeps in its slots; `argument` is null, or the caller's
        // `Timeout` of `bytes` bytes, alive for the call.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                ring,
                queued as libc::c_uint,
                least,
                flags,
                argument,
                bytes,
            )
        };
        usize::try_from(taken).map_err(|_| io::Error::last_os_error())
    }
}

/// Whether the kernel did it.
fn register(ring: RawFd, operation: libc::c_uint, update: &mut Update) -> bool {
    let update: *mut Update = update;
    // SAFETY: the kernel reads and writes the one `Update` that the argument points to, alive for the call.
    unsafe { libc::syscall(libc::SYS_io_uring_register, ring, operation, update, 1_u32) == 1 }
}
