//! A guest's frames through a ring of either format: each is dropped, or lies in guest memory and within the device's limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vmprof_sys::segments::GuestBuffers;
use vmprof_vmm::virtio::net::outgoing::{Limits, may_go};

mod hostile;

const HEADER_BYTES: u64 = 12;

fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    let (packed, offloads) = (first & 1 != 0, first & 2 != 0);
    let limits = Limits { longest_frame: if first & 4 != 0 { 86 } else { 1518 }, offloads };
    let mut list = None;
    hostile::run(packed, data, &mut |_, chain, regions| {
        let buffers = list.get_or_insert_with(|| GuestBuffers::new(regions.ram()));
        buffers.clear();
        let mut given = chain.iter().filter(|descriptor| !descriptor.writable);
        let pushed = given.try_for_each(|descriptor| buffers.push(descriptor.address, descriptor.len));
        if pushed.is_err() || !may_go(buffers, &limits) {
            return;
        }
        let bytes = buffers.bytes();
        assert!(bytes >= HEADER_BYTES + 14 && bytes <= HEADER_BYTES + 65_535 + 18);
        let mut whole = vec![0; bytes as usize];
        // Every byte of it is there to be sent.
        assert_eq!(buffers.take_front(&mut whole), whole.len());
        let segmented = whole[1] != 0;
        assert!(segmented || bytes <= HEADER_BYTES + limits.longest_frame as u64);
        assert!(offloads || !segmented && whole[0] & 1 == 0);
    });
});
