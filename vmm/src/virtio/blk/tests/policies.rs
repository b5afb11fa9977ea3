//! What becomes of requests that the backing fails: `rerror` and `werror`.
//!
//! A FIFO stands for a backing that recovers: without a reader its writes fail, with one they come out in their order.

use std::fs::File;
use std::io::Read as _;
use std::sync::mpsc;

use rustix::fs::{CWD, FileType, mknodat};

use super::*;
use crate::config::{ErrorPolicy, OnError};
use crate::pause::PauseNews;

struct Stage {
    blk: Blk,
    driver: BlkDriver,
    thread: Handle,
    pause: Arc<Pause>,
    news: mpsc::Receiver<PauseNews>,
    directory: TempDir,
}

impl Stage {
    fn new(on_error: OnError, open: impl FnOnce(&Path) -> File) -> Stage {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("disk");
        let file = open(&path);
        let config = config::Disk { on_error, ..disk_config(&path, CacheMode::Writeback, &[0]) };
        let backing = Backing::new(&config, file, MIB as u64, Alignment::NONE).unwrap();
        let (pause, thread) = (Arc::new(Pause::default()), iothread(0, 0));
        let (tell, news) = mpsc::channel();
        pause.on_news(move |one| drop(tell.send(one)));
        let (machine, threads) = (Some(Arc::clone(&pause)), vec![thread.clone()]);
        let mut blk = Blk::with_pause(&config, [0; ID_BYTES], threads, backing, machine).unwrap();
        let driver = BlkDriver::new(&mock::ram(8 * MIB), 0, 64);
        blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
        Stage { blk, driver, thread, pause, news, directory }
    }

    fn resume(&self) {
        self.pause.resume().unwrap();
        self.thread.wake();
    }

    /// Waits until so many requests have stopped the machine.
    fn wait_failures(&self, count: usize) {
        while self.pause.snapshot().is_none_or(|pause| pause.failures.len() < count) {
            std::thread::yield_now();
        }
    }
}

fn write_errors(write: ErrorPolicy) -> OnError {
    OnError { read: ErrorPolicy::Report, write }
}

/// A FIFO whose reader has gone.
fn fifo(path: &Path) -> File {
    mknodat(CWD, path, FileType::Fifo, 0o600.into(), 0).unwrap();
    let both = File::options().read(true).write(true).open(path).unwrap();
    let writer = File::options().write(true).open(path).unwrap();
    drop(both);
    writer
}

fn full(_path: &Path) -> File {
    File::options().read(true).write(true).open("/dev/full").unwrap()
}

const BROKEN_PIPE: i32 = 32;
const NO_SPACE: i32 = 28;

#[test]
fn a_failure_stops_the_machine_and_resuming_tries_everything_again_in_order() {
    let mut stage = Stage::new(write_errors(ErrorPolicy::Stop), fifo);
    let other = file_of(&stage.directory, "other", MIB as u64);
    let threads = [stage.thread.clone()];
    let mut good = Blk::new(&disk_config(&other, CacheMode::Writeback, &[0]), &threads).unwrap();
    let mut good_driver = BlkDriver::new(&stage.driver.queue.ram, 4, 64);
    good.activate(ALL_FEATURES, vec![good_driver.queue.device_side(0)]).unwrap();

    let mut heads = Vec::new();
    for tag in 0..3 {
        stage.driver.put(512 * u64::from(tag), &pattern(u64::from(tag), 512));
        heads.push(stage.driver.request(tag, 1, u64::from(tag), 512 * u64::from(tag), 512));
    }
    stage.driver.queue.kick();
    stage.wait_failures(3);
    // A packed ring's heads are slots of the device's, the lowest first; the driver has names of its own.
    let shown_heads = if stage.driver.queue.form.packed { vec![0, 1, 2] } else { heads.clone() };
    let paused = stage.pause.snapshot().unwrap();
    let of = |failure: &crate::pause::Failure| (failure.vq, failure.head, failure.sector, failure.errno);
    let expected: Vec<_> =
        (0..).zip(&shown_heads).map(|(sector, head)| (0, *head, Some(sector), BROKEN_PIPE)).collect();
    assert_eq!(paused.failures.iter().map(of).collect::<Vec<_>>(), expected);
    assert!(
        matches!(stage.news.recv().unwrap(), PauseNews::Paused(Some(failure)) if failure.head == shown_heads[0])
    );
    assert!(stage.driver.queue.take_used().is_none(), "nobody was told");
    let shown = stage.blk.stats().snapshot().virtqueues.remove(0);
    assert_eq!((shown.in_flight, shown.errors), (3, 0));
    assert_eq!(good_driver.run(0, 0, 0, 512).0, 0, "the other disk of the thread goes on");

    // Nothing has changed: it stops again.
    stage.resume();
    stage.wait_failures(3);
    let mut reader = File::options().read(true).open(stage.directory.path().join("disk")).unwrap();
    stage.resume();
    let mut used: Vec<_> = (0..3).map(|_| stage.driver.queue.wait_used().0).collect();
    used.sort_unstable();
    heads.sort_unstable();
    assert_eq!(used, heads);
    (0..3).for_each(|tag| assert_eq!(stage.driver.status(tag), 0));
    let mut found = vec![0; 3 * 512];
    reader.read_exact(&mut found).unwrap();
    assert!(found == pattern(0, 3 * 512), "in their order");
    assert_eq!(stage.pause.snapshot(), None);
}

#[test]
fn each_policy_answers_in_its_own_way() {
    type Open = fn(&Path) -> File;
    let cases: [(ErrorPolicy, Open, u8); 4] = [
        (ErrorPolicy::Report, fifo, 1),
        (ErrorPolicy::Ignore, fifo, 0),
        (ErrorPolicy::Enospc, fifo, 1),
        (ErrorPolicy::Ignore, full, 0),
    ];
    for (policy, open, status) in cases {
        let mut stage = Stage::new(write_errors(policy), open);
        assert_eq!(stage.driver.run(1, 0, 0, 512).0, status, "{policy:?}");
        assert_eq!(stage.driver.run(4, 0, 0, 0).0, status, "{policy:?}: a flush, which none of them can");
        assert_eq!(stage.blk.stats().snapshot().virtqueues[0].errors, 2, "{policy:?}");
        assert_eq!(stage.pause.snapshot(), None);
    }
    let mut stage = Stage::new(write_errors(ErrorPolicy::Enospc), full);
    stage.driver.request(0, 1, 8, 0, 512);
    stage.driver.queue.kick();
    stage.wait_failures(1);
    assert_eq!(stage.pause.snapshot().unwrap().failures[0].errno, NO_SPACE);
}

#[test]
fn reads_have_a_policy_of_their_own() {
    let sound = |path: &Path| {
        std::fs::write(path, pattern(0, MIB)).unwrap();
        File::options().read(true).write(true).open(path).unwrap()
    };
    let mut stage = Stage::new(OnError { read: ErrorPolicy::Stop, write: ErrorPolicy::Report }, sound);
    let path = stage.directory.path().join("disk");
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(4096).unwrap();
    stage.driver.request(0, 0, 7, 0, 1024);
    stage.driver.queue.kick();
    stage.wait_failures(1);
    let failure = stage.pause.snapshot().unwrap().failures.remove(0);
    assert_eq!((failure.kind.as_str(), failure.sector), ("read", Some(7)));
    std::fs::write(&path, pattern(0, MIB)).unwrap();
    stage.resume();
    assert_eq!(stage.driver.queue.wait_used().1, 1025);
    assert_eq!(stage.driver.status(0), 0);
    assert!(stage.driver.get(0, 1024) == pattern(7, 1024));
}

#[test]
fn a_reset_lets_go_of_what_had_stopped_the_machine() {
    let mut stage = Stage::new(write_errors(ErrorPolicy::Stop), fifo);
    for tag in 0..4 {
        stage.driver.request(tag, 1, 0, 0, 512);
    }
    stage.driver.queue.kick();
    stage.wait_failures(4);
    stage.blk.reset();
    (0..4).for_each(|tag| assert_eq!(stage.driver.status(tag), 0xff, "nothing was written"));
    assert!(stage.driver.queue.take_used().is_none());
    assert_eq!(stage.blk.stats().snapshot().virtqueues[0].in_flight, 0);
    stage.resume();
    let mut fresh = BlkDriver::new(&stage.driver.queue.ram, 0, 64);
    stage.blk.activate(ALL_FEATURES, vec![fresh.queue.device_side(0)]).unwrap();
    let _reader = File::options().read(true).open(stage.directory.path().join("disk")).unwrap();
    assert_eq!(fresh.run(1, 0, 0, 512).0, 0);
}

#[test]
fn a_disk_without_a_machine_cannot_promise_to_stop_it() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4096);
    for on_error in
        [write_errors(ErrorPolicy::Enospc), OnError { read: ErrorPolicy::Stop, write: ErrorPolicy::Report }]
    {
        let config = config::Disk { on_error, ..disk_config(&path, CacheMode::Writeback, &[0]) };
        let error = Blk::new(&config, &[iothread(0, 0)]).unwrap_err();
        assert!(matches!(error, DiskError::NothingToPause { .. }), "{error}");
    }
}
