//! Chains of a network queue: taken of the driver with those of their buffers that the queue is for, and given back. The lists
//! that say where the buffers lie are used again and again.

use vmprof_sys::segments::GuestBuffers;
use vmprof_sys::vring::{Descriptor, RingError, Vring};

/// Pieces of guest memory that a chain may have: what one system call takes, and room for what is ours.
pub(super) const MOST_PIECES: usize = 1_000;

/// Which side a queue's frames come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The device reads what the driver wrote.
    Driver,
    /// The device writes.
    Device,
}

/// A chain that the device has.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) head: u16,
    /// Its buffers of the queue's side.
    pub(super) buffers: GuestBuffers,
    /// Whether all of these lie in guest memory, in pieces that one system call takes.
    pub(super) is_sound: bool,
}

#[derive(Debug)]
pub(super) struct Chains {
    side: Side,
    descriptors: Vec<Descriptor>,
    /// Lists that no chain uses, of which new ones are made when there is none.
    spare: Vec<GuestBuffers>,
    empty: GuestBuffers,
}

impl Chains {
    pub(super) fn new(ring: &Vring, side: Side) -> Chains {
        Chains { side, descriptors: Vec::new(), spare: Vec::new(), empty: GuestBuffers::new(ring.ram()) }
    }

    /// The next chain that the driver has made available.
    pub(super) fn take(&mut self, ring: &mut Vring) -> Result<Option<Chain>, RingError> {
        let Some(head) = ring.pop(&mut self.descriptors)? else { return Ok(None) };
        let mut buffers = self.spare.pop().unwrap_or_else(|| self.empty.another());
        let writable = self.side == Side::Device;
        let mut ours = self.descriptors.iter().filter(|descriptor| descriptor.writable == writable);
        let pushed = ours.try_for_each(|descriptor| buffers.push(descriptor.address, descriptor.len));
        let is_sound = pushed.is_ok() && buffers.pieces() <= MOST_PIECES;
        Ok(Some(Chain { head, buffers, is_sound }))
    }

    /// Keeps a list for a later chain.
    pub(super) fn keep(&mut self, mut buffers: GuestBuffers) {
        buffers.clear();
        self.spare.push(buffers);
    }
}
