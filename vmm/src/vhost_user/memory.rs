//! The memory that a client shares: where its guest has it, where the client itself has it, and where we do. Rings are named by
//! the client's own addresses, everything in them by the guest's.

use std::fs::File;
use std::sync::Arc;

use vmprof_sys::memory::GuestRam;
use vmprof_sys::shared::SharedRegion;

use super::error::Refusal;

/// Regions of one client. A guest has few, and front ends that know of the limit keep to it.
pub(super) const MOST_REGIONS: usize = 512;

/// A region as messages describe it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) guest: u64,
    pub(super) user: u64,
    pub(super) bytes: u64,
    pub(super) offset: u64,
}

#[derive(Debug)]
struct Region {
    place: Place,
    shared: SharedRegion,
}

/// All of it at a moment.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// What queues use; `None` while there is none. Declared first, dropped first: a region is unmapped when nobody has it.
    ram: Option<Arc<GuestRam>>,
    /// Ascending by their guest addresses.
    regions: Vec<Region>,
}

impl Memory {
    /// What all these regions are; nothing of another memory stays.
    pub(super) fn of(places: &[Place], files: &[File]) -> Result<Memory, Refusal> {
        if places.len() != files.len() {
            return Err(Refusal::FilesOfRegions);
        }
        let mut memory = Memory::default();
        for (place, file) in places.iter().zip(files) {
            memory.insert(*place, file)?;
        }
        memory.resolve()?;
        Ok(memory)
    }

    /// One region more. After an error everything is as before.
    pub(super) fn add(&mut self, place: Place, file: &File) -> Result<(), Refusal> {
        let at = self.insert(place, file)?;
        let resolved = self.resolve();
        if resolved.is_err() {
            drop(self.regions.remove(at));
            self.resolve()?;
        }
        resolved
    }

    /// One region less, which is known by its addresses and its length.
    pub(super) fn remove(&mut self, guest: u64, user: u64, bytes: u64) -> Result<(), Refusal> {
        let same = |region: &Region| {
            let place = region.place;
            (place.guest, place.user, place.bytes) == (guest, user, bytes)
        };
        let at = self.regions.iter().position(same).ok_or(Refusal::NoSuchRegion { guest, bytes })?;
        // Unmapped only when the memory that held it is gone.
        let _removed = self.regions.remove(at);
        self.resolve()
    }

    pub(super) fn ram(&self) -> Option<&Arc<GuestRam>> {
        self.ram.as_ref()
    }

    /// The guest's address of what the client has at `user`.
    pub(super) fn guest_address(&self, user: u64) -> Option<u64> {
        let within = |region: &Region| {
            let offset = user.checked_sub(region.place.user)?;
            // Cannot overflow: the whole region lies below 2^64.
            (offset < region.place.bytes).then(|| region.place.guest + offset)
        };
        self.regions.iter().find_map(within)
    }

    fn insert(&mut self, place: Place, file: &File) -> Result<usize, Refusal> {
        let Place { guest, user, bytes, offset } = place;
        let wrong = |rule| Refusal::RegionRule { guest, bytes, rule };
        if self.regions.len() == MOST_REGIONS {
            return Err(Refusal::TooManyRegions { most: MOST_REGIONS });
        }
        if bytes == 0 {
            return Err(wrong("a region holds something"));
        }
        let (Some(guest_end), Some(user_end)) = (guest.checked_add(bytes), user.checked_add(bytes)) else {
            return Err(wrong("it reaches beyond the address space"));
        };
        for other in self.regions.iter().map(|region| region.place) {
            if guest < other.guest + other.bytes && other.guest < guest_end {
                return Err(wrong("another region has these addresses of the guest"));
            }
            if user < other.user + other.bytes && other.user < user_end {
                return Err(wrong("another region has these addresses of the client"));
            }
        }
        let shared = SharedRegion::map(file, offset, bytes).map_err(|source| Refusal::Region {
            guest,
            bytes,
            source,
        })?;
        let at = self.regions.partition_point(|region| region.place.guest < guest);
        self.regions.insert(at, Region { place, shared });
        Ok(at)
    }

    /// Makes of the regions what queues use. The memory before stays as long as a queue has it.
    fn resolve(&mut self) -> Result<(), Refusal> {
        self.ram = None;
        if self.regions.is_empty() {
            return Ok(());
        }
        let mut views = Vec::with_capacity(self.regions.len());
        for Region { place: Place { guest, bytes, .. }, shared } in &self.regions {
            let rule = "it reaches beyond the address space";
            let refused = Refusal::RegionRule { guest: *guest, bytes: *bytes, rule };
            views.push(shared.at(*guest).ok_or(refused)?);
        }
        let ram = GuestRam::from_regions(views).map_err(|_| Refusal::FilesOfRegions)?;
        self.ram = Some(Arc::new(ram));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes as _, GuestAddress};
    use vmprof_sys::memory::{Binding, Range, allocate};

    use super::*;

    const PAGE: u64 = 4096;

    /// A memfd of so many pages: that of a guest's memory.
    fn memfd(pages: u64) -> File {
        let ram = allocate(&[Range { start: 0, len: pages * PAGE }], None, Binding::Strict, &[]).unwrap();
        let region = vm_memory::GuestMemoryBackend::iter(&ram).next().unwrap();
        region.file_offset().unwrap().file().try_clone().unwrap()
    }

    fn place(guest: u64, user: u64, pages: u64) -> Place {
        Place { guest, user, bytes: pages * PAGE, offset: 0 }
    }

    #[test]
    fn an_address_of_the_client_is_the_guests_where_a_region_has_it() {
        let file = memfd(8);
        let mut memory = Memory::default();
        memory.add(place(0x10_0000, 0x7f00_0000_0000, 4), &file).unwrap();
        memory.add(place(0, 0x7e00_0000_0000, 2), &file).unwrap();
        assert_eq!(memory.guest_address(0x7f00_0000_0010), Some(0x10_0010));
        assert_eq!(memory.guest_address(0x7e00_0000_1fff), Some(0x1fff));
        assert_eq!(memory.guest_address(0x7e00_0000_2000), None);
        assert_eq!(memory.guest_address(0x7eff_ffff_ffff), None);
        assert_eq!(memory.guest_address(u64::MAX), None);
    }

    #[test]
    fn a_region_that_cannot_be_added_changes_nothing() {
        let file = memfd(8);
        let mut memory = Memory::default();
        memory.add(place(0x10_0000, 0x1000_0000, 4), &file).unwrap();
        let wrong = [
            place(0x10_0000, 0x2000_0000, 4),
            place(0x10_0000 - PAGE, 0x2000_0000, 2),
            place(0x20_0000, 0x1000_0000 + 3 * PAGE, 2),
            place(0x20_0000, 0x2000_0000, 0),
            place(0x20_0000, 0x2000_0000, 9),
            place(u64::MAX - PAGE, 0x2000_0000, 2),
            place(0x20_0000, u64::MAX - PAGE, 2),
            Place { offset: u64::MAX - 1, ..place(0x20_0000, 0x2000_0000, 1) },
        ];
        for wrong in wrong {
            memory.add(wrong, &file).unwrap_err();
        }
        let ram = memory.ram().unwrap();
        ram.write_obj(1u8, GuestAddress(0x10_0000)).unwrap();
        assert!(ram.write_obj(1u8, GuestAddress(0x20_0000)).is_err());
        memory.remove(0x10_0000, 0x1000_0000, 3 * PAGE).unwrap_err();
        memory.remove(0x10_0000, 0x1000_0000, 4 * PAGE).unwrap();
        assert!(memory.ram().is_none());
    }

    #[test]
    fn there_is_an_end_to_regions() {
        let file = memfd(1);
        let mut memory = Memory::default();
        let at = |index: u64| place(index * PAGE, 0x1000_0000 + index * PAGE, 1);
        for index in 0..MOST_REGIONS as u64 {
            memory.insert(at(index), &file).unwrap();
        }
        let error = memory.add(at(MOST_REGIONS as u64), &file).unwrap_err();
        assert!(matches!(error, Refusal::TooManyRegions { .. }), "{error}");
    }

    proptest! {
        /// Whatever is added and removed, no two regions share an address, and each translates to where it is.
        #[test]
        fn regions_never_overlap(steps in prop::collection::vec((any::<bool>(), 0..24u64, 0..24u64, 1..6u64), 1..40)) {
            let file = memfd(6);
            let mut memory = Memory::default();
            let mut model: Vec<Place> = Vec::new();
            let apart = |a: u64, b: u64, x: u64, y: u64| a + b <= x || x + y <= a;
            for (add, guest, user, pages) in steps {
                let place = place(guest * PAGE, 0x1000_0000 + user * PAGE, pages);
                if add {
                    let free = model.iter().all(|other| {
                        apart(place.guest, place.bytes, other.guest, other.bytes)
                            && apart(place.user, place.bytes, other.user, other.bytes)
                    });
                    prop_assert_eq!(memory.add(place, &file).is_ok(), free);
                    if free { model.push(place); }
                } else {
                    let found = model.iter().position(|other| *other == place);
                    prop_assert_eq!(memory.remove(place.guest, place.user, place.bytes).is_ok(), found.is_some());
                    if let Some(at) = found { model.remove(at); }
                }
                for place in &model {
                    prop_assert_eq!(memory.guest_address(place.user), Some(place.guest));
                    prop_assert_eq!(memory.guest_address(place.user + place.bytes - 1), Some(place.guest + place.bytes - 1));
                }
                prop_assert_eq!(memory.ram().is_some(), !model.is_empty());
            }
        }
    }
}
