//! What the emulated host holds: the lab's own boot files, and behind them, in one more archive, vmprof itself, the profile
//! and the guest's files that it boots from.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::MemfdFlags;

use super::LabError;

/// The emulated host's initramfs, in memory that goes with the last process that has it open.
pub fn pack(base: &Path, archive: &[u8]) -> Result<OwnedFd, LabError> {
    let failed = |source: io::Error| LabError::Prepare { what: "its initramfs", source };
    let memory = rustix::fs::memfd_create("vmprof lab initramfs", MemfdFlags::CLOEXEC)
        .map_err(|e| failed(e.into()))?;
    let mut memory = fs::File::from(memory);
    let mut base = fs::File::open(base).map_err(failed)?;
    let length = io::copy(&mut base, &mut memory).map_err(failed)?;
    // The kernel looks for the next archive at a multiple of four (Documentation/driver-api/early-userspace/buffer-format).
    let padding = [0; 3];
    memory.write_all(&padding[..(4 - length as usize % 4) % 4]).map_err(failed)?;
    memory.write_all(archive).map_err(failed)?;
    Ok(memory.into())
}
