//! What an ordinary VMM does for a virtqueue, kept as the measure of the IOThread's design: epoll over the doorbell and the
//! io_uring's own eventfd, each read when it rings; requests by number in a map, their segments in a list each; Readv on a
//! plain descriptor and a ring without flags. Each request's addresses are looked up in guest memory.
//!
//! It is no strawman: it submits once per batch, shows the used index and interrupts once per batch, keeps to EVENT_IDX, and
//! looks again after it asked for notifications. The ring's format is read by the same code as the IOThread's.

use std::fs::File;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmprof_sys::memory::GuestRam;
use vmprof_sys::peers::ListedReads;
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
}

pub struct EpollLoop {
    ram: Arc<GuestRam>,
    queue: ActiveQueue,
    reads: ListedReads<InFlight>,
    completed: EventFd,
    epoll: Epoll,
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
        let completed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).doing(doing)?;
        let reads = ListedReads::new(ENTRIES, file, &ram, completed.as_raw_fd()).doing(doing)?;
        let epoll = Epoll::new().doing(doing)?;
        let watch = |fd: RawFd, token| {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token)).doing(doing)
        };
        watch(queue.doorbell.as_raw_fd(), DOORBELL)?;
        watch(completed.as_raw_fd(), COMPLETIONS)?;
        Ok(EpollLoop { ram, queue, reads, completed, epoll, chain: Vec::new(), shared })
    }

    /// Until it is told to stop and its doorbell rings.
    pub fn run(mut self) -> Result<(), Error> {
        let mut events = [EpollEvent::default(); 8];
        self.take()?;
        while !self.shared.stop.load(Ordering::Acquire) || self.reads.in_flight() > 0 {
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
                self.reads.submit().doing(|| "the epoll loop could not submit".to_owned())?;
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
        let pieces = data.iter().map(|part| (part.address, part.len));
        let bytes = data.iter().map(|part| part.len).sum();
        let request = InFlight { head, status: GuestAddress(status.address), bytes };
        let started = self.reads.readv(sector * SECTOR_BYTES, pieces, request);
        started.doing(|| "the epoll loop could not start a read".to_owned())
    }

    fn complete(&mut self) {
        while let Some((request, result)) = self.reads.take() {
            let status = u8::from(result != request.bytes as i32);
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
