//! The ids of QEMU's devices, and their places on the PCI bus.

use std::collections::BTreeSet;

use super::object::Object;
use crate::plan::Plan;

/// Beyond so many devices each gets its place on the PCI bus, eight to a slot: q35 has 29 free slots.
const MOST_UNPLACED: usize = 24;
/// The first slot that is placed, and how many follow it: 0 is the host bridge, 31 the chipset.
const SLOTS: std::ops::Range<usize> = 2..31;
const FUNCTIONS: usize = 8;

/// The ids that are taken, and the places on the PCI bus.
#[derive(Debug)]
pub(super) struct Bus {
    /// Names of disks that are ids: each goes to its disk.
    reserved: BTreeSet<String>,
    used: BTreeSet<String>,
    /// How many have been placed; `None` leaves the places to QEMU.
    placed: Option<usize>,
}

impl Bus {
    /// How many devices have a place.
    pub(super) const PLACES: usize = (SLOTS.end - SLOTS.start) * FUNCTIONS;

    pub(super) fn new(plan: &Plan, devices: usize) -> Self {
        let reserved = plan.disks.iter().map(|disk| disk.name.clone()).filter(|name| is_id(name)).collect();
        Bus { reserved, used: BTreeSet::new(), placed: (devices > MOST_UNPLACED).then_some(0) }
    }

    /// The device's id: its name, where that is one; else the name behind a word, and a number where that is taken.
    pub(super) fn id(&mut self, kind: &str, name: &str) -> String {
        let id = if is_id(name) && !self.used.contains(name) {
            name.to_owned()
        } else {
            let base = format!("{kind}-{name}");
            let mut candidates = std::iter::once(base.clone()).chain((2u32..).map(|n| format!("{base}-{n}")));
            let free = |id: &String| !self.used.contains(id) && !self.reserved.contains(id);
            candidates.find(free).unwrap_or(base)
        };
        self.used.insert(id.clone());
        id
    }

    pub(super) fn place(&mut self, device: &mut Object) {
        let Some(placed) = &mut self.placed else { return };
        let (slot, function) = (SLOTS.start + *placed / FUNCTIONS, *placed % FUNCTIONS);
        *placed += 1;
        if SLOTS.contains(&slot) {
            device.set("addr", format!("{slot:x}.{function}"));
            device.set("multifunction", true);
        }
    }
}

/// Whether QEMU takes a word as an id.
fn is_id(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_an_id_keeps_it_and_any_other_gets_one_of_its_own() {
        let reserved = ["disk-0", "data", "net0"].map(str::to_owned).into();
        let mut bus = Bus { reserved, used: BTreeSet::new(), placed: None };
        let disks: Vec<String> =
            ["0", "disk-0", "_x", "data", "net0"].iter().map(|name| bus.id("disk", name)).collect();
        assert_eq!(disks, ["disk-0-2", "disk-0", "disk-_x", "data", "net0"]);
        assert_eq!(bus.id("net", "net0"), "net-net0", "a disk has that name already");
    }

    #[test]
    fn two_hundred_devices_have_places_of_their_own() {
        let mut bus = Bus { reserved: BTreeSet::new(), used: BTreeSet::new(), placed: Some(0) };
        let places: BTreeSet<String> = (0..200)
            .map(|_| {
                let mut device = Object::of("driver", "virtio-blk-pci");
                bus.place(&mut device);
                device.get("addr").unwrap().to_string()
            })
            .collect();
        assert_eq!(places.len(), 200);
        assert!(places.contains("\"2.0\"") && places.contains("\"1a.7\""));
    }
}
