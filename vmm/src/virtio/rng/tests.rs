use std::sync::mpsc;

use vm_memory::{Bytes, GuestAddress};

use super::budget::{BYTES, CHAINS};
use super::*;
use crate::emulator::Emulator;
use crate::virtio::mock::{self, Driver, readable, writable};

const QUEUE: u64 = 0x1_0000;
const BUFFER: u64 = 0x8_0000;
const ENTRIES: u16 = 256;

/// A device that is live, and its driver.
struct Bench {
    rng: Rng,
    emulator: Option<Emulator>,
    driver: Driver,
}

impl Bench {
    fn new() -> Bench {
        let (mut rng, handler) = Rng::new().unwrap();
        let emulator = Emulator::start(&vec![], vec![Box::new(handler)], mpsc::channel().0).unwrap();
        let driver = Driver::new(&mock::ram(0x20_0000), QUEUE, ENTRIES, true);
        rng.activate(0, vec![driver.device_side(0)]).unwrap();
        Bench { rng, emulator: Some(emulator), driver }
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.driver.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Asks for `len` bytes in one buffer.
    fn ask(&mut self, len: u32) -> Vec<u8> {
        self.driver.add(&[writable(BUFFER, len)]).unwrap();
        self.driver.kick();
        let (_, written) = self.driver.wait_used();
        self.bytes(BUFFER, written as usize)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.rng.reset();
        self.emulator.take().unwrap().stop().unwrap();
    }
}

#[test]
fn a_buffer_comes_back_full_of_other_bytes_each_time_and_nothing_behind_it_changes() {
    let mut bench = Bench::new();
    let (first, second) = (bench.ask(64), bench.ask(64));
    // That 64 bytes are twice the same, or zero, does not happen.
    assert!(first.len() == 64 && second.len() == 64 && first != second && first != [0; 64]);
    assert_eq!(bench.bytes(BUFFER + 64, 64), [0; 64]);
}

#[test]
fn a_chain_of_several_buffers_is_filled_in_order_and_its_readable_ones_are_left_alone() {
    let mut bench = Bench::new();
    let chain = [readable(BUFFER, 32), writable(BUFFER + 64, 32), writable(BUFFER + 128, 32)];
    bench.driver.add(&chain).unwrap();
    bench.driver.kick();
    assert_eq!(bench.driver.wait_used().1, 64);
    assert_eq!(bench.bytes(BUFFER, 64), [0; 64]);
    for at in [BUFFER + 64, BUFFER + 128] {
        assert_ne!(bench.bytes(at, 32), [0; 32]);
    }
}

#[test]
fn more_than_a_share_is_given_in_the_end_and_no_chain_gets_all_of_it() {
    let mut bench = Bench::new();
    let large = bench.ask(0x10_0000).len();
    assert!((1..=BYTES).contains(&large), "{large}");
    // A driver that is not told of its next period would wait for ever.
    let asked = 3 * CHAINS;
    for _ in 0..asked {
        bench.driver.add(&[writable(BUFFER, 64)]).unwrap();
    }
    bench.driver.kick();
    let mut given = 0;
    for _ in 0..asked {
        given += bench.driver.wait_used().1;
    }
    assert!(given > asked, "at least a byte each (virtio 1.3, 5.4.6.2): {given}");
}

#[test]
fn a_chain_without_room_is_given_back_and_the_next_one_is_served() {
    let mut bench = Bench::new();
    bench.driver.add(&[readable(BUFFER, 64)]).unwrap();
    bench.driver.kick();
    assert_eq!(bench.driver.wait_used().1, 0);
    assert_eq!(bench.ask(64).len(), 64);
}

#[test]
fn a_driver_that_breaks_the_queue_is_told_to_reset_and_is_served_again_after_it() {
    let mut bench = Bench::new();
    let distress = bench.rng.distress().unwrap();
    let (raised, hears) = mpsc::channel();
    distress.on_raise(move || raised.send(()).unwrap());
    bench.driver.add(&[writable(u64::MAX - 4, 64)]).unwrap();
    bench.driver.kick();
    hears.recv().unwrap();
    assert!(distress.is_raised());
    bench.rng.reset();
    bench.driver = Driver::new(&bench.driver.ram, QUEUE, ENTRIES, true);
    bench.rng.activate(0, vec![bench.driver.device_side(0)]).unwrap();
    assert_eq!(bench.ask(64).len(), 64);
}

#[test]
fn after_a_reset_nothing_is_written() {
    let mut bench = Bench::new();
    bench.rng.reset();
    bench.driver.add(&[writable(BUFFER, 64)]).unwrap();
    bench.driver.kick();
    // Twice: the second is answered behind whatever the first left to do.
    bench.rng.reset();
    assert_eq!((bench.driver.take_used(), bench.bytes(BUFFER, 64)), (None, vec![0; 64]));
}
