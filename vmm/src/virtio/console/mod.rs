//! virtio-console with several named ports (virtio 1.3, 5.3), each a stream to the outside. This is the device that the
//! transport sees; its queues are served by [`worker`] on the emulator thread.
//!
//! Port 0, which drivers without the feature for several ports take for a console, is not offered: ports begin at 1.

mod control;
mod port;
mod worker;

use std::io;
use std::sync::Arc;

use super::device::{ActivateError, ActiveQueue, VirtioDevice};
use super::distress::Distress;
use super::orders::{self, Orders};
use crate::machine;
use port::Port;

pub use worker::ConsoleHandler;

const DEVICE_ID: u16 = 3;
// virtio 1.3, 5.3.3 and 6: feature bits by number.
const MULTIPORT: u64 = 1 << 1;
const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

const PORT_QUEUE_ENTRIES: u16 = 128;
const CONTROL_QUEUE_ENTRIES: u16 = 64;
/// virtio 1.3, 5.3.2: queues 2 and 3 are the control queues, named here as the driver sees them.
const CONTROL_RECEIVE: u16 = 2;
const CONTROL_TRANSMIT: u16 = 3;
const FIRST_PORT: u32 = 1;

/// virtio 1.3, 5.3.2: the port that a queue other than the control queues belongs to, and whether the guest transmits on it.
fn port_of_queue(index: u16) -> (u32, bool) {
    let port = if index < CONTROL_RECEIVE { 0 } else { u32::from(index / 2 - 1) };
    (port, index % 2 == 1)
}

#[derive(Debug)]
pub struct Console {
    queue_sizes: Vec<u16>,
    orders: Orders,
}

impl Console {
    /// The device, and the handler that serves it.
    pub fn new(ports: Vec<machine::Port>) -> io::Result<(Console, ConsoleHandler)> {
        let mut queue_sizes = vec![PORT_QUEUE_ENTRIES; 2 * (ports.len() + 2)];
        queue_sizes[usize::from(CONTROL_RECEIVE)] = CONTROL_QUEUE_ENTRIES;
        queue_sizes[usize::from(CONTROL_TRANSMIT)] = CONTROL_QUEUE_ENTRIES;
        let (orders, heard) = orders::pair()?;
        let ports = ports.into_iter().map(Port::new).collect();
        Ok((Console { queue_sizes, orders }, ConsoleHandler::new(heard, ports)))
    }
}

impl VirtioDevice for Console {
    fn name(&self) -> &str {
        "console"
    }

    fn device_id(&self) -> u16 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        MULTIPORT | INDIRECT_DESCRIPTORS | EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    /// virtio 1.3, 5.3.4: columns, rows, the number of ports, emergency write; only the third is ours.
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let most_ports = (self.queue_sizes.len() / 2 - 1) as u32;
        let mut config = [0; 12];
        config[4..8].copy_from_slice(&most_ports.to_le_bytes());
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn activate(&mut self, features: u64, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        if features & MULTIPORT == 0 {
            // Such a driver knows one port, a console, which this device has not.
            let reason = "the driver does not take several ports".to_owned();
            return Err(ActivateError { device: self.name().to_owned(), queue: 0, reason });
        }
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
