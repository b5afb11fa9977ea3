//! Virtqueues in guest memory (virtio 1.3, 2.7 and 2.8), seen from the device. A [`Vring`] is one in either format: its owner
//! takes heads with [`pop`](Vring::pop), gives them back with [`push_used`](Vring::push_used) and shows a batch of them to
//! the driver with one [`publish`](Vring::publish). What descriptors say is read in [`chain`]; who wants to be told of what is
//! in [`handshake`]; where a driver's buffers lie, in [`crate::segments`].
//!
//! The guest may write anything into its rings at any time. Every value is copied out once, checked, and then used:
//! nothing here panics, loops for ever or leaves guest memory for anything a guest writes.

use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use crate::memory::GuestRam;
use crate::regions::Regions;

pub mod chain;
pub mod handshake;
pub mod inflight;
pub mod packed;
pub mod split;

pub use chain::Descriptor;
use handshake::{Machine, Place, ask_then_look};
use inflight::QueueRegion;
pub use packed::PackedRing;
pub use split::SplitRing;

const DESCRIPTOR_BYTES: usize = 16;
/// virtio 1.3, 2.7 and 2.8.10.1: the largest queue.
const MOST_ENTRIES: u16 = 32_768;

/// What a driver set up for a queue: guest-physical addresses of its three areas, by their names of virtio 1.3, 2.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSetup {
    pub size: u16,
    /// The descriptor table, or the packed ring itself.
    pub descriptors: u64,
    /// Written by the driver: the available ring, or its event suppression.
    pub driver: u64,
    /// Written by the device: the used ring, or its event suppression.
    pub device: u64,
}

/// The ring's features that both sides agreed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingFeatures {
    pub event_idx: bool,
    pub packed: bool,
}

/// Where a ring stands when nothing is in flight, to go on from there: the next available and the next used entry. In a packed
/// ring bit 15 of both is the wrap counter (virtio 1.3, 2.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub available: u16,
    pub used: u16,
}

impl Position {
    /// Where a ring of this format begins.
    pub fn start(features: RingFeatures) -> Position {
        let first = if features.packed { Place::START.0 } else { 0 };
        Position { available: first, used: first }
    }

    /// As VHOST_USER_SET_VRING_BASE and VHOST_USER_GET_VRING_BASE have it: both halves of a packed ring's, and of a split
    /// ring's only the available entry, which the used one equals when nothing is in flight.
    pub fn from_vring_base(base: u32, features: RingFeatures) -> Position {
        let available = base as u16;
        let used = if features.packed { (base >> 16) as u16 } else { available };
        Position { available, used }
    }

    pub fn vring_base(self, features: RingFeatures) -> u32 {
        let used = if features.packed { self.used } else { 0 };
        u32::from(used) << 16 | u32::from(self.available)
    }
}

/// Why a ring cannot be used, or can no longer be used: the driver broke the rules, and the device needs a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    #[error("a queue of {0} entries: the size of a split ring must be a power of two from 1 to 32768")]
    Size(u16),
    #[error("a queue of {0} entries: the size of a packed ring must be from 1 to 32768")]
    PackedSize(u16),
    #[error("a packed ring of {size} entries cannot go on at entry {entry}")]
    Position { entry: u16, size: u16 },
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
    #[error(
        "the driver offers more than the {size} descriptors of the ring, so some of them again while in flight"
    )]
    Overrun { size: u16 },
    #[error("the driver offers descriptor {head} again while its request is in flight")]
    HeadInFlight { head: u16 },
    #[error("the chain at descriptor {head} is no request: {rule}")]
    NoRequest { head: u16, rule: &'static str },
}

/// One of the three parts of a split or of a packed ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    DescriptorTable,
    AvailableRing,
    UsedRing,
    DescriptorRing,
    DriverEvents,
    DeviceEvents,
}

impl std::fmt::Display for Part {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Part::DescriptorTable => "descriptor table",
            Part::AvailableRing => "available ring",
            Part::UsedRing => "used ring",
            Part::DescriptorRing => "descriptor ring",
            Part::DriverEvents => "driver's event suppression",
            Part::DeviceEvents => "device's event suppression",
        })
    }
}

/// A virtqueue with its host addresses resolved once. It keeps the guest's memory mapped.
///
/// A *head* stands for a request in flight: below the size, and no two in flight have the same where the driver keeps the
/// rules.
#[derive(Debug)]
pub enum Vring {
    Split(SplitRing),
    Packed(PackedRing),
}

/// The same call to whichever format it is.
macro_rules! each {
    ($self:ident, $ring:ident => $call:expr) => {
        match $self {
            Vring::Split($ring) => $call,
            Vring::Packed($ring) => $call,
        }
    };
}

impl Vring {
    /// Resolves a ring that starts anew.
    pub fn new(ram: &Arc<GuestRam>, setup: &RingSetup, features: RingFeatures) -> Result<Vring, RingError> {
        Vring::at(ram, setup, features, Position::start(features))
    }

    /// Resolves a ring that goes on at `position`.
    pub fn at(
        ram: &Arc<GuestRam>,
        setup: &RingSetup,
        features: RingFeatures,
        position: Position,
    ) -> Result<Vring, RingError> {
        if features.packed {
            PackedRing::new(ram, setup, features.event_idx, position).map(Vring::Packed)
        } else {
            SplitRing::new(ram, setup, features.event_idx, position).map(Vring::Split)
        }
    }

    pub fn size(&self) -> u16 {
        each!(self, ring => ring.size())
    }

    pub fn ram(&self) -> &Arc<GuestRam> {
        self.regions().ram()
    }

    /// The guest's memory, as requests are looked up in it.
    #[inline]
    pub fn regions(&self) -> &Regions {
        each!(self, ring => ring.regions())
    }

    /// Where another may go on, once every head that was taken is given back and published.
    pub fn position(&self) -> Position {
        each!(self, ring => ring.position())
    }

    /// Writes down in `region` what is in flight from now on, and goes on with what another left in it: what that one took and
    /// did not show is taken again first. A packed ring has no such region, and is left as it is.
    pub fn track_inflight(&mut self, region: QueueRegion) {
        if let Vring::Split(ring) = self {
            ring.track_inflight(region);
        }
    }

    /// Takes the next request that the driver has made available: its head, and its descriptors into `chain`, which is
    /// emptied first. After an error nothing more is to be taken.
    #[inline]
    pub fn pop(&mut self, chain: &mut Vec<Descriptor>) -> Result<Option<u16>, RingError> {
        each!(self, ring => ring.pop(chain))
    }

    /// Whether a request waits to be taken.
    #[inline]
    pub fn look(&mut self) -> Result<bool, RingError> {
        each!(self, ring => ring.look())
    }

    /// Gives `head` back with `written` bytes of its writable buffers filled. Not shown to the driver before
    /// [`publish`](Self::publish). Each head that was popped is given back once: the owner keeps count.
    #[inline]
    pub fn push_used(&mut self, head: u16, written: u32) {
        each!(self, ring => ring.push_used(head, written))
    }

    /// Shows the driver everything given back since the last time, and says whether it wants an interrupt for it. `false`
    /// when there was nothing to show.
    #[inline]
    pub fn publish(&mut self) -> bool {
        each!(self, ring => ring.publish())
    }

    /// Asks the driver for a notification when it next makes a request available. Sound only when a full fence and then
    /// [`look`](Self::look) follow before anyone sleeps: [`ask_then_look`] is all three for any number of queues, and
    /// [`arm_and_look`](Self::arm_and_look) for one.
    #[inline]
    pub fn arm(&mut self) {
        each!(self, ring => ring.arm())
    }

    /// Lets the driver stop notifying. A hint: a notification may come all the same.
    #[inline]
    pub fn disarm(&mut self) {
        each!(self, ring => ring.disarm())
    }

    /// Asks for a notification and looks once more: `true` means a request is there now and none may be sent for it.
    pub fn arm_and_look(&mut self) -> Result<bool, RingError> {
        ask_then_look::<Machine, _, _>(self, Vring::arm, Vring::look)
    }
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
    let slice = ram.get_slice(GuestAddress(address), bytes).ok();
    let host = slice.and_then(|slice| NonNull::new(slice.ptr_guard_mut().as_ptr())).ok_or(outside)?;
    // Regions are mapped on page boundaries of both sides, so the guest's alignment is the host's.
    if (host.as_ptr() as u64).is_multiple_of(multiple) { Ok(host) } else { Err(outside) }
}
