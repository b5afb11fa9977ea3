//! A guest that writes anything into its queue, and a device that serves it: what the targets of rings and requests share.
//! The input is what the two do in turn. Descriptors are seldom nonsense through and through, or nothing would get far.

use std::cell::RefCell;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use vm_memory::{Bytes as _, GuestAddress};
use vmprof_sys::memory::GuestRam;
use vmprof_sys::regions::Regions;
use vmprof_sys::vring::{Descriptor, Position, RingFeatures, RingSetup, Vring};

/// Two regions that touch, and one behind a hole.
const REGIONS: [(u64, usize); 3] = [(0, 0x2000), (0x2000, 0x1000), (0x1_0000, 0x1000)];
const DESCRIPTORS: u64 = 0;
const DRIVER: u64 = 0x400;
const DEVICE: u64 = 0x500;
const RINGS_END: u64 = 0x800;
/// Where headers, data and tables are likely.
const PLACES: [u64; 12] =
    [0x800, 0x810, 0x1000, 0x1ff8, 0x2ff0, 0x2fff, 0x1_0000, 0x1_0ff0, 0x1_0fff, 0, 1 << 32, u64::MAX - 7];
const LENGTHS: [u32; 12] = [16, 512, 1, 0, 32, 48, 4096, 17, 513, 16 * 1025, u32::MAX, 1 << 31];

/// What is done with a request that was taken: by its head, its descriptors and where the guest's memory is.
pub type Serve<'a> = &'a mut dyn FnMut(u16, &[Descriptor], &Regions);

struct Guest {
    ram: Arc<GuestRam>,
    /// What guest memory holds where the device has no business.
    shadow: Vec<(u64, Vec<u8>)>,
    size: u16,
    packed: bool,
    /// Where a driver that keeps the rules would write next: an index, and in a packed ring the lap.
    next: u16,
    wrap: bool,
}

thread_local! {
    static RAM: Arc<GuestRam> = {
        let ranges = REGIONS.map(|(start, bytes)| (GuestAddress(start), bytes));
        Arc::new(GuestRam::from_ranges(&ranges).unwrap())
    };
    static CHAIN: RefCell<Vec<Descriptor>> = const { RefCell::new(Vec::new()) };
}

impl Guest {
    fn new(size: u16, packed: bool) -> Guest {
        let ram = RAM.with(Arc::clone);
        let shadow = REGIONS.map(|(start, bytes)| (start, vec![0; bytes]));
        for (start, zeros) in &shadow {
            ram.write_slice(zeros, GuestAddress(*start)).unwrap();
        }
        Guest { ram, shadow: shadow.into(), size, packed, next: 0, wrap: true }
    }

    fn poke(&mut self, address: u64, bytes: &[u8]) {
        for (at, byte) in (address..=u64::MAX).zip(bytes) {
            for (start, shadow) in &mut self.shadow {
                if let Some(cell) = at.checked_sub(*start).and_then(|at| shadow.get_mut(at as usize)) {
                    *cell = *byte;
                    self.ram.write_obj(*byte, GuestAddress(at)).unwrap();
                }
            }
        }
    }

    fn descriptor(&mut self, at: u64, u: &mut Unstructured<'_>, flags: u16) -> Result<()> {
        let address = if u.ratio(7, 8)? { *u.choose(&PLACES)? } else { u.arbitrary()? };
        let len: u32 = if u.ratio(7, 8)? { *u.choose(&LENGTHS)? } else { u.arbitrary()? };
        let other: u16 = if u.ratio(7, 8)? { u.int_in_range(0..=self.size)? } else { u.arbitrary()? };
        self.poke(at, &address.to_le_bytes());
        self.poke(at + 8, &len.to_le_bytes());
        let [a, b] = if self.packed { [other, flags] } else { [flags, other] };
        self.poke(at + 12, &a.to_le_bytes());
        self.poke(at + 14, &b.to_le_bytes());
        Ok(())
    }

    /// A request as drivers make them, so that the parser gets past the first byte: header, data, status.
    fn request(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let kind = *u.choose(&[0_u32, 1, 4, 8, 11, 13, 99])?;
        let sector: u64 = if u.ratio(1, 2)? { u.int_in_range(0..=40)? } else { u.arbitrary()? };
        self.poke(0x800, &kind.to_le_bytes());
        self.poke(0x808, &sector.to_le_bytes());
        Ok(())
    }

    /// Offers what stands in the ring already: from the next entry on, or another.
    fn offer(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if self.packed {
            let at = DESCRIPTORS + 16 * u64::from(self.next);
            let lap = if self.wrap { 1 << 7 } else { 1 << 15 };
            let flags = u.int_in_range(0..=7_u16)? | lap;
            if u.ratio(3, 4)? {
                self.descriptor(at, u, flags)?;
            } else {
                self.poke(at + 14, &flags.to_le_bytes());
            }
            self.next += 1;
            if self.next == self.size {
                (self.next, self.wrap) = (0, !self.wrap);
            }
        } else {
            let head = u.int_in_range(0..=self.size)?;
            let entry = DRIVER + 4 + 2 * u64::from(self.next % self.size);
            self.poke(entry, &head.to_le_bytes());
            self.next = self.next.wrapping_add(1);
            self.poke(DRIVER + 2, &self.next.to_le_bytes());
        }
        Ok(())
    }

    /// The device wrote nothing but its own parts of the rings.
    fn check(&self) {
        for (start, shadow) in &self.shadow {
            let mut found = vec![0; shadow.len()];
            self.ram.read_slice(&mut found, GuestAddress(*start)).unwrap();
            let skipped = if *start == 0 { RINGS_END as usize } else { 0 };
            assert!(found[skipped..] == shadow[skipped..], "the device wrote outside its rings");
            if *start == 0 {
                // The driver's part is the driver's.
                let driver = DRIVER as usize..DEVICE as usize;
                assert!(found[driver.clone()] == shadow[driver]);
            }
        }
    }
}

/// One life of a queue, until the input ends or the driver has broken it.
pub fn run(packed: bool, data: &[u8], serve: Serve<'_>) {
    let mut u = Unstructured::new(data);
    // An input that ends early has said all it has to say.
    let _ = live(packed, &mut u, serve);
}

fn live(packed: bool, u: &mut Unstructured<'_>, serve: Serve<'_>) -> Result<()> {
    let size = if packed { u.int_in_range(1..=16)? } else { 1 << u.int_in_range(0..=4)? };
    let features = RingFeatures { event_idx: u.arbitrary()?, packed };
    let mut guest = Guest::new(size, packed);
    let setup = RingSetup { size, descriptors: DESCRIPTORS, driver: DRIVER, device: DEVICE };
    let mut ring = Vring::new(&guest.ram, &setup, features).unwrap();
    let mut in_flight: Vec<u16> = Vec::new();
    while !u.is_empty() {
        match u.int_in_range(0..=13_u8)? {
            0 | 1 => {
                let index = u.int_in_range(0..=size - 1)?;
                let flags = if packed { u.arbitrary()? } else { u.int_in_range(0..=7)? };
                guest.descriptor(DESCRIPTORS + 16 * u64::from(index), u, flags)?;
            }
            2 => {
                let table = *u.choose(&[0x800_u64, 0x1000, 0x1ff8, 0x1_0000])?;
                let index = u.int_in_range(0..=8_u64)?;
                let flags = u.int_in_range(0..=7)?;
                guest.descriptor(table + 16 * index, u, flags)?;
            }
            3 => guest.request(u)?,
            4..=6 => guest.offer(u)?,
            7 => {
                // Indices that jump, flags and events of any value, and whatever else there is.
                let at: u64 =
                    if u.arbitrary()? { u.int_in_range(0..=0x81f)? } else { u.int_in_range(0..=0x1_1000)? };
                let count = u.int_in_range(1..=8)?.min(u.len());
                let bytes = u.bytes(count)?.to_owned();
                guest.poke(at, &bytes);
            }
            8..=10 => {
                let taken = CHAIN.with_borrow_mut(|chain| {
                    let taken = ring.pop(chain);
                    if let Ok(Some(head)) = taken {
                        assert!(head < size && chain.len() <= 1_024);
                        serve(head, chain, ring.regions());
                    }
                    taken
                });
                match taken {
                    Ok(None) => {}
                    Ok(Some(head)) if in_flight.contains(&head) => {
                        // The owner of a split ring finds this, and ends it; a packed ring never gives one head twice.
                        assert!(!packed);
                        break;
                    }
                    Ok(Some(head)) => in_flight.push(head),
                    Err(_) => break,
                }
                assert!(in_flight.len() <= usize::from(size));
            }
            11 => {
                if !in_flight.is_empty() {
                    let at = u.choose_index(in_flight.len())?;
                    ring.push_used(in_flight.swap_remove(at), u.arbitrary()?);
                }
            }
            12 => {
                ring.publish();
                if in_flight.is_empty() && u.arbitrary()? {
                    let position = ring.position();
                    let base = position.vring_base(features);
                    let mut again = Position::from_vring_base(base, features);
                    if !packed {
                        again.used = position.used;
                    }
                    assert_eq!(again, position);
                    ring = Vring::at(&guest.ram, &setup, features, again).unwrap();
                }
            }
            _ => {
                if ring.arm_and_look().is_err() {
                    break;
                }
                ring.disarm();
            }
        }
    }
    ring.publish();
    guest.check();
    Ok(())
}
