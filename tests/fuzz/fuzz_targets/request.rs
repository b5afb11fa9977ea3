//! A disk's requests through a ring of either format: each is refused, or lies within the disk, guest memory and the limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_memory::GuestMemoryBackend as _;
use vmprof_sys::segments::GuestBuffers;
use vmprof_vmm::virtio::blk::request::{Kind, Limits, parse};

mod hostile;

const CAPACITY_BYTES: u64 = 32 * 512;

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let (packed, read_only) = (first & 1 != 0, first & 2 != 0);
    let limits =
        Limits { capacity_bytes: CAPACITY_BYTES, read_only, most_segments: 14, longest_segment: 12 << 10 };
    let mut list = None;
    hostile::run(packed, data, &mut |head, chain, regions| {
        let buffers = list.get_or_insert_with(|| GuestBuffers::new(regions.ram()));
        let Ok(request) = parse(head, chain, regions, &limits, buffers) else { return };
        assert!(regions.ram().address_in_range(request.status));
        let (Kind::Read { offset } | Kind::Write { offset }) = request.kind else { return };
        assert!(!(read_only && matches!(request.kind, Kind::Write { .. })));
        assert_eq!(buffers.bytes(), request.readable + request.writable);
        assert!(offset % 512 == 0 && buffers.bytes() % 512 == 0);
        assert!(offset.checked_add(buffers.bytes()).is_some_and(|end| end <= CAPACITY_BYTES));
        // Every byte of it is there to be read.
        let mut bytes = vec![0; buffers.bytes() as usize];
        assert_eq!(buffers.take_front(&mut bytes), bytes.len());
    });
});
