//! Disks whose IOThread looks at the drive. This machine's drive need not have queues for it: reads of a file's holes and writes
//! into them end in such a ring all the same, by the kernel's own threads, and are found by looking.

use rustix::fs::{Mode, OFlags};

use super::*;

struct Looked {
    thread: Handle,
    blk: Blk,
    driver: BlkDriver,
    path: PathBuf,
    directory: TempDir,
}

/// A sparse file of 1 MiB. `None` where its filesystem has no such files, which is said.
fn looked(cache: CacheMode) -> Option<Looked> {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    let opened = rustix::fs::open(&path, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty());
    let Ok(file) = opened.map(std::fs::File::from) else {
        eprintln!("skipped: no direct I/O here");
        return None;
    };
    let config = config::Disk { iopoll: true, ..config::Disk::named("data", &path, vec![0]) };
    let config = config::Disk { cache, queue_size: 64, ..config };
    let blocks = Alignment { offset: 4096, memory: 512 };
    let backing = Backing::new(&config, file, MIB as u64, blocks).unwrap();
    let ring = config::RingOptions { iopoll: true, ..config::RingOptions::default() };
    let thread = config::IoThread { ring, ..config::IoThread::named(0, "iothread0") };
    let thread = IoThread::spawn(&thread).unwrap();
    let (ram, threads) = (mock::ram(4 * MIB), vec![thread.clone()]);
    let mut blk = Blk::with_backing(&config, [0; ID_BYTES], threads, backing).unwrap();
    let mut driver = BlkDriver::new(&ram, 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    if driver.run(1, 0, 0, 4096).0 != 0 {
        eprintln!("skipped: the filesystem here has no files that are looked for");
        return None;
    }
    Some(Looked { thread, blk, driver, path, directory })
}

#[test]
fn what_ends_is_found_by_looking_and_a_flush_wakes_the_thread_as_always() {
    let Some(Looked { thread, blk, mut driver, path, directory: _kept }) = looked(CacheMode::None) else {
        return;
    };
    for tag in 0..16_u16 {
        let sector = 8 * u64::from(tag) + 64;
        driver.put(4096 * u64::from(tag), &pattern(sector, 4096));
        driver.request(tag, 1, sector, 4096 * u64::from(tag), 4096);
    }
    driver.queue.kick();
    for _ in 0..16 {
        driver.queue.wait_used();
    }
    assert!((0..16).all(|tag| driver.status(tag) == 0));
    // A hole is zeros.
    driver.put(0, &[7; 4096]);
    assert_eq!(driver.run(0, 1024, 0, 4096), (0, 4097));
    assert_eq!(driver.get(0, 4096), [0; 4096]);
    let looks = thread.snapshot().looks;
    assert!(looks > 0);
    // The ring that looks takes none; the thread sleeps until it ended, whatever it did before.
    assert_eq!(driver.run(4, 0, 0, 0), (0, 1));
    assert_eq!(thread.snapshot().looks, looks);
    let mut found = vec![0; 16 * 4096];
    std::fs::File::open(&path).unwrap().read_exact_at(&mut found, 64 * 512).unwrap();
    assert!(found == pattern(64, 16 * 4096));
    assert_eq!(blk.stats().snapshot().virtqueues[0].errors, 0);
}

#[test]
fn durable_writes_are_not_looked_for() {
    let Some(Looked { thread, blk: _blk, mut driver, path, directory: _kept }) =
        looked(CacheMode::Directsync)
    else {
        return;
    };
    let looks = thread.snapshot().looks;
    driver.put(0, &pattern(8, 8192));
    assert_eq!(driver.run(1, 8, 0, 8192), (0, 1));
    assert_eq!(thread.snapshot().looks, looks);
    let mut found = vec![0; 8192];
    std::fs::File::open(&path).unwrap().read_exact_at(&mut found, 8 * 512).unwrap();
    assert_eq!(found, pattern(8, 8192));
}

#[test]
fn a_reset_waits_for_what_is_looked_for() {
    let Some(Looked { thread, mut blk, mut driver, path, directory: _kept }) = looked(CacheMode::None) else {
        return;
    };
    for tag in 0..16_u16 {
        let sector = 8 * u64::from(tag) + 512;
        driver.put(4096 * u64::from(tag), &pattern(sector, 4096));
        driver.request(tag, 1, sector, 4096 * u64::from(tag), 4096);
    }
    driver.queue.kick();
    // The first of them was taken, and more may be in flight.
    driver.queue.wait_used();
    blk.reset();
    let written = (0..16).filter(|tag| driver.status(*tag) == 0).count();
    assert!(written > 0 && (0..16).all(|tag| matches!(driver.status(tag), 0 | 0xff)));
    // Those that were told of are there.
    let found = std::fs::read(&path).unwrap();
    for tag in (0..16_usize).filter(|tag| driver.status(*tag as u16) == 0) {
        let sector = 8 * tag + 512;
        assert!(found[512 * sector..][..4096] == pattern(sector as u64, 4096), "{tag}");
    }
    thread.stop().unwrap();
}

#[test]
fn threads_that_do_not_look_are_refused_such_a_disk_and_looking_goes_without_a_submission_thread() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    let config = config::Disk { iopoll: true, ..config::Disk::named("data", &path, vec![0]) };
    let error = Blk::new(&config, &[iothread(0, 0)]).unwrap_err();
    assert!(matches!(error, DiskError::IopollNotHere { .. }), "{error}");
    let sqpoll = Some(config::SqPoll { cpu: 0, idle_ms: 10 });
    let ring = config::RingOptions { iopoll: true, sqpoll, ..config::RingOptions::default() };
    let error = IoThread::spawn(&config::IoThread { ring, ..config::IoThread::named(0, "iothread0") });
    assert!(error.unwrap_err().to_string().contains("sqpoll"));
}
