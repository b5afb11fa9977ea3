//! virtio-rng (virtio 1.3, 5.4): random bytes of the host's kernel for the guest's. This is the device that the transport
//! sees; its one queue is served by [`worker`] on the emulator thread, and how much of it a guest gets is [`budget`]'s.

mod budget;
mod worker;

use std::io;
use std::sync::Arc;

use super::device::{ActivateError, ActiveQueue, VirtioDevice};
use super::distress::Distress;
use super::orders::{self, Orders};

pub use worker::RngHandler;

const DEVICE_ID: u16 = 4;
// virtio 1.3, 6: feature bits by number. The device has none of its own.
const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// Linux asks with one buffer at a time.
const QUEUE_SIZES: [u16; 1] = [64];

#[derive(Debug)]
pub struct Rng {
    orders: Orders,
}

impl Rng {
    /// The device, and the handler that serves it. An error where the host gives no random bytes.
    pub fn new() -> io::Result<(Rng, RngHandler)> {
        let (orders, heard) = orders::pair()?;
        let handler = RngHandler::new(heard)?;
        Ok((Rng { orders }, handler))
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &str {
        "rng"
    }

    fn device_id(&self) -> u16 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        INDIRECT_DESCRIPTORS | EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// virtio 1.3, 5.4.4: there is no configuration.
    fn read_config(&self, _offset: u32, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn activate(&mut self, _features: u64, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        self.orders.start(self.name(), queues)
    }

    fn reset(&mut self) {
        self.orders.stop();
    }

    fn distress(&self) -> Option<Arc<Distress>> {
        Some(self.orders.distress())
    }
}

#[cfg(test)]
mod tests;
