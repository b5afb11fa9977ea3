//! What the emulated host holds: the lab's own boot files, and behind them, in one more archive, vmprof itself, the profile
//! and the guest's files that it boots from.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::MemfdFlags;

use super::LabError;

/// Paths inside the emulated host.
pub struct Inside;

impl Inside {
    pub const VMPROF: &'static str = "/vmprof/vmprof";
    pub const IMAGE: &'static str = "/vmprof/image.json";
    pub const KERNEL: &'static str = "/vmprof/kernel";
    pub const INITRAMFS: &'static str = "/vmprof/initramfs";
    pub const ROOT: &'static str = "/vmprof/root";
    const FILES: &'static str = "/vmprof/files";
    pub const PLAN: &'static str = "/vmprof/plan.json";
    pub const STATE: &'static str = "/vmprof/state";
    pub const ARTIFACTS: &'static str = "/vmprof/artifacts";
    pub const STORE: &'static str = "/vmprof/store";
    pub const RUNTIME: &'static str = "/run/vmprof";

    /// Where a file of the profile lies, given its absolute path outside: below one directory all keep their places, so that
    /// what one says of another's path holds. `..` is taken by the names, as it is inside, where no link is in the way.
    pub fn file(outside: &Path) -> String {
        let mut places = Vec::new();
        for component in outside.components() {
            match component {
                Component::Normal(name) => places.push(name.to_string_lossy()),
                Component::ParentDir => drop(places.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        format!("{}/{}", Inside::FILES, places.join("/"))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_their_places_to_one_another() {
        let place = |outside: &str| Inside::file(outside.as_ref());
        assert_eq!(place("/home/u/profiles/db.kdl"), "/vmprof/files/home/u/profiles/db.kdl");
        assert_eq!(place("/home/u/profiles/../base/./db.kdl"), "/vmprof/files/home/u/base/db.kdl");
        assert_eq!(place("/../../etc/passwd"), "/vmprof/files/etc/passwd", "no path leads out of there");
    }
}
