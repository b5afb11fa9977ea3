//! Guests that break the rules, and backings that fail.

use super::*;
use crate::virtio::mock::NEXT;

/// Two queues on two disks, one IOThread: the first is about to be broken.
struct Pair {
    bad: Blk,
    good: Blk,
    bad_driver: BlkDriver,
    good_driver: BlkDriver,
    _directory: TempDir,
}

fn pair() -> Pair {
    let directory = TempDir::new().unwrap();
    let ram = mock::ram(8 * MIB);
    let thread = iothread(0, 0);
    let mut blks = ["bad", "good"].map(|name| {
        let path = file_of(&directory, name, MIB as u64);
        Blk::new(&disk_config(&path, CacheMode::Writeback, &[0]), std::slice::from_ref(&thread)).unwrap()
    });
    let drivers = [0, 2].map(|region| BlkDriver::new(&ram, region, 64));
    for (blk, driver) in blks.iter_mut().zip(&drivers) {
        blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    }
    let [bad, good] = blks;
    let [bad_driver, good_driver] = drivers;
    Pair { bad, good, bad_driver, good_driver, _directory: directory }
}

#[test]
pub(super) fn a_guest_that_breaks_its_queue_needs_a_reset_and_others_do_not() {
    type Breakage = fn(&mut BlkDriver);
    let breakages: [(&str, Breakage); 9] = [
        ("the index jumps", |driver| driver.queue.set_available(1000)),
        ("a head outside the table", |driver| driver.queue.offer(64)),
        ("a chain in a circle", |driver| {
            driver.queue.write_descriptor(5, readable(0x1000, 16), NEXT, 5);
            driver.queue.offer(5);
        }),
        ("no status byte", |driver| {
            driver.queue.write_descriptor(5, readable(0x1000, 16), 0, 0);
            driver.queue.offer(5);
        }),
        ("a short header", |driver| {
            driver.queue.write_descriptor(5, readable(0x1000, 15), NEXT, 6);
            driver.queue.write_descriptor(6, writable(0x2000, 1), 0, 0);
            driver.queue.offer(5);
        }),
        ("a header outside memory", |driver| {
            driver.queue.write_descriptor(5, readable(u64::MAX - 7, 16), NEXT, 6);
            driver.queue.write_descriptor(6, writable(0x2000, 1), 0, 0);
            driver.queue.offer(5);
        }),
        ("a status byte outside memory", |driver| {
            driver.queue.write_descriptor(5, readable(0x1000, 16), NEXT, 6);
            driver.queue.write_descriptor(6, writable(u64::MAX, 4), 0, 0);
            driver.queue.offer(5);
        }),
        ("readable after writable", |driver| {
            driver.queue.write_descriptor(5, writable(0x2000, 1), NEXT, 6);
            driver.queue.write_descriptor(6, readable(0x1000, 16), 0, 0);
            driver.queue.offer(5);
        }),
        ("an indirect table of half a descriptor", |driver| {
            driver.queue.write_descriptor(5, readable(0x1000, 8), mock::INDIRECT, 0);
            driver.queue.offer(5);
        }),
    ];
    for (name, breakage) in breakages {
        let mut pair = pair();
        let (tell, told) = std::sync::mpsc::channel();
        let distress = pair.bad.distress().unwrap();
        distress.on_raise(move || tell.send(()).unwrap());
        assert_eq!(pair.bad_driver.run(0, 0, 0, 512).0, 0, "{name}");
        breakage(&mut pair.bad_driver);
        pair.bad_driver.queue.kick();
        pair.bad_driver.queue.doorbell.write(1).unwrap();
        told.recv().unwrap();
        assert!(distress.is_raised(), "{name}");
        assert!(
            pair.bad.stats().snapshot().fault.is_some_and(|fault| fault.contains("virtqueue 0")),
            "{name}"
        );
        assert_eq!(pair.good_driver.run(0, 0, 0, 512).0, 0, "{name}: the other disk goes on");
        assert!(!pair.good.distress().unwrap().is_raised());
        pair.bad.reset();
        assert!(!distress.is_raised());
        let mut fresh = BlkDriver::new(&pair.bad_driver.queue.ram, 0, 64);
        pair.bad.activate(ALL_FEATURES, vec![fresh.queue.device_side(0)]).unwrap();
        assert_eq!(fresh.run(0, 0, 0, 512).0, 0, "{name}: a reset helps");
    }
}

#[test]
pub(super) fn a_head_that_is_offered_again_in_flight_breaks_the_queue() {
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
    let (tell, told) = std::sync::mpsc::channel();
    blk.distress().unwrap().on_raise(move || tell.send(()).unwrap());
    let head = driver.request(0, 0, 0, 0, 512);
    // One that needs no device: when it is back, the first was taken.
    let asking = driver.request(1, 8, 0, 4096, 20);
    driver.queue.kick();
    assert_eq!(driver.queue.wait_used().0, asking);
    driver.queue.offer_in_flight(head);
    driver.queue.kick();
    told.recv().unwrap();
    assert!(blk.stats().snapshot().fault.is_some_and(|fault| fault.contains("in flight")));
    std::io::Write::write_all(&mut filler, &[7; 512]).unwrap();
    blk.reset();
    assert_eq!(driver.get(0, 512), [7; 512], "the request in flight was waited for");
}

#[test]
pub(super) fn data_outside_memory_is_an_error_of_that_request_alone() {
    let mut pair = pair();
    let driver = &mut pair.bad_driver;
    for address in [8 * MIB as u64 - 256, u64::MAX - 511, 1 << 40] {
        let header = driver.headers;
        driver.queue.ram.write_obj([0_u8; 16], GuestAddress(header)).unwrap();
        driver.queue.add(&[readable(header, 16), writable(address, 512), writable(header + 16, 1)]).unwrap();
        driver.queue.kick();
        assert_eq!(driver.queue.wait_used().1, 0, "nothing is said to be written");
        assert_eq!(driver.status(0), 1);
    }
    assert!(!pair.bad.distress().unwrap().is_raised());
    assert_eq!(driver.run(0, 0, 0, 512).0, 0);
}

#[test]
pub(super) fn a_file_cut_short_gives_errors_and_not_zeros() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64 - 100);
    let (ram, thread) = (mock::ram(4 * MIB), iothread(0, 0));
    let mut blk = Blk::new(&disk_config(&path, CacheMode::Writeback, &[0]), &[thread]).unwrap();
    let mut driver = BlkDriver::new(&ram, 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    driver.put(0, &[0xff; 1024]);
    assert_eq!(driver.run(0, 2046, 0, 1024), (0, 1025), "the last sector is whole");
    assert_eq!(driver.get(0, 1024), [0; 1024], "zeros from the file's end to the sector's");
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert_eq!(driver.run(0, 0, 0, 4096).0, 0);
    assert_eq!(driver.run(0, 7, 0, 1024).0, 1, "half of it is gone");
    assert_eq!(driver.run(0, 1000, 0, 512).0, 1);
    let counts = blk.stats().snapshot().virtqueues.remove(0);
    assert_eq!((counts.errors, counts.failed.reads, counts.failed.writes), (2, 2, 0));
}

#[test]
pub(super) fn a_write_that_finds_no_space_is_an_error() {
    let config = disk_config(Path::new("/dev/full"), CacheMode::Writeback, &[0]);
    let full = std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
    let backing = Backing::new(&config, full, MIB as u64, Alignment::NONE).unwrap();
    let ram = mock::ram(4 * MIB);
    let mut blk = Blk::with_backing(&config, [0; ID_BYTES], vec![iothread(0, 0)], backing).unwrap();
    let mut driver = BlkDriver::new(&ram, 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    assert_eq!(driver.run(1, 0, 0, 4096).0, 1);
    assert_eq!(driver.run(4, 0, 0, 0).0, 1, "and so is a flush that the file refuses");
    assert!(!blk.distress().unwrap().is_raised());
}

#[test]
pub(super) fn after_a_flush_that_failed_the_page_cache_is_not_believed_again() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    for (cache, later) in [(CacheMode::Writeback, 1), (CacheMode::None, 0)] {
        let (ram, thread) = (mock::ram(4 * MIB), iothread(0, 0));
        let config = disk_config(&path, cache, &[0]);
        // The file itself is sound: what fails is told to the cache here, as a flush that the kernel refuses tells it.
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let backing = Backing::new(&config, file, MIB as u64, Alignment::NONE).unwrap();
        let mut blk = Blk::with_backing(&config, [0; ID_BYTES], vec![thread], backing).unwrap();
        let mut driver = BlkDriver::new(&ram, 0, 64);
        blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
        assert_eq!(driver.run(4, 0, 0, 0).0, 0);
        blk.disk.cache.flush_failed();
        assert_eq!(driver.run(4, 0, 0, 0).0, later, "{cache:?}");
        assert_eq!(driver.run(1, 0, 0, 512).0, 0, "writes are taken as before");
    }
}
