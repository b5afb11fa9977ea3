//! IOThreads with a queue that counts what is asked of it. How they serve disks is tested with the block device.

use std::sync::mpsc::{Receiver, Sender, channel};

use vmprof_sys::affinity::cpus_of_thread;
use vmprof_sys::ring::Buffers;
use vmprof_sys::vring::{Position, RingError};

use super::service::{Drained, Io, QueueService};
use super::*;

/// Says what happened to it.
#[derive(Debug)]
struct Witness {
    name: &'static str,
    events: Sender<(&'static str, &'static str)>,
    breaks: bool,
}

impl Witness {
    fn tell(&self, event: &'static str) {
        let _ = self.events.send((self.name, event));
    }
}

impl QueueService for Witness {
    fn drain(&mut self, _quota: usize, _io: &mut Io<'_>) -> Result<Drained, RingError> {
        if self.breaks { Err(RingError::Size(0)) } else { Ok(Drained::All) }
    }
    fn resume(&mut self, _io: &mut Io<'_>) -> Drained {
        Drained::All
    }
    fn completed(&mut self, _tag: u16, _result: io::Result<u32>, _buffers: Buffers, _io: &mut Io<'_>) {}
    fn publish(&mut self) {}
    fn look(&mut self) -> Result<bool, RingError> {
        Ok(false)
    }
    fn arm(&mut self) {}
    fn disarm(&mut self) {}
    fn kicked(&mut self) {
        self.tell("kicked");
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn position(&self) -> Position {
        Position { available: 7, used: 7 }
    }
    fn broken(&mut self, _error: RingError) {
        self.tell("broken");
    }
    fn end(&mut self, _io: &mut Io<'_>) {
        self.tell("end");
    }
}

fn config(id: u32) -> config::IoThread {
    tested::iothread(id, &format!("iothread{id}"))
}

fn serve(
    thread: &Handle,
    device: DeviceId,
    name: &'static str,
    breaks: bool,
) -> (EventFd, Receiver<(&'static str, &'static str)>) {
    let (events, seen) = channel();
    let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
    let begin: Begin = Box::new(move |_io| Ok(Box::new(Witness { name, events, breaks })));
    thread.serve(device, 0, begin, doorbell.try_clone().unwrap()).unwrap();
    (doorbell, seen)
}

#[test]
fn a_thread_has_its_name_and_its_queues_hear_their_own_doorbells() {
    let thread = IoThread::spawn(&config(3)).unwrap();
    let name = std::fs::read_to_string(format!("/proc/self/task/{}/comm", thread.tid())).unwrap();
    assert_eq!(name.trim(), "IO iothread3");
    let device = DeviceId::unique();
    let (one, of_one) = serve(&thread, device, "one", false);
    let (two, of_two) = serve(&thread, device, "two", false);
    for _ in 0..20 {
        one.write(1).unwrap();
        assert_eq!(of_one.recv().unwrap(), ("one", "kicked"));
        two.write(1).unwrap();
        assert_eq!(of_two.recv().unwrap(), ("two", "kicked"));
    }
    let seen = thread.snapshot();
    assert!(seen.wakeups >= 40 && seen.enters >= seen.wakeups, "{seen:?}");
}

#[test]
fn a_release_ends_the_queues_of_its_device_alone() {
    let thread = IoThread::spawn(&config(0)).unwrap();
    let (leaving, staying) = (DeviceId::unique(), DeviceId::unique());
    let (_one, of_one) = serve(&thread, leaving, "one", false);
    let (two, of_two) = serve(&thread, staying, "two", false);
    thread.release(leaving).wait();
    assert_eq!(of_one.try_iter().last(), Some(("one", "end")));
    two.write(1).unwrap();
    assert_eq!(of_two.recv().unwrap(), ("two", "kicked"));
    thread.release(leaving).wait();
    let (again, of_again) = serve(&thread, leaving, "again", false);
    again.write(1).unwrap();
    assert_eq!(of_again.recv().unwrap(), ("again", "kicked"));
    thread.stop().unwrap();
    assert_eq!(of_two.try_iter().last(), Some(("two", "end")));
    assert!(thread.is_finished());
}

#[test]
fn a_broken_queue_is_told_once_and_can_be_released() {
    let thread = IoThread::spawn(&config(0)).unwrap();
    let device = DeviceId::unique();
    let (bell, seen) = serve(&thread, device, "bad", true);
    bell.write(1).unwrap();
    assert_eq!(seen.recv().unwrap(), ("bad", "broken"));
    thread.release(device).wait();
    assert_eq!(seen.try_iter().filter(|(_, event)| *event == "broken").count(), 0);
}

#[test]
fn a_thread_ends_with_its_last_handle() {
    let thread = IoThread::spawn(&config(0)).unwrap();
    let (_bell, seen) = serve(&thread, DeviceId::unique(), "one", false);
    let task = format!("/proc/self/task/{}", thread.tid());
    drop(thread.clone());
    assert!(std::path::Path::new(&task).exists());
    drop(thread);
    assert_eq!(seen.iter().last(), Some(("one", "end")));
}

#[test]
fn a_thread_that_panics_is_reported_with_its_reason_and_gives_no_answers() {
    let thread = IoThread::spawn(&config(0)).unwrap();
    let bell = EventFd::new(EFD_NONBLOCK).unwrap();
    let begin: Begin = Box::new(|_io| panic!("no such queue"));
    let device = DeviceId::unique();
    let error = thread.serve(device, 0, begin, bell).unwrap_err();
    assert!(matches!(error, ServeError::Gone { .. }), "{error}");
    thread.release(device).wait();
    let error = thread.stop().unwrap_err();
    assert_eq!(error.to_string(), "iothread `iothread0` ended before it was told to: no such queue");
}

#[test]
fn a_pin_that_cannot_be_had_fails_the_start() {
    let error = IoThread::spawn(&config::IoThread { cpus: vec![60_000], ..config(0) }).unwrap_err();
    assert!(
        matches!(error, IoThreadError::Thread { .. }) && error.to_string().contains("iothread0"),
        "{error}"
    );
}

/// Where there is no ring, a thread waits in epoll: the same holds of it.
#[test]
fn threads_without_a_ring_do_as_those_with_one() {
    let tests: [(&str, fn()); 8] = [
        ("doorbells", a_thread_has_its_name_and_its_queues_hear_their_own_doorbells),
        ("release", a_release_ends_the_queues_of_its_device_alone),
        ("broken", a_broken_queue_is_told_once_and_can_be_released),
        ("last handle", a_thread_ends_with_its_last_handle),
        ("panic", a_thread_that_panics_is_reported_with_its_reason_and_gives_no_answers),
        ("pin", a_pin_that_cannot_be_had_fails_the_start),
        ("queues that rest", a_queue_that_rests_costs_no_looks_and_its_doorbell_wakes_it),
        ("polling", a_thread_that_polls_counts_what_it_met),
    ];
    tested::over_other_engines(&tests);
}

#[test]
fn what_is_for_a_ring_is_refused_without_one() {
    let sqpoll = Some(config::SqPoll { cpu: 0, idle_ms: 10 });
    let ring = config::RingOptions { sqpoll, ..config::RingOptions::default() };
    let without = config::IoThread { engines: vec![Engine::Threads], ring, ..config(0) };
    let error = IoThread::spawn(&without).unwrap_err();
    assert!(matches!(error, IoThreadError::NoRingToSet { .. }), "{error}");
    let sqpoll = Some(config::SqPoll { cpu: 60_000, idle_ms: 10 });
    let ring = config::RingOptions { sqpoll, ..config::RingOptions::default() };
    let error = IoThread::spawn(&config::IoThread { engines: vec![Engine::IoUring], ring, ..config(0) });
    let error = error.unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("cpu 60000"), "{error}: {cause}");
}

#[test]
fn this_host_is_asked_for_each_engine() {
    probe(Engine::Threads).unwrap();
    for engine in [Engine::IoUring, Engine::Native] {
        if let Err(error) = probe(engine) {
            assert!(matches!(error, IoThreadError::Ring { .. } | IoThreadError::Aio { .. }), "{error}");
        }
    }
}

/// Offers nothing, and counts how often it was looked at.
#[derive(Debug)]
struct Looked(Arc<AtomicU64>, Sender<()>);

impl QueueService for Looked {
    fn drain(&mut self, _quota: usize, _io: &mut Io<'_>) -> Result<Drained, RingError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Drained::All)
    }
    fn resume(&mut self, _io: &mut Io<'_>) -> Drained {
        Drained::All
    }
    fn completed(&mut self, _tag: u16, _result: io::Result<u32>, _buffers: Buffers, _io: &mut Io<'_>) {}
    fn publish(&mut self) {}
    fn look(&mut self) -> Result<bool, RingError> {
        Ok(false)
    }
    fn arm(&mut self) {}
    fn disarm(&mut self) {}
    fn kicked(&mut self) {
        let _ = self.1.send(());
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn position(&self) -> Position {
        Position { available: 0, used: 0 }
    }
    fn broken(&mut self, _error: RingError) {}
    fn end(&mut self, _io: &mut Io<'_>) {}
}

#[test]
fn a_queue_that_rests_costs_no_looks_and_its_doorbell_wakes_it() {
    let thread = IoThread::spawn(&config(0)).unwrap();
    let device = DeviceId::unique();
    let queues: Vec<_> = (0..8_u16)
        .map(|queue| {
            let (looks, (heard, hears)) = (Arc::default(), channel());
            let doorbell = EventFd::new(EFD_NONBLOCK).unwrap();
            let service = Looked(Arc::clone(&looks), heard);
            let begin: Begin = Box::new(move |_io| Ok(Box::new(service)));
            thread.serve(device, queue, begin, doorbell.try_clone().unwrap()).unwrap();
            (doorbell, looks, hears)
        })
        .collect();
    let looks = |queue: usize| queues[queue].1.load(Ordering::Relaxed);
    let ring = |queue: usize| {
        queues[queue].0.write(1).unwrap();
        queues[queue].2.recv().unwrap();
    };
    (0..8).for_each(ring);
    let before: Vec<_> = (0..8).map(looks).collect();
    (0..100).for_each(|_| ring(3));
    for (queue, before) in before.iter().enumerate().filter(|(queue, _)| *queue != 3) {
        assert!(looks(queue) <= before + 2, "queue {queue} was gone over for the work of another");
    }
    ring(5);
}

#[test]
fn a_thread_that_polls_counts_what_it_met() {
    let polling = Polling { max_ns: 1_000_000_000, ..Polling::default() };
    let thread = IoThread::spawn(&config::IoThread { polling, ..config(0) }).unwrap();
    let (bell, seen) = serve(&thread, DeviceId::unique(), "one", false);
    loop {
        bell.write(1).unwrap();
        assert_eq!(seen.recv().unwrap(), ("one", "kicked"));
        let counts = thread.snapshot();
        if counts.poll_misses > 0 && counts.poll_hits > 0 {
            break;
        }
    }
}

fn place(cpu: u32) -> Change {
    let place = Place { cpus: vec![cpu], shares_cpus: false };
    Change { place: Some(place), ..Change::default() }
}

fn moved_and_not_moved() {
    let here = cpus_of_thread(0).unwrap();
    let (first, last) = (here[0], *here.last().unwrap());
    let thread = IoThread::spawn(&config::IoThread { cpus: vec![first], ..config(4) }).unwrap();
    let cpus = || cpus_of_thread(thread.tid()).unwrap();
    assert_eq!(cpus(), [first]);
    thread.change(place(last)).unwrap();
    assert_eq!(cpus(), [last]);
    let refused = Change { latency: Some(true), ..place(60_000) };
    let error = thread.change(refused).unwrap_err();
    assert!(matches!(error, IoThreadError::Moved { .. }), "{error}");
    assert_eq!((cpus(), thread.snapshot().latency), (vec![last], false));
    // It serves as before.
    let (bell, seen) = serve(&thread, DeviceId::unique(), "one", false);
    bell.write(1).unwrap();
    assert_eq!(seen.recv().unwrap(), ("one", "kicked"));
    thread.stop().unwrap();
    assert!(matches!(thread.change(place(first)), Err(IoThreadError::Ended { .. })));
}

#[test]
fn a_running_thread_moves_and_a_move_that_is_refused_changes_nothing() {
    moved_and_not_moved();
    tested::over_other_engines(&[("moves", moved_and_not_moved as fn())]);
}

#[test]
fn a_thread_begins_to_poll_and_leaves_it_while_it_serves() {
    let thread = IoThread::spawn(&config(0)).unwrap();
    let (bell, seen) = serve(&thread, DeviceId::unique(), "one", false);
    let ring = || {
        bell.write(1).unwrap();
        assert_eq!(seen.recv().unwrap(), ("one", "kicked"));
        let counts = thread.snapshot();
        (counts.poll_hits, counts.poll_misses)
    };
    assert_eq!(ring(), (0, 0));
    let polling =
        |max_ns| Change { polling: Some(Polling { max_ns, ..Polling::default() }), ..Change::default() };
    thread.change(polling(1_000_000_000)).unwrap();
    while ring().0 == 0 {}
    thread.change(polling(0)).unwrap();
    let before = thread.snapshot().poll_hits;
    for _ in 0..8 {
        ring();
    }
    assert_eq!(thread.snapshot().poll_hits, before);
}
