//! The inflight buffer (vhost-user, inflight I/O tracking): a file that we make, the front end keeps, and whoever
//! serves it next gets back. So a server may be killed and started again under a running guest.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vmprof_sys::memory::GuestRam;
use vmprof_sys::shared::SharedRegion;
use vmprof_sys::vring::inflight::QueueRegion;

use super::error::Refusal;

/// Where the buffer lies in its file, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) bytes: u64,
    pub(super) offset: u64,
    pub(super) queues: u16,
    pub(super) entries: u16,
}

/// The regions of all of a client's queues.
#[derive(Debug)]
pub(super) struct InflightBuffer {
    extent: Extent,
    /// Declared first, dropped first: the memory is unmapped when nobody has it.
    ram: Arc<GuestRam>,
    _shared: SharedRegion,
}

impl InflightBuffer {
    /// A file for new regions; they are all zeros.
    pub(super) fn file(queues: u16, entries: u16) -> Result<(Extent, File), Refusal> {
        let bytes = bytes(queues, entries);
        let refused = |errno: rustix::io::Errno| Refusal::InflightFile { source: errno.into() };
        let file = memfd_create("vmprof requests in flight", MemfdFlags::CLOEXEC).map_err(refused)?;
        ftruncate(&file, bytes).map_err(refused)?;
        Ok((Extent { bytes, offset: 0, queues, entries }, file.into()))
    }

    pub(super) fn map(extent: Extent, file: &File) -> Result<InflightBuffer, Refusal> {
        let needed = bytes(extent.queues, extent.entries);
        if extent.bytes < needed {
            return Err(Refusal::InflightRoom { bytes: extent.bytes, needed });
        }
        let refused = |source| Refusal::Inflight { source };
        let shared = SharedRegion::map(file, extent.offset, needed).map_err(refused)?;
        let region = shared.at(0).into_iter().collect();
        let ram = GuestRam::from_regions(region).map_err(|_| Refusal::FilesOfRegions)?;
        Ok(InflightBuffer { extent, ram: Arc::new(ram), _shared: shared })
    }

    /// That of one queue; `None`: it is for fewer queues.
    pub(super) fn of(&self, queue: u16, entries: u16) -> Result<Option<QueueRegion>, Refusal> {
        if queue >= self.extent.queues {
            return Ok(None);
        }
        // A driver may use less of a queue than it has.
        if entries > self.extent.entries {
            return Err(Refusal::InflightEntries { queue, entries, has: self.extent.entries });
        }
        let address = u64::from(queue) * QueueRegion::bytes(self.extent.entries) as u64;
        Ok(QueueRegion::at(&self.ram, address, entries))
    }
}

fn bytes(queues: u16, entries: u16) -> u64 {
    u64::from(queues) * QueueRegion::bytes(entries) as u64
}
