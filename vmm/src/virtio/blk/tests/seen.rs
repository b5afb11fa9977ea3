//! What is in flight, and the write cache switched under load.

use super::*;

#[test]
fn a_request_that_the_backing_never_answers_is_seen_with_its_head_and_age() {
    let ram = mock::ram(4 * MIB);
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    let config = disk_config(&path, CacheMode::Writeback, &[0]);
    let (empty, mut filler) = std::io::pipe().unwrap();
    let file = std::fs::File::from(std::os::fd::OwnedFd::from(empty));
    let backing = Backing::new(&config, file, MIB as u64, Alignment::NONE).unwrap();
    let mut blk = Blk::with_backing(&config, [0; ID_BYTES], vec![iothread(0, 0)], backing).unwrap();
    let mut driver = BlkDriver::new(&ram, 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    let stats = blk.stats();
    let queue = || stats.snapshot().virtqueues.remove(0);
    assert_eq!((queue().in_flight, queue().oldest), (0, None));
    let named = driver.request(0, 0, 40, 0, 512);
    // A packed ring's heads are slots of the device's, the lowest first; the driver has names of its own.
    let stuck = if driver.queue.form.packed { 0 } else { named };
    driver.request(1, 0, 8, 4096, 512);
    driver.queue.kick();
    while queue().in_flight < 2 {
        std::thread::yield_now();
    }
    let oldest = queue().oldest.unwrap();
    assert_eq!((oldest.head, oldest.kind.as_str(), oldest.sector), (stuck, "read", 40));
    // Others come and go: it stays the oldest, and gets older.
    while queue().oldest.unwrap().age_ms <= oldest.age_ms + 20 {
        driver.request(2, 8, 0, 8192, 20);
        driver.queue.kick();
        driver.queue.wait_used();
        assert_eq!(queue().oldest.unwrap().head, stuck);
    }
    std::io::Write::write_all(&mut filler, &[7; 1024]).unwrap();
    driver.queue.wait_used();
    driver.queue.wait_used();
    assert_eq!((queue().in_flight, queue().oldest), (0, None));
}

#[test]
fn the_write_cache_is_switched_both_ways_while_requests_are_in_flight() {
    let directory = TempDir::new().unwrap();
    for cache in [CacheMode::Writeback, CacheMode::None] {
        let path = file_of(&directory, &format!("{cache:?}"), 4 * MIB as u64);
        let ram = mock::ram(8 * MIB);
        let threads = [iothread(0, 0), iothread(1, 0)];
        let mut blk = Blk::new(&disk_config(&path, cache, &[0, 1]), &threads).unwrap();
        let mut drivers = [0, 4].map(|region| BlkDriver::new(&ram, region, 64));
        let queues = (0..).zip(&drivers).map(|(index, driver)| driver.queue.device_side(index)).collect();
        blk.activate(ALL_FEATURES, queues).unwrap();
        let running = std::sync::atomic::AtomicUsize::new(drivers.len());
        std::thread::scope(|scope| {
            for (at, driver) in (0_u64..).zip(&mut drivers) {
                let running = &running;
                scope.spawn(move || {
                    for round in 0..10 {
                        for tag in 0..8_u16 {
                            let sector = 1024 * at + 8 * u64::from(tag);
                            driver.put(4096 * u64::from(tag), &pattern(sector + round, 4096));
                            driver.request(tag, 1, sector, 4096 * u64::from(tag), 4096);
                            driver.queue.kick();
                        }
                        driver.request(9, 4, 0, 0, 0);
                        driver.queue.kick();
                        for _ in 0..9 {
                            driver.queue.wait_used();
                        }
                        (0..8).for_each(|tag| assert_eq!(driver.status(tag), 0));
                        assert_eq!(driver.status(9), 0);
                    }
                    running.fetch_sub(1, std::sync::atomic::Ordering::Release);
                });
            }
            let mut on = 0;
            while running.load(std::sync::atomic::Ordering::Acquire) > 0 {
                blk.write_config(WRITEBACK_AT, &[on]);
                let mut shown = [0xff];
                blk.read_config(WRITEBACK_AT, &mut shown);
                assert_eq!(shown, [on], "{cache:?}");
                on ^= 1;
            }
        });
        let found = std::fs::read(&path).unwrap();
        for (at, tag) in [(0, 0), (0, 7), (1, 0), (1, 7)] {
            let sector: u64 = 1024 * at + 8 * tag;
            assert!(found[sector as usize * 512..][..4096] == pattern(sector + 9, 4096), "{cache:?}");
        }
    }
}

/// Logical blocks are what the guest counts in, blocks and addresses of direct I/O are the host's affair: all of them
/// together move the right bytes.
#[test]
fn logical_blocks_and_those_of_direct_io_are_two_things() {
    let directory = TempDir::new().unwrap();
    for logical in [512_u32, 4096] {
        for (offset, memory) in [(512, 4), (512, 512), (4096, 512), (4096, 4096)] {
            let path = file_of(&directory, &format!("{logical}-{offset}-{memory}"), MIB as u64);
            let plain = disk_config(&path, CacheMode::Writeback, &[0]);
            let config = config::Disk { logical_block_bytes: Some(logical), ..plain };
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
            let backing = Backing::new(&config, file, MIB as u64, Alignment { offset, memory }).unwrap();
            let mut blk = Blk::with_backing(&config, [0; ID_BYTES], vec![iothread(0, 0)], backing).unwrap();
            let ram = mock::ram(4 * MIB);
            let mut driver = BlkDriver::new(&ram, 0, 64);
            blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
            let mut told = [0; 4];
            blk.read_config(20, &mut told);
            assert_eq!(u32::from_le_bytes(told), logical);
            let mut expected = vec![0; MIB];
            for (turn, address) in (0_u64..).zip([0_u64, 4, 512, 4096, 5]) {
                let (block, blocks) = (3 + 5 * turn, 3);
                let (sector, bytes) = (block * u64::from(logical) / 512, blocks * logical);
                driver.put(address, &pattern(sector, bytes as usize));
                assert_eq!(driver.run(1, sector, address, bytes).0, 0);
                driver.put(address, &vec![0; bytes as usize]);
                assert_eq!(driver.run(0, sector, address, bytes), (0, bytes + 1));
                assert!(driver.get(address, bytes as usize) == pattern(sector, bytes as usize));
                expected[sector as usize * 512..][..bytes as usize]
                    .copy_from_slice(&pattern(sector, bytes as usize));
            }
            assert!(std::fs::read(&path).unwrap() == expected, "{logical} {offset} {memory}");
        }
    }
}
