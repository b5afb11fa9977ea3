//! What the emulated host holds: the lab's own boot files, and behind them, in one more archive, vmprof itself, the profile
//! and the guest's files that it boots from.

use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path};

use rustix::fs::MemfdFlags;

use super::LabError;

/// Paths inside the emulated host: what all runs in it share, and what is one run's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inside {
    base: String,
    /// This program.
    pub vmprof: String,
    pub kernel: String,
    pub initramfs: String,
}

impl Inside {
    /// The program that the emulated host itself was given.
    pub const VMPROF: &'static str = "/vmprof/vmprof";
    pub const STORE: &'static str = "/vmprof/store";
    pub const RUNTIME: &'static str = "/run/vmprof";
    /// What runs leave for the next, by the hash of its bytes.
    pub const CACHE: &'static str = "/vmprof/cache";

    /// A directory for each run.
    pub const RUNS: &'static str = "/vmprof/runs";

    /// In an emulated host that is one run's alone.
    pub fn alone() -> Inside {
        Inside {
            base: "/vmprof".to_owned(),
            vmprof: Inside::VMPROF.to_owned(),
            kernel: "/vmprof/kernel".to_owned(),
            initramfs: "/vmprof/initramfs".to_owned(),
        }
    }

    /// For the run `name` in one that several share; `hashes` are those of the program, the kernel and the initramfs.
    pub fn shared(name: &str, hashes: &[String; 3]) -> Inside {
        let [vmprof, kernel, initramfs] = hashes.each_ref().map(|hash| format!("{}/{hash}", Inside::CACHE));
        Inside { base: Inside::base_of(name), vmprof, kernel, initramfs }
    }

    /// The directory of what is the run's.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn base_of(name: &str) -> String {
        format!("{}/{name}", Inside::RUNS)
    }

    pub fn image(&self) -> String {
        format!("{}/image.json", self.base)
    }

    pub fn root(&self) -> String {
        format!("{}/root", self.base)
    }

    pub fn plan(&self) -> String {
        format!("{}/plan.json", self.base)
    }

    pub fn state(&self) -> String {
        format!("{}/state", self.base)
    }

    pub fn artifacts(&self) -> String {
        format!("{}/artifacts", self.base)
    }

    /// Where the vmprof inside says how far it is, in a host that several share.
    pub fn relay(&self) -> String {
        format!("{}/relay.sock", self.base)
    }

    /// Where a file of the profile lies, given its absolute path outside: below one directory all keep their places, so that
    /// what one says of another's path holds. `..` is taken by the names, as it is inside, where no link is in the way.
    pub fn file(&self, outside: &Path) -> String {
        let mut places = Vec::new();
        for component in outside.components() {
            match component {
                Component::Normal(name) => places.push(name.to_string_lossy()),
                Component::ParentDir => drop(places.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        format!("{}/files/{}", self.base, places.join("/"))
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
        let inside = Inside::alone();
        let place = |outside: &str| inside.file(outside.as_ref());
        assert_eq!(place("/home/u/profiles/db.kdl"), "/vmprof/files/home/u/profiles/db.kdl");
        assert_eq!(place("/home/u/profiles/../base/./db.kdl"), "/vmprof/files/home/u/base/db.kdl");
        assert_eq!(place("/../../etc/passwd"), "/vmprof/files/etc/passwd", "no path leads out of there");
    }
}
