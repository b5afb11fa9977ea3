//! Disks over every engine: what holds over io_uring holds over Linux AIO, the pool of threads and a submission thread, with
//! what each of them may do differently.

use super::*;

#[test]
fn disks_do_over_other_engines_as_over_io_uring() {
    tested::over_other_engines(&[
        ("round trip", what_the_guest_writes_is_in_the_file_and_comes_back),
        ("refusals", requests_that_cannot_be_are_answered_and_harm_nothing),
        ("read-only", a_read_only_disk_is_never_written),
        ("short file", faults::a_file_cut_short_gives_errors_and_not_zeros),
        ("no space", faults::a_write_that_finds_no_space_is_an_error),
        ("flushes", faults::after_a_flush_that_failed_the_page_cache_is_not_believed_again),
        ("broken queues", faults::a_guest_that_breaks_its_queue_needs_a_reset_and_others_do_not),
        ("a head twice", faults::a_head_that_is_offered_again_in_flight_breaks_the_queue),
        ("layouts", layouts::queues_of_several_disks_are_served_by_the_iothreads_they_were_given),
        ("two submitters", layouts::a_request_behind_one_in_flight_does_not_wait_for_it),
        ("an early doorbell", layouts::a_doorbell_that_rang_before_the_queue_was_taken_is_heard),
        ("reset", layouts::after_a_reset_nothing_touches_guest_memory),
    ]);
}

/// A pinned buffer is the guest's memory as before: the same bytes come and go.
#[test]
fn registered_memory_moves_the_same_bytes() {
    let directory = TempDir::new().unwrap();
    let ring = config::RingOptions { registered_memory: true, ..config::RingOptions::default() };
    let thread =
        IoThread::spawn(&config::IoThread { ring, ..config::IoThread::named(0, "iothread0") }).unwrap();
    // Less than anybody may lock (RLIMIT_MEMLOCK, 8 MiB by default).
    let ram = mock::ram(MIB);
    thread.register_memory(&ram).unwrap();
    thread.register_memory(&ram).unwrap();
    for cache in [CacheMode::None, CacheMode::Writethrough] {
        let path = file_of(&directory, &format!("{cache:?}"), MIB as u64);
        let mut blk = Blk::new(&disk_config(&path, cache, &[0]), std::slice::from_ref(&thread)).unwrap();
        let mut driver = BlkDriver::new(&ram, 0, 64);
        blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
        driver.put(0, &pattern(8, 16 << 10));
        // One segment, and several.
        let data = driver.data;
        let header = driver.headers;
        assert_eq!(driver.run(1, 8, 0, 4096).0, 0);
        driver.queue.ram.write_obj(1_u32, GuestAddress(header)).unwrap();
        driver.queue.ram.write_obj(16_u64, GuestAddress(header + 8)).unwrap();
        let pieces = [readable(header, 16), readable(data + 4096, 4096), readable(data + (12 << 10), 4096)];
        let status = [writable(header + 16, 1)];
        driver.queue.add(&[&pieces[..], &status[..]].concat()).unwrap();
        driver.queue.kick();
        driver.queue.wait_used();
        assert_eq!(driver.status(0), 0);
        assert_eq!(driver.run(0, 8, 65536, 12 << 10).0, 0);
        let expected = [pattern(8, 8192), pattern(32, 4096)].concat();
        assert!(driver.get(65536, 12 << 10) == expected, "{cache:?}");
    }
}
