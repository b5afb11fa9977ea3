use std::io::Read as _;
use std::sync::Arc;

use vm_memory::{Bytes as _, GuestAddress};

use super::*;
use crate::memory::GuestRam;
use crate::segments::GuestBuffers;

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

fn guest(ram: &Arc<GuestRam>, pieces: &[(u64, u32)]) -> Buffers {
    let mut buffers = GuestBuffers::new(ram);
    pieces.iter().for_each(|(address, len)| buffers.push(*address, *len).unwrap());
    Buffers::Guest(Box::new(buffers))
}

/// `None` where the kernel has no AIO.
fn aio() -> Option<Aio<u32>> {
    match Aio::new(0) {
        Ok(aio) => Some(aio),
        Err(AioError::Absent { .. }) => {
            eprintln!("skipped: Linux AIO: this kernel has none");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn wait_for(aio: &mut Aio<u32>, count: usize) -> Vec<Completion<u32>> {
    let mut found = Vec::new();
    while found.len() < count {
        aio.submit().unwrap();
        aio.wait().unwrap();
        aio.reap(&mut found);
    }
    found
}

#[test]
fn what_is_written_from_guest_memory_is_read_back_into_it() {
    let (ram, Some(mut aio)) = (ram(), aio()) else { return };
    let file = tempfile::tempfile().unwrap();
    ram.write_slice(b"one two three", GuestAddress(0x100)).unwrap();
    let write = Operation::Write { offset: 5, durable: true };
    aio.start(&file, write, guest(&ram, &[(0x100, 4), (0x200, 4), (0x104, 9)]), 1);
    let done = wait_for(&mut aio, 1);
    assert!(matches!(done[..], [Completion::Done { token: 1, result: Ok(17), .. }]), "{done:?}");
    aio.start(&file, Operation::Sync, Buffers::None, 2);
    aio.start(&file, Operation::Read { offset: 5 }, guest(&ram, &[(0x300, 17)]), 3);
    aio.start(&file, Operation::Discard { offset: 0, bytes: 512 }, Buffers::None, 4);
    let done = wait_for(&mut aio, 3);
    assert_eq!(ram.read_obj::<[u8; 17]>(GuestAddress(0x300)).unwrap(), *b"one \0\0\0\0two three");
    let discard = done.iter().find(|done| matches!(done, Completion::Done { token: 4, .. }));
    let Some(Completion::Done { result: Err(error), .. }) = discard else { panic!("{done:?}") };
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    assert_eq!(aio.held.used(), 0);
}

#[test]
fn more_operations_than_the_kernel_takes_all_complete() {
    let (ram, Some(mut aio)) = (ram(), aio()) else { return };
    let file = tempfile::tempfile().unwrap();
    for index in 0..5_000_u32 {
        let at = u64::from(index) * 8;
        ram.write_obj(index, GuestAddress(at)).unwrap();
        let write = Operation::Write { offset: at, durable: false };
        aio.start(&file, write, guest(&ram, &[(at, 4)]), index);
    }
    let mut tokens: Vec<u32> = wait_for(&mut aio, 5_000)
        .iter()
        .map(|done| match done {
            Completion::Done { token, result: Ok(4), .. } => *token,
            other => panic!("{other:?}"),
        })
        .collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..5_000).collect::<Vec<_>>());
}

#[test]
fn what_the_kernel_refuses_comes_back_with_its_buffers_and_the_rest_goes_on() {
    let (ram, Some(mut aio)) = (ram(), aio()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::write(&path, [7; 64]).unwrap();
    // Opened for reading alone.
    let file = File::open(&path).unwrap();
    let write = Operation::Write { offset: 0, durable: false };
    aio.start(&file, write, guest(&ram, &[(0, 512)]), 1);
    aio.start(&file, Operation::Read { offset: 0 }, guest(&ram, &[(0, 64)]), 2);
    let mut done = wait_for(&mut aio, 2);
    done.sort_by_key(|done| match done {
        Completion::Done { token, .. } => *token,
        other => panic!("{other:?}"),
    });
    let [Completion::Done { result: Err(error), buffers: Buffers::Guest(buffers), .. }, read] = &done[..]
    else {
        panic!("{done:?}")
    };
    assert_eq!((error.raw_os_error(), buffers.bytes()), (Some(libc::EBADF), 512));
    assert!(matches!(read, Completion::Done { result: Ok(64), .. }));
}

#[test]
fn a_dropped_engine_has_waited_for_the_kernel() {
    let (ram, Some(mut aio)) = (ram(), aio()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let file = File::create(&path).unwrap();
    ram.write_slice(b"late", GuestAddress(0)).unwrap();
    aio.start(&file, Operation::Write { offset: 0, durable: false }, guest(&ram, &[(0, 4)]), 1);
    drop(aio);
    let mut found = String::new();
    File::open(&path).unwrap().read_to_string(&mut found).unwrap();
    assert_eq!((found.as_str(), Arc::strong_count(&ram)), ("late", 1));
}
