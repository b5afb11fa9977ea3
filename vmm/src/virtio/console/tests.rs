use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use std::sync::mpsc;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::emulator::Emulator;
use crate::virtio::mock::{self, Driver, readable, writable};

const QUEUE: u64 = 0x1_0000;
const BUFFER: u64 = 0x8_0000;
const BUFFER_BYTES: u32 = 0x1000;

/// A console with one port called `a`, live, and its driver.
struct Bench {
    console: Console,
    emulator: Option<Emulator>,
    outside: UnixStream,
    to_driver: Driver,
    from_driver: Driver,
    receive: Driver,
    transmit: Driver,
}

impl Bench {
    fn new() -> Bench {
        let (outside, inside) = UnixStream::pair().unwrap();
        let port = machine::Port { name: "a".into(), stream: inside.into() };
        let (mut console, handler) = Console::new(vec![port]).unwrap();
        let emulator = Emulator::start(&vec![], vec![Box::new(handler)], mpsc::channel().0).unwrap();
        let ram = mock::ram(0x10_0000);
        let driver = |position: u64| Driver::new(&ram, QUEUE + position * 0x1_0000, 16, true);
        let [to_driver, from_driver, receive, transmit] = [0, 1, 2, 3].map(driver);
        // Port 1 has queues 4 and 5.
        let queues = [&to_driver, &from_driver, &receive, &transmit].into_iter().zip([2, 3, 4, 5]);
        let queues = queues.map(|(driver, index)| driver.device_side(index)).collect();
        console.activate(MULTIPORT, queues).unwrap();
        Bench { console, emulator: Some(emulator), outside, to_driver, from_driver, receive, transmit }
    }

    /// Up to the point where both sides have opened the port.
    fn open() -> Bench {
        let mut bench = Bench::new();
        bench.say(0, 0, 1);
        assert_eq!(bench.hear(), [1, 0, 0, 0, 1, 0, 1, 0]);
        bench.say(1, 3, 1);
        assert_eq!(bench.hear(), b"\x01\0\0\0\x07\0\x01\0a");
        assert_eq!(bench.hear(), [1, 0, 0, 0, 6, 0, 1, 0]);
        bench.say(1, 6, 1);
        bench
    }

    /// The driver sends a control message and waits until it was taken.
    fn say(&mut self, port: u8, event: u8, value: u8) {
        let message = [port, 0, 0, 0, event, 0, value, 0];
        self.from_driver.ram.write_slice(&message, GuestAddress(BUFFER)).unwrap();
        self.from_driver.add(&[readable(BUFFER, 8)]).unwrap();
        self.from_driver.kick();
        self.from_driver.wait_used();
    }

    /// The next control message of the device's.
    fn hear(&mut self) -> Vec<u8> {
        receive_into(&mut self.to_driver, BUFFER + 0x1000)
    }

    fn transmit(&mut self, bytes: &[u8]) {
        self.transmit.ram.write_slice(bytes, GuestAddress(BUFFER + 0x3000)).unwrap();
        self.transmit.add(&[readable(BUFFER + 0x3000, bytes.len() as u32)]).unwrap();
        self.transmit.kick();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.console.reset();
        self.emulator.take().unwrap().stop().unwrap();
    }
}

fn receive_into(driver: &mut Driver, at: u64) -> Vec<u8> {
    driver.add(&[writable(at, BUFFER_BYTES)]).unwrap();
    driver.kick();
    let (_, written) = driver.wait_used();
    let mut bytes = vec![0; written as usize];
    driver.ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn the_driver_learns_of_the_port_its_name_and_that_somebody_is_there() {
    Bench::open();
}

#[test]
fn the_configuration_says_how_many_ports_there_can_be() {
    let (console, _handler) = Console::new(vec![]).unwrap();
    let mut most = [0; 4];
    console.read_config(4, &mut most);
    assert_eq!((u32::from_le_bytes(most), console.queue_sizes().len()), (1, 4));
    console.read_config(u32::MAX, &mut most);
    assert_eq!(most, [0; 4]);
}

#[test]
fn bytes_travel_both_ways() {
    let mut bench = Bench::open();
    bench.transmit(b"from the guest");
    bench.transmit.wait_used();
    let mut bytes = [0; 14];
    bench.outside.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from the guest");
    bench.outside.write_all(b"from outside").unwrap();
    assert_eq!(receive_into(&mut bench.receive, BUFFER + 0x2000), b"from outside");
}

#[test]
fn what_comes_before_the_guest_opens_the_port_waits_for_it() {
    let mut bench = Bench::new();
    bench.outside.write_all(b"early").unwrap();
    bench.receive.add(&[writable(BUFFER + 0x2000, BUFFER_BYTES)]).unwrap();
    bench.receive.kick();
    bench.say(1, 3, 1);
    assert_eq!(bench.receive.take_used(), None);
    bench.say(1, 6, 1);
    assert_eq!(bench.receive.wait_used().1, 5);
}

#[test]
fn a_guest_that_writes_into_a_full_stream_waits_and_loses_nothing() {
    const CHAIN: usize = 0x4_0000;
    let mut bench = Bench::open();
    let pattern: Vec<u8> = (0..CHAIN).map(|index| (index % 251) as u8).collect();
    bench.transmit.ram.write_slice(&pattern, GuestAddress(0xc_0000)).unwrap();
    // Together far more than a socket holds.
    for _ in 0..16 {
        bench.transmit.add(&[readable(0xc_0000, CHAIN as u32)]).unwrap();
    }
    bench.transmit.kick();
    for _ in 0..16 {
        let mut bytes = vec![0; CHAIN];
        bench.outside.read_exact(&mut bytes).unwrap();
        assert!(bytes == pattern);
        bench.transmit.wait_used();
    }
}

#[test]
fn the_end_of_the_stream_comes_after_its_last_byte() {
    let mut bench = Bench::open();
    bench.outside.write_all(b"last").unwrap();
    bench.outside.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(receive_into(&mut bench.receive, BUFFER + 0x2000), b"last");
    assert_eq!(bench.hear(), [1, 0, 0, 0, 6, 0, 0, 0]);
    // The other direction is still open.
    bench.transmit(b"yet");
    let mut bytes = [0; 3];
    bench.outside.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"yet");
}

#[test]
fn a_guest_that_writes_to_nobody_does_not_wait() {
    let mut bench = Bench::open();
    bench.outside.shutdown(std::net::Shutdown::Both).unwrap();
    bench.transmit(&[1; 0x1000]);
    bench.transmit.wait_used();
}

#[test]
fn last_words_go_out_before_the_machine_ends() {
    let mut bench = Bench::open();
    let mut outside = bench.outside.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        outside.read_to_end(&mut bytes).unwrap();
        bytes.len()
    });
    // Not kicked: as a guest leaves it that is stopped between the two.
    for _ in 0..16 {
        bench.transmit.add(&[readable(BUFFER, 0x4_0000)]).unwrap();
    }
    bench.emulator.as_ref().unwrap().finish();
    drop(bench);
    assert_eq!(reader.join().unwrap(), 16 * 0x4_0000);
}

#[test]
fn a_driver_that_breaks_a_queue_is_told_to_reset() {
    let mut bench = Bench::open();
    let distress = bench.console.distress().unwrap();
    let (raised, hears) = mpsc::channel();
    distress.on_raise(move || raised.send(()).unwrap());
    bench.transmit.add(&[readable(u64::MAX - 4, 64)]).unwrap();
    bench.transmit.kick();
    hears.recv().unwrap();
    assert!(distress.is_raised());
}

#[test]
fn messages_about_ports_that_are_not_there_change_nothing() {
    let mut bench = Bench::open();
    for (port, event) in [(0, 6), (2, 3), (255, 6), (1, 99)] {
        bench.say(port, event, 1);
    }
    bench.transmit(b"still here");
    bench.transmit.wait_used();
}

#[test]
fn a_driver_that_asks_on_and_on_without_listening_is_not_heard_for_ever() {
    let mut bench = Bench::open();
    bench.from_driver.ram.write_slice(&[1, 0, 0, 0, 3, 0, 1, 0], GuestAddress(BUFFER)).unwrap();
    let mut said = 0;
    while bench.from_driver.add(&[readable(BUFFER, 8)]).is_some() {
        said += 1;
    }
    bench.from_driver.kick();
    let mut taken = 0;
    // Each of its messages has two answers; when it takes them it is heard again, to the last.
    for _ in 0..2 * said {
        bench.hear();
        while bench.from_driver.take_used().is_some() {
            taken += 1;
        }
    }
    while taken < said {
        bench.from_driver.wait_used();
        taken += 1;
    }
}

#[test]
fn a_queue_belongs_to_its_port() {
    let table = [(0, (0, false)), (1, (0, true)), (4, (1, false)), (5, (1, true)), (7, (2, true))];
    for (queue, port) in table {
        assert_eq!(port_of_queue(queue), port);
    }
}
