//! A virtqueue as the emulator thread serves it: one chain at a time.

use vmprof_sys::segments::{GuestBuffers, SegmentError};
use vmprof_sys::vring::{Descriptor, Position, RingError};

use crate::emulator::Watch;
use crate::virtio::device::ActiveQueue;

/// The driver broke the queue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error(transparent)]
    Buffer(#[from] SegmentError),
}

/// A chain that was taken and not yet given back.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) head: u16,
    pub(crate) buffers: GuestBuffers,
}

#[derive(Debug)]
pub(crate) struct Queue {
    active: ActiveQueue,
    /// The descriptors of the chain that is being taken.
    chain: Vec<Descriptor>,
}

impl Queue {
    pub(crate) fn new(active: ActiveQueue, watch: &Watch) -> Queue {
        // The doorbell is never read: each ring of it is told, whatever the count.
        // Watching an eventfd fails only when the kernel has no memory left; then the queue is served when others ring.
        let _ = watch.add_event(&active.doorbell);
        Queue { active, chain: Vec::new() }
    }

    /// The queue goes back: its doorbell means nothing to us any more.
    pub(crate) fn forget(self, watch: &Watch) {
        watch.forget_event(&self.active.doorbell);
    }

    /// Where the ring stands: nothing that was taken is left to be given back.
    pub(crate) fn position(&self) -> Position {
        self.active.ring.position()
    }

    /// The next chain's buffers that the device reads (`writable` false) or writes.
    pub(crate) fn take(&mut self, writable: bool) -> Result<Option<Taken>, Broken> {
        let ring = &mut self.active.ring;
        let Some(head) = ring.pop(&mut self.chain)? else { return Ok(None) };
        let mut buffers = GuestBuffers::new(ring.ram());
        for descriptor in &self.chain {
            if descriptor.writable == writable {
                buffers.push(descriptor.address, descriptor.len)?;
            }
        }
        Ok(Some(Taken { head, buffers }))
    }

    pub(crate) fn give_back(&mut self, head: u16, written: u32) {
        self.active.ring.push_used(head, written);
    }

    /// Shows the driver what was given back, and has it not tell of more: whoever serves the queue comes back by itself.
    pub(crate) fn rest(&mut self) {
        if self.active.ring.publish() {
            self.active.interrupt.signal();
        }
        self.active.ring.disarm();
    }

    /// Shows the driver what was given back, and asks to be told of more. `true`: there is more already.
    pub(crate) fn settle(&mut self) -> Result<bool, Broken> {
        if self.active.ring.publish() {
            self.active.interrupt.signal();
        }
        Ok(self.active.ring.arm_and_look()?)
    }
}
