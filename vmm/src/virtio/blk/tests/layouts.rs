//! Queues over IOThreads, N to M; submitters and sleepers; resets under load.

use super::*;

/// Each driver writes its own sectors from many requests at once and reads them back, compared.
pub(super) fn hammer(driver: &mut BlkDriver, first_sector: u64, rounds: u64) {
    const DEPTH: u16 = 16;
    for round in 0..rounds {
        for kind in [1, 0] {
            let mut tags = Vec::new();
            for tag in 0..DEPTH {
                let sector = first_sector + 8 * u64::from(tag);
                let area = 4096 * u64::from(tag);
                let fill = if kind == 1 { pattern(sector + round, 4096) } else { vec![0; 4096] };
                driver.put(area, &fill);
                tags.push((driver.request(tag, kind, sector, area, 4096), tag));
                driver.queue.kick();
            }
            for _ in 0..DEPTH {
                let (head, _) = driver.queue.wait_used();
                let at = tags.iter().position(|(other, _)| *other == head).unwrap();
                let (_, tag) = tags.swap_remove(at);
                assert_eq!(driver.status(tag), 0);
                if kind == 0 {
                    let sector = first_sector + 8 * u64::from(tag);
                    assert_eq!(driver.get(4096 * u64::from(tag), 4096), pattern(sector + round, 4096));
                }
            }
        }
    }
}

#[test]
pub(super) fn queues_of_several_disks_are_served_by_the_iothreads_they_were_given() {
    let directory = TempDir::new().unwrap();
    let ram = mock::ram(16 * MIB);
    let threads = [iothread(0, 0), iothread(1, 20_000)];
    let layouts: [(&str, &[u32], CacheMode); 3] = [
        ("one", &[0, 1, 0, 1], CacheMode::None),
        ("two", &[1, 1], CacheMode::Writeback),
        ("three", &[0, 1], CacheMode::Writethrough),
    ];
    let mut disks = Vec::new();
    let mut drivers = Vec::new();
    for (name, layout, cache) in layouts {
        let path = file_of(&directory, name, 4 * MIB as u64);
        let config = config::Disk { name: name.into(), ..disk_config(&path, cache, layout) };
        let mut blk = Blk::new(&config, &threads).unwrap();
        let first = drivers.len() as u64;
        let own: Vec<_> = (first..)
            .take(layout.len())
            .map(|region| BlkDriver::with_events(&ram, region, 64, region % 3 != 0))
            .collect();
        let queues = (0..).zip(&own).map(|(index, driver)| driver.queue.device_side(index)).collect();
        blk.activate(ALL_FEATURES, queues).unwrap();
        drivers.extend((0_u64..).zip(own));
        disks.push((blk, layout));
    }
    std::thread::scope(|scope| {
        for (index, driver) in &mut drivers {
            scope.spawn(move || hammer(driver, 1024 * *index, 20));
        }
    });
    for (blk, layout) in &disks {
        for (queue, iothread) in blk.stats().snapshot().virtqueues.iter().zip(*layout) {
            assert_eq!((queue.reads, queue.writes, queue.errors), (320, 320, 0));
            assert_eq!(queue.iothread, Some(*iothread));
            assert!(queue.kicks <= 640 && queue.interrupts <= 640, "never more than one of each per request");
        }
    }
    drop(disks);
    threads.iter().for_each(|thread| thread.stop().unwrap());
}

/// The second of two submitters at depth 1 offers its request while the first one's is in flight: it must be seen then,
/// not when the first completes. With a device that never completes the first, only seeing it in time ends this test.
#[test]
pub(super) fn a_request_behind_one_in_flight_does_not_wait_for_it() {
    let ram = mock::ram(4 * MIB);
    let thread = iothread(0, 0);
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    let config = disk_config(&path, CacheMode::Writeback, &[0]);
    // A pipe that stays empty: reads from it are in flight until someone writes.
    let (empty, mut filler) = std::io::pipe().unwrap();
    let file = std::fs::File::from(std::os::fd::OwnedFd::from(empty));
    let backing = Backing::new(&config, file, MIB as u64, Alignment::NONE).unwrap();
    let mut blk = Blk::with_backing(&config, [0; ID_BYTES], vec![thread], backing).unwrap();
    for event_idx in [true, false] {
        let mut driver = BlkDriver::with_events(&ram, 0, 64, event_idx);
        blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
        let reading = driver.request(0, 0, 0, 0, 512);
        driver.queue.kick();
        for _ in 0..50 {
            // The second submitter's requests need no device: they end although the first is still in flight.
            let asking = driver.request(1, 8, 0, 4096, 20);
            driver.queue.kick();
            assert_eq!(driver.queue.wait_used(), (asking, 21));
        }
        std::io::Write::write_all(&mut filler, &[7; 512]).unwrap();
        assert_eq!(driver.queue.wait_used(), (reading, 513));
        blk.reset();
    }
}

#[test]
pub(super) fn a_doorbell_that_rang_before_the_queue_was_taken_is_heard() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4096);
    let (ram, thread) = (mock::ram(4 * MIB), iothread(0, 0));
    let mut blk = Blk::new(&disk_config(&path, CacheMode::Writeback, &[0]), &[thread]).unwrap();
    let mut driver = BlkDriver::new(&ram, 0, 64);
    driver.request(0, 0, 0, 0, 512);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    assert_eq!(driver.queue.wait_used().1, 513, "without any kick");
}

#[test]
pub(super) fn after_a_reset_nothing_touches_guest_memory() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4 * MIB as u64);
    let ram = mock::ram(8 * MIB);
    let threads = [iothread(0, 0), iothread(1, 0)];
    let mut blk = Blk::new(&disk_config(&path, CacheMode::None, &[0, 1]), &threads).unwrap();
    let whole = |ram: &GuestRam| {
        let mut bytes = vec![0; 8 * MIB];
        ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    };
    for round in 0..20 {
        let mut drivers = [0, 4].map(|region| BlkDriver::new(&ram, region, 64));
        let queues = (0..).zip(&drivers).map(|(index, driver)| driver.queue.device_side(index)).collect();
        blk.activate(ALL_FEATURES, queues).unwrap();
        for driver in &mut drivers {
            for tag in 0..20 {
                driver.request(tag, u32::from(tag % 2), 64 * u64::from(tag), 32768 * u64::from(tag), 32768);
            }
            driver.queue.kick();
        }
        if round % 2 == 0 {
            std::thread::yield_now();
        }
        blk.reset();
        let after = whole(&ram);
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert!(whole(&ram) == after, "round {round}");
        assert_eq!(Arc::strong_count(&ram), 1 + drivers.len(), "the queues are dropped");
    }
}

#[test]
pub(super) fn a_disk_outlives_the_drivers_that_come_and_go() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4 * MIB as u64);
    let ram = mock::ram(4 * MIB);
    let threads = [iothread(0, 10_000)];
    let mut blk = Blk::new(&disk_config(&path, CacheMode::Writeback, &[0]), &threads).unwrap();
    for round in 1..=5 {
        let mut driver = BlkDriver::new(&ram, 0, 64);
        blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
        hammer(&mut driver, 0, 2);
        blk.reset();
        blk.reset();
        assert_eq!(blk.stats().snapshot().virtqueues[0].reads, 32 * round);
    }
    threads[0].stop().unwrap();
    threads[0].stop().unwrap();
    let driver = BlkDriver::new(&ram, 0, 64);
    let error = blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap_err();
    assert!(error.to_string().contains("iothread0"), "{error}");
}

#[test]
pub(super) fn a_driver_that_wants_no_interrupt_gets_none() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4096);
    let (ram, thread) = (mock::ram(4 * MIB), iothread(0, 0));
    let mut blk = Blk::new(&disk_config(&path, CacheMode::Writeback, &[0]), &[thread]).unwrap();
    let mut driver = BlkDriver::with_events(&ram, 0, 64, false);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    driver.queue.refuse_interrupts();
    driver.request(0, 0, 0, 0, 512);
    driver.queue.kick();
    while driver.queue.take_used().is_none() {
        std::thread::yield_now();
    }
    blk.reset();
    assert!(driver.queue.interrupt.read().is_err());
    assert_eq!(blk.stats().snapshot().virtqueues[0].interrupts, 0);
}

/// A backing whose blocks are larger than sectors, as on a drive of 4,096-byte sectors: every queue writes every eighth
/// sector, so that each block is shared by both IOThreads.
#[test]
pub(super) fn sectors_of_one_block_written_from_two_iothreads_are_all_there() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    let config = disk_config(&path, CacheMode::Writeback, &[0, 1]);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let blocks = Alignment { offset: 4096, memory: 4096 };
    let backing = Backing::new(&config, file, MIB as u64, blocks).unwrap();
    let ram = mock::ram(8 * MIB);
    let mut blk =
        Blk::with_backing(&config, [0; ID_BYTES], vec![iothread(0, 0), iothread(1, 0)], backing).unwrap();
    let mut drivers = [0, 2].map(|region| BlkDriver::new(&ram, region, 64));
    let queues = (0..).zip(&drivers).map(|(index, driver)| driver.queue.device_side(index)).collect();
    blk.activate(ALL_FEATURES, queues).unwrap();
    std::thread::scope(|scope| {
        for (queue, driver) in (0_u64..).zip(&mut drivers) {
            scope.spawn(move || {
                for first in (0..256).step_by(16) {
                    for tag in 0..16_u16 {
                        let sector = 2 * (first + u64::from(tag)) + queue;
                        driver.put(512 * u64::from(tag), &pattern(sector, 512));
                        driver.request(tag, 1, sector, 512 * u64::from(tag), 512);
                    }
                    driver.queue.kick();
                    for _ in 0..16 {
                        driver.queue.wait_used();
                    }
                    (0..16).for_each(|tag| assert_eq!(driver.status(tag), 0));
                }
            });
        }
    });
    let found = std::fs::read(&path).unwrap();
    assert!(found[..512 * 512] == pattern(0, 512 * 512));
    assert_eq!(drivers[0].run(0, 3, 1, 1536).0, 0, "an odd address, bounced");
    assert_eq!(drivers[0].get(1, 1536), pattern(3, 1536));
}

/// Flushes run on worker threads that the kernel makes for the IOThread.
#[test]
pub(super) fn the_kernels_workers_stay_on_the_cpus_of_their_iothread() {
    let last = *vmprof_sys::affinity::cpus_of_thread(0).unwrap().last().unwrap();
    let config = config::IoThread { cpus: vec![last], ..config::IoThread::named(0, "iothread0") };
    let thread = IoThread::spawn(&config).unwrap();
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    let ram = mock::ram(4 * MIB);
    let disk = disk_config(&path, CacheMode::Writeback, &[0]);
    let mut blk = Blk::new(&disk, std::slice::from_ref(&thread)).unwrap();
    let mut driver = BlkDriver::new(&ram, 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    for _ in 0..8 {
        assert_eq!(driver.run(1, 0, 0, 4096).0, 0);
        assert_eq!(driver.run(4, 0, 0, 0).0, 0);
    }
    let worker = format!("iou-wrk-{}", thread.tid());
    let mut found = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        // A thread that ended meanwhile is none of ours.
        let Ok(name) = std::fs::read_to_string(task.path().join("comm")) else { continue };
        if name.trim() == worker {
            let tid = task.file_name().to_string_lossy().parse().unwrap();
            assert_eq!(vmprof_sys::affinity::cpus_of_thread(tid).unwrap(), [last]);
            found += 1;
        }
    }
    assert!(found > 0, "a flush runs on a worker");
}

#[test]
pub(super) fn a_disk_is_free_again_as_soon_as_its_device_is_gone() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    let ram = mock::ram(4 * MIB);
    for _ in 0..20 {
        let thread = iothread(0, 0);
        let disk = disk_config(&path, CacheMode::None, &[0]);
        let mut blk = Blk::new(&disk, std::slice::from_ref(&thread)).unwrap();
        let mut driver = BlkDriver::new(&ram, 0, 64);
        blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
        assert_eq!(driver.run(1, 0, 0, 4096).0, 0);
    }
}
