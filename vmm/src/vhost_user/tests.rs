//! The server under front ends: one that a test steers message by message, and libblkio's, which nobody here wrote.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tempfile::TempDir;
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmprof_sys::memory::{Binding, Range, allocate};

use super::*;
use crate::config::CacheMode;
use crate::virtio::mock::wait_for;

mod frontend;
mod hostile;
mod killed;
mod libblkio;

use frontend::request::*;
use frontend::{CONFIG_WCE, Disk, EVENT_IDX, FLUSH, Frontend, RAM_BYTES, USER, VERSION_1};

const DISK_BYTES: u64 = 4 << 20;

/// A server on a thread of its own, stopped at the end of the test.
struct Served {
    directory: TempDir,
    path: PathBuf,
    stopper: Stopper,
    events: mpsc::Receiver<Event>,
    thread: Option<JoinHandle<(Result<(), ServerError>, DiskSnapshot)>>,
}

fn disk(name: &str, path: &std::path::Path, virtqueues: Vec<u32>) -> config::Disk {
    config::Disk { cache: CacheMode::Writeback, ..config::Disk::named(name, path, virtqueues) }
}

impl Served {
    fn with(queues: u32, iothreads: u32, change: impl FnOnce(&mut config::Disk)) -> Served {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("disk.raw");
        std::fs::File::create(&source).unwrap().set_len(DISK_BYTES).unwrap();
        let path = directory.path().join("s");
        let iothread = |id| config::IoThread::named(id, &format!("iothread{id}"));
        let mut disk = disk("disk.raw", &source, (0..queues).map(|queue| queue % iothreads).collect());
        change(&mut disk);
        let iothreads = (0..iothreads).map(iothread).collect();
        let server = Server::start(&ServerConfig { socket: path.clone(), disk, iothreads }).unwrap();
        let (stopper, (tell, events)) = (server.stopper(), mpsc::channel());
        let thread = std::thread::spawn(move || {
            let outcome = server.run(|event| tell.send(event).unwrap_or(()));
            (outcome, server.disk())
        });
        Served { directory, path, stopper, events, thread: Some(thread) }
    }

    fn new() -> Served {
        Served::with(2, 2, |_| {})
    }

    fn source(&self) -> PathBuf {
        self.directory.path().join("disk.raw")
    }

    /// The next thing that happens to the server.
    fn event(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(60)).expect("something happens to the server")
    }

    /// The server's end, and what the disk did.
    fn stop(mut self) -> DiskSnapshot {
        self.stopper.stop();
        let (outcome, disk) = self.thread.take().unwrap().join().unwrap();
        outcome.unwrap();
        assert!(!self.path.exists(), "the socket is still there");
        disk
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stopper.stop();
    }
}

#[test]
fn what_is_offered_is_what_front_ends_ask_for() {
    let served = Served::new();
    let mut frontend = Frontend::connect(&served.path);
    frontend.greet(VERSION_1 | EVENT_IDX | FLUSH | CONFIG_WCE | 1 << 12);
    assert_eq!(frontend.ask_u64(GET_QUEUE_NUM), 2);
    assert!(frontend.ask_u64(GET_MAX_MEM_SLOTS) >= 32);
    // Offset, bytes, flags, and room for as much: the whole of the configuration, with fields that newer drivers know.
    let mut payload = [0, 96, 0].map(u32::to_le_bytes).concat();
    payload.resize(12 + 96, 0);
    let config = frontend.ask(GET_CONFIG, &payload);
    assert_eq!(config.len(), 12 + 96);
    assert_eq!(config[12..20], (DISK_BYTES / 512).to_le_bytes());
    assert_eq!(config[12 + 34..12 + 36], [2, 0], "its queues");
}

#[test]
fn requests_are_served_from_the_kick_on_and_without_one() {
    let served = Served::new();
    let mut frontend = Frontend::connect(&served.path);
    frontend.greet(VERSION_1 | EVENT_IDX);
    frontend.share_memory();
    let mut disk = Disk::new(&frontend, 0);
    // Offered before the ring begins, and never kicked.
    disk.offer(0, 0, 0, 4096);
    frontend.set_up(&disk, 0);
    frontend.begin(&disk);
    disk.queue.wait_used();
    disk.check(0xa5);
}

#[test]
fn a_front_end_without_features_of_the_protocol_need_not_enable() {
    let served = Served::new();
    let frontend = Frontend::connect(&served.path);
    frontend.send(SET_OWNER, &[], &[]);
    frontend.send(SET_FEATURES, &(VERSION_1 | EVENT_IDX).to_le_bytes(), &[]);
    let file = frontend.memory_file();
    let mut payload = [1, 0].map(u32::to_le_bytes).concat();
    payload.extend([0, RAM_BYTES, USER, 0].iter().flat_map(|field: &u64| field.to_le_bytes()));
    frontend.send(SET_MEM_TABLE, &payload, &[file.as_fd()]);
    let mut disk = Disk::new(&frontend, 0);
    let [descriptors, used, available] = disk.addresses();
    let mut payload = [0, 0].map(u32::to_le_bytes).concat();
    payload.extend([descriptors, used, available, 0].iter().flat_map(|field| field.to_le_bytes()));
    frontend.send(SET_VRING_NUM, &[0, 64].map(u32::to_le_bytes).concat(), &[]);
    frontend.send(SET_VRING_ADDR, &payload, &[]);
    frontend.send(SET_VRING_CALL, &[0; 8], &[eventfd::borrowed(&disk.queue.interrupt)]);
    frontend.send(SET_VRING_KICK, &[0; 8], &[eventfd::borrowed(&disk.queue.doorbell)]);
    disk.check(0x11);
}

#[test]
fn a_stopped_ring_says_where_it_stands_and_goes_on_there() {
    let served = Served::new();
    let (mut frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(1);
    assert_eq!(frontend.stop_ring(0), 2);
    disk.offer(0, 0, 0, 512);
    disk.queue.kick();
    assert_eq!(frontend.stop_ring(0), 2, "stopped, it takes nothing");
    frontend.set_up(&disk, 2);
    frontend.begin(&disk);
    disk.queue.wait_used();
    disk.check(2);
    assert_eq!(frontend.stop_ring(0), 5);
    assert_eq!(frontend.stop_ring(1), 0, "never begun");
}

#[test]
fn a_disabled_ring_stands_still_until_it_is_enabled() {
    let served = Served::new();
    let (mut frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(1);
    frontend.state(SET_VRING_ENABLE, 0, 0).unwrap();
    disk.offer(0, 0, 0, 512);
    disk.queue.doorbell.write(1).unwrap();
    // Every message that follows comes after the ring could have been looked at.
    frontend.ask_u64(GET_QUEUE_NUM);
    assert!(disk.queue.take_used().is_none());
    frontend.state(SET_VRING_ENABLE, 0, 1).unwrap();
    disk.queue.wait_used();
    disk.check(2);
}

#[test]
fn memory_may_change_while_requests_come() {
    let served = Served::new();
    let (mut frontend, mut disk) = Frontend::ready(&served.path);
    let more = allocate(&[Range { start: 0, len: 1 << 20 }], None, Binding::Strict, &[]).unwrap();
    let more = more.iter().next().unwrap().file_offset().unwrap().file().try_clone().unwrap();
    let region = [RAM_BYTES, 1 << 20, USER + RAM_BYTES, 0];
    for round in 0..20 {
        // One request is under way, or not yet seen, while the memory is exchanged.
        disk.offer(2, 0, 0, 4096);
        disk.queue.kick();
        match round % 2 {
            0 => frontend.change_memory(ADD_MEM_REG, region, &[more.as_fd()]).unwrap(),
            _ => frontend.change_memory(REM_MEM_REG, region, &[]).unwrap(),
        }
        disk.queue.wait_used();
        assert_eq!(disk.status(2), 0);
        disk.check(round);
    }
    frontend.share_memory();
    disk.check(0xee);
}

#[test]
fn a_ring_whose_memory_is_replaced_waits_for_the_new() {
    let served = Served::new();
    let (mut frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(1);
    let (file, region) = (frontend.memory_file(), [0, RAM_BYTES, USER, 0]);
    frontend.change_memory(REM_MEM_REG, region, &[]).unwrap();
    disk.offer(0, 0, 0, 512);
    disk.queue.doorbell.write(1).unwrap();
    frontend.change_memory(ADD_MEM_REG, region, &[file.as_fd()]).unwrap();
    disk.queue.wait_used();
    disk.check(2);
}

#[test]
fn where_interrupts_go_may_change_without_a_stop() {
    let served = Served::new();
    let mut frontend = Frontend::connect(&served.path);
    frontend.greet(VERSION_1);
    frontend.share_memory();
    let mut disk = Disk::without_events(&frontend, 0);
    frontend.set_up(&disk, 0);
    frontend.begin(&disk);
    disk.check(1);
    let other = EventFd::new(EFD_NONBLOCK).unwrap();
    frontend.notifier(SET_VRING_CALL, 0, Some(&other)).unwrap();
    disk.offer(0, 0, 0, 512);
    disk.queue.kick();
    assert!(wait_for(&other), "the interrupt went elsewhere");
    assert!(disk.queue.take_used().is_some());
    frontend.notifier(SET_VRING_CALL, 0, None).unwrap();
    frontend.notifier(SET_VRING_CALL, 0, Some(&disk.queue.interrupt)).unwrap();
    disk.check(2);
    assert!(other.read().is_err(), "an interrupt came the old way");
}

#[test]
fn a_kick_may_be_exchanged_while_the_ring_runs() {
    let served = Served::new();
    let (mut frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(1);
    disk.queue.doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
    frontend.notifier(SET_VRING_KICK, 0, Some(&disk.queue.doorbell)).unwrap();
    disk.check(2);
}

fn write_cache(frontend: &mut Frontend) -> u8 {
    let mut payload = [32, 1, 0].map(u32::to_le_bytes).concat();
    payload.push(0);
    frontend.ask(GET_CONFIG, &payload)[12]
}

#[test]
fn the_write_cache_stays_as_the_client_chose_it_until_the_device_is_reset() {
    let served = Served::new();
    let mut frontend = Frontend::connect(&served.path);
    frontend.greet(VERSION_1 | EVENT_IDX | FLUSH | CONFIG_WCE);
    frontend.share_memory();
    let mut disk = Disk::new(&frontend, 0);
    frontend.set_up(&disk, 0);
    frontend.begin(&disk);
    disk.check(1);
    assert_eq!(write_cache(&mut frontend), 1);
    let mut payload = [32, 1, 0].map(u32::to_le_bytes).concat();
    payload.push(0);
    frontend.say(SET_CONFIG, &payload, &[]).unwrap();
    assert_eq!(write_cache(&mut frontend), 0);
    let base = frontend.stop_ring(0);
    assert_eq!(write_cache(&mut frontend), 0, "a pause of the guest is no reset");
    frontend.set_up(&disk, base);
    frontend.begin(&disk);
    disk.check(2);
    assert_eq!(write_cache(&mut frontend), 0);
    frontend.say(RESET_DEVICE, &[], &[]).unwrap();
    assert_eq!(write_cache(&mut frontend), 1);
}

#[test]
fn a_driver_that_cannot_flush_is_promised_durable_writes_and_the_next_is_not() {
    let served = Served::new();
    let mut frontend = Frontend::connect(&served.path);
    frontend.greet(VERSION_1 | EVENT_IDX);
    frontend.share_memory();
    let mut disk = Disk::new(&frontend, 0);
    frontend.set_up(&disk, 0);
    frontend.begin(&disk);
    disk.check(1);
    assert_eq!(write_cache(&mut frontend), 0);
    let base = frontend.stop_ring(0);
    let features = VERSION_1 | EVENT_IDX | FLUSH | frontend::PROTOCOL;
    frontend.say(SET_FEATURES, &features.to_le_bytes(), &[]).unwrap();
    frontend.set_up(&disk, base);
    frontend.begin(&disk);
    disk.check(2);
    assert_eq!(write_cache(&mut frontend), 1);
}

#[test]
fn a_ring_that_another_served_goes_on_behind_what_that_one_gave_back() {
    let served = Served::new();
    let (frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(1);
    drop(frontend.stream);
    assert_eq!((served.event(), served.event()), (Event::Connected, Event::Left { how: Left::ByItself }));
    // The same memory with the same rings, at another server's client.
    let mut again = Frontend::connect(&served.path);
    again.ram = frontend.ram;
    again.greet(VERSION_1 | EVENT_IDX | FLUSH);
    again.share_memory();
    again.set_up(&disk, 2);
    again.begin(&disk);
    disk.check(2);
}

#[test]
fn a_client_may_vanish_with_requests_in_flight_and_the_next_is_served() {
    let served = Served::new();
    for round in 0..10 {
        let (frontend, mut disk) = Frontend::ready(&served.path);
        for tag in 0..16 {
            disk.offer(tag, if tag % 2 == 0 { 0 } else { 1 }, tag * 8, 4096);
        }
        disk.queue.kick();
        drop(frontend);
        assert_eq!(served.event(), Event::Connected, "round {round}");
        assert_eq!(served.event(), Event::Left { how: Left::ByItself });
        // When the server says so, nothing of it is left to do.
        let done = std::iter::from_fn(|| disk.queue.take_used()).count();
        assert!(done == 0 || (0..16).filter(|tag| disk.status(*tag) == 0).count() == done);
    }
    let (_frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(3);
}

#[test]
fn a_second_client_is_turned_away_and_the_first_does_not_notice() {
    let served = Served::new();
    let (frontend, mut disk) = Frontend::ready(&served.path);
    assert_eq!(served.event(), Event::Connected);
    assert!(Frontend::connect(&served.path).is_hung_up_on());
    assert_eq!(served.event(), Event::TurnedAway);
    disk.check(4);
    drop(frontend);
    assert_eq!(served.event(), Event::Left { how: Left::ByItself });
    let (_frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(5);
}

#[test]
fn a_stop_ends_what_was_begun_before_the_client_sees_it() {
    let served = Served::new();
    let (mut frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(6);
    for tag in 0..16 {
        disk.offer(tag, 1, tag * 8, 4096);
    }
    disk.queue.kick();
    let done = served.stop();
    assert!(frontend.is_hung_up_on());
    let back = std::iter::from_fn(|| disk.queue.take_used()).count();
    let written: u64 = done.virtqueues.iter().map(|queue| queue.writes).sum();
    assert_eq!(written, back as u64 + 1, "all that was taken came back");
}

#[test]
fn a_stop_does_not_wait_for_the_rest_of_a_message() {
    let served = Served::new();
    let (frontend, mut disk) = Frontend::ready(&served.path);
    disk.check(7);
    assert_eq!(served.event(), Event::Connected);
    // A header that promises more than ever comes.
    let header = [SET_FEATURES, 1, 8].map(u32::to_le_bytes).concat();
    std::io::Write::write_all(&mut &frontend.stream, &header).unwrap();
    served.stop();
}

#[test]
fn a_read_only_disk_refuses_writes_and_says_so() {
    let served = Served::with(1, 1, |disk| disk.read_only = true);
    let mut frontend = Frontend::connect(&served.path);
    frontend.greet(VERSION_1 | EVENT_IDX | 1 << 5);
    frontend.share_memory();
    let mut disk = Disk::new(&frontend, 0);
    frontend.set_up(&disk, 0);
    frontend.begin(&disk);
    disk.offer(0, 1, 0, 512);
    disk.queue.kick();
    disk.queue.wait_used();
    assert_eq!(disk.status(0), 1);
}

#[test]
fn a_disk_is_served_once() {
    let served = Served::new();
    let config = ServerConfig {
        socket: served.directory.path().join("other"),
        disk: disk("again", &served.source(), vec![0]),
        iothreads: vec![config::IoThread::named(0, "iothread0")],
    };
    let error = Server::start(&config).unwrap_err();
    assert!(matches!(error, ServerError::Disk(crate::backing::DiskError::InUse { .. })), "{error}");
    assert!(!config.socket.exists());
}
