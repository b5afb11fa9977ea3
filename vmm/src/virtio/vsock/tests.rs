use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use std::sync::mpsc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER_BYTES, HOST_CID, Header, Operation, RECEIVES_NO_MORE, SENDS_NO_MORE};
use super::*;
use crate::emulator::Emulator;
use crate::virtio::mock::{self, Driver, readable, writable};

const QUEUE: u64 = 0x1_0000;
const TO_DEVICE: u64 = 0x8_0000;
const FROM_DEVICE: u64 = 0xc_0000;
/// A buffer of the driver's: a header, and a page.
const BUFFER_BYTES: u32 = 4096 + HEADER_BYTES as u32;
/// Where the guest listens.
const PORT: u32 = 1000;
/// What the guest says that it can keep of a connection.
const ROOM: u32 = 6000;

/// A device that is live, its driver, and the socket outside.
struct Bench {
    vsock: Vsock,
    emulator: Option<Emulator>,
    directory: tempfile::TempDir,
    receive: Driver,
    transmit: Driver,
}

impl Bench {
    fn new() -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let (vsock, handler) = Vsock::new(listener).unwrap();
        let emulator = Emulator::start(&vec![], vec![Box::new(handler)], mpsc::channel().0).unwrap();
        let ram = mock::ram(0x10_0000);
        let driver = |position: u64| Driver::new(&ram, QUEUE + position * 0x1_0000, 16, true);
        let [receive, transmit] = [0, 1].map(driver);
        let mut bench = Bench { vsock, emulator: Some(emulator), directory, receive, transmit };
        bench.activate();
        bench
    }

    fn activate(&mut self) {
        let queues = vec![self.receive.device_side(RECEIVE), self.transmit.device_side(TRANSMIT)];
        self.vsock.activate(0, queues).unwrap();
        // Answered after the queues were taken: a caller that came before them would be closed.
        assert_eq!(self.vsock.stop_queue(EVENT), None);
    }

    /// Somebody outside who asks for [`PORT`].
    fn caller(&self) -> UnixStream {
        let mut caller = self.silent_caller();
        caller.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
        caller
    }

    fn silent_caller(&self) -> UnixStream {
        UnixStream::connect(self.directory.path().join("s")).unwrap()
    }

    /// One that the guest has accepted, and the packet that asked for it.
    fn connection(&mut self) -> (UnixStream, Header) {
        let mut caller = self.caller();
        let (asked, _) = self.hear();
        assert_eq!((asked.operation, asked.target_port), (Operation::Request, PORT));
        self.say(&asked, Operation::Response, b"");
        let mut line = [0; 14];
        caller.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {}\n", asked.source_port).as_bytes());
        (caller, asked)
    }

    /// The next packet of the device's.
    fn hear(&mut self) -> (Header, Vec<u8>) {
        self.receive.add(&[writable(FROM_DEVICE, BUFFER_BYTES)]).unwrap();
        self.receive.kick();
        let (_, written) = self.receive.wait_used();
        let mut bytes = vec![0; written as usize];
        self.receive.ram.read_slice(&mut bytes, GuestAddress(FROM_DEVICE)).unwrap();
        let header = Header::parse(bytes.first_chunk().unwrap());
        assert_eq!((header.source_cid, header.target_cid), (HOST_CID, GUEST_CID));
        assert_eq!(header.bytes as usize, bytes.len() - HEADER_BYTES);
        (header, bytes.split_off(HEADER_BYTES))
    }

    /// What the guest answers to `asked`.
    fn say(&mut self, asked: &Header, operation: Operation, payload: &[u8]) {
        self.send(&answer(asked, operation, payload.len() as u32), payload);
    }

    fn send(&mut self, header: &Header, payload: &[u8]) {
        self.transmit.ram.write_slice(&header.write(), GuestAddress(TO_DEVICE)).unwrap();
        self.transmit.ram.write_slice(payload, GuestAddress(TO_DEVICE + 0x1000)).unwrap();
        let mut chain = vec![readable(TO_DEVICE, HEADER_BYTES as u32)];
        if !payload.is_empty() {
            chain.push(readable(TO_DEVICE + 0x1000, payload.len() as u32));
        }
        self.transmit.add(&chain).unwrap();
        self.transmit.kick();
        self.transmit.wait_used();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.vsock.reset();
        self.emulator.take().unwrap().stop().unwrap();
    }
}

fn answer(asked: &Header, operation: Operation, bytes: u32) -> Header {
    Header {
        source_cid: GUEST_CID,
        target_cid: HOST_CID,
        source_port: asked.target_port,
        target_port: asked.source_port,
        bytes,
        operation,
        buffer_bytes: ROOM,
        ..*asked
    }
}

fn is_closed(caller: &mut UnixStream) -> bool {
    match caller.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn the_configuration_is_the_guests_address() {
    let bench = Bench::new();
    let mut cid = [0; 8];
    bench.vsock.read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), GUEST_CID);
    bench.vsock.read_config(u32::MAX, &mut cid);
    assert_eq!(cid, [0; 8]);
}

#[test]
fn bytes_travel_both_ways_and_each_way_ends_by_itself() {
    let mut bench = Bench::new();
    let (mut caller, asked) = bench.connection();
    caller.write_all(b"to the guest").unwrap();
    let (header, payload) = bench.hear();
    assert_eq!((header.operation, &payload[..]), (Operation::Data, &b"to the guest"[..]));
    caller.shutdown(std::net::Shutdown::Write).unwrap();
    let (header, _) = bench.hear();
    assert_eq!((header.operation, header.flags), (Operation::Shutdown, SENDS_NO_MORE));
    bench.say(&asked, Operation::Data, b"from it");
    let mut bytes = [0; 7];
    caller.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"from it");
    // As Linux closes a socket: it says so and waits for the reset.
    let both = SENDS_NO_MORE | RECEIVES_NO_MORE;
    bench.send(&Header { flags: both, ..answer(&asked, Operation::Shutdown, 0) }, b"");
    assert!(is_closed(&mut caller));
    assert_eq!(bench.hear().0.operation, Operation::Reset);
}

#[test]
fn the_guest_is_sent_no_more_than_it_has_room_for() {
    let mut bench = Bench::new();
    let (mut caller, asked) = bench.connection();
    caller.write_all(&[1; 10_000]).unwrap();
    let mut got = 0;
    while got < ROOM as usize {
        let (header, payload) = bench.hear();
        assert_eq!(header.operation, Operation::Data);
        got += payload.len();
    }
    assert_eq!(got, ROOM as usize);
    // Then it is asked for more, once.
    assert_eq!(bench.hear().0.operation, Operation::CreditRequest);
    let update = |forwarded| Header { forwarded, ..answer(&asked, Operation::CreditUpdate, 0) };
    bench.send(&update(100), b"");
    assert_eq!(bench.hear().1.len(), 100);
    bench.send(&update(ROOM), b"");
    while got < 9_900 {
        let (header, payload) = bench.hear();
        if header.operation == Operation::Data {
            got += payload.len();
        }
    }
    assert_eq!(got, 9_900);
    // It cannot have forwarded what it was never sent.
    bench.send(&update(u32::MAX / 2), b"");
    caller.write_all(b"x").unwrap();
    assert_eq!(bench.hear().0.operation, Operation::CreditRequest);
}

#[test]
fn the_guest_hears_of_room_once_the_outside_has_taken_what_it_sent() {
    let mut bench = Bench::new();
    let (mut caller, asked) = bench.connection();
    let page = [7; 4096];
    for _ in 0..32 {
        bench.say(&asked, Operation::Data, &page);
    }
    let mut bytes = vec![0; 32 * 4096];
    caller.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7));
    let (header, _) = bench.hear();
    assert_eq!(header.operation, Operation::CreditUpdate);
    assert!(header.forwarded > 0 && header.forwarded <= 32 * 4096);
    bench.say(&asked, Operation::CreditRequest, b"");
    assert_eq!(bench.hear().0.forwarded, 32 * 4096);
}

#[test]
fn a_guest_that_sends_more_than_it_may_is_reset() {
    let mut bench = Bench::new();
    let (_caller, asked) = bench.connection();
    // The outside takes nothing: what its socket does not hold stays here, up to the room that was told.
    let mut reset = false;
    for _ in 0..1000 {
        bench.say(&asked, Operation::Data, &[0; 8192]);
        if let Some(operation) = bench.glance()
            && operation == Operation::Reset
        {
            reset = true;
            break;
        }
    }
    assert!(reset);
}

impl Bench {
    /// What the device has said, if it has; all its buffers are the same memory, so of several it is the last.
    fn glance(&mut self) -> Option<Operation> {
        let Some((_, written)) = self.receive.take_used() else {
            self.receive.add(&[writable(FROM_DEVICE, BUFFER_BYTES)]);
            self.receive.kick();
            return None;
        };
        let mut bytes = [0; HEADER_BYTES];
        assert!(written as usize >= HEADER_BYTES);
        self.receive.ram.read_slice(&mut bytes, GuestAddress(FROM_DEVICE)).unwrap();
        Some(Header::parse(&bytes).operation)
    }
}

#[test]
fn a_port_at_which_nobody_listens_closes_the_caller() {
    let mut bench = Bench::new();
    let mut caller = bench.caller();
    let (asked, _) = bench.hear();
    bench.say(&asked, Operation::Reset, b"");
    assert!(is_closed(&mut caller));
}

#[test]
fn nobody_is_called_in_a_guest_without_a_driver() {
    let mut bench = Bench::new();
    let (mut caller, _) = bench.connection();
    bench.vsock.reset();
    assert!(is_closed(&mut caller));
    assert!(is_closed(&mut bench.caller()));
    let ram = bench.receive.ram.clone();
    [bench.receive, bench.transmit] = [0, 1].map(|at| Driver::new(&ram, QUEUE + at * 0x1_0000, 16, true));
    bench.activate();
    bench.connection();
}

#[test]
fn what_is_no_greeting_is_closed() {
    let bench = Bench::new();
    for nonsense in
        ["\n", "CONNECT\n", "CONNECT x\n", "connect 1\n", "CONNECT 99999999999\n", &"x".repeat(100)]
    {
        let mut caller = bench.silent_caller();
        caller.write_all(nonsense.as_bytes()).unwrap();
        assert!(is_closed(&mut caller), "{nonsense:?}");
    }
}

#[test]
fn a_caller_that_goes_is_reset_in_the_guest() {
    let mut bench = Bench::new();
    let (caller, asked) = bench.connection();
    drop(caller);
    // At once, or the end of what it sends first, where the device reads that before it hears the rest.
    let mut told = 0;
    while told != SENDS_NO_MORE | RECEIVES_NO_MORE {
        let (header, _) = bench.hear();
        assert_eq!((header.operation, header.flags & told), (Operation::Shutdown, 0));
        told |= header.flags;
    }
    bench.say(&asked, Operation::Data, b"to nobody");
    assert_eq!(bench.hear().0.operation, Operation::Reset);
}

#[test]
fn packets_of_no_connection_are_refused_and_those_of_strangers_dropped() {
    let mut bench = Bench::new();
    let (mut caller, asked) = bench.connection();
    let stray = Header { target_port: 7, ..answer(&asked, Operation::Request, 0) };
    bench.send(&stray, b"");
    let (refused, _) = bench.hear();
    assert_eq!((refused.operation, refused.source_port, refused.target_port), (Operation::Reset, 7, PORT));
    // Sequenced packets are not offered.
    bench.send(&Header { kind: 2, ..answer(&asked, Operation::Data, 0) }, b"");
    assert_eq!(bench.hear().0.kind, 2);
    for stranger in [
        Header { source_cid: 9, ..answer(&asked, Operation::Data, 0) },
        Header { target_cid: 9, ..answer(&asked, Operation::Data, 0) },
    ] {
        bench.send(&stranger, b"");
    }
    bench.say(&asked, Operation::Data, b"still there");
    let mut bytes = [0; 11];
    caller.read_exact(&mut bytes).unwrap();
}

#[test]
fn nothing_that_a_driver_sends_breaks_more_than_its_own_connection() {
    let mut bench = Bench::new();
    let (mut caller, asked) = bench.connection();
    // Shorter than a header, and a payload that is not there.
    bench.transmit.add(&[readable(TO_DEVICE, 10)]).unwrap();
    bench.transmit.kick();
    bench.transmit.wait_used();
    for operation in (0..20).map(|number| Operation::Other(number + 100)) {
        let (mut other, asked) = bench.connection();
        bench.say(&asked, operation, b"");
        assert_eq!(bench.hear().0.operation, Operation::Reset);
        assert!(is_closed(&mut other));
    }
    let (mut other, short) = bench.connection();
    bench.send(&answer(&short, Operation::Data, 5000), b"x");
    assert_eq!(bench.hear().0.operation, Operation::Reset);
    assert!(is_closed(&mut other));
    bench.say(&asked, Operation::Data, b"unharmed");
    let mut bytes = [0; 8];
    caller.read_exact(&mut bytes).unwrap();
}

#[test]
fn a_ring_that_is_broken_is_told_and_its_callers_closed() {
    let mut bench = Bench::new();
    let (mut caller, _) = bench.connection();
    bench.transmit.add(&[readable(u64::MAX - 4096, 44)]).unwrap();
    bench.transmit.kick();
    assert!(is_closed(&mut caller));
    while !bench.vsock.distress().unwrap().is_raised() {
        std::thread::yield_now();
    }
    assert!(is_closed(&mut bench.caller()));
}

#[test]
fn a_queue_that_is_stopped_says_where_it_stands_and_goes_on_there() {
    let mut bench = Bench::new();
    let (mut caller, asked) = bench.connection();
    let stood = bench.vsock.stop_queue(TRANSMIT).unwrap();
    assert!(stood.available > 0);
    assert_eq!(bench.vsock.stop_queue(TRANSMIT), None);
    let mut active = bench.transmit.device_side(TRANSMIT);
    let (setup, features) = (bench.transmit.setup(), bench.transmit.features());
    active.ring = vmprof_sys::vring::Vring::at(&bench.transmit.ram, &setup, features, stood).unwrap();
    bench.vsock.start_queue(active).unwrap();
    bench.say(&asked, Operation::Data, b"later");
    let mut bytes = [0; 5];
    caller.read_exact(&mut bytes).unwrap();
}

#[test]
fn what_the_guest_said_last_comes_out_before_the_machine_ends() {
    let mut bench = Bench::new();
    let (mut caller, asked) = bench.connection();
    let page = [3; 8192];
    for _ in 0..30 {
        bench.say(&asked, Operation::Data, &page);
    }
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = caller.read_to_end(&mut bytes);
        bytes.len()
    });
    bench.emulator.as_ref().unwrap().finish();
    drop(bench);
    assert_eq!(reader.join().unwrap(), 30 * 8192);
}

#[test]
fn callers_that_come_and_go_leave_nothing_behind_with_a_guest_that_takes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("s");
    let mut muxer = Muxer::new(GUEST_CID, UnixListener::bind(&place).unwrap()).unwrap();
    for _ in 0..1500 {
        let mut caller = UnixStream::connect(&place).unwrap();
        caller.write_all(b"CONNECT 1000\n").unwrap();
        muxer.look_outside(true);
        assert!(muxer.has_word(), "the guest is to be asked");
        drop(caller);
        muxer.look_outside(true);
        muxer.check();
    }
    assert!(!muxer.has_word());
}

proptest! {
    #[test]
    fn whatever_guest_and_callers_do_the_rules_hold_and_others_are_served(
        script in proptest::collection::vec(any::<u8>(), 0..400)
    ) {
        hostile::run(&script);
    }
}
