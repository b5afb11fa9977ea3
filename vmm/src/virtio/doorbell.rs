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

    pub(super) fn disconnect(&mut self, interrupts: &Interrupts) -> Result<(), InterruptError> {
        let Some(address) = self.connected.take() else { return Ok(()) };
        let outcome = interrupts.vm().disconnect_doorbell(&self.event, address);
        outcome.map_err(|source| InterruptError::Kvm { what: "ioeventfd", source })
    }
}
