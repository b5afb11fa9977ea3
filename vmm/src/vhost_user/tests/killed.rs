//! A server that comes after a killed one, told by the inflight buffer what is to be done again.

use std::fs::File;
use std::os::fd::AsFd as _;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::pwrite;
use vm_memory::{Bytes as _, GuestAddress};
use vmprof_sys::vring::inflight::QueueRegion;

use super::*;

const BYTES: u64 = QueueRegion::bytes(64) as u64;

/// The inflight buffer that a killed server left: the used index that it had last written down, and its heads in the order
/// in which it took them.
fn left_behind(used: u16, heads: &[u16]) -> File {
    let file = File::from(memfd_create("inflight buffer of a test", MemfdFlags::CLOEXEC).unwrap());
    ftruncate(&file, 2 * BYTES).unwrap();
    pwrite(&file, &[1_u16, 64, 0, used].map(u16::to_le_bytes).concat(), 8).unwrap();
    for (number, head) in (9_u64..).zip(heads) {
        let at = 16 + 16 * u64::from(*head);
        pwrite(&file, &[1], at).unwrap();
        pwrite(&file, &number.to_le_bytes(), at + 8).unwrap();
    }
    file
}

#[test]
fn what_a_killed_server_had_taken_is_done_once_and_what_it_had_not_too() {
    let served = Served::new();
    let mut frontend = Frontend::connect(&served.path);
    frontend.greet(VERSION_1 | EVENT_IDX | FLUSH);
    frontend.share_memory();
    let mut disk = Disk::new(&frontend, 0);
    // The third was answered before the two that were taken before it, and the fourth nobody saw.
    let heads: Vec<u16> = (0..4).map(|tag| disk.offer(tag, 0, 8 * tag, 4096)).collect();
    let used = disk.queue.setup().device;
    disk.queue.ram.write_obj([heads[2].into(), 4097_u32], GuestAddress(used + 4)).unwrap();
    disk.queue.ram.write_obj(1_u16, GuestAddress(used + 2)).unwrap();
    assert_eq!(disk.queue.take_used(), Some((heads[2], 4097)));
    let file = left_behind(1, &[heads[1], heads[0]]);
    frontend.set_inflight((2 * BYTES, 0, 2), file.as_fd()).unwrap();
    frontend.set_up(&disk, 1);
    frontend.begin(&disk);
    let mut ended: Vec<u16> = (0..3).map(|_| disk.queue.wait_used().0).collect();
    ended.sort_unstable();
    assert_eq!(ended, [heads[0], heads[1], heads[3]]);
    assert_eq!((0..4).map(|tag| disk.status(tag)).collect::<Vec<_>>(), [0, 0, 0xff, 0]);
    disk.check(0x5a);
    assert_eq!(frontend.stop_ring(0), 6);
    // All are struck out.
    let mut region = vec![0; BYTES as usize];
    rustix::io::pread(&file, &mut region, 0).unwrap();
    assert!((0..64).all(|head| region[16 + 16 * head] == 0));
    assert_eq!(region[14..16], 6_u16.to_le_bytes());
    frontend.set_up(&disk, 6);
    frontend.begin(&disk);
    disk.check(0xa5);
}

#[test]
fn a_front_end_gets_a_file_for_its_inflight_buffer_and_no_other_goes() {
    let served = Served::new();
    let mut frontend = Frontend::connect(&served.path);
    frontend.greet(VERSION_1 | EVENT_IDX);
    frontend.share_memory();
    let mut ask = [0_u64, 0].map(u64::to_le_bytes).concat();
    ask.extend([2_u16, 64].map(u16::to_le_bytes).concat());
    ask.extend([0; 4]);
    let told = frontend.ask(GET_INFLIGHT_FD, &ask);
    assert_eq!(told[..8], (2 * BYTES).to_le_bytes());
    let file = left_behind(0, &[]);
    frontend.set_inflight((2 * BYTES, 0, 2), file.as_fd()).unwrap();
    let disk = Disk::new(&frontend, 0);
    frontend.set_up(&disk, 0);
    frontend.begin(&disk);
    frontend.set_inflight((2 * BYTES, 0, 2), file.as_fd()).unwrap_err();
    for (bytes, offset, queues) in
        [(BYTES, 0, 2), (4 * BYTES, 0, 3), (2 * BYTES, 4096, 2), (2 * BYTES, 64, 2)]
    {
        let served = Served::new();
        let mut frontend = Frontend::connect(&served.path);
        frontend.greet(VERSION_1);
        let refused = frontend.set_inflight((bytes, offset, queues), file.as_fd());
        assert!(refused.is_err(), "{bytes} bytes at {offset} for {queues} queues");
    }
}
