//! Memory of another process, mapped here from the file that it shares: what a vhost-user front end gives of its guest's
//! RAM. Any part of any such file: huge pages are mapped whole where a region begins or ends within one.
//!
//! The other process can still write the file and cut it short. Pages that are cut off are a fault of whoever touches them
//! (docs/threat-model.md).

// UNSAFETY: vm-memory maps and unmaps only what begins and ends on pages of the file.
#![allow(unsafe_code, reason = "mmap, munmap, and a view of a part of what was mapped")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::fs::{FileType, fstat, fstatfs};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

/// The filesystems whose pages are memory: memfd_create and /dev/shm, and hugetlbfs.
const TMPFS: i64 = 0x0102_1994;
const HUGETLBFS: i64 = 0x9584_58f6;
const PAGE: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    #[error("{bytes} bytes from {offset:#x} on are no part of a file that has {size}")]
    BeyondFile { offset: u64, bytes: u64, size: u64 },
    #[error("the offset {offset:#x} in its file is no multiple of {PAGE}")]
    Unaligned { offset: u64 },
    #[error("its file is none of memfd, /dev/shm and hugetlbfs (filesystem {filesystem:#x})")]
    NoMemory { filesystem: i64 },
    #[error("its file could not be looked at")]
    Unreadable { source: io::Error },
    #[error("it could not be mapped")]
    Map { source: io::Error },
}

/// What mmap gave, to the end of its last page.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: an address and a length; what they name belongs to the whole process.
unsafe impl Send for Mapping {}
// SAFETY: as above, and nothing is done with a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `offset` and `bytes` are whole pages of the file.
    fn new(file: &File, offset: u64, bytes: usize) -> io::Result<Mapping> {
        let at = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: the kernel chooses the place (no MAP_FIXED), so that nothing that is there is replaced.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, file.as_raw_fd(), at) };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Mapping { start, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` mapped just this, and `SharedRegion` drops it only when nobody can reach it any more.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "whole pages of a mapping of ours");
    }
}

/// A part of a file, mapped. It is unmapped when it is dropped, unless someone still uses a region made of it: then it stays
/// mapped for the rest of the process.
#[derive(Debug)]
pub struct SharedRegion {
    /// `None` only while it is dropped.
    view: Option<Arc<MmapRegion>>,
    mapping: Option<Mapping>,
}

impl SharedRegion {
    /// Maps `bytes` of `file` from `offset` on, to be read and written. The file may be closed afterwards.
    pub fn map(file: &File, offset: u64, bytes: u64) -> Result<SharedRegion, SharedError> {
        let unreadable = |errno: rustix::io::Errno| SharedError::Unreadable { source: errno.into() };
        let filesystem = fstatfs(file.as_fd()).map_err(unreadable)?;
        let stat = fstat(file.as_fd()).map_err(unreadable)?;
        // Devices have files in a tmpfs, too.
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let page = match filesystem.f_type as i64 {
            TMPFS if regular => PAGE,
            HUGETLBFS if regular => filesystem.f_bsize as u64,
            // A page of anything else may take as long as its filesystem likes, and whoever touches it waits.
            filesystem => return Err(SharedError::NoMemory { filesystem }),
        };
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > size) {
            return Err(SharedError::BeyondFile { offset, bytes, size });
        }
        if !offset.is_multiple_of(PAGE) {
            return Err(SharedError::Unaligned { offset });
        }
        let within = offset % page;
        // Below the file's size, which is below 2^63: rounding up to its pages cannot overflow.
        let whole = (within + bytes).next_multiple_of(page);
        let mapping = Mapping::new(file, offset - within, whole as usize)
            .map_err(|source| SharedError::Map { source })?;
        // SAFETY: `within + bytes` is at most `whole`, which the mapping holds.
        let start = unsafe { mapping.start.as_ptr().add(within as usize) };
        let builder = MmapRegionBuilder::new(bytes as usize)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: as above; the mapping outlives the view, since `drop` waits for the last one who has the view.
        let builder = unsafe { builder.with_raw_mmap_pointer(start) };
        let refused = |error: vm_memory::mmap::MmapRegionError| SharedError::Map {
            source: io::Error::other(error.to_string()),
        };
        let view = Arc::new(builder.build().map_err(refused)?);
        Ok(SharedRegion { view: Some(view), mapping: Some(mapping) })
    }

    /// The memory as a region of a guest, at `guest`; `None` where it would reach beyond the address space.
    pub fn at(&self, guest: u64) -> Option<GuestRegionMmap> {
        GuestRegionMmap::with_arc(Arc::clone(self.view.as_ref()?), GuestAddress(guest))
    }
}

impl Drop for SharedRegion {
    fn drop(&mut self) {
        let last = self.view.take().is_none_or(|view| Arc::into_inner(view).is_some());
        if !last {
            // Whoever has the view has nothing else that keeps the pages: better lost than gone.
            std::mem::forget(self.mapping.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::{Bytes as _, GuestMemoryRegion as _, MemoryRegionAddress};

    use super::*;

    fn memfd(bytes: u64) -> File {
        let fd: OwnedFd = memfd_create("memory of a test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, bytes).unwrap();
        File::from(fd)
    }

    fn mappings_of(name: &str) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.contains(name)).count()
    }

    #[test]
    fn what_is_written_to_the_file_is_read_in_the_region() {
        let file = memfd(4 * PAGE);
        rustix::io::pwrite(&file, b"hello", PAGE + 16).unwrap();
        let region = SharedRegion::map(&file, PAGE, 2 * PAGE).unwrap();
        let guest = region.at(0x10_0000).unwrap();
        let mut found = [0; 5];
        guest.read_slice(&mut found, MemoryRegionAddress(16)).unwrap();
        assert_eq!(&found, b"hello");
        assert_eq!(guest.len(), 2 * PAGE);
        guest.write_slice(b"back", MemoryRegionAddress(32)).unwrap();
        let mut found = [0; 4];
        rustix::io::pread(&file, &mut found, PAGE + 32).unwrap();
        assert_eq!(&found, b"back");
    }

    #[test]
    fn what_the_file_does_not_have_is_refused() {
        let file = memfd(4 * PAGE);
        for (offset, bytes) in [(0, 0), (0, 4 * PAGE + 1), (4 * PAGE, 1), (u64::MAX, 2), (PAGE, u64::MAX)] {
            let error = SharedRegion::map(&file, offset, bytes).unwrap_err();
            assert!(matches!(error, SharedError::BeyondFile { .. }), "{offset:#x}+{bytes:#x}: {error}");
        }
        let error = SharedRegion::map(&file, 512, PAGE).unwrap_err();
        assert!(matches!(error, SharedError::Unaligned { offset: 512 }), "{error}");
    }

    #[test]
    fn a_file_that_is_no_memory_is_refused() {
        for path in ["/proc/self/maps", "/dev/zero"] {
            let error = SharedRegion::map(&File::open(path).unwrap(), 0, PAGE).unwrap_err();
            assert!(matches!(error, SharedError::NoMemory { .. }), "{path}: {error}");
        }
    }

    #[test]
    fn a_file_that_may_only_be_read_is_refused() {
        let file = memfd(PAGE);
        let readable = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        let error = SharedRegion::map(&readable, 0, PAGE).unwrap_err();
        assert!(matches!(error, SharedError::Map { .. }), "{error}");
    }

    #[test]
    fn it_is_unmapped_with_its_last_user_or_not_at_all() {
        let name = "memory that is counted";
        let fd: OwnedFd = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 2 * PAGE).unwrap();
        let file = File::from(fd);
        let region = SharedRegion::map(&file, 0, PAGE).unwrap();
        assert_eq!(mappings_of(name), 1);
        drop(region.at(0));
        drop(region);
        assert_eq!(mappings_of(name), 0);

        let region = SharedRegion::map(&file, 0, PAGE).unwrap();
        let used = region.at(0).unwrap();
        drop(region);
        used.write_obj(1u8, MemoryRegionAddress(0)).unwrap();
        assert_eq!(mappings_of(name), 1, "who uses it still can");
    }

    #[test]
    fn a_region_may_begin_within_a_huge_page() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let two = 2 << 20;
        let Ok(fd) = memfd_create("huge memory of a test", flags) else {
            return eprintln!("skipped: huge pages: this kernel has none");
        };
        ftruncate(&fd, two).unwrap();
        let file = File::from(fd);
        // Without a free huge page it is mapped all the same; touching it would be the fault.
        let region = SharedRegion::map(&file, 0xc_0000, two - 0xc_0000).unwrap();
        assert_eq!(region.at(0).unwrap().len(), two - 0xc_0000);
        drop(region);
        assert_eq!(mappings_of("huge memory of a test"), 0);
    }
}
