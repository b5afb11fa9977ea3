//! The split virtqueue in guest memory (virtio 1.3, 2.7), seen from the device: its three parts resolved to host addresses
//! once, its indices kept on our side, its two suppression protocols.

// UNSAFETY: the rings are shared with the guest and resolved once; vm-memory would look every access up again.
#![allow(unsafe_code, reason = "volatile and atomic access to rings in guest memory")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::chain::{self, Descriptor, Table};
use super::handshake::{Machine, SplitEvents, show_then_ask};
use super::inflight::QueueRegion;
use super::{DESCRIPTOR_BYTES, MOST_ENTRIES, Part, Position, RingError, RingSetup, resolve};
use crate::memory::GuestRam;
use crate::regions::Regions;

const USED_ELEMENT_BYTES: usize = 8;

/// A split ring with its host addresses resolved once. It keeps the guest's memory mapped.
///
/// A head is the first descriptor of a request, which the driver names it by.
#[derive(Debug)]
pub struct SplitRing {
    regions: Regions,
    size: u16,
    descriptors: Table,
    available: NonNull<u8>,
    used: NonNull<u8>,
    event_idx: bool,
    /// The next entry of the available ring to take, and how far the driver was seen to have filled it.
    next_available: u16,
    seen_available: u16,
    /// The next entry of the used ring to fill, and how far the driver was shown it.
    next_used: u16,
    published_used: u16,
    /// Where it is written down what is in flight; most rings have none.
    inflight: Option<Box<QueueRegion>>,
}

// SAFETY: the pointers lie in the mapping that `regions` keeps alive wherever the ring goes, and every access through them is
// atomic or volatile: the guest's CPUs write there at any time anyway.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Resolves a ring that is to go on at `position`.
    pub(super) fn new(
        ram: &Arc<GuestRam>,
        setup: &RingSetup,
        event_idx: bool,
        position: Position,
    ) -> Result<SplitRing, RingError> {
        let size = setup.size;
        if !size.is_power_of_two() || size > MOST_ENTRIES {
            return Err(RingError::Size(size));
        }
        let entries = usize::from(size);
        // virtio 1.3, 2.7: alignments 16, 2 and 4; the event field that closes each ring is part of it in any case.
        let base = resolve(ram, Part::DescriptorTable, setup.descriptors, DESCRIPTOR_BYTES * entries, 16)?;
        let available = resolve(ram, Part::AvailableRing, setup.driver, 6 + 2 * entries, 2)?;
        let used = resolve(ram, Part::UsedRing, setup.device, 6 + USED_ELEMENT_BYTES * entries, 4)?;
        Ok(SplitRing {
            regions: Regions::new(ram),
            size,
            descriptors: Table { base, entries: u32::from(size) },
            available,
            used,
            event_idx,
            next_available: position.available,
            seen_available: position.available,
            next_used: position.used,
            published_used: position.used,
            inflight: None,
        })
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    pub fn position(&self) -> Position {
        Position { available: self.next_available, used: self.published_used }
    }

    /// Before the first head is taken.
    pub(super) fn track_inflight(&mut self, mut region: QueueRegion) {
        if let Some(again) = region.recover(self.published_used) {
            // Heads are taken in the ring's order, so what is neither shown nor in flight follows these.
            self.next_available = self.published_used.wrapping_add(again);
            self.seen_available = self.next_available;
        }
        self.inflight = Some(Box::new(region));
    }

    /// Takes the next head that the driver has made available, in its order, with its descriptors into `chain`.
    pub fn pop(&mut self, chain: &mut Vec<Descriptor>) -> Result<Option<u16>, RingError> {
        if let Some(head) = self.inflight.as_mut().and_then(|region| region.again()) {
            chain::collect(&self.regions, self.descriptors, head, chain)?;
            return Ok(Some(head));
        }
        if !self.look()? {
            return Ok(None);
        }
        let slot = usize::from(self.next_available & (self.size - 1));
        // SAFETY: `slot` is below the size, and the available ring of 6 + 2 × size bytes was resolved as one piece.
        let entry = unsafe { self.available.as_ptr().add(4 + 2 * slot) };
        // SAFETY: as above, and 2-byte aligned since the ring's base is.
        let head = u16::from_le(unsafe { entry.cast::<u16>().read_volatile() });
        if head >= self.size {
            return Err(RingError::Head { head, size: self.size });
        }
        chain::collect(&self.regions, self.descriptors, head, chain)?;
        if let Some(region) = &mut self.inflight {
            region.begin(head);
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// Whether a head waits to be taken. Reads the guest's index only when all that was seen before has been taken.
    pub fn look(&mut self) -> Result<bool, RingError> {
        if self.next_available != self.seen_available
            || self.inflight.as_ref().is_some_and(|region| region.has_again())
        {
            return Ok(true);
        }
        // Acquire: what the driver wrote before it moved the index is seen by the reads that follow.
        let index = u16::from_le(self.field(self.available, 2).load(Ordering::Acquire));
        if index.wrapping_sub(self.next_available) > self.size {
            return Err(RingError::AvailableJump { from: self.next_available, to: index, size: self.size });
        }
        self.seen_available = index;
        Ok(index != self.next_available)
    }

    /// Gives `head` back with `written` bytes of its writable buffers filled. Not shown to the driver before
    /// [`publish`](Self::publish). Each head that was popped is given back once: the owner keeps count.
    pub fn push_used(&mut self, head: u16, written: u32) {
        let slot = usize::from(self.next_used & (self.size - 1));
        let element = [u32::from(head).to_le(), written.to_le()];
        // SAFETY: `slot` is below the size, and the used ring of 6 + 8 × size bytes was resolved as one piece.
        let entry = unsafe { self.used.as_ptr().add(4 + USED_ELEMENT_BYTES * slot) };
        // SAFETY: as above, and 4-byte aligned since the ring's base is.
        unsafe { entry.cast::<[u32; 2]>().write_volatile(element) };
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(region) = &mut self.inflight {
            region.end(head);
        }
    }

    /// Shows the driver everything given back since the last time, with one store of the index, and says whether it wants
    /// an interrupt for it. `false` when there was nothing to show.
    pub fn publish(&mut self) -> bool {
        if self.published_used == self.next_used {
            return false;
        }
        let (old, new) = (self.published_used, self.next_used);
        self.published_used = new;
        let wanted = show_then_ask::<Machine>(
            // Release: the elements are visible before the index that covers them.
            || self.field(self.used, 2).store(new.to_le(), Ordering::Release),
            || self.events(self.available, 2).wanted(old, new),
        );
        if let Some(region) = &mut self.inflight {
            region.shown(new);
        }
        wanted
    }

    /// Asks the driver for a notification when it next makes a head available.
    pub fn arm(&mut self) {
        self.events(self.used, USED_ELEMENT_BYTES).ask(self.next_available);
    }

    /// Lets the driver stop notifying. A hint: a notification may come all the same.
    pub fn disarm(&mut self) {
        self.events(self.used, USED_ELEMENT_BYTES).refuse(self.next_available);
    }

    /// Where the side that writes `ring`, whose elements have `element_bytes`, says when it wants to be told.
    fn events(&self, ring: NonNull<u8>, element_bytes: usize) -> SplitEvents<'_, Machine> {
        let (flags, event) = (self.field(ring, 0), self.field(ring, self.event_at(element_bytes)));
        SplitEvents { flags, event, event_idx: self.event_idx }
    }

    /// Where the event field stands in a ring whose elements have `element_bytes`.
    fn event_at(&self, element_bytes: usize) -> usize {
        4 + element_bytes * usize::from(self.size)
    }

    /// A 16-bit field of the available or used ring; `at` is 0, 2 or its `event_at`.
    fn field(&self, ring: NonNull<u8>, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is one of the three offsets that `resolve` covered for this ring.
        let field = unsafe { ring.as_ptr().add(at) };
        // SAFETY: in guest memory that `self.regions` keeps mapped, even since base and offset are, shared as an atomic only.
        unsafe { AtomicU16::from_ptr(field.cast()) }
    }
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
