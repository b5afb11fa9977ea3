//! The seam between the transport, which owns registers, and a device, which owns queues while they are live.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;
use vmprof_sys::vring::{Position, Vring};

use super::config_changes::ConfigChanges;
use super::distress::Distress;

/// A virtio device as the PCI transport sees it. Called from vCPU threads under the transport's lock, never from two at once.
pub trait VirtioDevice: Send {
    /// For messages: `blk data`, `console`.
    fn name(&self) -> &str;
    /// virtio 1.3, 5: the device id (2 block, 3 console, 4 entropy).
    fn device_id(&self) -> u16;
    /// Features of the device's own and of the ring; the transport adds VIRTIO_F_VERSION_1.
    fn features(&self) -> u64;
    /// The largest size of each queue; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];
    /// Fills `data` from the device's configuration at `offset`; what lies beyond it reads as zero.
    fn read_config(&self, offset: u32, data: &mut [u8]);
    /// Ignores what is not writable.
    fn write_config(&mut self, offset: u32, data: &[u8]);
    /// DRIVER_OK: the device takes the enabled queues, each with its own index, and begins to serve them. `features` is
    /// what the driver accepted. An error sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, features: u64, queues: Vec<ActiveQueue>) -> Result<(), ActivateError>;
    /// One more queue of a device that is live, enabled since. An error sets DEVICE_NEEDS_RESET.
    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        let reason = "it takes all its queues at once".to_owned();
        Err(ActivateError { device: self.name().to_owned(), queue: queue.index, reason })
    }
    /// Gives one queue back, as `reset` does all: nothing of it is in flight when this returns. Answers where the ring
    /// stands; `None` if the queue was not served, or its driver broke it.
    fn stop_queue(&mut self, _index: u16) -> Option<Position> {
        None
    }
    /// The driver reset the device, or the machine ends: returns when no request is in flight and every queue has been
    /// dropped, so that nothing writes guest memory afterwards on this device's behalf. Does nothing on an idle device.
    fn reset(&mut self);
    /// Where the device's threads say that the driver broke it: shown as DEVICE_NEEDS_RESET. `None`: it has no such threads.
    fn distress(&self) -> Option<Arc<Distress>> {
        None
    }
    /// Where the device's threads say that its configuration changed. `None`: only the driver changes it.
    fn config_changes(&self) -> Option<Arc<ConfigChanges>> {
        None
    }
}

/// A queue that the driver has enabled; owned by whoever serves it, dropped when it stops.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The queue's own index, which nobody counts again.
    pub index: u16,
    pub ring: Vring,
    /// Written by KVM (ioeventfd) when the driver notifies this queue.
    pub doorbell: EventFd,
    pub interrupt: QueueInterrupt,
}

/// The MSI-X vector of a queue, through irqfd. Masking is the transport's: a signal while masked stays in the eventfd.
#[derive(Debug, Clone, Default)]
pub struct QueueInterrupt(Option<Arc<EventFd>>);

impl QueueInterrupt {
    /// `None`: the driver gave the queue no vector and polls it.
    pub fn new(vector: Option<Arc<EventFd>>) -> Self {
        QueueInterrupt(vector)
    }

    /// One interrupt. Whether the driver wants one is the ring's to say ([`Vring`]), before this is called.
    pub fn signal(&self) {
        if let Some(vector) = &self.0 {
            // An eventfd write fails only when its counter would overflow: then an interrupt is pending anyway.
            let _ = vector.write(1);
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{device} cannot serve queue {queue}: {reason}")]
pub struct ActivateError {
    pub device: String,
    pub queue: u16,
    pub reason: String,
}
