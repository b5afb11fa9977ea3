//! The packed virtqueue in guest memory (virtio 1.3, 2.8), seen from the device: one ring of descriptors that the driver fills
//! and the device overwrites with what it used, told apart by two bits and a wrap counter.

// UNSAFETY: the ring is shared with the guest and resolved once; vm-memory would look every access up again.
#![allow(unsafe_code, reason = "volatile and atomic access to rings in guest memory")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

use super::chain::{self, Descriptor, INDIRECT, NEXT, PackedEntry, Table, WRITE};
use super::handshake::{Machine, PackedEvents, Place, show_then_ask};
use super::{DESCRIPTOR_BYTES, MOST_ENTRIES, Part, Position, RingError, RingSetup, resolve};
use crate::memory::GuestRam;
use crate::regions::Regions;

/// virtio 1.3, 2.8.1: different from each other in a descriptor of the driver's, equal in a used one, and either is the wrap
/// counter of whoever wrote it.
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Offsets within a descriptor.
const LEN_AT: usize = 8;
const ID_AT: usize = 12;
const FLAGS_AT: usize = 14;

/// virtio 1.3, 2.8.10: a place and flags.
const EVENTS_BYTES: usize = 4;

/// A packed ring with its host addresses resolved once. It keeps the guest's memory mapped.
///
/// A head is a slot of ours: the driver names its buffers by any 16 bits it likes.
#[derive(Debug)]
pub struct PackedRing {
    regions: Regions,
    size: u16,
    ring: Table,
    driver_events: NonNull<u8>,
    device_events: NonNull<u8>,
    event_idx: bool,
    /// The next descriptor to take, and the next to overwrite with a used one.
    next_available: Place,
    next_used: Place,
    /// Descriptors taken and not yet shown as used: those that the driver does not have.
    taken: u16,
    /// What is in flight, by head, and the heads that are free.
    buffers: Box<[Buffer]>,
    free: Vec<u16>,
    batch: Batch,
}

/// A driver's buffer while the device has it.
#[derive(Debug, Clone, Copy, Default)]
struct Buffer {
    id: u16,
    /// The descriptors it took of the ring.
    descriptors: u16,
}

/// Used descriptors that the driver has not been shown. It looks at the first of them before any other, so that holding
/// back the flags of that one holds all of them back.
#[derive(Debug, Clone, Copy, Default)]
struct Batch {
    first: Option<First>,
    /// What the ring moves on by when they are shown.
    descriptors: u16,
}

#[derive(Debug, Clone, Copy)]
struct First {
    index: u16,
    flags: u16,
}

// SAFETY: the pointers lie in the mapping that `regions` keeps alive wherever the ring goes, and every access through them is
// atomic or volatile: the guest's CPUs write there at any time anyway.
unsafe impl Send for PackedRing {}

impl PackedRing {
    /// Resolves a ring that is to go on at `position`.
    pub(super) fn new(
        ram: &Arc<GuestRam>,
        setup: &RingSetup,
        event_idx: bool,
        position: Position,
    ) -> Result<PackedRing, RingError> {
        let size = setup.size;
        if size == 0 || size > MOST_ENTRIES {
            return Err(RingError::PackedSize(size));
        }
        let places = [position.available, position.used].map(Place);
        if let Some(outside) = places.iter().find(|place| place.index() >= size) {
            return Err(RingError::Position { entry: outside.index(), size });
        }
        let [next_available, next_used] = places;
        // virtio 1.3, 2.8.10.1: alignments 16, 4 and 4.
        let bytes = DESCRIPTOR_BYTES * usize::from(size);
        let base = resolve(ram, Part::DescriptorRing, setup.descriptors, bytes, 16)?;
        let driver_events = resolve(ram, Part::DriverEvents, setup.driver, EVENTS_BYTES, 4)?;
        let device_events = resolve(ram, Part::DeviceEvents, setup.device, EVENTS_BYTES, 4)?;
        Ok(PackedRing {
            regions: Regions::new(ram),
            size,
            ring: Table { base, entries: u32::from(size) },
            driver_events,
            device_events,
            event_idx,
            next_available,
            next_used,
            taken: 0,
            buffers: vec![Buffer::default(); size.into()].into(),
            // The lowest is taken first: a queue that is never deep keeps to a few slots.
            free: (0..size).rev().collect(),
            batch: Batch::default(),
        })
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    pub fn position(&self) -> Position {
        // What is not shown yet is not used.
        let used = self.batch.first.map_or(self.next_used, |first| self.place_of(first));
        Position { available: self.next_available.0, used: used.0 }
    }

    /// Takes the next buffer that the driver has made available, in its order, with its descriptors into `chain`.
    pub fn pop(&mut self, chain: &mut Vec<Descriptor>) -> Result<Option<u16>, RingError> {
        if !self.look()? {
            return Ok(None);
        }
        let start = self.next_available;
        let (buffer, next) = self.collect(start, chain)?;
        // Every buffer in flight holds at least one descriptor, and `collect` found one that none holds.
        let overrun = RingError::Overrun { size: self.size };
        let head = self.free.pop().ok_or(overrun)?;
        let slot = self.buffers.get_mut(usize::from(head)).ok_or(overrun)?;
        *slot = buffer;
        self.taken += buffer.descriptors;
        self.next_available = next;
        Ok(Some(head))
    }

    /// Reads the chain that begins at `start`, and answers what it is and where the next one begins.
    fn collect(&self, start: Place, chain: &mut Vec<Descriptor>) -> Result<(Buffer, Place), RingError> {
        chain.clear();
        let (head, size) = (start.index(), self.size);
        let mut at = start;
        for descriptors in 1..=size - self.taken {
            let entry = PackedEntry::of(chain::read(self.ring, at.index()));
            at = at.advance(1, size);
            if entry.flags & INDIRECT != 0 {
                // virtio 1.3, 2.8.19: a table stands alone.
                if entry.flags & NEXT != 0 || descriptors > 1 {
                    return Err(RingError::Indirect { head, rule: "a table within a chain" });
                }
                chain::collect_packed_table(&self.regions, size, head, &entry, chain)?;
            } else {
                chain.push(entry.descriptor());
            }
            if entry.flags & NEXT == 0 {
                // virtio 1.3, 2.8.6: the last descriptor of a chain names it.
                return Ok((Buffer { id: entry.id, descriptors }, at));
            }
        }
        // With nothing in flight it is the chain itself that does not end.
        match self.taken {
            0 => Err(RingError::ChainTooLong { head, most: size.into() }),
            _ => Err(RingError::Overrun { size }),
        }
    }

    /// Whether a buffer waits to be taken: one load, of a descriptor that the driver writes once it has one.
    #[inline]
    pub fn look(&mut self) -> Result<bool, RingError> {
        let wrap = self.next_available.wrap();
        // Acquire: what the driver wrote before these flags is seen by the reads that follow.
        let flags = u16::from_le(self.flags(self.next_available.index()).load(Ordering::Acquire));
        Ok((flags & AVAILABLE != 0) == wrap && (flags & USED != 0) != wrap)
    }

    /// Gives `head` back with `written` bytes of its writable buffers filled. Not shown to the driver before
    /// [`publish`](Self::publish). Each head that was popped is given back once: the owner keeps count.
    pub fn push_used(&mut self, head: u16, written: u32) {
        let Some(&Buffer { id, descriptors }) = self.buffers.get(usize::from(head)) else {
            debug_assert!(false, "head {head} was never taken");
            return;
        };
        let wrap = if self.next_used.wrap() { AVAILABLE | USED } else { 0 };
        // virtio 1.3, 2.8.4: the length of a used buffer means something beside this flag.
        let flags = wrap | if written > 0 { WRITE } else { 0 };
        let index = self.next_used.index();
        let entry = self.entry(index);
        if self.batch.first.is_some() {
            let word = u64::from(written) | u64::from(id) << 32 | u64::from(flags) << 48;
            // SAFETY: within the descriptor `entry`, and 8-byte aligned since the ring is to 16.
            unsafe { entry.wrapping_add(LEN_AT).cast::<u64>().write_volatile(word.to_le()) };
        } else {
            // SAFETY: within the descriptor `entry`, and 4-byte aligned since the ring is to 16.
            unsafe { entry.wrapping_add(LEN_AT).cast::<u32>().write_volatile(written.to_le()) };
            // SAFETY: as above, and 2-byte aligned.
            unsafe { entry.wrapping_add(ID_AT).cast::<u16>().write_volatile(id.to_le()) };
            self.batch.first = Some(First { index, flags });
        }
        self.batch.descriptors += descriptors;
        self.next_used = self.next_used.advance(descriptors, self.size);
        self.free.push(head);
    }

    /// Shows the driver everything given back since the last time, with one store of the first one's flags, and says whether
    /// it wants an interrupt for it. `false` when there was nothing to show.
    pub fn publish(&mut self) -> bool {
        let Batch { first: Some(first), descriptors } = std::mem::take(&mut self.batch) else { return false };
        self.taken -= descriptors;
        show_then_ask::<Machine>(
            // Release: the other descriptors of the batch are visible before the first.
            || self.flags(first.index).store(first.flags.to_le(), Ordering::Release),
            || self.events(self.driver_events).wanted(self.next_used, descriptors, self.size),
        )
    }

    /// Asks the driver for a notification when it next makes a buffer available.
    pub fn arm(&mut self) {
        self.events(self.device_events).ask(self.next_available);
    }

    /// Lets the driver stop notifying. A hint: a notification may come all the same.
    pub fn disarm(&mut self) {
        self.events(self.device_events).refuse();
    }

    fn place_of(&self, first: First) -> Place {
        let wrap = if first.flags & USED != 0 { Place::START.0 } else { 0 };
        Place(first.index | wrap)
    }

    /// Where one side says when it wants to be told.
    fn events(&self, area: NonNull<u8>) -> PackedEvents<'_, Machine> {
        // SAFETY: `area` is one of the two that `resolve` found to be 4 bytes of guest memory, 4-byte aligned, which
        // `self.regions` keeps mapped; shared as an atomic only.
        let word = unsafe { AtomicU32::from_ptr(area.as_ptr().cast()) };
        PackedEvents { word, event_idx: self.event_idx }
    }

    fn flags(&self, index: u16) -> &AtomicU16 {
        let flags = self.entry(index).wrapping_add(FLAGS_AT);
        // SAFETY: within the descriptor, in guest memory that `self.regions` keeps mapped, even since the ring is aligned to 16; the device's side
        // shares it as an atomic.
        unsafe { AtomicU16::from_ptr(flags.cast()) }
    }

    /// The descriptor at `index`, which is one of the ring's.
    fn entry(&self, index: u16) -> *mut u8 {
        debug_assert!(index < self.size);
        // SAFETY: every index comes from a `Place`, which stays below the size from `new` on; the ring of 16 × size bytes was
        // resolved as one piece.
        unsafe { self.ring.base.as_ptr().add(DESCRIPTOR_BYTES * usize::from(index)) }
    }
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
