//! The protocol's messages, as the `vhost` crate has read and checked them, become calls of [`Device`]. What needs a feature of
//! the protocol that is not offered here never comes this far.

use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::device::Device;
use super::error::Refusal;
use super::inflight::Extent;
use super::memory::{MOST_REGIONS, Place};
use super::queue::Addresses;

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::ReqHandlerError(io::Error::other(refusal.told()))
    }
}

/// Why a request failed after which all is as it was: the client may go on.
pub(super) const HARMLESS: &str = "the write cache could not be switched";

fn place(region: &VhostUserMemoryRegion) -> Place {
    Place {
        guest: region.guest_phys_addr,
        user: region.user_addr,
        bytes: region.memory_size,
        offset: region.mmap_offset,
    }
}

fn not_offered<T>(what: &'static str) -> Result<T> {
    Err(Refusal::NotOffered { what }.into())
}

fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
}

impl VhostUserBackendReqHandlerMut for Device {
    /// Who is connected owns the device; there is one at a time.
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        Ok(Device::set_features(self, features)?)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let places: Vec<Place> = regions.iter().map(place).collect();
        self.set_memory(&places, &files)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Ok(self.set_size(index, num)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return not_offered("a log of written pages");
        }
        Ok(self.set_addresses(index, Addresses { descriptors, available, used })?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Ok(self.set_base(index, base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.stop_and_tell_base(index)?;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_kick(index.into(), fd)?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_call(index.into(), fd)?)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_error(index.into(), fd)?)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, asked: u64) -> Result<()> {
        let offered = protocol_features().bits();
        if asked & !offered != 0 {
            return Err(Refusal::Features { asked, offered }.into());
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queue_count() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Ok(self.set_enabled(index, enable)?)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let mut data = vec![0; size as usize];
        self.read_config(offset, &mut data);
        Ok(data)
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        match self.write_config(offset, data) {
            true => Ok(()),
            false => Err(Error::InvalidOperation(HARMLESS)),
        }
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MOST_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        self.add_memory(place(region), &file)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let Place { guest, user, bytes, .. } = place(region);
        Ok(self.remove_memory(guest, user, bytes)?)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        not_offered("a display")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        not_offered("a shared object")
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (extent, file) = self.new_inflight(asked.num_queues, asked.queue_size)?;
        Ok((VhostUserInflight::new(extent.bytes, extent.offset, extent.queues, extent.entries), file))
    }

    fn set_inflight_fd(&mut self, extent: &VhostUserInflight, file: File) -> Result<()> {
        let extent = Extent {
            bytes: extent.mmap_size,
            offset: extent.mmap_offset,
            queues: extent.num_queues,
            entries: extent.queue_size,
        };
        Ok(self.set_inflight(extent, &file)?)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        not_offered("a transfer of the device's state")
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered("a transfer of the device's state")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered("shared memory of the device")
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        not_offered("a log of written pages")
    }
}
