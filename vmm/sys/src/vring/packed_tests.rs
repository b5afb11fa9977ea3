use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::vring::{RingFeatures, Vring};

const RING: u64 = 0x1000;
const DRIVER: u64 = 0x8000;
const DEVICE: u64 = 0x9000;
const TABLE: u64 = 0x10000;
const RAM_BYTES: usize = 1 << 20;
const FEATURES: RingFeatures = RingFeatures { event_idx: true, packed: true };

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap())
}

fn setup(size: u16) -> RingSetup {
    RingSetup { size, descriptors: RING, driver: DRIVER, device: DEVICE }
}

fn ring(ram: &Arc<GuestRam>, size: u16, event_idx: bool) -> PackedRing {
    PackedRing::new(ram, &setup(size), event_idx, Position::start(FEATURES)).unwrap()
}

fn put<T: vm_memory::ByteValued>(ram: &GuestRam, address: u64, value: T) {
    ram.write_obj(value, GuestAddress(address)).unwrap();
}

fn get<T: vm_memory::ByteValued>(ram: &GuestRam, address: u64) -> T {
    ram.read_obj(GuestAddress(address)).unwrap()
}

fn descriptor(ram: &GuestRam, at: u64, address: u64, len: u32, id: u16, flags: u16) {
    put(ram, at, address);
    put(ram, at + 8, len);
    put(ram, at + 12, id);
    put(ram, at + 14, flags);
}

/// A driver's side of the ring.
struct Driver {
    ram: Arc<GuestRam>,
    size: u16,
    next: Place,
    last_used: Place,
}

impl Driver {
    fn new(ram: &Arc<GuestRam>, size: u16) -> Driver {
        Driver { ram: Arc::clone(ram), size, next: Place::START, last_used: Place::START }
    }

    fn offered(place: Place) -> u16 {
        if place.wrap() { AVAILABLE } else { USED }
    }

    /// A chain of `count` buffers by the name of `id`.
    fn offer(&mut self, id: u16, count: u16) {
        for step in 0..count {
            let more = if step + 1 < count { NEXT } else { 0 };
            let at = RING + 16 * u64::from(self.next.index());
            // Only the last one's name counts.
            let id = if step + 1 < count { !id } else { id };
            descriptor(&self.ram, at, 0x2_0000, 100 + u32::from(step), id, more | Self::offered(self.next));
            self.next = self.next.advance(1, self.size);
        }
    }

    /// The next used buffer of a chain of `count`: its id and length.
    fn used(&mut self, count: u16) -> Option<(u16, u32)> {
        let at = RING + 16 * u64::from(self.last_used.index());
        let flags: u16 = get(&self.ram, at + 14);
        let both = if self.last_used.wrap() { AVAILABLE | USED } else { 0 };
        if flags & (AVAILABLE | USED) != both {
            return None;
        }
        self.last_used = self.last_used.advance(count, self.size);
        Some((get(&self.ram, at + 12), get(&self.ram, at + 8)))
    }
}

fn pop(ring: &mut PackedRing) -> Result<Option<(u16, usize)>, RingError> {
    let mut chain = Vec::new();
    Ok(ring.pop(&mut chain)?.map(|head| (head, chain.len())))
}

#[test]
fn a_ring_outside_memory_or_off_its_alignment_is_refused() {
    let ram = ram();
    let end = RAM_BYTES as u64;
    let new = |size, descriptors, driver, device| {
        let setup = RingSetup { size, descriptors, driver, device };
        Vring::new(&ram, &setup, FEATURES).map(|ring| ring.size())
    };
    for size in [1, 3, 8, 255] {
        assert_eq!(new(size, RING, DRIVER, DEVICE), Ok(size), "any size will do");
    }
    assert_eq!(new(0, RING, DRIVER, DEVICE), Err(RingError::PackedSize(0)));
    assert_eq!(new(32_769, RING, DRIVER, DEVICE), Err(RingError::PackedSize(32_769)));
    for (ring, driver, device) in
        [(RING + 8, DRIVER, DEVICE), (RING, DRIVER + 2, DEVICE), (RING, DRIVER, DEVICE + 2)]
    {
        assert!(matches!(new(8, ring, driver, device), Err(RingError::Unaligned { .. })));
    }
    for (ring, driver, device) in
        [(end - 112, DRIVER, DEVICE), (RING, end, DEVICE), (RING, DRIVER, u64::MAX - 3)]
    {
        assert!(matches!(new(8, ring, driver, device), Err(RingError::OutsideMemory { .. })));
    }
}

#[test]
fn buffers_come_in_the_drivers_order_and_go_back_in_any_lap_after_lap() {
    let ram = ram();
    for size in [5, 8] {
        ram.write_slice(&[0; 16 * 8], GuestAddress(RING)).unwrap();
        let (mut ring, mut driver) = (ring(&ram, size, true), Driver::new(&ram, size));
        assert_eq!(pop(&mut ring), Ok(None));
        for round in 0..200_u16 {
            let id = round.wrapping_mul(331);
            driver.offer(id, 3);
            driver.offer(!id, 2);
            let (first, of_first) = pop(&mut ring).unwrap().unwrap();
            let (second, of_second) = pop(&mut ring).unwrap().unwrap();
            assert_eq!((of_first, of_second), (3, 2));
            assert!(first != second && first < size && second < size);
            assert_eq!(pop(&mut ring), Ok(None), "{size} {round}");
            ring.push_used(second, 7);
            ring.push_used(first, 9);
            assert_eq!(driver.used(2), None, "not before it is published");
            ring.publish();
            assert_eq!(driver.used(2), Some((!id, 7)));
            assert_eq!(driver.used(3), Some((id, 9)));
            assert_eq!(driver.used(1), None);
        }
    }
}

#[test]
fn the_first_of_a_batch_is_shown_last() {
    let ram = ram();
    let (mut ring, mut driver) = (ring(&ram, 8, false), Driver::new(&ram, 8));
    (0..3).for_each(|id| driver.offer(id, 1));
    for _ in 0..3 {
        let (head, _) = pop(&mut ring).unwrap().unwrap();
        ring.push_used(head, 1);
    }
    let flags = |index: u64| get::<u16>(&ram, RING + 16 * index + 14);
    assert_eq!(
        [flags(0), flags(1), flags(2)],
        [AVAILABLE, AVAILABLE | USED | WRITE, AVAILABLE | USED | WRITE]
    );
    assert!(ring.publish());
    assert_eq!(flags(0), AVAILABLE | USED | WRITE);
    assert!(!ring.publish(), "nothing new, no interrupt");
}

#[test]
fn an_indirect_table_is_read_from_its_first_descriptor_to_its_last() {
    let ram = ram();
    descriptor(&ram, TABLE + 2, 0x20000, 16, 9, 0);
    descriptor(&ram, TABLE + 18, 0x21000, 512, 0, WRITE | NEXT | INDIRECT);
    descriptor(&ram, TABLE + 34, 0x22000, 1, 0, WRITE);
    descriptor(&ram, RING, TABLE + 2, 48, 77, INDIRECT | AVAILABLE);
    let (mut ring, mut chain) =
        (ring(&ram, 2, true), vec![Descriptor { address: 1, len: 1, writable: true }]);
    let head = ring.pop(&mut chain).unwrap().unwrap();
    let buffer = |address, len, writable| Descriptor { address, len, writable };
    assert_eq!(chain, [buffer(0x20000, 16, false), buffer(0x21000, 512, true), buffer(0x22000, 1, true)]);
    ring.push_used(head, 513);
    ring.publish();
    assert_eq!((get::<u16>(&ram, RING + 12), get::<u32>(&ram, RING + 8)), (77, 513));
    assert_eq!(ring.position(), Position { available: 1 | 1 << 15, used: 1 | 1 << 15 });
}

#[test]
fn broken_chains_end_with_their_error() {
    type Write = fn(&GuestRam);
    let cases: [(&str, Write, RingError); 6] = [
        (
            "no end",
            |ram| (0..4).for_each(|at| descriptor(ram, RING + 16 * at, 0, 1, 0, NEXT | AVAILABLE)),
            RingError::ChainTooLong { head: 0, most: 4 },
        ),
        (
            "table and next",
            |ram| descriptor(ram, RING, TABLE, 16, 0, INDIRECT | NEXT | AVAILABLE),
            RingError::Indirect { head: 0, rule: "a table within a chain" },
        ),
        (
            "table at the end of a chain",
            |ram| {
                descriptor(ram, RING, 0, 1, 0, NEXT | AVAILABLE);
                descriptor(ram, RING + 16, TABLE, 16, 0, INDIRECT | AVAILABLE);
            },
            RingError::Indirect { head: 0, rule: "a table within a chain" },
        ),
        (
            "half a descriptor",
            |ram| descriptor(ram, RING, TABLE, 24, 0, INDIRECT | AVAILABLE),
            RingError::Indirect { head: 0, rule: "its length is not that of whole descriptors" },
        ),
        (
            "table outside memory",
            |ram| descriptor(ram, RING, RAM_BYTES as u64 - 16, 32, 0, INDIRECT | AVAILABLE),
            RingError::Indirect { head: 0, rule: "it does not lie within one region of guest memory" },
        ),
        (
            "a table of thousands",
            |ram| descriptor(ram, RING, 0, 1025 * 16, 0, INDIRECT | AVAILABLE),
            RingError::ChainTooLong { head: 0, most: 1024 },
        ),
    ];
    for (name, write, error) in cases {
        let ram = ram();
        write(&ram);
        assert_eq!(pop(&mut ring(&ram, 4, true)), Err(error), "{name}");
    }
}

#[test]
fn descriptors_that_are_offered_again_in_flight_are_the_drivers_error() {
    let ram = ram();
    let (mut ring, mut driver) = (ring(&ram, 4, true), Driver::new(&ram, 4));
    driver.offer(1, 2);
    driver.offer(2, 2);
    let first = pop(&mut ring).unwrap().unwrap();
    pop(&mut ring).unwrap().unwrap();
    assert_eq!(pop(&mut ring), Ok(None), "a full ring is none of that");
    ring.push_used(first.0, 0);
    driver.offer(3, 1);
    assert_eq!(
        pop(&mut ring),
        Err(RingError::Overrun { size: 4 }),
        "what is not shown is not the driver's yet"
    );
    ring.publish();
    driver.next = Place(0);
    driver.offer(3, 1);
    assert_eq!(pop(&mut ring).unwrap().unwrap().1, 1);
    driver.offer(4, 2);
    assert_eq!(pop(&mut ring), Err(RingError::Overrun { size: 4 }));
}

#[test]
fn without_event_idx_the_flags_suppress() {
    let ram = ram();
    let mut ring = Vring::Packed(ring(&ram, 4, false));
    ring.disarm();
    assert_eq!(get::<u16>(&ram, DEVICE + 2), 1);
    assert_eq!(ring.arm_and_look(), Ok(false));
    assert_eq!(get::<u16>(&ram, DEVICE + 2), 0);
    let mut driver = Driver::new(&ram, 4);
    for (flags, wanted) in [(1_u16, false), (0, true)] {
        put(&ram, DRIVER + 2, flags);
        driver.offer(0, 1);
        let head = ring.pop(&mut Vec::new()).unwrap().unwrap();
        ring.push_used(head, 0);
        assert_eq!(ring.publish(), wanted);
    }
}

#[test]
fn with_event_idx_an_interrupt_is_wanted_when_its_descriptor_is_passed() {
    let ram = ram();
    let (mut ring, mut driver) = (ring(&ram, 4, true), Driver::new(&ram, 4));
    put(&ram, DRIVER + 2, 2_u16);
    let mut wanted = Vec::new();
    // The event lies in the second lap, whose counter is 0: the fifth chain of one descriptor passes it.
    put(&ram, DRIVER, 0_u16);
    for id in 0..6 {
        driver.offer(id, 1);
        let (head, _) = pop(&mut ring).unwrap().unwrap();
        ring.push_used(head, 0);
        wanted.push(ring.publish());
    }
    assert_eq!(wanted, [false, false, false, false, true, false]);
}

#[test]
fn arming_names_the_next_descriptor_with_its_lap_and_sees_what_came_meanwhile() {
    let ram = ram();
    let (mut ring, mut driver) = (Vring::Packed(ring(&ram, 3, true)), Driver::new(&ram, 3));
    ring.disarm();
    assert_eq!(get::<[u16; 2]>(&ram, DEVICE), [0, 1]);
    driver.offer(0, 2);
    let head = ring.pop(&mut Vec::new()).unwrap().unwrap();
    assert_eq!(ring.arm_and_look(), Ok(false));
    assert_eq!(get::<[u16; 2]>(&ram, DEVICE), [1 << 15 | 2, 2]);
    ring.push_used(head, 0);
    ring.publish();
    driver.offer(1, 2);
    assert_eq!(ring.arm_and_look(), Ok(true));
    ring.pop(&mut Vec::new()).unwrap().unwrap();
    assert_eq!(ring.arm_and_look(), Ok(false));
    assert_eq!(get::<[u16; 2]>(&ram, DEVICE), [1, 2], "the second lap");
}

#[test]
fn a_ring_goes_on_where_another_stopped() {
    let ram = ram();
    let mut driver = Driver::new(&ram, 3);
    let mut position = Position::start(FEATURES);
    assert_eq!(position.vring_base(FEATURES), 0x8000_8000);
    for round in 0..10 {
        let mut ring = Vring::at(&ram, &setup(3), FEATURES, position).unwrap();
        assert_eq!(ring.pop(&mut Vec::new()), Ok(None));
        driver.offer(round, 2);
        let head = ring.pop(&mut Vec::new()).unwrap().unwrap();
        ring.push_used(head, 5);
        ring.publish();
        assert_eq!(driver.used(2), Some((round, 5)));
        let base = ring.position().vring_base(FEATURES);
        position = Position::from_vring_base(base, FEATURES);
        assert_eq!(position, ring.position());
        assert_eq!((position.available, position.used), (driver.next.0, driver.last_used.0));
    }
    let outside = Position { available: 3, used: 0 };
    let error = Vring::at(&ram, &setup(3), FEATURES, outside).map(|_| ()).unwrap_err();
    assert_eq!(error, RingError::Position { entry: 3, size: 3 });
}

proptest! {
    /// Whatever the guest wrote, a pass over the queue ends, and what it yields is bounded and given back once.
    #[test]
    fn any_bytes_in_the_ring_are_walked_to_an_end(
        table in proptest::collection::vec(any::<u8>(), 16 * 16),
        flags in proptest::collection::vec((0_u16..8, any::<bool>(), any::<bool>()), 16),
        back in any::<u16>(),
        size in 1_u16..=16,
    ) {
        let ram = ram();
        ram.write_slice(&table, GuestAddress(RING)).unwrap();
        for (index, (flags, available, used)) in flags.iter().enumerate() {
            let flags = flags | if *available { AVAILABLE } else { 0 } | if *used { USED } else { 0 };
            put(&ram, RING + 16 * index as u64 + 14, flags);
            put(&ram, RING + 16 * index as u64 + 2, [0_u8; 6]);
        }
        let mut ring = ring(&ram, size, true);
        let (mut chain, mut heads) = (Vec::new(), Vec::new());
        for step in 0..64 {
            let Ok(Some(head)) = ring.pop(&mut chain) else { break };
            prop_assert!(chain.len() <= 1_024);
            prop_assert!(head < size && !heads.contains(&head));
            heads.push(head);
            if back >> (step % 16) & 1 == 1 {
                ring.push_used(heads.swap_remove(usize::from(back) % heads.len()), u32::from(back));
                if back & 2 == 0 {
                    ring.publish();
                }
            }
        }
        prop_assert!(heads.len() <= usize::from(size));
    }
}
