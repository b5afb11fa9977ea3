//! What is changed of an IOThread while it serves: where requests spend their time is taken, and all of it moves.

use vmprof_sys::affinity::cpus_of_thread;

use super::*;
use crate::iothread::latency::LatencySnapshot;
use crate::iothread::{Change, Place};

fn take_times(thread: &Handle, take: bool) {
    thread.change(Change { latency: Some(take), ..Change::default() }).unwrap();
}

fn latency(blk: &Blk) -> Option<LatencySnapshot> {
    blk.stats().snapshot().virtqueues.remove(0).latency
}

/// What is shown is counted a little later: a request more, whose end was heard, brings all before it.
fn counts(blk: &Blk) -> [u64; 3] {
    latency(blk).unwrap().stages().map(|(_, stage)| stage.count())
}

#[test]
pub(super) fn requests_are_timed_from_when_it_is_asked_for_until_it_is_not() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    let thread = iothread(0, 0);
    let config = disk_config(&path, CacheMode::Writeback, &[0]);
    let mut blk = Blk::new(&config, std::slice::from_ref(&thread)).unwrap();
    let mut driver = BlkDriver::new(&mock::ram(4 * MIB), 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    assert_eq!(driver.run(0, 0, 0, 4096).0, 0);
    assert_eq!((latency(&blk), thread.snapshot().latency), (None, false));

    take_times(&thread, true);
    assert!(thread.snapshot().latency);
    for _ in 0..3 {
        assert_eq!(driver.run(0, 8, 0, 4096).0, 0);
    }
    assert_eq!(driver.run(1, 8, 0, 4096).0, 0);
    assert_eq!(driver.run(4, 0, 0, 0).0, 0);
    // GET_ID and what is refused need no engine.
    assert_eq!(driver.run(8, 0, 0, 20).0, 0);
    assert_eq!(driver.run(0, 1 << 40, 0, 4096).0, 1);
    assert_eq!(counts(&blk), [5; 3]);
    for (name, stage) in latency(&blk).unwrap().stages() {
        let median = stage.quantile_ns(500).unwrap();
        assert!(0 < median && median <= stage.max_ns && stage.max_ns <= stage.sum_ns, "{name}: {stage:?}");
    }

    take_times(&thread, false);
    assert_eq!(driver.run(0, 8, 0, 4096).0, 0);
    assert_eq!(counts(&blk), [5; 3], "no more, and what there was stays");
    take_times(&thread, true);
    // Offered while those before are taken: they wait for the rest of a batch, and what needs no handing over may end meanwhile.
    for _ in 0..64 {
        for tag in 0..16 {
            driver.request(tag, 0, 8 * u64::from(tag), 4096 * u64::from(tag), 4096);
            driver.queue.kick();
        }
        for _ in 0..16 {
            driver.queue.wait_used();
        }
    }
    assert_eq!(driver.run(8, 0, 0, 20).0, 0);
    assert_eq!(counts(&blk), [5 + 64 * 16; 3]);
    blk.reset();
    blk.activate(ALL_FEATURES, vec![BlkDriver::new(&mock::ram(4 * MIB), 0, 64).queue.device_side(0)])
        .unwrap();
    assert_eq!(counts(&blk), [5 + 64 * 16; 3], "a reset forgets nothing");
}

#[test]
fn the_kernels_workers_go_with_their_thread_or_are_named() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", MIB as u64);
    let here = cpus_of_thread(0).unwrap();
    let (first, last) = (here[0], *here.last().unwrap());
    let pinned = config::IoThread { cpus: vec![first], ..tested::iothread(0, "iothread0") };
    let thread = IoThread::spawn(&pinned).unwrap();
    let config = disk_config(&path, CacheMode::Writeback, &[0]);
    let mut blk = Blk::new(&config, std::slice::from_ref(&thread)).unwrap();
    let mut driver = BlkDriver::new(&mock::ram(4 * MIB), 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    // A flush is a worker's to carry out.
    assert_eq!(driver.run(1, 8, 0, 4096).0, 0);
    assert_eq!(driver.run(4, 0, 0, 0).0, 0);
    let name = format!("iou-wrk-{}", thread.tid());
    let comm = |tid: i32| std::fs::read_to_string(format!("/proc/self/task/{tid}/comm")).unwrap_or_default();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let tids = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    let workers: Vec<i32> = tids.filter(|tid| comm(*tid).trim() == name).collect();
    assert!(!workers.is_empty(), "no {name}");
    let place = Place { cpus: vec![last], shares_cpus: false };
    let unmoved = thread.change(Change { place: Some(place), ..Change::default() }).unwrap();
    for worker in workers {
        // One that is gone has no CPUs.
        let cpus = cpus_of_thread(worker).unwrap_or_default();
        assert!(cpus.is_empty() || cpus == [last] || unmoved.0.contains(&worker), "{worker} is on {cpus:?}");
    }
    assert_eq!(driver.run(4, 0, 0, 0).0, 0);
}

#[test]
fn over_every_engine() {
    tested::over_other_engines(&[(
        "timed",
        requests_are_timed_from_when_it_is_asked_for_until_it_is_not as fn(),
    )]);
}
