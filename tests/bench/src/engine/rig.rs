//! A virtio-blk device and its driver in one process: the driver's queue lies in memory that the device's side resolves as it
//! resolves a guest's, and an eventfd leads each way, where a guest has KVM's ioeventfd and irqfd.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend as _, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmprof_sys::eventfd;
use vmprof_sys::memory::{self, Binding, GuestRam, Range};
use vmprof_sys::vring::{RingFeatures, Vring};
use vmprof_vmm::virtio::device::{ActiveQueue, QueueInterrupt};

use super::driver::{self, SplitDriver};
use crate::client::{self, Port};
use crate::error::{Doing as _, Error};

/// Where the driver's data begins in guest memory.
pub const DATA: u64 = driver::BYTES as u64;

/// Memory and bells of one device with one queue.
#[derive(Debug)]
pub struct Rig {
    ram: Arc<GuestRam>,
    data_bytes: usize,
    /// The driver rings this one,
    doorbell: EventFd,
    /// and the device this one.
    interrupt: Arc<EventFd>,
}

impl Rig {
    pub fn new(data_bytes: usize) -> Result<Rig, Error> {
        let bytes = (driver::BYTES + data_bytes) as u64;
        let range = Range { start: 0, len: bytes.next_multiple_of(4096) };
        let ram = memory::allocate(&[range], None, Binding::Strict, &[])
            .map_err(|error| Error::Asked(error.to_string()))?;
        let eventfd =
            || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).doing(|| "an eventfd could not be made".to_owned());
        Ok(Rig { ram: Arc::new(ram), data_bytes, doorbell: eventfd()?, interrupt: Arc::new(eventfd()?) })
    }

    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    fn slice(&self, at: usize, bytes: usize) -> Result<VolatileSlice<'_>, Error> {
        let slice = self.ram.get_slice(GuestAddress(at as u64), bytes);
        slice.map_err(|error| Error::Asked(error.to_string()))
    }

    /// Where the driver's data lies, touched once so that no request meets a page for the first time.
    pub fn data(&self) -> Result<VolatileSlice<'_>, Error> {
        let slice = self.slice(driver::BYTES, self.data_bytes)?;
        for at in (0..slice.len()).step_by(4096) {
            client::touch(&slice, at);
        }
        Ok(slice)
    }

    /// The device's end of a queue that starts anew.
    pub fn device_end(&self) -> Result<ActiveQueue, Error> {
        // As a driver's memory is before it sets a queue up.
        let queue = self.slice(0, driver::BYTES)?;
        (0..driver::BYTES).step_by(8).for_each(|at| client::touch(&queue, at));
        let ring = Vring::new(
            &self.ram,
            &driver::setup(),
            RingFeatures { event_idx: true, ..RingFeatures::default() },
        )
        .map_err(|error| Error::Asked(error.to_string()))?;
        Ok(ActiveQueue {
            index: 0,
            ring,
            doorbell: self.doorbell()?,
            interrupt: QueueInterrupt::new(Some(Arc::clone(&self.interrupt))),
        })
    }

    /// The driver's end, for requests of `bytes`; after the device's.
    pub fn driver_end(&self, bytes: u32) -> Result<Port<'_>, Error> {
        let queue = SplitDriver::new(self.slice(0, driver::BYTES)?, driver::BYTES as u64, bytes);
        let call = eventfd::borrowed(&self.interrupt).try_clone_to_owned();
        let call = call.doing(|| "an eventfd could not be shared".to_owned())?;
        let doorbell = self.doorbell()?;
        Ok(Port { queue: Box::new(queue), kick: Box::new(move || doorbell.write(1)), call })
    }

    pub fn doorbell(&self) -> Result<EventFd, Error> {
        self.doorbell.try_clone().doing(|| "an eventfd could not be shared".to_owned())
    }
}
