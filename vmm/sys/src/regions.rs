//! Where guest-physical memory lies in this process: what requests are looked up in. vm-memory searches for the region of
//! every piece and hands it over in layers of iterators and results; buffers of one owner nearly always lie where its last
//! one did, so each owner has a table of its own that remembers that.

// UNSAFETY: host addresses of guest memory, computed once per region.
#![allow(unsafe_code, reason = "copies to and from guest memory through looked-up addresses")]

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _, MemoryRegionAddress};

use crate::memory::GuestRam;

/// The regions of a guest's memory, which it keeps mapped.
#[derive(Debug, Clone)]
pub struct Regions {
    ram: Arc<GuestRam>,
    table: Box<[Region]>,
    last: Cell<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Region {
    start: u64,
    len: u64,
    host: NonNull<u8>,
}

// SAFETY: the addresses lie in the mapping that `ram` keeps alive on whatever thread this is.
unsafe impl Send for Regions {}

impl Regions {
    pub fn new(ram: &Arc<GuestRam>) -> Regions {
        let regions = ram.iter().filter_map(|region| {
            let host = NonNull::new(region.get_host_address(MemoryRegionAddress(0)).ok()?)?;
            Some(Region { start: region.start_addr().0, len: region.len(), host })
        });
        Regions { ram: Arc::clone(ram), table: regions.collect(), last: Cell::new(0) }
    }

    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Whether there is memory at `address`.
    #[inline]
    pub fn holds(&self, address: u64) -> bool {
        self.find(address).is_some()
    }

    /// Fills `target` from `address` on. `false`: not all of it is memory, and what `target` holds means nothing.
    #[inline]
    pub fn read(&self, address: u64, target: &mut [u8]) -> bool {
        self.pieces(address, target.len() as u64, |done, source, len| {
            // SAFETY: `source` holds `len` bytes of guest memory that `ram` keeps mapped; `target` holds them from `done` on,
            // since the pieces add up to its length; our own memory never overlaps the guest's.
            unsafe { std::ptr::copy_nonoverlapping(source, target[done..].as_mut_ptr(), len) };
            true
        })
    }

    /// The bytes at `address`. `None`: not all of them are memory.
    #[inline]
    pub fn read_array<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        if let Some(source) = self.one_piece(address, N) {
            // SAFETY: `source` holds `N` bytes of guest memory that `ram` keeps mapped; bytes have no alignment to keep.
            return Some(unsafe { source.cast::<[u8; N]>().as_ptr().read_volatile() });
        }
        let mut target = [0; N];
        self.read(address, &mut target).then_some(target)
    }

    /// Writes one byte. `false`: there is no memory.
    #[inline]
    pub fn write_byte(&self, address: u64, byte: u8) -> bool {
        let Some((target, _)) = self.find(address) else { return false };
        // SAFETY: `target` is a byte of guest memory that `ram` keeps mapped.
        unsafe { target.as_ptr().write_volatile(byte) };
        true
    }

    /// Writes `source` at `address`. `false`: not all of that is memory, and some may have been written.
    #[inline]
    pub fn write(&self, address: u64, source: &[u8]) -> bool {
        self.pieces(address, source.len() as u64, |done, target, len| {
            // SAFETY: as in `read`, the other way around.
            unsafe { std::ptr::copy_nonoverlapping(source[done..].as_ptr(), target, len) };
            true
        })
    }

    /// The host's address of `bytes` at `address`, when one region holds them all.
    #[inline]
    pub(crate) fn one_piece(&self, address: u64, bytes: usize) -> Option<NonNull<u8>> {
        let (host, left) = self.find(address)?;
        (left >= bytes as u64).then_some(host)
    }

    /// Whether the host's memory at `pointer` is all the guest's.
    #[cfg(feature = "peers")]
    pub(crate) fn is_host_memory(&self, pointer: *const u8, bytes: usize) -> bool {
        self.table.iter().any(|region| {
            let at = (pointer as u64).checked_sub(region.host.as_ptr() as u64);
            at.and_then(|at| region.len.checked_sub(at)).is_some_and(|left| bytes as u64 <= left)
        })
    }

    /// Goes over `bytes` at `address` region by region: how many came before, where they are, how many there are. Ends with
    /// `false` where there is no memory, or where `each` says so.
    #[inline]
    pub(crate) fn pieces(
        &self,
        mut address: u64,
        bytes: u64,
        mut each: impl FnMut(usize, *mut u8, usize) -> bool,
    ) -> bool {
        let mut done = 0;
        while done < bytes {
            let Some((host, left)) = self.find(address) else { return false };
            let len = left.min(bytes - done);
            if !each(done as usize, host.as_ptr(), len as usize) {
                return false;
            }
            done += len;
            match address.checked_add(len) {
                Some(next) => address = next,
                None => return done == bytes,
            }
        }
        true
    }

    /// Where `address` is on the host, and how many bytes its region has from there on.
    #[inline]
    fn find(&self, address: u64) -> Option<(NonNull<u8>, u64)> {
        let last = self.table.get(self.last.get())?;
        let at = address.wrapping_sub(last.start);
        if at < last.len { Some(last.from(at)) } else { self.search(address) }
    }

    fn search(&self, address: u64) -> Option<(NonNull<u8>, u64)> {
        let inside = |region: &Region| address.wrapping_sub(region.start) < region.len;
        let index = self.table.iter().position(inside)?;
        self.last.set(index);
        let region = self.table.get(index)?;
        Some(region.from(address - region.start))
    }
}

impl Region {
    /// `at` is below the length.
    #[inline]
    fn from(&self, at: u64) -> (NonNull<u8>, u64) {
        // SAFETY: the region's mapping has `len` bytes from `host` on, and the callers found `at` to be below that.
        (unsafe { self.host.add(at as usize) }, self.len - at)
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;

    /// Two regions that touch, one behind a hole, and one that ends where addresses do.
    const RANGES: [(u64, u64); 4] =
        [(0, 0x4000), (0x4000, 0x1000), (0x10000, 0x1000), (u64::MAX - 0xfff, 0x1000)];

    fn ram() -> Arc<GuestRam> {
        let range = |(start, len)| (GuestAddress(start), len as usize);
        Arc::new(GuestRam::from_ranges(&RANGES[..3].iter().copied().map(range).collect::<Vec<_>>()).unwrap())
    }

    #[test]
    fn every_address_is_found_as_vm_memory_finds_it_whatever_came_before() {
        let ram = ram();
        let regions = Regions::new(&ram);
        let edges =
            RANGES.iter().flat_map(|(start, len)| [*start, start + (len - 1), start.wrapping_add(*len)]);
        let edges: Vec<u64> = edges.flat_map(|at| [at.wrapping_sub(1), at, at.wrapping_add(1)]).collect();
        for first in &edges {
            for second in &edges {
                for address in [*first, *second] {
                    assert_eq!(
                        regions.holds(address),
                        ram.address_in_range(GuestAddress(address)),
                        "{address:#x}"
                    );
                    for bytes in [1, 2, 17, 0x1000, 0x5000] {
                        let theirs = ram.get_slice(GuestAddress(address), bytes).ok();
                        let theirs = theirs.map(|slice| slice.ptr_guard_mut().as_ptr());
                        let ours = regions.one_piece(address, bytes).map(NonNull::as_ptr);
                        assert_eq!(ours, theirs, "{bytes} at {address:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn copies_cross_regions_that_touch_but_no_hole() {
        let ram = ram();
        let regions = Regions::new(&ram);
        assert!(regions.write(0x3ffe, b"abcd"));
        assert_eq!(ram.read_obj::<[u8; 4]>(GuestAddress(0x3ffe)).unwrap(), *b"abcd");
        let mut found = [0; 4];
        assert!(regions.read(0x3ffe, &mut found));
        assert_eq!(&found, b"abcd");
        assert!(!regions.read(0x4ffe, &mut found));
        assert_eq!(regions.read_array(0x3ffe), Some(*b"abcd"), "across");
        assert_eq!(regions.read_array(0x3fff), Some(*b"b"), "at the end of one");
        assert_eq!(regions.read_array::<4>(0x4ffe), None);
        assert!(regions.write_byte(0x4000, b'x') && !regions.write_byte(0x5000, b'x'));
        assert_eq!(regions.read_array(0x3ffe), Some(*b"abxd"));
        assert!(!regions.write(u64::MAX - 1, b"abcd"));
        assert!(regions.read(0x9000, &mut []), "nothing is everywhere");
    }
}
