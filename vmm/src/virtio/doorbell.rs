//! The doorbell of one queue: an eventfd that KVM signals by itself while the queue is live (ioeventfd).

use vmm_sys_util::eventfd::EventFd;

use crate::interrupts::{InterruptError, Interrupts};

/// Something is connected to that address already.
const EEXIST: i32 = 17;

/// The eventfd of one queue, and where KVM signals it by itself.
#[derive(Debug)]
pub(super) struct Doorbell {
    pub(super) event: EventFd,
    /// While the queue is live: the address that is connected, if the guest's placement of the BAR left it one.
    pub(super) connected: Option<u64>,
    pub(super) live: bool,
}

impl Doorbell {
    pub(super) fn connect(&mut self, interrupts: &Interrupts, address: u64) -> Result<(), InterruptError> {
        match interrupts.vm().connect_doorbell(&self.event, address) {
            Ok(()) => self.connected = Some(address),
            // The guest put two BARs on one another: whoever came second rings through an exit.
            Err(error) if error.errno() == EEXIST => {}
            Err(source) => return Err(InterruptError::Kvm { what: "ioeventfd", source }),
        }
        Ok(())
    }

    /// The end of the queue's life: a ring that was meant for it is not one for its next.
    pub(super) fn silence(&mut self, interrupts: &Interrupts) -> Result<(), InterruptError> {
        self.live = false;
        self.disconnect(interrupts)?;
        let _ = self.event.read();
        Ok(())
    }

    pub(super) fn disconnect(&mut self, interrupts: &Interrupts) -> Result<(), InterruptError> {
        let Some(address) = self.connected.take() else { return Ok(()) };
        let outcome = interrupts.vm().disconnect_doorbell(&self.event, address);
        outcome.map_err(|source| InterruptError::Kvm { what: "ioeventfd", source })
    }
}
