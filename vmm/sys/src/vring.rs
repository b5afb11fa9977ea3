//! The split virtqueue in guest memory (virtio 1.3, 2.7), seen from the device: its three parts resolved to host addresses
//! once, its indices kept on our side, its two suppression protocols. What a chain of descriptors holds is read in
//! [`chain`]; where a driver's buffers lie, in [`crate::segments`].
//!
//! The guest may write anything into its rings at any time. Every value is copied out once, checked, and then used:
//! nothing here panics, loops for ever or leaves guest memory for anything a guest writes.

// UNSAFETY: the rings are shared with the guest and resolved once; vm-memory would look every access up again.
#![allow(unsafe_code, reason = "volatile and atomic access to rings in guest memory")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use crate::memory::GuestRam;

pub mod chain;

pub use chain::{Chain, Descriptor};

const DESCRIPTOR_BYTES: usize = 16;
const USED_ELEMENT_BYTES: usize = 8;
/// virtio 1.3, 2.7: the largest queue of a split ring.
const MOST_ENTRIES: u16 = 32_768;
/// virtio 1.3, 2.7.6: set by the driver in avail.flags when it wants no interrupt.
const AVAIL_NO_INTERRUPT: u16 = 1;
/// virtio 1.3, 2.7.8: set by the device in used.flags when it wants no notification.
const USED_NO_NOTIFY: u16 = 1;

/// Why a ring cannot be used, or can no longer be used: the driver broke the rules, and the device needs a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    #[error("a queue of {0} entries: the size must be a power of two from 1 to 32768")]
    Size(u16),
    #[error("the {part} is at {address:#x}, which is not a multiple of {multiple}")]
    Unaligned { part: Part, address: u64, multiple: u64 },
    #[error("the {part} at {address:#x} ({bytes} bytes) does not lie within one region of guest memory")]
    OutsideMemory { part: Part, address: u64, bytes: usize },
    #[error("the available index went from {from} to {to} in a ring of {size} entries")]
    AvailableJump { from: u16, to: u16, size: u16 },
    #[error("the driver offers descriptor {head} of a table of {size}")]
    Head { head: u16, size: u16 },
    #[error("descriptor {next} follows, but the table has {entries} entries")]
    Next { next: u16, entries: u32 },
    #[error("the chain at descriptor {head} is longer than {most} descriptors")]
    ChainTooLong { head: u16, most: u32 },
    #[error("the chain at descriptor {head} breaks the rules of indirect tables: {rule}")]
    Indirect { head: u16, rule: &'static str },
    #[error("the driver offers descriptor {head} again while its request is in flight")]
    HeadInFlight { head: u16 },
    #[error("the chain at descriptor {head} is no request: {rule}")]
    NoRequest { head: u16, rule: &'static str },
}

/// One of the three parts of a split ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    DescriptorTable,
    AvailableRing,
    UsedRing,
}

impl std::fmt::Display for Part {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Part::DescriptorTable => "descriptor table",
            Part::AvailableRing => "available ring",
            Part::UsedRing => "used ring",
        })
    }
}

/// A split ring with its host addresses resolved once. It keeps the guest's memory mapped.
///
/// Its owner takes heads with [`pop`](Self::pop), reads them with [`chain`](Self::chain), gives them back with
/// [`push_used`](Self::push_used) and shows a batch of them to the driver with one [`publish`](Self::publish).
#[derive(Debug)]
pub struct SplitRing {
    ram: Arc<GuestRam>,
    size: u16,
    descriptors: NonNull<u8>,
    available: NonNull<u8>,
    used: NonNull<u8>,
    event_idx: bool,
    /// The next entry of the available ring to take, and how far the driver was seen to have filled it.
    next_available: u16,
    seen_available: u16,
    /// The next entry of the used ring to fill, and how far the driver was shown it.
    next_used: u16,
    published_used: u16,
}

// SAFETY: the pointers lie in the mapping that `ram` keeps alive wherever the ring goes, and every access through them is
// atomic or volatile: the guest's CPUs write there at any time anyway.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Resolves a ring of `size` entries whose parts lie at these guest-physical addresses.
    pub fn new(
        ram: &Arc<GuestRam>,
        size: u16,
        desc: u64,
        avail: u64,
        used: u64,
        event_idx: bool,
    ) -> Result<SplitRing, RingError> {
        if !size.is_power_of_two() || size > MOST_ENTRIES {
            return Err(RingError::Size(size));
        }
        let entries = usize::from(size);
        // virtio 1.3, 2.7: alignments 16, 2 and 4; the event field that closes each ring is part of it in any case.
        let descriptors = resolve(ram, Part::DescriptorTable, desc, DESCRIPTOR_BYTES * entries, 16)?;
        let available = resolve(ram, Part::AvailableRing, avail, 6 + 2 * entries, 2)?;
        let used = resolve(ram, Part::UsedRing, used, 6 + USED_ELEMENT_BYTES * entries, 4)?;
        let ram = Arc::clone(ram);
        Ok(SplitRing {
            ram,
            size,
            descriptors,
            available,
            used,
            event_idx,
            next_available: 0,
            seen_available: 0,
            next_used: 0,
            published_used: 0,
        })
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Takes the next head that the driver has made available, in its order.
    pub fn pop(&mut self) -> Result<Option<u16>, RingError> {
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
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// Whether a head waits to be taken. Reads the guest's index only when all that was seen before has been taken.
    pub fn look(&mut self) -> Result<bool, RingError> {
        if self.next_available != self.seen_available {
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

    /// The descriptors of the request at `head`, each checked as it is read.
    pub fn chain(&self, head: u16) -> Chain<'_> {
        Chain::new(self, head)
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
    }

    /// Shows the driver everything given back since the last time, with one store of the index, and says whether it wants
    /// an interrupt for it. `false` when there was nothing to show.
    pub fn publish(&mut self) -> bool {
        if self.published_used == self.next_used {
            return false;
        }
        let (old, new) = (self.published_used, self.next_used);
        // Release: the elements are visible before the index that covers them.
        self.field(self.used, 2).store(new.to_le(), Ordering::Release);
        self.published_used = new;
        // virtio 1.3, 2.7.10: the driver writes used_event and then looks at the index; we write the index and then look
        // at used_event. Only a full fence between our two keeps both from missing the other.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let used_event =
                u16::from_le(self.field(self.available, self.event_at(2)).load(Ordering::Relaxed));
            crossed(used_event, new, old)
        } else {
            let flags = u16::from_le(self.field(self.available, 0).load(Ordering::Relaxed));
            flags & AVAIL_NO_INTERRUPT == 0
        }
    }

    /// Asks the driver for a notification when it next makes a head available. Sound only when a full fence and then
    /// [`look`](Self::look) follow before anyone sleeps; [`arm_and_look`](Self::arm_and_look) is all three for one queue.
    pub fn arm(&mut self) {
        if self.event_idx {
            let event = self.next_available.to_le();
            self.field(self.used, self.event_at(USED_ELEMENT_BYTES)).store(event, Ordering::Relaxed);
        } else {
            self.field(self.used, 0).store(0, Ordering::Relaxed);
        }
    }

    /// Lets the driver stop notifying. A hint: a notification may come all the same. With EVENT_IDX there is nothing to
    /// write, since an avail_event that was passed once stays passed.
    pub fn disarm(&mut self) {
        if !self.event_idx {
            self.field(self.used, 0).store(USED_NO_NOTIFY.to_le(), Ordering::Relaxed);
        }
    }

    /// Asks for a notification and looks once more: `true` means a head is there now and none may be sent for it.
    pub fn arm_and_look(&mut self) -> Result<bool, RingError> {
        self.arm();
        // virtio 1.3, 2.7.7.2: our store of avail_event must be seen before our load of the index, or the driver sees the
        // old event, we see the old index, and both wait. Store before load takes a full fence; Acquire does not do it.
        fence(Ordering::SeqCst);
        self.look()
    }

    /// Where the event field stands in a ring whose elements have `element_bytes`.
    fn event_at(&self, element_bytes: usize) -> usize {
        4 + element_bytes * usize::from(self.size)
    }

    /// A 16-bit field of the available or used ring; `at` is 0, 2 or `event_at`.
    fn field(&self, ring: NonNull<u8>, at: usize) -> &AtomicU16 {
        // SAFETY: `at` is one of the three offsets that `resolve` covered for this ring.
        let field = unsafe { ring.as_ptr().add(at) };
        // SAFETY: in guest memory that `self.ram` keeps mapped, even since base and offset are, shared as an atomic only.
        unsafe { AtomicU16::from_ptr(field.cast()) }
    }
}

/// virtio 1.3, 2.7.7.1 and 2.7.10: whether going from `old` to `new` passed `event`, modulo 2^16.
fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn resolve(
    ram: &GuestRam,
    part: Part,
    address: u64,
    bytes: usize,
    multiple: u64,
) -> Result<NonNull<u8>, RingError> {
    if !address.is_multiple_of(multiple) {
        return Err(RingError::Unaligned { part, address, multiple });
    }
    let outside = RingError::OutsideMemory { part, address, bytes };
    let host = host(ram, address, bytes).ok_or(outside)?;
    // Regions are mapped on page boundaries of both sides, so the guest's alignment is the host's.
    if (host.as_ptr() as u64).is_multiple_of(multiple) { Ok(host) } else { Err(outside) }
}

/// The host's address of `bytes` at `address`, when one region of guest memory holds them all.
fn host(ram: &GuestRam, address: u64, bytes: usize) -> Option<NonNull<u8>> {
    let slice = ram.get_slice(GuestAddress(address), bytes).ok()?;
    NonNull::new(slice.ptr_guard_mut().as_ptr())
}

#[cfg(test)]
mod tests;
