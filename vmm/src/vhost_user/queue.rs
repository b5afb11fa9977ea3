//! One virtqueue as a client has set it up so far. It starts when its kick is there and it is enabled, and stops when the
//! client asks where it stands (vhost-user, ring states); in between every change stops it, and it goes on where it stood.

use std::sync::Arc;

use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmprof_sys::eventfd;
use vmprof_sys::vring::{Position, RingFeatures, RingSetup, Vring};

use super::error::Refusal;
use super::memory::Memory;
use crate::virtio::device::{ActiveQueue, QueueInterrupt};
use crate::virtio::transport::F_EVENT_IDX;

/// Where a ring's parts are, as the client itself has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// Where a ring goes on when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    /// The client's word: the next available entry. The next used one stands in the ring.
    Said(u16),
    /// Where it stood when it was stopped.
    Stood(Position),
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) addresses: Option<Addresses>,
    pub(super) base: Base,
    pub(super) kick: Option<EventFd>,
    /// What the device writes: from one eventfd of the client to the next it is redirected, and never replaced.
    pub(super) call: Arc<EventFd>,
    pub(super) error: Option<EventFd>,
    pub(super) enabled: bool,
    /// The device has it.
    pub(super) running: bool,
}

impl Queue {
    pub(super) fn new(index: u16, size: u16) -> std::io::Result<Queue> {
        Ok(Queue {
            index,
            size,
            addresses: None,
            base: Base::Said(0),
            kick: None,
            call: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
            error: None,
            enabled: false,
            running: false,
        })
    }

    /// A change that a ring which runs cannot have.
    pub(super) fn must_not_run(&self, what: &'static str) -> Result<(), Refusal> {
        if self.running { Err(Refusal::QueueRuns { queue: self.index, what }) } else { Ok(()) }
    }

    /// From now on the device interrupts `client`; `None`: nobody.
    pub(super) fn set_call(&mut self, client: Option<EventFd>) -> Result<(), Refusal> {
        let refused = |source| Refusal::Notifier { kind: "call", queue: self.index, source };
        let silent = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let target = client.map_or_else(silent, Ok).map_err(refused)?;
        eventfd::redirect(&self.call, &target).map_err(refused)
    }

    /// The client is gone. A thread that waits to write its eventfd, since the client filled it, goes on.
    pub(super) fn release_writers(&self) {
        let call = eventfd::borrowed(&self.call);
        if let Ok(flags) = rustix::fs::fcntl_getfl(call)
            && rustix::fs::fcntl_setfl(call, flags | rustix::fs::OFlags::NONBLOCK).is_ok()
        {
            // Nobody else waits for this count any more.
            let _ = self.call.read();
        }
    }

    /// Whether the client has said all that a start takes, in whatever order.
    pub(super) fn is_to_start(&self) -> bool {
        self.enabled && !self.running && self.kick.is_some() && self.addresses.is_some()
    }

    /// The ring in the client's memory, for the device.
    pub(super) fn active(&self, memory: &Memory, features: u64) -> Result<ActiveQueue, Refusal> {
        let queue = self.index;
        let missing = |missing| Refusal::Incomplete { queue, missing };
        let addresses = self.addresses.ok_or_else(|| missing("addresses"))?;
        let kick = self.kick.as_ref().ok_or_else(|| missing("kick"))?;
        let ram = memory.ram().ok_or_else(|| missing("memory"))?;
        let at = |part, address| {
            memory.guest_address(address).ok_or(Refusal::RingAddress { queue, part, address })
        };
        let setup = RingSetup {
            size: self.size,
            descriptors: at("descriptors", addresses.descriptors)?,
            driver: at("available ring", addresses.available)?,
            device: at("used ring", addresses.used)?,
        };
        let position = match self.base {
            Base::Stood(position) => position,
            Base::Said(available) => {
                // A ring that another served goes on behind what that one has given back.
                let outside = Refusal::RingAddress { queue, part: "used ring", address: addresses.used };
                let index_at = setup.device.checked_add(2).map(GuestAddress);
                let used = index_at.and_then(|at| ram.read_obj::<u16>(at).ok()).ok_or(outside)?;
                Position { available, used: u16::from_le(used) }
            }
        };
        let features = RingFeatures { event_idx: features & F_EVENT_IDX != 0, packed: false };
        let ring =
            Vring::at(ram, &setup, features, position).map_err(|source| Refusal::Ring { queue, source })?;
        let doorbell =
            kick.try_clone().map_err(|source| Refusal::Notifier { kind: "kick", queue, source })?;
        let interrupt = QueueInterrupt::new(Some(Arc::clone(&self.call)));
        Ok(ActiveQueue { index: self.index, ring, doorbell, interrupt })
    }
}
