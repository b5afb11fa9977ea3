//! Transfers driven by hand: each operation is carried out here, whole, in part or not at all.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use proptest::prelude::*;
use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::backing::Alignment;
use crate::backing::bounce::MOST_BOUNCES;
use crate::config::Disk;
use crate::virtio::mock;

const DISK_BYTES: u64 = 1 << 20;

fn backing(size_bytes: u64, alignment: Alignment) -> Backing {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size_bytes).unwrap();
    let disk = Disk::named("data", Path::new("data"), vec![0]);
    Backing::new(&disk, file, size_bytes, alignment).unwrap()
}

const BLOCKS_OF_4096: Alignment = Alignment { offset: 4096, memory: 4096 };
const SECTORS: Alignment = Alignment { offset: 512, memory: 512 };

fn transfer(
    pieces: &[(u64, u32)],
    ram_bytes: usize,
) -> (std::sync::Arc<vmprof_sys::memory::GuestRam>, Transfer) {
    let ram = mock::ram(ram_bytes);
    let mut guest = GuestBuffers::new(&ram);
    pieces.iter().for_each(|(address, len)| guest.push(*address, *len).unwrap());
    (ram, Transfer::new(Box::new(guest)))
}

/// What happens to an operation: `Ok(n)` moves at most n bytes.
type Fate = Result<usize, Errno>;

/// Does what the kernel would, on a buffer of ours or, for the guest's, through its copies.
fn perform(backing: &Backing, operation: Operation, buffers: &mut Buffers, fate: Fate) -> io::Result<u32> {
    let most = fate.map_err(io::Error::from)?;
    let bytes = match buffers {
        Buffers::Bounce { buffer, bytes } => &mut buffer.as_mut_slice()[..*bytes],
        Buffers::Guest(_) | Buffers::None => panic!("only bounced transfers are driven by hand"),
    };
    let most = most.min(bytes.len());
    let bytes = &mut bytes[..most];
    let (offset, moved) = match operation {
        Operation::Read { offset } => (offset, backing.file.read_at(bytes, offset)?),
        Operation::Write { offset, .. } => (offset, backing.file.write_at(bytes, offset)?),
        other => panic!("a transfer reads and writes: {other:?}"),
    };
    assert!(offset.is_multiple_of(backing.alignment.offset), "offsets are whole blocks");
    Ok(moved as u32)
}

/// Runs a transfer to its end, each operation with the next of `fates`, then whole.
fn run(
    transfer: &mut Transfer,
    backing: &Backing,
    pool: &mut BouncePool,
    fates: impl IntoIterator<Item = Fate>,
) -> io::Result<()> {
    let mut fates = fates.into_iter();
    for _ in 0..10_000 {
        match transfer.step(backing, pool) {
            Step::Done => return Ok(()),
            Step::Wait => panic!("nobody else is here to wait for"),
            Step::Start(operation, mut buffers) => {
                let fate = fates.next().unwrap_or(Ok(usize::MAX));
                let result = perform(backing, operation, &mut buffers, fate);
                transfer.completed(result, buffers, backing, pool)?;
            }
        }
    }
    panic!("the transfer did not end");
}

#[test]
fn a_sector_written_into_a_larger_block_leaves_its_neighbours() {
    let backing = backing(DISK_BYTES, BLOCKS_OF_4096);
    let all: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512) as u8).collect();
    backing.file.write_all_at(&all, 0).unwrap();
    let (ram, mut transfer) = transfer(&[(0x1010, 1024), (0x3000, 8192)], 1 << 16);
    ram.write_slice(&[0xee; 0x8000], GuestAddress(0)).unwrap();
    transfer.begin(Direction::Write { durable: false }, 4096 - 512);
    let mut pool = BouncePool::new(&backing);
    run(&mut transfer, &backing, &mut pool, []).unwrap();
    let mut expected = all;
    expected[4096 - 512..][..1024 + 8192].fill(0xee);
    let mut found = vec![0; DISK_BYTES as usize];
    backing.file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == expected);
    assert!(backing.gate.enter(&(0..DISK_BYTES)), "the gate is free again");
}

#[test]
fn a_block_in_two_pieces_of_memory_is_bounced() {
    let addresses_are_free = Alignment { offset: 4096, memory: 4 };
    let backing = backing(DISK_BYTES, addresses_are_free);
    let (ram, mut transfer) = transfer(&[(0x1200, 3584), (0x3000, 4096), (0x5000, 512)], 1 << 16);
    for (address, len, value) in [(0x1200, 3584, 1), (0x3000, 4096, 2), (0x5000, 512, 3)] {
        ram.write_slice(&vec![value; len], GuestAddress(address)).unwrap();
    }
    transfer.begin(Direction::Write { durable: false }, 0);
    run(&mut transfer, &backing, &mut BouncePool::new(&backing), []).unwrap();
    let mut found = vec![0; 8192];
    backing.file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == [vec![1; 3584], vec![2; 4096], vec![3; 512]].concat());
}

#[test]
fn a_block_that_another_write_holds_is_waited_for() {
    let backing = backing(DISK_BYTES, BLOCKS_OF_4096);
    let mut pool = BouncePool::new(&backing);
    let (_ram, mut first) = transfer(&[(0, 512)], 1 << 16);
    let (_other, mut second) = transfer(&[(0, 512)], 1 << 16);
    first.begin(Direction::Write { durable: false }, 0);
    second.begin(Direction::Write { durable: false }, 512);
    let Step::Start(operation, mut buffers) = first.step(&backing, &mut pool) else { panic!("it is free") };
    assert!(matches!(second.step(&backing, &mut pool), Step::Wait));
    let result = perform(&backing, operation, &mut buffers, Err(Errno::IO));
    first.completed(result, buffers, &backing, &mut pool).unwrap_err();
    assert!(matches!(second.step(&backing, &mut pool), Step::Start(..)), "an error leaves the gate too");
}

#[test]
fn requests_beyond_the_pool_wait_for_a_buffer() {
    let backing = backing(DISK_BYTES, SECTORS);
    let mut pool = BouncePool::new(&backing);
    let mut transfers: Vec<_> = (0..=MOST_BOUNCES).map(|_| transfer(&[(1, 512)], 1 << 16).1).collect();
    let mut last = transfers.pop().unwrap();
    let mut held = Vec::new();
    for transfer in &mut transfers {
        let Step::Start(operation, buffers) = transfer.step(&backing, &mut pool) else {
            panic!("there is one")
        };
        held.push((operation, buffers));
    }
    assert!(matches!(last.step(&backing, &mut pool), Step::Wait));
    let (operation, mut buffers) = held.pop().unwrap();
    let result = perform(&backing, operation, &mut buffers, Ok(usize::MAX));
    transfers.last_mut().unwrap().completed(result, buffers, &backing, &mut pool).unwrap();
    assert!(matches!(last.step(&backing, &mut pool), Step::Start(..)));
}

#[test]
fn an_error_that_stays_is_believed_and_one_that_passes_is_not() {
    let backing = backing(DISK_BYTES, SECTORS);
    let mut pool = BouncePool::new(&backing);
    for direction in [Direction::Read, Direction::Write { durable: true }] {
        let (_ram, mut transfer) = transfer(&[(1, 512)], 1 << 16);
        transfer.begin(direction, 0);
        let fates = [Err(Errno::AGAIN), Err(Errno::INTR), Err(Errno::AGAIN), Ok(usize::MAX)];
        run(&mut transfer, &backing, &mut pool, fates).unwrap();
        let (_ram, mut transfer) = self::transfer(&[(1, 512)], 1 << 16);
        transfer.begin(direction, 0);
        let error = run(&mut transfer, &backing, &mut pool, [Err(Errno::IO)]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
        let (_ram, mut transfer) = self::transfer(&[(1, 512)], 1 << 16);
        transfer.begin(direction, 0);
        let error =
            run(&mut transfer, &backing, &mut pool, std::iter::repeat(Err(Errno::AGAIN))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::AGAIN.raw_os_error()), "patience ends");
    }
}

/// A request that stopped the machine goes on where it failed, whichever of its operations that was.
#[test]
fn what_failed_can_be_tried_again_and_moves_the_same_bytes() {
    for failing in 0..4 {
        let backing = backing(DISK_BYTES, BLOCKS_OF_4096);
        let mut pool = BouncePool::new(&backing);
        let (ram, mut transfer) = transfer(&[(0x1010, 1024), (0x3000, 8192)], 1 << 16);
        let bytes: Vec<u8> = (0..9_216).map(|at| (at / 3) as u8).collect();
        ram.write_slice(&bytes[..1024], GuestAddress(0x1010)).unwrap();
        ram.write_slice(&bytes[1024..], GuestAddress(0x3000)).unwrap();
        transfer.begin(Direction::Write { durable: false }, 512);
        let fates = std::iter::repeat_n(Ok(usize::MAX), failing).chain([Err(Errno::NOSPC)]);
        let failed = run(&mut transfer, &backing, &mut pool, fates).is_err();
        assert_eq!(failed, failing < 2, "the blocks are read once and written once");
        if failed {
            assert!(backing.gate.enter(&(0..DISK_BYTES)), "others may go on meanwhile");
            backing.gate.leave(&(0..DISK_BYTES));
            transfer.retry();
            run(&mut transfer, &backing, &mut pool, []).unwrap();
        }
        let mut found = vec![0xff; 9_216 + 1_024];
        backing.file.read_exact_at(&mut found, 0).unwrap();
        assert!(
            found[..512] == [0; 512] && found[512..][..9_216] == bytes && found[512 + 9_216..] == [0; 512]
        );
    }
}

#[test]
fn zeros_are_written_into_larger_blocks_and_over_several_turns() {
    for (alignment, offset, bytes) in [
        (BLOCKS_OF_4096, 512, 3072),
        (BLOCKS_OF_4096, 3584, 600 << 10),
        (SECTORS, 512, 512),
        (Alignment::NONE, 1024, 512),
    ] {
        let backing = backing(DISK_BYTES, alignment);
        backing.file.write_all_at(&vec![7; DISK_BYTES as usize], 0).unwrap();
        let (_ram, mut transfer) = transfer(&[], 1 << 16);
        let mut pool = BouncePool::new(&backing);
        transfer.begin_zeroes(offset, bytes);
        for fate in
            [Ok(usize::MAX), Err(Errno::AGAIN), Ok(512)].into_iter().chain(std::iter::repeat(Ok(usize::MAX)))
        {
            let Step::Start(operation, mut buffers) = transfer.step_zeroes(&backing, &mut pool) else {
                break;
            };
            let result = perform(&backing, operation, &mut buffers, fate);
            transfer.completed(result, buffers, &backing, &mut pool).unwrap();
        }
        let mut found = vec![0; DISK_BYTES as usize];
        backing.file.read_exact_at(&mut found, 0).unwrap();
        let mut expected = vec![7; DISK_BYTES as usize];
        expected[offset as usize..][..bytes as usize].fill(0);
        assert!(found == expected, "{alignment:?} {offset} {bytes}");
        assert!(backing.gate.enter(&(0..DISK_BYTES)));
    }
}

#[test]
fn a_write_that_gets_nowhere_finds_no_space() {
    let backing = backing(DISK_BYTES, SECTORS);
    let mut pool = BouncePool::new(&backing);
    let (_ram, mut transfer) = transfer(&[(1, 512)], 1 << 16);
    transfer.begin(Direction::Write { durable: false }, 0);
    let error = run(&mut transfer, &backing, &mut pool, std::iter::repeat(Ok(0))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
}

proptest! {
    /// Odd addresses, blocks larger than sectors, operations cut short or put off: the bytes are right all the same.
    #[test]
    fn bounced_transfers_move_the_right_bytes(
        sector in 0..64_u64,
        sectors in 1..1_200_u32,
        shift in 1..4_000_u64,
        large_blocks: bool,
        write: bool,
        fates in proptest::collection::vec(prop_oneof![
            Just(Err(Errno::AGAIN)),
            Just(Err(Errno::INTR)),
            (1..64_usize).prop_map(|sectors| Ok(512 * sectors)),
            Just(Ok(usize::MAX)),
        ], 0..12),
    ) {
        let backing = backing(DISK_BYTES, if large_blocks { BLOCKS_OF_4096 } else { SECTORS });
        let disk: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 7) as u8).collect();
        backing.file.write_all_at(&disk, 0).unwrap();
        // Never a multiple of 512, so that every operation is bounced.
        let address = shift * 2 + 1;
        let bytes = sectors as usize * 512;
        let (ram, mut transfer) = transfer(&[(address, 512 * sectors)], 1 << 20);
        let memory: Vec<u8> = (0..bytes).map(|at| (at / 5) as u8 ^ 0x55).collect();
        ram.write_slice(&memory, GuestAddress(address)).unwrap();
        let offset = sector * 512;
        transfer.begin(if write { Direction::Write { durable: false } } else { Direction::Read }, offset);
        run(&mut transfer, &backing, &mut BouncePool::new(&backing), fates).unwrap();
        let (mut disk_after, mut memory_after) = (vec![0; DISK_BYTES as usize], vec![0; bytes]);
        backing.file.read_exact_at(&mut disk_after, 0).unwrap();
        ram.read_slice(&mut memory_after, GuestAddress(address)).unwrap();
        let at = offset as usize;
        let (mut disk_expected, mut memory_expected) = (disk, memory);
        if write {
            disk_expected[at..at + bytes].copy_from_slice(&memory_expected);
        } else {
            memory_expected.copy_from_slice(&disk_expected[at..at + bytes]);
        }
        prop_assert!(disk_after == disk_expected);
        prop_assert!(memory_after == memory_expected);
    }
}
