//! virtio-vsock (virtio 1.3, 5.10): stream sockets between the guest and Unix sockets outside, without the kernel's vhost.
//! This is the device that the transport sees; its queues are served by [`worker`], and what goes through them belongs to
//! the connections of [`muxer`].

mod connection;
#[cfg(any(test, feature = "fuzzing"))]
pub mod hostile;
mod muxer;
mod packet;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use vmprof_sys::vring::Position;

use super::device::{ActivateError, ActiveQueue, VirtioDevice};
use super::distress::Distress;
use super::orders::{self, Orders};
use muxer::Muxer;

pub use worker::VsockHandler;

/// The guest's address. Nobody but its own host sees it, so all guests have the first that is free for one.
pub const GUEST_CID: u64 = 3;

const DEVICE_ID: u16 = 19;
// virtio 1.3, 5.10.3 and 6: feature bits by number.
const STREAM: u64 = 1 << 0;
const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

/// virtio 1.3, 5.10.2: the queues, named as the driver sees them.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
/// 128 buffers of a page each hold what a connection may send at once, and more.
const QUEUE_SIZES: [u16; 3] = [128; 3];

#[derive(Debug)]
pub struct Vsock {
    orders: Orders,
}

impl Vsock {
    /// The device, and the handler that serves it. The outside begins connections at `listener`.
    pub fn new(listener: UnixListener) -> io::Result<(Vsock, VsockHandler)> {
        let (orders, heard) = orders::pair()?;
        let handler = VsockHandler::new(heard, Muxer::new(GUEST_CID, listener)?);
        Ok((Vsock { orders }, handler))
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &str {
        "vsock"
    }

    fn device_id(&self) -> u16 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        STREAM | INDIRECT_DESCRIPTORS | EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// virtio 1.3, 5.10.4: the guest's address.
    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = GUEST_CID.to_le_bytes();
        for (at, byte) in (offset as usize..).zip(data) {
            *byte = config.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}

    fn activate(&mut self, _features: u64, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        self.orders.start(self.name(), queues)
    }

    fn start_queue(&mut self, queue: ActiveQueue) -> Result<(), ActivateError> {
        self.orders.start(self.name(), vec![queue])
    }

    fn stop_queue(&mut self, index: u16) -> Option<Position> {
        self.orders.stop_queue(index)
    }

    fn reset(&mut self) {
        self.orders.stop();
    }

    fn distress(&self) -> Option<Arc<Distress>> {
        Some(self.orders.distress())
    }
}
