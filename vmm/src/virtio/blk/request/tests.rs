use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestMemoryBackend as _};
use vmprof_sys::memory::GuestRam;
use vmprof_sys::segments::MOST_SEGMENTS;
use vmprof_sys::vring::Vring;

use super::*;
use crate::virtio::mock::{self, Driver, NEXT, readable, writable};

const RAM_BYTES: usize = 1 << 20;
const HEADER: u64 = 0x8000;
const DATA: u64 = 0x10000;
const STATUS: u64 = 0x9000;
const TABLE: u64 = 0xa000;
const LIMITS: Limits =
    Limits { capacity_bytes: 1 << 20, read_only: false, most_segments: 14, longest_segment: 8192 };

struct Bench {
    ram: Arc<GuestRam>,
    driver: Driver,
    ring: Vring,
}

fn bench() -> Bench {
    let ram = mock::ram(RAM_BYTES);
    let driver = Driver::new(&ram, 0, 64, true);
    let ring = driver.device_side(0).ring;
    Bench { ram, driver, ring }
}

impl Bench {
    fn header(&self, kind: u32, sector: u64) {
        self.ram.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.ram.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
    }

    /// The next request that the driver has offered.
    fn next(&mut self, limits: &Limits) -> (Result<Request, RingError>, u64) {
        let (mut buffers, mut chain) = (GuestBuffers::new(&self.ram), Vec::new());
        let request = match self.ring.pop(&mut chain) {
            Ok(head) => {
                parse(head.expect("a request was offered"), &chain, self.ring.regions(), limits, &mut buffers)
            }
            Err(error) => Err(error),
        };
        (request, buffers.bytes())
    }

    fn parse(&mut self, buffers: &[Descriptor]) -> (Result<Request, RingError>, u64) {
        self.driver.add(buffers).unwrap();
        self.next(&LIMITS)
    }

    fn kind(&mut self, kind: u32, sector: u64, data: &[Descriptor]) -> Kind {
        self.header(kind, sector);
        let chain = [&[readable(HEADER, 16)], data, &[writable(STATUS, 1)]].concat();
        self.parse(&chain).0.unwrap().kind
    }
}

#[test]
fn the_header_may_be_cut_anywhere_and_the_status_share_the_last_buffer() {
    for cut in 1..16 {
        let mut bench = bench();
        bench.header(TYPE_IN, 3);
        let parts =
            [readable(HEADER, cut), readable(HEADER + u64::from(cut), 16 - cut), writable(DATA, 1025)];
        let (request, bytes) = bench.parse(&parts);
        let kind = Kind::Read { offset: 3 * 512 };
        let expected = Request { kind, status: GuestAddress(DATA + 1024), readable: 0, writable: 1024 };
        assert_eq!((request, bytes), (Ok(expected), 1024), "cut at {cut}");
    }
}

#[test]
fn data_may_follow_the_header_in_its_buffer() {
    let mut bench = bench();
    bench.header(TYPE_OUT, 1);
    let (request, bytes) =
        bench.parse(&[readable(HEADER, 16 + 512), readable(DATA, 512), writable(STATUS, 1)]);
    let request = request.unwrap();
    assert_eq!((request.kind, request.readable, bytes), (Kind::Write { offset: 512 }, 1024, 1024));
}

#[test]
fn every_rule_that_a_request_can_break_has_its_answer() {
    const IO_ERROR: Kind = Kind::Refused(Status::IoError);
    const UNSUPPORTED: Kind = Kind::Refused(Status::Unsupported);
    let sector = [writable(DATA, 512)];
    let last = (1 << 20) / 512 - 1;
    let many = [writable(DATA, 512); 15];
    let cases: [(&str, u32, u64, &[Descriptor], Kind); 16] = [
        ("the last sector", TYPE_IN, last, &sector, Kind::Read { offset: last * 512 }),
        ("one beyond", TYPE_IN, last + 1, &sector, IO_ERROR),
        ("bytes overflow", TYPE_IN, u64::MAX / 512 + 1, &sector, IO_ERROR),
        ("the end overflows", TYPE_IN, u64::MAX / 512, &sector, IO_ERROR),
        ("no data", TYPE_IN, 0, &[], Kind::Read { offset: 0 }),
        ("not whole sectors", TYPE_IN, 0, &[writable(DATA, 511)], IO_ERROR),
        (
            "whole in all",
            TYPE_IN,
            0,
            &[writable(DATA, 500), writable(DATA + 500, 12)],
            Kind::Read { offset: 0 },
        ),
        ("a read with data to read", TYPE_IN, 0, &[readable(DATA, 512)], IO_ERROR),
        ("a write with data to write", TYPE_OUT, 0, &sector, IO_ERROR),
        ("outside memory", TYPE_IN, 0, &[writable(RAM_BYTES as u64 - 256, 512)], IO_ERROR),
        ("around the end of addresses", TYPE_IN, 0, &[writable(u64::MAX - 255, 512)], IO_ERROR),
        ("too many segments", TYPE_IN, 0, &many, IO_ERROR),
        (
            "empty buffers count for nothing",
            TYPE_IN,
            0,
            &[writable(u64::MAX, 0), writable(DATA, 512)],
            Kind::Read { offset: 0 },
        ),
        ("flush", TYPE_FLUSH, 99, &[], Kind::Flush),
        ("secure erase, not offered", 14, 0, &sector, UNSUPPORTED),
        ("no type of any version", u32::MAX, 0, &[], UNSUPPORTED),
    ];
    for (name, kind, at, data, expected) in cases {
        assert_eq!(bench().kind(kind, at, data), expected, "{name}");
    }
    let mut bench = bench();
    bench.header(TYPE_OUT, 0);
    bench.driver.add(&[readable(HEADER, 16), readable(DATA, 512), writable(STATUS, 1)]).unwrap();
    let read_only = Limits { read_only: true, ..LIMITS };
    assert_eq!(bench.next(&read_only).0.unwrap().kind, Kind::Refused(Status::IoError));
}

#[test]
fn a_longer_piece_than_the_driver_was_told_of_is_an_io_error() {
    for (len, kind) in [(8192, Kind::Read { offset: 0 }), (8192 + 512, Kind::Refused(Status::IoError))] {
        let mut bench = bench();
        bench.header(TYPE_IN, 0);
        bench
            .driver
            .add(&[readable(HEADER, 16), writable(DATA, 512), writable(DATA, len), writable(STATUS, 1)])
            .unwrap();
        assert_eq!(bench.next(&LIMITS).0.unwrap().kind, kind, "{len}");
    }
}

#[test]
fn an_indirect_request_is_a_request() {
    let mut bench = bench();
    bench.header(TYPE_IN, 2);
    let parts = [readable(HEADER, 16), writable(DATA, 512), writable(DATA + 4096, 512), writable(STATUS, 1)];
    bench.driver.add_indirect(TABLE, &parts).unwrap();
    let (request, bytes) = bench.next(&LIMITS);
    assert_eq!((request.unwrap().kind, bytes), (Kind::Read { offset: 1024 }, 1024));
}

#[test]
fn more_pieces_than_the_kernel_takes_are_an_io_error() {
    let mut bench = bench();
    bench.header(TYPE_IN, 0);
    let limits = Limits { most_segments: u32::MAX, ..LIMITS };
    let table = 0x40000;
    bench.driver.write_descriptor_at(table, readable(HEADER, 16), NEXT, 1);
    let pieces = MOST_SEGMENTS as u16 - 2;
    for index in 1..=pieces {
        bench.driver.write_descriptor_at(table + 16 * u64::from(index), writable(DATA, 1), NEXT, index + 1);
    }
    bench.driver.write_descriptor_at(table + 16 * u64::from(pieces + 1), writable(STATUS, 1), 0, 0);
    let len = 16 * (u32::from(pieces) + 2);
    bench.driver.write_descriptor(0, readable(table, len), mock::INDIRECT, 0);
    bench.driver.offer(0);
    assert_eq!(
        bench.next(&limits).0.unwrap().kind,
        Kind::Refused(Status::IoError),
        "not whole sectors either"
    );
    bench.driver.write_descriptor_at(table + 16 * u64::from(pieces + 1), writable(DATA, 1), NEXT, pieces + 2);
    bench.driver.write_descriptor_at(table + 16 * u64::from(pieces + 2), writable(STATUS, 1), 0, 0);
    bench.driver.write_descriptor(0, readable(table, len + 16), mock::INDIRECT, 0);
    bench.driver.offer(0);
    assert!(bench.next(&limits).0.is_err(), "and a chain has an end");
}

fn descriptors() -> impl Strategy<Value = Vec<(u64, u32, u16, u16)>> {
    let address = prop_oneof![Just(HEADER), Just(DATA), 0..(2 * RAM_BYTES as u64), any::<u64>()];
    let len = prop_oneof![Just(16_u32), Just(512), Just(1), 0..40_000_u32, any::<u32>()];
    proptest::collection::vec((address, len, 0..8_u16, 0..20_u16), 16)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever the descriptors say: no panic, and what is accepted stays within the disk, the memory and the limits.
    #[test]
    fn what_is_accepted_is_within_every_limit(table in descriptors(), kind in 0..12_u32, sector in prop_oneof![0..4_000_u64, any::<u64>()]) {
        let mut bench = bench();
        bench.header(kind, sector);
        for (index, (address, len, flags, next)) in (0..).zip(table) {
            bench.driver.write_descriptor(index, readable(address, len), flags, next);
        }
        bench.driver.offer(0);
        let (request, bytes) = bench.next(&LIMITS);
        if let Ok(request) = request {
            prop_assert!(bench.ram.address_in_range(request.status));
            if let Kind::Read { offset } | Kind::Write { offset } = request.kind {
                prop_assert_eq!(bytes, request.readable + request.writable);
                prop_assert!(bytes % 512 == 0 && offset % 512 == 0);
                prop_assert!(offset.checked_add(bytes).unwrap() <= LIMITS.capacity_bytes);
            }
        }
    }
}
