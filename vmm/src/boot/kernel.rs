//! Loading: an ELF vmlinux, an initramfs with what is appended to it, and the command line, each where it fits.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{self, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmprof_sys::memory::GuestRam;

use crate::config::Boot;
use crate::layout;

const PAGE: u64 = 4096;
/// A cpio archive follows another on a boundary of four bytes.
const CPIO_ALIGNMENT: usize = 4;

/// Where everything came to lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// PVH's 32-bit entry point.
    pub entry: u64,
    pub initramfs: u64,
    pub initramfs_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the kernel {} cannot be opened", .path.display())]
    OpenKernel { path: PathBuf, source: io::Error },
    #[error("{} is no kernel that can be loaded ({reason}); an unpacked ELF vmlinux is needed", .path.display())]
    Kernel { path: PathBuf, reason: loader::Error },
    #[error("the kernel {} has no PVH entry point: it was built without CONFIG_PVH", .path.display())]
    NoPvh { path: PathBuf },
    #[error("the initramfs {} cannot be read", .path.display())]
    ReadInitramfs { path: PathBuf, source: io::Error },
    #[error(
        "the initramfs takes {initramfs_bytes} bytes, and of the guest's memory {room} bytes are left behind the kernel: \
         the guest needs more memory"
    )]
    NoRoom { initramfs_bytes: u64, room: u64 },
    #[error("the kernel's command line has {found} bytes, and Linux takes {}", layout::CMDLINE_BYTES - 1)]
    CommandLine { found: usize },
    #[error("guest memory could not be written while loading: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// Loads what `boot` names, with `extra` appended to the initramfs as a further cpio archive.
pub fn load(ram: &GuestRam, boot: &Boot, extra: &[u8]) -> Result<Loaded, LoadError> {
    let (entry, kernel_end) = load_kernel(ram, &boot.kernel)?;
    let (initramfs, initramfs_bytes) = load_initramfs(ram, &boot.initramfs, extra, kernel_end)?;
    load_command_line(ram, &boot.cmdline)?;
    Ok(Loaded { entry, initramfs, initramfs_bytes })
}

fn load_kernel(ram: &GuestRam, path: &Path) -> Result<(u64, u64), LoadError> {
    let mut file =
        File::open(path).map_err(|source| LoadError::OpenKernel { path: path.to_owned(), source })?;
    let refused = |reason| LoadError::Kernel { path: path.to_owned(), reason };
    let start = GuestAddress(layout::HIGH_START);
    // Segment by segment from the file into guest memory: one read each, no copy in between.
    let loaded = Elf::load(ram, None, &mut file, Some(start)).map_err(refused)?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok((entry.0, loaded.kernel_end)),
        _ => Err(LoadError::NoPvh { path: path.to_owned() }),
    }
}

/// Puts the initramfs at the end of the memory below the device hole, as far from the kernel as may be.
fn load_initramfs(
    ram: &GuestRam,
    path: &Path,
    extra: &[u8],
    kernel_end: u64,
) -> Result<(u64, u64), LoadError> {
    let unread = |source| LoadError::ReadInitramfs { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(unread)?;
    let file_bytes = file.metadata().map_err(unread)?.len() as usize;
    let extra_at = if extra.is_empty() { file_bytes } else { file_bytes.next_multiple_of(CPIO_ALIGNMENT) };
    let total = (extra_at + extra.len()) as u64;
    let memory_end = ram.find_region(GuestAddress(0)).map_or(0, |region| region.len());
    let room = memory_end.saturating_sub(kernel_end.next_multiple_of(PAGE));
    let no_room = LoadError::NoRoom { initramfs_bytes: total, room };
    let Some(start) =
        memory_end.checked_sub(total.next_multiple_of(PAGE)).filter(|start| *start >= kernel_end)
    else {
        return Err(no_room);
    };
    ram.read_exact_volatile_from(GuestAddress(start), &mut file, file_bytes).map_err(
        |error| match error {
            vm_memory::GuestMemoryError::IOError(source) => unread(source),
            other => LoadError::Memory(other),
        },
    )?;
    // The bytes between the two archives are zero, as fresh memory is and as cpio wants its padding.
    ram.write_slice(extra, GuestAddress(start + extra_at as u64))?;
    Ok((start, total))
}

fn load_command_line(ram: &GuestRam, text: &str) -> Result<(), LoadError> {
    if text.len() as u64 >= layout::CMDLINE_BYTES {
        return Err(LoadError::CommandLine { found: text.len() });
    }
    ram.write_slice(text.as_bytes(), GuestAddress(layout::CMDLINE))?;
    ram.write_obj(0u8, GuestAddress(layout::CMDLINE + text.len() as u64))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vmprof_sys::memory;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn ram() -> GuestRam {
        memory::allocate(&layout::memory(16 * MIB), None, memory::Binding::Strict, &[]).unwrap()
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn what_is_appended_to_the_initramfs_starts_on_four_bytes() {
        let ram = ram();
        let file = file(b"first");
        let (at, len) = load_initramfs(&ram, file.path(), b"second", 2 * MIB).unwrap();
        assert_eq!((at, len), (16 * MIB - PAGE, 14));
        let mut bytes = vec![0; len as usize];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        assert_eq!(bytes, b"first\0\0\0second");
    }

    #[test]
    fn an_initramfs_that_would_reach_into_the_kernel_is_refused_with_both_sizes() {
        let file = file(&vec![1; MIB as usize]);
        let error = load_initramfs(&ram(), file.path(), &[], 16 * MIB - 8192).unwrap_err();
        assert!(matches!(error, LoadError::NoRoom { initramfs_bytes, room: 8192 } if initramfs_bytes == MIB));
    }

    #[test]
    fn a_file_that_is_no_elf_is_refused_by_name() {
        let file =
            file(b"MZ, a bzImage perhaps, and long enough to hold the header of an ELF file, all of it.");
        let error = load_kernel(&ram(), file.path()).unwrap_err();
        assert!(error.to_string().contains("vmlinux is needed"), "{error}");
    }

    #[test]
    fn a_command_line_that_linux_would_cut_is_refused() {
        let error = load_command_line(&ram(), &"x".repeat(2048)).unwrap_err();
        assert!(matches!(error, LoadError::CommandLine { found: 2048 }));
        load_command_line(&ram(), &"x".repeat(2047)).unwrap();
    }
}
