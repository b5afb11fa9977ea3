use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
const INDIRECT: u64 = 0x10000;
const RAM_BYTES: usize = 1 << 20;

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).unwrap())
}

fn ring(ram: &Arc<GuestRam>, size: u16, event_idx: bool) -> SplitRing {
    SplitRing::new(ram, &setup(size, TABLE, AVAILABLE, USED), event_idx, Position { available: 0, used: 0 })
        .unwrap()
}

fn setup(size: u16, descriptors: u64, driver: u64, device: u64) -> RingSetup {
    RingSetup { size, descriptors, driver, device }
}

/// The next head, whatever its chain.
fn pop(ring: &mut SplitRing) -> Result<Option<u16>, RingError> {
    ring.pop(&mut Vec::new())
}

fn arm_and_look(ring: &mut SplitRing) -> Result<bool, RingError> {
    ring.arm();
    std::sync::atomic::fence(Ordering::SeqCst);
    ring.look()
}

fn put<T: vm_memory::ByteValued>(ram: &GuestRam, address: u64, value: T) {
    ram.write_obj(value, GuestAddress(address)).unwrap();
}

fn u16_at(ram: &GuestRam, address: u64) -> u16 {
    ram.read_obj(GuestAddress(address)).unwrap()
}

fn descriptor(ram: &GuestRam, table: u64, index: u16, address: u64, len: u32, flags: u16, next: u16) {
    let at = table + 16 * u64::from(index);
    put(ram, at, address);
    put(ram, at + 8, len);
    put(ram, at + 12, flags);
    put(ram, at + 14, next);
}

/// Offers `heads` after the `from` that were offered before.
fn offer(ram: &GuestRam, size: u16, from: u16, heads: &[u16]) {
    for (step, head) in (0..).zip(heads) {
        let index = from.wrapping_add(step);
        put(ram, AVAILABLE + 4 + 2 * u64::from(index % size), *head);
    }
    put(ram, AVAILABLE + 2, from.wrapping_add(heads.len() as u16));
}

#[test]
fn a_ring_outside_memory_or_off_its_alignment_is_refused() {
    let ram = ram();
    let end = RAM_BYTES as u64;
    let new = |size, desc, avail, used| {
        SplitRing::new(&ram, &setup(size, desc, avail, used), true, Position { available: 0, used: 0 })
            .map(|_| ())
    };
    assert_eq!(new(8, TABLE, AVAILABLE, USED), Ok(()));
    assert_eq!(new(0, TABLE, AVAILABLE, USED), Err(RingError::Size(0)));
    assert_eq!(new(12, TABLE, AVAILABLE, USED), Err(RingError::Size(12)));
    assert_eq!(new(32_769, TABLE, AVAILABLE, USED), Err(RingError::Size(32_769)));
    for (desc, avail, used) in
        [(TABLE + 8, AVAILABLE, USED), (TABLE, AVAILABLE + 1, USED), (TABLE, AVAILABLE, USED + 2)]
    {
        assert!(matches!(new(8, desc, avail, used), Err(RingError::Unaligned { .. })));
    }
    let last = [
        (end - 112, AVAILABLE, USED),
        (TABLE, end - 20, USED),
        (TABLE, AVAILABLE, end - 68),
        (u64::MAX - 15, AVAILABLE, USED),
    ];
    for (desc, avail, used) in last {
        assert!(
            matches!(new(8, desc, avail, used), Err(RingError::OutsideMemory { .. })),
            "{desc:#x} {avail:#x} {used:#x}"
        );
    }
    assert_eq!(new(8, end - 128, AVAILABLE, USED), Ok(()), "a table may end where memory ends");
}

#[test]
fn heads_come_in_the_drivers_order_and_around_the_ring() {
    let ram = ram();
    let mut ring = ring(&ram, 4, true);
    assert_eq!(pop(&mut ring), Ok(None));
    for round in 0..40_000_u16 {
        let from = round.wrapping_mul(2);
        offer(&ram, 4, from, &[round % 4, (round + 1) % 4]);
        assert_eq!(pop(&mut ring), Ok(Some(round % 4)));
        assert_eq!(pop(&mut ring), Ok(Some((round + 1) % 4)));
        assert_eq!(pop(&mut ring), Ok(None));
    }
}

#[test]
fn an_index_that_jumps_over_the_ring_is_the_drivers_error() {
    let ram = ram();
    let mut ring = ring(&ram, 4, true);
    put(&ram, AVAILABLE + 2, 5_u16);
    assert_eq!(pop(&mut ring), Err(RingError::AvailableJump { from: 0, to: 5, size: 4 }));
    put(&ram, AVAILABLE + 2, u16::MAX);
    assert!(ring.look().is_err(), "backwards is a jump too");
}

#[test]
fn a_head_outside_the_table_is_the_drivers_error() {
    let ram = ram();
    let mut ring = ring(&ram, 4, true);
    offer(&ram, 4, 0, &[4]);
    assert_eq!(pop(&mut ring), Err(RingError::Head { head: 4, size: 4 }));
}

#[test]
fn used_elements_show_only_once_published() {
    let ram = ram();
    let mut ring = ring(&ram, 4, false);
    ring.push_used(3, 513);
    assert_eq!(u16_at(&ram, USED + 2), 0);
    assert!(ring.publish());
    assert_eq!(u16_at(&ram, USED + 2), 1);
    assert_eq!(ram.read_obj::<u32>(GuestAddress(USED + 4)).unwrap(), 3);
    assert_eq!(ram.read_obj::<u32>(GuestAddress(USED + 8)).unwrap(), 513);
    assert!(!ring.publish(), "nothing new, no interrupt");
}

#[test]
fn without_event_idx_the_flags_suppress() {
    let ram = ram();
    let mut ring = ring(&ram, 4, false);
    ring.disarm();
    assert_eq!(u16_at(&ram, USED), 1);
    assert_eq!(arm_and_look(&mut ring), Ok(false));
    assert_eq!(u16_at(&ram, USED), 0);
    put(&ram, AVAILABLE, 1_u16);
    ring.push_used(0, 0);
    assert!(!ring.publish(), "VIRTQ_AVAIL_F_NO_INTERRUPT");
}

#[test]
fn with_event_idx_an_interrupt_is_wanted_when_the_event_is_passed() {
    let ram = ram();
    let mut ring = ring(&ram, 8, true);
    let used_event = AVAILABLE + 4 + 2 * 8;
    put(&ram, used_event, 2_u16);
    let mut wanted = Vec::new();
    for head in 0..4 {
        ring.push_used(head, 0);
        wanted.push(ring.publish());
    }
    assert_eq!(wanted, [false, false, true, false]);
    put(&ram, used_event, 5_u16);
    (4..7).for_each(|head| ring.push_used(head, 0));
    assert!(ring.publish(), "an event inside a batch counts");
}

#[test]
fn arming_names_the_next_head_and_sees_one_that_came_meanwhile() {
    let ram = ram();
    let mut ring = ring(&ram, 8, true);
    let avail_event = USED + 4 + 8 * 8;
    offer(&ram, 8, 0, &[0, 1]);
    pop(&mut ring).unwrap();
    pop(&mut ring).unwrap();
    assert_eq!(arm_and_look(&mut ring), Ok(false));
    assert_eq!(u16_at(&ram, avail_event), 2);
    offer(&ram, 8, 2, &[2]);
    assert_eq!(arm_and_look(&mut ring), Ok(true));
}

#[test]
fn a_disarmed_ring_is_not_rung_for_the_next_heads_and_an_armed_one_is() {
    let ram = ram();
    let mut ring = ring(&ram, 8, true);
    // virtio 1.3, 2.7.10: as a driver decides.
    let rings = |old: u16, new: u16| {
        let event = u16_at(&ram, USED + 4 + 8 * 8);
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    };
    ring.arm();
    assert!(rings(0, 1));
    ring.disarm();
    for heads in 1..=8 {
        assert!(!rings(0, heads), "{heads} at once");
    }
    offer(&ram, 8, 0, &[0, 1]);
    pop(&mut ring).unwrap();
    assert!(!rings(1, 2), "the driver asks after the device has taken it");
    pop(&mut ring).unwrap();
    ring.arm();
    assert!(!rings(1, 2) && rings(2, 3));
}

#[test]
fn a_chain_is_read_through_its_indirect_table() {
    let ram = ram();
    descriptor(&ram, TABLE, 2, 0x20000, 16, 1, 5);
    descriptor(&ram, TABLE, 5, INDIRECT + 2, 32, 4 | 2, 9);
    descriptor(&ram, INDIRECT + 2, 0, 0x21000, 512, 1 | 2, 1);
    descriptor(&ram, INDIRECT + 2, 1, 0x22000, 1, 2, 0);
    offer(&ram, 8, 0, &[2]);
    let mut chain = vec![Descriptor { address: 1, len: 1, writable: false }];
    assert_eq!(ring(&ram, 8, true).pop(&mut chain), Ok(Some(2)));
    let buffer = |address, len, writable| Descriptor { address, len, writable };
    assert_eq!(chain, [buffer(0x20000, 16, false), buffer(0x21000, 512, true), buffer(0x22000, 1, true)]);
}

#[test]
fn broken_chains_end_with_their_error() {
    type Write = fn(&GuestRam);
    let cases: [(&str, Write); 8] = [
        ("loop", |ram| descriptor(ram, TABLE, 0, 0, 1, 1, 0)),
        ("next outside", |ram| descriptor(ram, TABLE, 0, 0, 1, 1, 8)),
        ("table within a table", |ram| {
            descriptor(ram, TABLE, 0, INDIRECT, 16, 4, 0);
            descriptor(ram, INDIRECT, 0, INDIRECT, 16, 4, 0);
        }),
        ("table and next", |ram| descriptor(ram, TABLE, 0, INDIRECT, 16, 4 | 1, 1)),
        ("empty table", |ram| descriptor(ram, TABLE, 0, INDIRECT, 0, 4, 0)),
        ("half a descriptor", |ram| descriptor(ram, TABLE, 0, INDIRECT, 24, 4, 0)),
        ("table outside memory", |ram| descriptor(ram, TABLE, 0, RAM_BYTES as u64 - 16, 32, 4, 0)),
        ("loop in a table", |ram| {
            descriptor(ram, TABLE, 0, INDIRECT, 32, 4, 0);
            descriptor(ram, INDIRECT, 0, 0, 1, 1, 1);
            descriptor(ram, INDIRECT, 1, 0, 1, 1, 0);
        }),
    ];
    for (name, write) in cases {
        let ram = ram();
        write(&ram);
        offer(&ram, 8, 0, &[0]);
        let mut chain = Vec::new();
        assert!(ring(&ram, 8, true).pop(&mut chain).is_err(), "{name}: {chain:?}");
        assert!(chain.len() <= 8, "{name}: {chain:?}");
    }
}

proptest! {
    /// Whatever the guest wrote, a pass over the queue ends, and what it yields is bounded.
    #[test]
    fn any_bytes_in_the_rings_are_walked_to_an_end(
        table in proptest::collection::vec(any::<u8>(), 16 * 16),
        flags in proptest::collection::vec(0_u16..8, 16),
        available in proptest::collection::vec(0_u16..20, 18),
    ) {
        let ram = ram();
        ram.write_slice(&table, GuestAddress(TABLE)).unwrap();
        for (index, flags) in flags.iter().enumerate() {
            put(&ram, TABLE + 16 * index as u64 + 12, *flags);
            put(&ram, TABLE + 16 * index as u64 + 2, [0_u8; 6]);
        }
        for (index, value) in available.iter().enumerate() {
            put(&ram, AVAILABLE + 2 * index as u64, *value);
        }
        let mut ring = ring(&ram, 16, true);
        let mut taken = 0;
        let mut chain = Vec::new();
        while let Ok(Some(head)) = ring.pop(&mut chain) {
            taken += 1;
            prop_assert!(taken <= 16 && head < 16);
            prop_assert!(chain.len() <= 16 + 1_024);
        }
    }
}
