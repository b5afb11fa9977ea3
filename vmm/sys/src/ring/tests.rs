use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;

use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::memory::GuestRam;

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap())
}

fn guest(ram: &Arc<GuestRam>, pieces: &[(u64, u32)]) -> Buffers {
    let mut buffers = GuestBuffers::new(ram);
    pieces.iter().for_each(|(address, len)| buffers.push(*address, *len).unwrap());
    Buffers::Guest(Box::new(buffers))
}

fn wait_for<T: Copy>(ring: &mut Ring<T>, count: usize) -> Vec<Completion<T>> {
    let mut found = Vec::new();
    while found.len() < count {
        ring.enter(Wait::Forever).unwrap();
        ring.reap(&mut found);
    }
    found
}

#[test]
fn what_is_written_from_guest_memory_is_read_back_into_it() {
    let (ram, mut ring) = (ram(), Ring::<u32>::new().unwrap());
    let file = ring.add_file(Arc::new(tempfile::tempfile().unwrap())).unwrap();
    ram.write_slice(b"one two three", GuestAddress(0x100)).unwrap();
    let write = Operation::Write { offset: 5, durable: true };
    ring.start(file, write, guest(&ram, &[(0x100, 4), (0x200, 4), (0x104, 9)]), 1);
    ring.enter(Wait::Forever).unwrap();
    let mut done = Vec::new();
    ring.reap(&mut done);
    assert!(matches!(done[..], [Completion::Done { token: 1, result: Ok(17), .. }]), "{done:?}");
    ring.start(file, Operation::Sync, Buffers::None, 2);
    ring.start(file, Operation::Read { offset: 5 }, guest(&ram, &[(0x300, 17)]), 3);
    wait_for(&mut ring, 2);
    assert_eq!(ram.read_obj::<[u8; 17]>(GuestAddress(0x300)).unwrap(), *b"one \0\0\0\0two three");
    assert_eq!(ring.busy(), 0);
}

#[test]
fn more_operations_than_the_queue_holds_all_complete() {
    let (ram, mut ring) = (ram(), Ring::<u32>::new().unwrap());
    let disk = Arc::new(tempfile::tempfile().unwrap());
    let file = ring.add_file(Arc::clone(&disk)).unwrap();
    for index in 0..3_000_u32 {
        let at = u64::from(index) * 8;
        ram.write_obj(index, GuestAddress(at)).unwrap();
        ring.start(file, Operation::Write { offset: at, durable: false }, guest(&ram, &[(at, 4)]), index);
    }
    assert_eq!(ring.busy(), 3_000);
    let mut tokens: Vec<u32> = wait_for(&mut ring, 3_000)
        .iter()
        .map(|done| match done {
            Completion::Done { token, result: Ok(4), .. } => *token,
            other => panic!("{other:?}"),
        })
        .collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..3_000).collect::<Vec<_>>());
    let mut last = [0; 4];
    disk.read_exact_at(&mut last, 2_999 * 8).unwrap();
    assert_eq!(u32::from_ne_bytes(last), 2_999);
}

#[test]
fn a_watch_rings_for_each_write_without_being_read() {
    let mut ring = Ring::<u32>::new().unwrap();
    let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    bell.write(1).unwrap();
    let watch = ring.watch(bell.try_clone().unwrap(), 7);
    assert!(
        matches!(wait_for(&mut ring, 1)[..], [Completion::Rang { token: 7 }]),
        "rung before it was watched"
    );
    for _ in 0..100 {
        bell.write(1).unwrap();
        assert!(matches!(wait_for(&mut ring, 1)[..], [Completion::Rang { token: 7 }]));
    }
    ring.unwatch(watch);
    ring.unwatch(watch);
    let ended = wait_for(&mut ring, 1);
    assert!(matches!(ended[..], [Completion::Unwatched { token: 7, error: None }]), "{ended:?}");
    assert_eq!(ring.busy(), 0);
}

#[test]
fn a_socket_is_told_of_when_it_has_more_to_read_or_to_write_and_when_it_closes() {
    let mut ring = Ring::<u32>::new().unwrap();
    let (mut theirs, ours) = std::os::unix::net::UnixStream::pair().unwrap();
    let again = || ours.try_clone().unwrap().into();
    let readable = ring.watch(Watched::Readable(again()), 1);
    ring.enter(Wait::AtMost(Duration::from_millis(1))).unwrap();
    let mut told = Vec::new();
    ring.reap(&mut told);
    assert!(told.is_empty(), "{told:?}");
    for _ in 0..10 {
        // Nobody reads: each arrival is told all the same.
        theirs.write_all(b"frame").unwrap();
        assert!(matches!(wait_for(&mut ring, 1)[..], [Completion::Rang { token: 1 }]));
    }
    let writable = ring.watch(Watched::Writable(again()), 2);
    assert!(matches!(wait_for(&mut ring, 1)[..], [Completion::Rang { token: 2 }]), "there is room already");
    ring.unwatch(writable);
    assert!(matches!(wait_for(&mut ring, 1)[..], [Completion::Unwatched { token: 2, error: None }]));
    drop(theirs);
    assert!(matches!(wait_for(&mut ring, 1)[0], Completion::Rang { token: 1 }));
    ring.unwatch(readable);
    while ring.busy() > 0 {
        wait_for(&mut ring, 1);
    }
}

/// A doorbell that is rung while its watch is being ended: the end comes all the same.
#[test]
fn a_watch_ends_even_while_it_rings() {
    let mut ring = Ring::<u32>::new().unwrap();
    let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                bell.write(1).unwrap();
            }
        });
        for round in 0..500 {
            let watch = ring.watch(bell.try_clone().unwrap(), round);
            ring.enter(Wait::Forever).unwrap();
            ring.unwatch(watch);
            let mut done = Vec::new();
            while ring.busy() > 0 {
                ring.enter(Wait::AtMost(Duration::from_secs(20))).unwrap();
                let before = done.len();
                ring.reap(&mut done);
                assert!(
                    done.len() > before || ring.busy() == 0,
                    "round {round}: the end of the watch was lost"
                );
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_wait_ends_at_its_time() {
    let mut ring = Ring::<u32>::new().unwrap();
    ring.enter(Wait::AtMost(Duration::from_millis(1))).unwrap();
    ring.enter(Wait::Never).unwrap();
    assert!(!ring.has_completions() && !ring.has_submissions());
}

#[test]
fn errors_come_back_with_the_buffers() {
    let (ram, mut ring) = (ram(), Ring::<u32>::new().unwrap());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let file = ring.add_file(Arc::new(full)).unwrap();
    ring.start(file, Operation::Write { offset: 0, durable: false }, guest(&ram, &[(0, 512)]), 1);
    let mut done = wait_for(&mut ring, 1);
    let Some(Completion::Done { result: Err(error), buffers: Buffers::Guest(buffers), .. }) = done.pop()
    else {
        panic!("{done:?}")
    };
    assert_eq!((error.raw_os_error(), buffers.bytes()), (Some(libc::ENOSPC), 512));
}

#[test]
fn files_share_an_id_until_their_last_user_leaves() {
    let (ram, mut ring) = (ram(), Ring::<u32>::new().unwrap());
    let (one, two) = (Arc::new(tempfile::tempfile().unwrap()), Arc::new(tempfile::tempfile().unwrap()));
    let first = ring.add_file(Arc::clone(&one)).unwrap();
    assert_eq!(ring.add_file(Arc::clone(&one)).unwrap(), first);
    ring.remove_file(first);
    let second = ring.add_file(two).unwrap();
    assert_ne!(first, second);
    ring.start(first, Operation::Write { offset: 0, durable: false }, guest(&ram, &[(0, 64)]), 1);
    wait_for(&mut ring, 1);
    assert_eq!(one.metadata().unwrap().len(), 64);
    ring.remove_file(first);
    assert_eq!(Arc::strong_count(&one), 1, "the ring let go of it");
    for _ in 0..200 {
        let mut many = tempfile::tempfile().unwrap();
        many.write_all(b"x").unwrap();
        let id = ring.add_file(Arc::new(many)).unwrap();
        ring.start(id, Operation::Read { offset: 0 }, guest(&ram, &[(0x500, 1)]), 2);
    }
    let done = wait_for(&mut ring, 200);
    assert!(
        done.iter().all(|done| matches!(done, Completion::Done { result: Ok(1), .. })),
        "beyond the table too"
    );
}

#[test]
fn a_dropped_ring_has_waited_for_the_kernel() {
    let ram = ram();
    let (mut reader, writer) = io::pipe().unwrap();
    let mut ring = Ring::<u32>::new().unwrap();
    let file = ring.add_file(Arc::new(File::from(std::os::fd::OwnedFd::from(writer)))).unwrap();
    ram.write_slice(b"late", GuestAddress(0)).unwrap();
    ring.start(file, Operation::Write { offset: u64::MAX, durable: false }, guest(&ram, &[(0, 4)]), 1);
    ring.watch(EventFd::new(0).unwrap(), 2);
    drop(ring);
    let mut found = [0; 4];
    reader.read_exact(&mut found).unwrap();
    assert_eq!(&found, b"late");
    assert_eq!(Arc::strong_count(&ram), 1);
}

/// 64 KiB of sevens with direct I/O, next to this test's program.
fn direct_file() -> Option<Arc<File>> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let directory = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let path = tempfile::NamedTempFile::new_in(directory).unwrap().into_temp_path();
    std::fs::write(&path, vec![7; 64 << 10]).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path);
    file.ok().map(Arc::new)
}

fn polled() -> Ring<u32> {
    Ring::with(&Options { iopoll: true, ..Options::default() }).unwrap()
}

fn errno_of<T: Copy + std::fmt::Debug>(done: &[Completion<T>]) -> i32 {
    match done {
        [Completion::Done { result, .. }] => {
            result.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0)
        }
        other => panic!("{other:?}"),
    }
}

/// What it cannot complete by looking it refuses with EOPNOTSUPP: through the page cache always, and with direct I/O where the
/// drive below has no queues for it. Older kernels complete that all the same.
#[test]
fn a_ring_that_looks_refuses_what_it_cannot_look_for() {
    let (ram, mut ring) = (ram(), polled());
    let cached = tempfile::tempfile().unwrap();
    cached.set_len(8_192).unwrap();
    let cached = ring.add_file(Arc::new(cached)).unwrap();
    for operation in [Operation::Read { offset: 0 }, Operation::Write { offset: 0, durable: false }] {
        ring.start(cached, operation, guest(&ram, &[(0x1000, 4_096)]), 1);
        assert_eq!(errno_of(&wait_for(&mut ring, 1)), libc::EOPNOTSUPP, "{operation:?}");
    }
    let Some(file) = direct_file() else { return eprintln!("skipped: no direct I/O here") };
    let file = ring.add_file(file).unwrap();
    ring.start(file, Operation::Read { offset: 0 }, guest(&ram, &[(0x1000, 4_096)]), 1);
    match errno_of(&wait_for(&mut ring, 1)) {
        0 => assert_eq!(ram.read_obj::<[u8; 16]>(GuestAddress(0x1000)).unwrap(), [7; 16]),
        errno => assert_eq!(errno, libc::EOPNOTSUPP),
    }
    assert_eq!(ring.busy(), 0);
}

/// Which is why these go elsewhere.
#[test]
fn a_ring_that_looks_takes_no_flushes_and_no_discards() {
    let mut ring = polled();
    let file = ring.add_file(Arc::new(tempfile::tempfile().unwrap())).unwrap();
    for operation in [Operation::Sync, Operation::Discard { offset: 0, bytes: 4_096 }] {
        ring.start(file, operation, Buffers::None, 1);
        assert_eq!(errno_of(&wait_for(&mut ring, 1)), libc::EINVAL, "{operation:?}");
    }
}

/// Nothing tells of its completions: a call that does not wait brings them out all the same. Writes into a file's holes are
/// completed by the kernel's own threads, on any drive.
#[test]
fn a_ring_that_looks_finds_what_ended_without_waiting() {
    let (ram, mut ring) = (ram(), polled());
    let Some(disk) = direct_file() else { return eprintln!("skipped: no direct I/O here") };
    let file = ring.add_file(Arc::clone(&disk)).unwrap();
    ram.write_slice(&[9; 4_096], GuestAddress(0x1000)).unwrap();
    for block in 0..64_u32 {
        let write = Operation::Write { offset: (1 << 20) + 4_096 * u64::from(block), durable: false };
        ring.start(file, write, guest(&ram, &[(0x1000, 4_096)]), block);
    }
    let mut done = Vec::new();
    while ring.busy() > 0 {
        ring.enter(Wait::Never).unwrap();
        ring.reap(&mut done);
    }
    if done.len() == 64 && errno_of(&done[..1]) == libc::EOPNOTSUPP {
        return eprintln!("skipped: the filesystem here has no files that are looked for");
    }
    assert!(done.iter().all(|done| matches!(done, Completion::Done { result: Ok(4_096), .. })), "{done:?}");
    done.clear();
    // And what is dropped has been waited for.
    for block in 0..64_u32 {
        let write = Operation::Write { offset: (2 << 20) + 4_096 * u64::from(block), durable: false };
        ring.start(file, write, guest(&ram, &[(0x1000, 4_096)]), block);
    }
    drop(ring);
    assert_eq!(Arc::strong_count(&ram), 1);
    assert_eq!(disk.metadata().unwrap().len(), (2 << 20) + (64 * 4_096));
}
