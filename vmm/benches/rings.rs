//! What a ring costs the IOThread per request, without the disk: take a read of 4 KiB in three descriptors, parse it, write
//! its status, give it back, and show 64 of them at once. `cargo bench -p vmprof-vmm --bench rings`; one iteration is one
//! request. Instructions, which a busy machine does not change, are counted by valgrind, of 64 requests of one form after
//! a round that warms up; they need the program's symbols:
//!
//!   cargo rustc -p vmprof-vmm --bench rings --profile bench -- -C strip=none
//!   valgrind --tool=callgrind --toggle-collect='*measured*' rings-HASH --bench --test split/direct

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use vm_memory::{Bytes as _, GuestAddress};
use vmprof_sys::memory::GuestRam;
use vmprof_sys::segments::GuestBuffers;
use vmprof_sys::vring::{Descriptor, RingFeatures, RingSetup, Vring};
use vmprof_vmm::virtio::blk::request::{Limits, parse};

const BATCH: u16 = 64;
const DATA_BYTES: u32 = 4096;
const RING: u64 = 0x1_0000;
const DRIVER: u64 = 0x2_0000;
const DEVICE: u64 = 0x3_0000;
const TABLES: u64 = 0x4_0000;
const HEADERS: u64 = 0x5_0000;
/// As on a machine with more than 3 GiB: rings and data on both sides of the hole for devices.
const HIGH: u64 = 4 << 30;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const LIMITS: Limits =
    Limits { capacity_bytes: 1 << 30, read_only: false, most_segments: 126, longest_segment: 1 << 30 };

struct Bench {
    ram: Arc<GuestRam>,
    ring: Vring,
    slots: Vec<GuestBuffers>,
    chain: Vec<Descriptor>,
    done: Vec<(u16, GuestAddress)>,
    packed: bool,
    indirect: bool,
    rounds: u16,
}

impl Bench {
    fn new(packed: bool, indirect: bool) -> Bench {
        let ranges = [(GuestAddress(0), 64 << 20), (GuestAddress(HIGH), 64 << 20)];
        let ram = Arc::new(GuestRam::from_ranges(&ranges).unwrap());
        // A packed ring that one batch fills: every batch is a lap.
        let descriptors = if indirect { BATCH } else { 3 * BATCH };
        let size = if packed { descriptors } else { descriptors.next_power_of_two() };
        let setup = RingSetup { size, descriptors: RING, driver: DRIVER, device: DEVICE };
        let ring = Vring::new(&ram, &setup, RingFeatures { event_idx: true, packed }).unwrap();
        let slots = std::iter::repeat_with(|| GuestBuffers::new(&ram)).take(size.into()).collect();
        let (chain, done) = (Vec::new(), Vec::with_capacity(BATCH.into()));
        let bench = Bench { ram, ring, slots, chain, done, packed, indirect, rounds: 0 };
        for request in 0..BATCH {
            let header = GuestAddress(HEADERS + 32 * u64::from(request));
            bench.ram.write_obj(0_u32, header).unwrap();
            bench.ram.write_obj(u64::from(request) * 8, GuestAddress(header.0 + 8)).unwrap();
            if !packed {
                let head = if indirect { request } else { 3 * request };
                let entries = u64::from(size);
                for lap in 0..entries / u64::from(BATCH) {
                    let slot = lap * u64::from(BATCH) + u64::from(request);
                    bench.ram.write_obj(head, GuestAddress(DRIVER + 4 + 2 * slot)).unwrap();
                }
            }
        }
        bench
    }

    /// The three buffers of a request: address, length, flags.
    fn buffers(request: u16) -> [(u64, u32, u16); 3] {
        let request = u64::from(request);
        let header = HEADERS + 32 * request;
        let data = HIGH + u64::from(DATA_BYTES) * 2 * request;
        [(header, 16, NEXT), (data, DATA_BYTES, NEXT | WRITE), (header + 16, 1, WRITE)]
    }

    fn write(&self, at: u64, (address, len, flags): (u64, u32, u16), other: u16) {
        let [a, b] = if self.packed { [other, flags] } else { [flags, other] };
        let words = [address.to_le(), u64::from(len) | u64::from(a) << 32 | u64::from(b) << 48];
        self.ram.write_obj(words, GuestAddress(at)).unwrap();
    }

    /// The driver's part: a batch of requests, all of their descriptors written anew.
    fn offer(&mut self) {
        let lap = if self.rounds.is_multiple_of(2) { 1 << 7 } else { 1 << 15 };
        let lap = if self.packed { lap } else { 0 };
        for request in 0..BATCH {
            let at = |index: u16| RING + 16 * u64::from(index);
            if self.indirect {
                let table = TABLES + 64 * u64::from(request);
                for (step, buffer) in (0..).zip(Self::buffers(request)) {
                    self.write(table + 16 * u64::from(step), buffer, step + 1);
                }
                self.write(at(request), (table, 48, INDIRECT | lap), request);
            } else {
                for (step, (address, len, flags)) in (0..).zip(Self::buffers(request)) {
                    let index = 3 * request + step;
                    self.write(at(index), (address, len, flags | lap), index + 1);
                }
            }
        }
        self.rounds = self.rounds.wrapping_add(1);
        if !self.packed {
            let index = self.rounds.wrapping_mul(BATCH);
            self.ram.write_obj(index, GuestAddress(DRIVER + 2)).unwrap();
        }
    }

    /// The device's part.
    #[inline(always)]
    fn serve(&mut self) {
        while let Some(head) = self.ring.pop(&mut self.chain).unwrap() {
            let buffers = &mut self.slots[usize::from(head)];
            let request = parse(head, &self.chain, self.ring.regions(), &LIMITS, buffers).unwrap();
            self.done.push((head, black_box(request).status));
        }
        for (head, status) in self.done.drain(..) {
            assert!(self.ring.regions().write_byte(status.0, 0));
            self.ring.push_used(head, DATA_BYTES + 1);
        }
        black_box(self.ring.publish());
    }

    /// Not the same as `warm_up`, or the two would become one function.
    #[inline(never)]
    fn measured(&mut self) {
        self.serve();
        black_box(self.rounds);
    }

    #[inline(never)]
    fn warm_up(&mut self) {
        self.serve();
    }
}

fn rings(criterion: &mut Criterion) {
    for (format, packed) in [("split", false), ("packed", true)] {
        let mut group = criterion.benchmark_group(format);
        for (name, indirect) in [("direct", false), ("indirect", true)] {
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|requests| {
                    let mut bench = Bench::new(packed, indirect);
                    bench.offer();
                    bench.warm_up();
                    assert_eq!(bench.slots[0].bytes(), u64::from(DATA_BYTES));
                    let batches = requests.div_ceil(BATCH.into());
                    let mut spent = Duration::ZERO;
                    for _ in 0..batches {
                        bench.offer();
                        let begun = Instant::now();
                        bench.measured();
                        spent += begun.elapsed();
                    }
                    // Whole batches, of which the requests asked for are a part.
                    spent.mul_f64(requests as f64 / (batches * u64::from(BATCH)) as f64)
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, rings);
criterion_main!(benches);
