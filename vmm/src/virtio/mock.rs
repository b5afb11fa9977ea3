//! The driver's side of a virtqueue, for tests: it writes descriptors into guest memory, notifies as the device asks, sleeps
//! until it is interrupted, and can misbehave. Its ring has the [`Form`] that the test names, or the one that all tests of
//! this process run over; `forms` runs them over each.

use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};
use std::sync::{Arc, OnceLock};

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, VolatileMemory as _};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmprof_sys::memory::GuestRam;
use vmprof_sys::vring::{Descriptor, RingFeatures, RingSetup, Vring};

use super::device::{ActiveQueue, QueueInterrupt};

#[cfg(test)]
mod forms;
mod packed;
mod split;

use packed::PackedDriver;
use split::SplitDriver;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Far beyond any delay of a working device: a test that waits so long has lost a wakeup.
const LOST_MS: i32 = 30_000;
/// Each of the tables that a driver of indirect descriptors has, one for each head.
const TABLE_ENTRIES: u64 = 16;
const TABLE_BYTES: u64 = 16 * TABLE_ENTRIES;

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

/// What rings look like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) packed: bool,
    /// Every request that fits goes through an indirect table.
    pub(crate) indirect: bool,
}

/// Names the form that all tests of a process run over: words of `packed` and `indirect`.
const FORM_VARIABLE: &str = "VMPROF_TEST_RING";

/// The form of drivers whose test does not name one.
pub(crate) fn form() -> Form {
    static FORM: OnceLock<Form> = OnceLock::new();
    *FORM.get_or_init(|| {
        let words = std::env::var(FORM_VARIABLE).unwrap_or_default();
        let has = |word| words.split_whitespace().any(|other| other == word);
        Form { packed: has("packed"), indirect: has("indirect") }
    })
}

/// Guest memory as a driver's parts see it: none of the references to it that tests count.
#[derive(Debug)]
struct Memory(GuestRam);

impl Memory {
    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.0.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.0.read_obj(GuestAddress(address)).unwrap()
    }

    /// Runs `with` on a 16-bit field that both sides use at once.
    fn field<T>(&self, address: u64, with: impl FnOnce(&AtomicU16) -> T) -> T {
        let slice = self.0.get_slice(GuestAddress(address), 2).unwrap();
        with(slice.get_atomic_ref::<AtomicU16>(0).unwrap())
    }

    fn word<T>(&self, address: u64, with: impl FnOnce(&AtomicU32) -> T) -> T {
        let slice = self.0.get_slice(GuestAddress(address), 4).unwrap();
        with(slice.get_atomic_ref::<AtomicU32>(0).unwrap())
    }
}

fn flags_of(buffer: Descriptor) -> u16 {
    if buffer.writable { WRITE } else { 0 }
}

#[derive(Debug)]
enum Side {
    Split(SplitDriver),
    Packed(PackedDriver),
}

/// The same call to whichever format it is.
macro_rules! each {
    ($self:ident, $side:ident => $call:expr) => {
        match &$self.side {
            Side::Split($side) => $call,
            Side::Packed($side) => $call,
        }
    };
    (mut $self:ident, $side:ident => $call:expr) => {
        match &mut $self.side {
            Side::Split($side) => $call,
            Side::Packed($side) => $call,
        }
    };
}

#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) event_idx: bool,
    pub(crate) doorbell: EventFd,
    pub(crate) interrupt: Arc<EventFd>,
    pub(crate) kicks: u64,
    pub(crate) form: Form,
    side: Side,
    tables: u64,
}

impl Driver {
    /// What a queue of `size` entries takes of guest memory at its base: the ring of either format, and tables.
    pub(crate) fn bytes(size: u16) -> u64 {
        let entries = u64::from(size);
        (SplitDriver::bytes(size).max(PackedDriver::bytes(size)) + TABLE_BYTES * entries)
            .next_multiple_of(4096)
    }

    pub(crate) fn new(ram: &Arc<GuestRam>, base: u64, size: u16, event_idx: bool) -> Self {
        Driver::of(form(), ram, base, size, event_idx)
    }

    pub(crate) fn of(form: Form, ram: &Arc<GuestRam>, base: u64, size: u16, event_idx: bool) -> Self {
        let zeros = vec![0; Self::bytes(size) as usize];
        ram.write_slice(&zeros, GuestAddress(base)).unwrap();
        let memory = Memory(GuestRam::clone(ram));
        let (side, tables) = if form.packed {
            (Side::Packed(PackedDriver::new(memory, base, size, event_idx)), PackedDriver::bytes(size))
        } else {
            (Side::Split(SplitDriver::new(memory, base, size, event_idx)), SplitDriver::bytes(size))
        };
        Driver {
            ram: Arc::clone(ram),
            event_idx,
            doorbell: EventFd::new(EFD_NONBLOCK).unwrap(),
            interrupt: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            kicks: 0,
            form,
            side,
            tables: base + tables.next_multiple_of(16),
        }
    }

    pub(crate) fn setup(&self) -> RingSetup {
        each!(self, side => side.setup())
    }

    pub(crate) fn features(&self) -> RingFeatures {
        RingFeatures { event_idx: self.event_idx, packed: self.form.packed }
    }

    /// The queue as the transport hands it to a device.
    pub(crate) fn device_side(&self, index: u16) -> ActiveQueue {
        ActiveQueue {
            index,
            ring: Vring::new(&self.ram, &self.setup(), self.features()).unwrap(),
            doorbell: self.doorbell.try_clone().unwrap(),
            interrupt: QueueInterrupt::new(Some(Arc::clone(&self.interrupt))),
        }
    }

    /// Makes a chain of `buffers` available, and answers by what name; `None` when there is no room for it. Not yet notified.
    pub(crate) fn add(&mut self, buffers: &[Descriptor]) -> Option<u16> {
        if buffers.is_empty() {
            return None;
        }
        if self.form.indirect && buffers.len() as u64 <= TABLE_ENTRIES {
            let slot = each!(self, side => side.next_slot())?;
            return self.add_indirect(self.tables + TABLE_BYTES * u64::from(slot), buffers);
        }
        each!(mut self, side => side.add(buffers))
    }

    /// The same through an indirect table at `table`.
    pub(crate) fn add_indirect(&mut self, table: u64, buffers: &[Descriptor]) -> Option<u16> {
        for (at, buffer) in (0_u16..).zip(buffers) {
            let last = usize::from(at) + 1 == buffers.len();
            self.write_descriptor_at(
                table + 16 * u64::from(at),
                *buffer,
                if last { 0 } else { NEXT },
                at + 1,
            );
        }
        let len = 16 * buffers.len() as u32;
        each!(mut self, side => side.add_table(table, len))
    }

    /// Writes descriptor `index` of the table; of a packed ring, that of a table which [`offer`](Self::offer) copies from.
    pub(crate) fn write_descriptor(&mut self, index: u16, buffer: Descriptor, flags: u16, next: u16) {
        each!(mut self, side => side.write_descriptor(index, buffer, flags | flags_of(buffer), next));
    }

    /// Writes a descriptor of an indirect table.
    pub(crate) fn write_descriptor_at(&self, at: u64, buffer: Descriptor, flags: u16, next: u16) {
        each!(self, side => side.write_descriptor_at(at, buffer, flags | flags_of(buffer), next));
    }

    /// Makes `head` available, whatever it is.
    pub(crate) fn offer(&mut self, head: u16) {
        each!(mut self, side => side.offer(head));
    }

    /// Makes `head` available again, or what it is made of, while the device has it.
    pub(crate) fn offer_in_flight(&mut self, head: u16) {
        each!(mut self, side => side.offer_in_flight(head));
    }

    /// Moves the available index to where it does not belong; of a packed ring, makes all that it holds available.
    pub(crate) fn set_available(&mut self, index: u16) {
        each!(mut self, side => side.set_available(index));
    }

    /// Rings the doorbell if the device asks for it (virtio 1.3, 2.7.13.4 and 2.8.21.3). Whether it did.
    pub(crate) fn kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let wanted = each!(mut self, side => side.wants_kick());
        if wanted {
            self.kicks += 1;
            self.doorbell.write(1).unwrap();
        }
        wanted
    }

    /// The next request that the device gave back: its name and the length it wrote.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        each!(mut self, side => side.take_used())
    }

    /// Sleeps until the device gives a request back, asking for an interrupt as a driver does before it sleeps.
    pub(crate) fn wait_used(&mut self) -> (u16, u32) {
        loop {
            if let Some(found) = self.take_used() {
                return found;
            }
            each!(self, side => side.ask_for_interrupt());
            fence(Ordering::SeqCst);
            if let Some(found) = self.take_used() {
                return found;
            }
            assert!(wait_for(&self.interrupt), "an interrupt was lost");
        }
    }

    /// Never again, as far as its flags can say so.
    pub(crate) fn refuse_interrupts(&self) {
        each!(self, side => side.refuse_interrupts());
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
