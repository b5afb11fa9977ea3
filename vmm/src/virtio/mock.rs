//! The driver's side of a split virtqueue, for tests: it writes descriptors into guest memory, notifies as the device asks,
//! sleeps until it is interrupted, and can misbehave.

use std::collections::VecDeque;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, VolatileMemory as _};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmprof_sys::memory::GuestRam;
use vmprof_sys::vring::{Descriptor, RingFeatures, RingSetup, Vring};

use super::device::{ActiveQueue, QueueInterrupt};

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Far beyond any delay of a working device: a test that waits so long has lost a wakeup.
const LOST_MS: i32 = 30_000;

pub(crate) fn ram(bytes: usize) -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), bytes)]).unwrap())
}

/// A buffer that the device reads, or writes.
pub(crate) fn readable(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, writable: false }
}

pub(crate) fn writable(address: u64, len: u32) -> Descriptor {
    Descriptor { address, len, writable: true }
}

#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) size: u16,
    pub(crate) event_idx: bool,
    pub(crate) doorbell: EventFd,
    pub(crate) interrupt: Arc<EventFd>,
    /// Where the queue lies; an indirect table for each head follows its rings.
    base: u64,
    next_available: u16,
    /// How far the device was told, by an index that it could see.
    notified: u16,
    last_used: u16,
    free: VecDeque<u16>,
    /// The descriptors of each head in flight.
    chains: Vec<Vec<u16>>,
    pub(crate) kicks: u64,
}

impl Driver {
    /// What a queue of `size` entries takes of guest memory at its base.
    pub(crate) fn bytes(size: u16) -> u64 {
        let entries = u64::from(size);
        (16 * entries + (6 + 2 * entries).next_multiple_of(4) + 6 + 8 * entries).next_multiple_of(4096)
    }

    pub(crate) fn new(ram: &Arc<GuestRam>, base: u64, size: u16, event_idx: bool) -> Self {
        let zeros = vec![0; Self::bytes(size) as usize];
        ram.write_slice(&zeros, GuestAddress(base)).unwrap();
        Driver {
            ram: Arc::clone(ram),
            size,
            event_idx,
            doorbell: EventFd::new(EFD_NONBLOCK).unwrap(),
            interrupt: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            base,
            next_available: 0,
            notified: 0,
            last_used: 0,
            free: (0..size).collect(),
            chains: vec![Vec::new(); size.into()],
            kicks: 0,
        }
    }

    fn available(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        self.available() + (6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// The queue as the transport hands it to a device.
    pub(crate) fn device_side(&self, index: u16) -> ActiveQueue {
        let (descriptors, driver, device) = (self.base, self.available(), self.used());
        let setup = RingSetup { size: self.size, descriptors, driver, device };
        ActiveQueue {
            index,
            ring: Vring::new(&self.ram, &setup, RingFeatures { event_idx: self.event_idx }).unwrap(),
            doorbell: self.doorbell.try_clone().unwrap(),
            interrupt: QueueInterrupt::new(Some(Arc::clone(&self.interrupt))),
        }
    }

    /// Runs `with` on a 16-bit field that both sides use at once.
    fn field<T>(&self, address: u64, with: impl FnOnce(&AtomicU16) -> T) -> T {
        let slice = self.ram.get_slice(GuestAddress(address), 2).unwrap();
        with(slice.get_atomic_ref::<AtomicU16>(0).unwrap())
    }

    pub(crate) fn write_descriptor(&self, index: u16, buffer: Descriptor, flags: u16, next: u16) {
        self.write_descriptor_at(self.base + 16 * u64::from(index), buffer, flags, next);
    }

    pub(crate) fn write_descriptor_at(&self, at: u64, buffer: Descriptor, flags: u16, next: u16) {
        let flags = flags | if buffer.writable { WRITE } else { 0 };
        self.ram.write_obj(buffer.address, GuestAddress(at)).unwrap();
        self.ram.write_obj(buffer.len, GuestAddress(at + 8)).unwrap();
        self.ram.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.ram.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a chain of `buffers` available; `None` when there is no room for it. Not yet notified.
    pub(crate) fn add(&mut self, buffers: &[Descriptor]) -> Option<u16> {
        if buffers.is_empty() || self.free.len() < buffers.len() {
            return None;
        }
        let chain: Vec<u16> = self.free.drain(..buffers.len()).collect();
        for (at, buffer) in buffers.iter().enumerate() {
            let next = chain.get(at + 1);
            self.write_descriptor(
                chain[at],
                *buffer,
                if next.is_some() { NEXT } else { 0 },
                next.copied().unwrap_or(0),
            );
        }
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.offer(head);
        Some(head)
    }

    /// The same through an indirect table at `table`.
    pub(crate) fn add_indirect(&mut self, table: u64, buffers: &[Descriptor]) -> Option<u16> {
        let head = self.free.pop_front()?;
        for (at, buffer) in (0_u16..).zip(buffers) {
            let last = usize::from(at) + 1 == buffers.len();
            self.write_descriptor_at(
                table + 16 * u64::from(at),
                *buffer,
                if last { 0 } else { NEXT },
                at + 1,
            );
        }
        self.write_descriptor(head, readable(table, 16 * buffers.len() as u32), INDIRECT, 0);
        self.chains[usize::from(head)] = vec![head];
        self.offer(head);
        Some(head)
    }

    /// Makes `head` available, whatever it is.
    pub(crate) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.ram.write_obj(head, GuestAddress(self.available() + 4 + 2 * slot)).unwrap();
        self.set_available(self.next_available.wrapping_add(1));
    }

    /// Moves the available index, to where it belongs or elsewhere.
    pub(crate) fn set_available(&mut self, index: u16) {
        self.next_available = index;
        self.field(self.available() + 2, |field| field.store(index, Ordering::Release));
    }

    /// Rings the doorbell if the device asks for it (virtio 1.3, 2.7.13.4). Whether it did.
    pub(crate) fn kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (std::mem::replace(&mut self.notified, self.next_available), self.next_available);
        let wanted = if self.event_idx {
            let event_at = self.used() + 4 + 8 * u64::from(self.size);
            let event = self.field(event_at, |field| field.load(Ordering::Relaxed));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.field(self.used(), |field| field.load(Ordering::Relaxed)) & 1 == 0
        };
        if wanted {
            self.kicks += 1;
            self.doorbell.write(1).unwrap();
        }
        wanted
    }

    /// The next request that the device gave back: its head and the length it wrote.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        let index = self.field(self.used() + 2, |field| field.load(Ordering::Acquire));
        if index == self.last_used {
            return None;
        }
        let element = self.used() + 4 + 8 * u64::from(self.last_used % self.size);
        let head: u32 = self.ram.read_obj(GuestAddress(element)).unwrap();
        let written: u32 = self.ram.read_obj(GuestAddress(element + 4)).unwrap();
        self.last_used = self.last_used.wrapping_add(1);
        let chain = std::mem::take(&mut self.chains[head as usize]);
        assert!(!chain.is_empty(), "head {head} came back twice");
        self.free.extend(chain);
        Some((head as u16, written))
    }

    /// Sleeps until the device gives a request back, asking for an interrupt as a driver does before it sleeps.
    pub(crate) fn wait_used(&mut self) -> (u16, u32) {
        loop {
            if let Some(found) = self.take_used() {
                return found;
            }
            self.ask_for_interrupt();
            if let Some(found) = self.take_used() {
                return found;
            }
            assert!(wait_for(&self.interrupt), "an interrupt was lost");
        }
    }

    fn ask_for_interrupt(&self) {
        if self.event_idx {
            let event = self.available() + 4 + 2 * u64::from(self.size);
            self.field(event, |field| field.store(self.last_used, Ordering::Relaxed));
        }
        fence(Ordering::SeqCst);
    }

    /// VIRTQ_AVAIL_F_NO_INTERRUPT.
    pub(crate) fn refuse_interrupts(&self) {
        self.field(self.available(), |field| field.store(1, Ordering::Relaxed));
    }
}

/// Waits for an eventfd and takes its count; `false` when it stayed silent for longer than anything takes.
pub(crate) fn wait_for(eventfd: &EventFd) -> bool {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    let ready = epoll.wait(LOST_MS, &mut [EpollEvent::default()]).unwrap() > 0;
    let _ = eventfd.read();
    ready
}
