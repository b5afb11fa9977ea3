//! What an ordinary VMM does for a virtqueue, kept as the measure of the IOThread's design: epoll over the doorbell and the
//! io_uring's own eventfd, each read when it rings; requests by number in a map, their segments in a list each; Readv on a
//! plain descriptor and a ring without flags. Each request's addresses are looked up in guest memory.
//!
//! It is no strawman: it submits once per batch, shows the used index and interrupts once per batch, keeps to EVENT_IDX, and
//! looks again after it asked for notifications. The ring's format is read by the same code as the IOThread's.

// UNSAFETY: entries point to buffers that the kernel writes.
#![allow(unsafe_code, reason = "pushing io_uring entries")]

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use io_uring::{IoUring, opcode, types};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmprof_sys::memory::GuestRam;
use vmprof_sys::vring::Descriptor;
use vmprof_vmm::virtio::device::ActiveQueue;

use crate::error::{Doing as _, Error};

const ENTRIES: u32 = 256;
const DOORBELL: u64 = 0;
const COMPLETIONS: u64 = 1;
const SECTOR_BYTES: u64 = 512;
const TYPE_IN: u32 = 0;

/// What others may read and say while it runs.
#[derive(Debug, Default)]
pub struct Shared {
    pub syscalls: AtomicU64,
    pub stop: AtomicBool,
}

struct InFlight {
    head: u16,
    status: GuestAddress,
    bytes: u32,
    /// The kernel reads these until the request completes.
    _segments: Vec<libc::iovec>,
}

pub struct EpollLoop {
    ram: Arc<GuestRam>,
    queue: ActiveQueue,
    file: File,
    ring: IoUring,
    completed: EventFd,
    epoll: Epoll,
    requests: HashMap<u64, InFlight>,
    next: u64,
    chain: Vec<Descriptor>,
    shared: Arc<Shared>,
}

impl EpollLoop {
    pub fn new(
        ram: Arc<GuestRam>,
        queue: ActiveQueue,
        file: File,
        shared: Arc<Shared>,
    ) -> Result<EpollLoop, Error> {
        let doing = || "the epoll loop could not be set up".to_owned();
        let ring = IoUring::new(ENTRIES).doing(doing)?;
        let completed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).doing(doing)?;
        ring.submitter().register_eventfd(completed.as_raw_fd()).doing(doing)?;
        let epoll = Epoll::new().doing(doing)?;
        let watch = |fd: RawFd, token| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token)).doing(doing)
        };
        watch(queue.doorbell.as_raw_fd(), DOORBELL)?;
        watch(completed.as_raw_fd(), COMPLETIONS)?;
        let requests = HashMap::new();
        Ok(EpollLoop {
            ram,
            queue,
            file,
            ring,
            completed,
            epoll,
            requests,
            next: 0,
            chain: Vec::new(),
            shared,
        })
    }

    /// Until it is told to stop and its doorbell rings.
    pub fn run(mut self) -> Result<(), Error> {
        let mut events = [EpollEvent::default(); 8];
        self.take()?;
        while !self.shared.stop.load(Ordering::Acquire) || !self.requests.is_empty() {
            self.count();
            let found = match self.epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => 0,
                outcome => outcome.doing(|| "the epoll loop could not wait".to_owned())?,
            };
            for event in &events[..found] {
                self.count();
                match event.data() {
                    DOORBELL => {
                        let _ = self.queue.doorbell.read();
                        self.take()?;
                    }
                    _ => {
                        let _ = self.completed.read();
                        self.complete();
                        self.take()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn count(&self) {
        // One writer.
        let syscalls = &self.shared.syscalls;
        syscalls.store(syscalls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Everything that is available, submitted at once; then asks for notifications, and looks again.
    fn take(&mut self) -> Result<(), Error> {
        let mut chain = std::mem::take(&mut self.chain);
        loop {
            self.queue.ring.disarm();
            let mut taken = false;
            while let Some(head) = self.queue.ring.pop(&mut chain).map_err(broken)? {
                self.start(head, &chain)?;
                taken = true;
            }
            if taken {
                self.count();
                self.ring.submit().doing(|| "the epoll loop could not submit".to_owned())?;
            }
            if !self.queue.ring.arm_and_look().map_err(broken)? {
                break;
            }
        }
        self.chain = chain;
        Ok(())
    }

    fn start(&mut self, head: u16, chain: &[Descriptor]) -> Result<(), Error> {
        let [header, data @ .., status] = chain else {
            return Err(Error::Asked("the driver's request has no header and status".to_owned()));
        };
        let unusable = |error: vm_memory::GuestMemoryError| Error::Asked(error.to_string());
        let kind: u32 = self.ram.read_obj(GuestAddress(header.address)).map_err(unusable)?;
        let sector: u64 = self.ram.read_obj(GuestAddress(header.address + 8)).map_err(unusable)?;
        if kind != TYPE_IN {
            return Err(Error::Asked(format!("the epoll loop reads alone, and was asked for type {kind}")));
        }
        let mut segments = Vec::with_capacity(data.len());
        for part in data {
            let slice =
                self.ram.get_slice(GuestAddress(part.address), part.len as usize).map_err(unusable)?;
            segments
                .push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        }
        let entry =
            opcode::Readv::new(types::Fd(self.file.as_raw_fd()), segments.as_ptr(), segments.len() as u32)
                .offset(sector * SECTOR_BYTES)
                .build()
                .user_data(self.next);
        let bytes = data.iter().map(|part| part.len).sum();
        let request = InFlight { head, status: GuestAddress(status.address), bytes, _segments: segments };
        self.requests.insert(self.next, request);
        self.next += 1;
        // SAFETY: the segments' heap block stays in `requests` until the completion is taken, and guest memory is mapped as long
        // as `ram`; `run` ends only when nothing is in flight.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed
            .map_err(|_| Error::Asked("the epoll loop's ring is smaller than the driver's depth".to_owned()))
    }

    fn complete(&mut self) {
        for entry in self.ring.completion() {
            let Some(request) = self.requests.remove(&entry.user_data()) else { continue };
            let status = u8::from(entry.result() != request.bytes as i32);
            let _ = self.ram.write_obj(status, request.status);
            self.queue.ring.push_used(request.head, request.bytes + 1);
        }
        if self.queue.ring.publish() {
            self.count();
            self.queue.interrupt.signal();
        }
    }
}

fn broken(error: vmprof_sys::vring::RingError) -> Error {
    Error::Asked(error.to_string())
}
