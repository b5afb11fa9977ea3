//! The driver's side of a split virtqueue as a fast driver has it: each slot has its three descriptors for good, header, data,
//! status, so that a request writes its sector, one entry of the available ring and, once for a batch, the index.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use vm_memory::{VolatileMemory as _, VolatileSlice};
use vmprof_sys::vring::RingSetup;

use crate::client::{DriverQueue, QUEUE_SIZE};

const ENTRIES: usize = QUEUE_SIZE as usize;
const PER_REQUEST: usize = 3;
// Where things lie in the slice that the queue is given, whose first byte is at guest address 0.
const AVAILABLE: usize = 16 * ENTRIES;
const USED: usize = AVAILABLE + 2 * 4096;
const HEADERS: usize = USED + 4 * 4096;
const HEADER_BYTES: usize = 32;
const STATUS_AT: usize = 16;
pub const BYTES: usize = HEADERS + 8 * 4096;

const _: () = {
    assert!(6 + 2 * ENTRIES <= USED - AVAILABLE);
    assert!(6 + 8 * ENTRIES <= HEADERS - USED);
    assert!(HEADER_BYTES * (ENTRIES / PER_REQUEST) <= BYTES - HEADERS);
};

const NEXT: u64 = 1;
const WRITE: u64 = 2;

#[derive(Debug)]
pub struct SplitDriver<'ram> {
    queue: VolatileSlice<'ram>,
    next_available: u16,
    /// How far the device was told.
    notified: u16,
    last_used: u16,
}

pub fn setup() -> RingSetup {
    RingSetup { size: QUEUE_SIZE, descriptors: 0, driver: AVAILABLE as u64, device: USED as u64 }
}

impl<'ram> SplitDriver<'ram> {
    /// A queue that starts anew in `queue`, which is zero. Slot k reads into `bytes` at guest address `data` + k times `bytes`.
    pub fn new(queue: VolatileSlice<'ram>, data: u64, bytes: u32) -> SplitDriver<'ram> {
        let driver = SplitDriver { queue, next_available: 0, notified: 0, last_used: 0 };
        for slot in 0..ENTRIES / PER_REQUEST {
            let (first, header) = (slot * PER_REQUEST, (HEADERS + slot * HEADER_BYTES) as u64);
            let buffer = data + slot as u64 * u64::from(bytes);
            driver.describe(first, header, 16, NEXT);
            driver.describe(first + 1, buffer, bytes, NEXT | WRITE);
            driver.describe(first + 2, header + STATUS_AT as u64, 1, WRITE);
        }
        driver
    }

    fn describe(&self, index: usize, address: u64, bytes: u32, flags: u64) {
        self.store(16 * index, address);
        self.store(16 * index + 8, u64::from(bytes) | flags << 32 | (index as u64 + 1) << 48);
    }

    fn store(&self, at: usize, value: u64) {
        if let Ok(word) = self.queue.get_ref::<u64>(at) {
            word.store(value);
        }
    }

    /// A field that both sides use; `None` only beyond the queue.
    fn field(&self, at: usize) -> Option<&AtomicU16> {
        self.queue.get_atomic_ref(at).ok()
    }

    fn load(&self, at: usize, order: Ordering) -> u16 {
        self.field(at).map_or(0, |field| field.load(order))
    }

    fn publish(&self, at: usize, value: u16, order: Ordering) {
        if let Some(field) = self.field(at) {
            field.store(value, order);
        }
    }

    fn is_used(&self) -> bool {
        self.load(USED + 2, Ordering::Acquire) != self.last_used
    }
}

impl DriverQueue for SplitDriver<'_> {
    fn put(&mut self, write: bool, offset: u64, _: &VolatileSlice<'_>, slot: u32) -> io::Result<()> {
        let head = slot as usize * PER_REQUEST;
        if write || head + PER_REQUEST > ENTRIES {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let header = HEADERS + slot as usize * HEADER_BYTES;
        self.store(header + 8, offset / 512);
        // No device writes this value: what it leaves untouched is an error.
        self.store(header + STATUS_AT, 0xff);
        let entry = AVAILABLE + 4 + 2 * (usize::from(self.next_available) % ENTRIES);
        self.publish(entry, head as u16, Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
        Ok(())
    }

    fn show(&mut self) -> bool {
        self.publish(AVAILABLE + 2, self.next_available, Ordering::Release);
        // virtio 1.3, 2.7.13.4: the index is to be seen before the event is read.
        fence(Ordering::SeqCst);
        let (old, new) = (std::mem::replace(&mut self.notified, self.next_available), self.next_available);
        let event = self.load(USED + 4 + 8 * ENTRIES, Ordering::Relaxed);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    fn take(&mut self) -> Option<(u32, bool)> {
        if !self.is_used() {
            return None;
        }
        let element = USED + 4 + 8 * (usize::from(self.last_used) % ENTRIES);
        self.last_used = self.last_used.wrapping_add(1);
        let head = self.queue.get_ref::<u32>(element).ok()?.load();
        let slot = head / PER_REQUEST as u32;
        let status = HEADERS + slot as usize * HEADER_BYTES + STATUS_AT;
        Some((slot, self.queue.get_ref::<u8>(status).is_ok_and(|status| status.load() == 0)))
    }

    fn arm(&mut self) -> bool {
        self.publish(AVAILABLE + 4 + 2 * ENTRIES, self.last_used, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.is_used()
    }
}
