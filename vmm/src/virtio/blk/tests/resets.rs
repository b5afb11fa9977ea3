//! Queues that are reset and set up anew while requests are in flight: one by itself, beside another that works on, and all
//! of a device's, with other sizes, other formats and other features.

use vmprof_sys::vring::Vring;

use super::layouts::hammer;
use super::*;
use crate::virtio::mock::Form;

const PACKED: Form = Form { packed: true, indirect: false };
const SPLIT: Form = Form { packed: false, indirect: true };

fn driver_of(form: Form, ram: &Arc<GuestRam>, region: u64, size: u16, event_idx: bool) -> BlkDriver {
    let base = region * REGION;
    let headers = base + Driver::bytes(size);
    let data = (headers + SLOT_BYTES * u64::from(size)).next_multiple_of(4096);
    BlkDriver { queue: Driver::of(form, ram, base, size, event_idx), headers, data }
}

/// Offers as many reads and writes as the queue holds, up to 20, and tells the device.
fn load(driver: &mut BlkDriver, size: u16) {
    for tag in 0..(size / 3).min(20) {
        driver.request(tag, u32::from(tag % 2), 64 * u64::from(tag), 32768 * u64::from(tag), 32768);
    }
    driver.queue.kick();
}

fn whole(ram: &GuestRam, region: u64) -> Vec<u8> {
    let mut bytes = vec![0; MIB];
    ram.read_slice(&mut bytes, GuestAddress(region * REGION)).unwrap();
    bytes
}

#[test]
fn a_queue_is_reset_under_load_and_its_neighbour_works_on() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4 * MIB as u64);
    let ram = mock::ram(8 * MIB);
    let thread = iothread(0, 0);
    let mut blk = Blk::new(&disk_config(&path, CacheMode::None, &[0, 0]), &[thread]).unwrap();
    assert_ne!(blk.features() & F_RING_RESET, 0);
    let mut neighbour = BlkDriver::new(&ram, 0, 64);
    let first = driver_of(PACKED, &ram, 2, 64, true);
    blk.activate(ALL_FEATURES, vec![neighbour.queue.device_side(0), first.queue.device_side(1)]).unwrap();
    let setups =
        [(PACKED, 64, true), (PACKED, 33, false), (SPLIT, 16, true), (PACKED, 7, true), (SPLIT, 64, false)];
    std::thread::scope(|scope| {
        let hammering = scope.spawn(|| hammer(&mut neighbour, 4096, 10));
        let mut driver = first;
        for (round, (form, size, event_idx)) in setups.into_iter().cycle().take(15).enumerate() {
            let entries = driver.queue.setup().size;
            load(&mut driver, entries);
            let position = blk.stop_queue(1);
            assert!(position.is_some(), "round {round}: it was served, and not broken");
            let after = whole(&ram, 2);
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert!(whole(&ram, 2) == after, "round {round}: nothing is written after the reset");
            assert_eq!(blk.stop_queue(1), None, "round {round}: it is not there any more");
            driver = driver_of(form, &ram, 2, size, event_idx);
            blk.start_queue(driver.queue.device_side(1)).unwrap();
            assert_eq!(driver.run(0, 9, 0, 512), (0, 513), "round {round}");
        }
        hammering.join().unwrap();
    });
    assert!(!blk.distress().unwrap().is_raised());
}

#[test]
fn a_device_is_reset_under_load_and_set_up_with_other_sizes_formats_and_features() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4 * MIB as u64);
    let ram = mock::ram(8 * MIB);
    let threads = [iothread(0, 0), iothread(1, 20_000)];
    let mut blk = Blk::new(&disk_config(&path, CacheMode::Writeback, &[0, 1]), &threads).unwrap();
    let setups =
        [(PACKED, 48, true), (SPLIT, 32, true), (PACKED, 64, false), (SPLIT, 4, false), (PACKED, 3, true)];
    for (round, (form, size, event_idx)) in setups.into_iter().cycle().take(20).enumerate() {
        let mut drivers = [0, 4].map(|region| driver_of(form, &ram, region, size, event_idx));
        let features = if round % 3 == 0 { ALL_FEATURES & !FLUSH } else { ALL_FEATURES };
        // Now and then the driver uses one of the two.
        let used = 1 + round % 2;
        let queues = (0..).zip(&drivers[..used]).map(|(index, driver)| driver.queue.device_side(index));
        blk.activate(features, queues.collect()).unwrap();
        for driver in &mut drivers[..used] {
            assert_eq!(driver.run(1, 8, 0, 512).0, 0, "round {round}");
            load(driver, size);
        }
        blk.reset();
        assert_eq!(blk.stats().snapshot().fault, None);
    }
}

/// As a machine does that pauses, or a vhost-user backend whose frontend takes a ring back.
#[test]
fn a_queue_goes_on_where_it_stopped() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4 * MIB as u64);
    let ram = mock::ram(4 * MIB);
    let thread = iothread(0, 0);
    let mut blk = Blk::new(&disk_config(&path, CacheMode::Writeback, &[0]), &[thread]).unwrap();
    for (form, size) in [(PACKED, 64), (PACKED, 50), (SPLIT, 64)] {
        let mut driver = driver_of(form, &ram, 0, size, true);
        blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
        for _ in 0..10 {
            load(&mut driver, size);
            let position = blk.stop_queue(0).unwrap();
            // All that was taken has been given back; what was not is still there, and is served now.
            let mut queue = driver.queue.device_side(0);
            let (setup, features) = (driver.queue.setup(), driver.queue.features());
            queue.ring = Vring::at(&ram, &setup, features, position).unwrap();
            blk.start_queue(queue).unwrap();
            for _ in 0..(size / 3).min(20) {
                driver.queue.wait_used();
            }
        }
        blk.reset();
    }
}
