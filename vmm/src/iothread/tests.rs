//! IOThreads with a queue that counts what is asked of it. How they serve disks is tested with the block device.

use std::sync::mpsc::{Receiver, Sender, channel};

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
    config::IoThread {
        id,
        name: format!("iothread{id}"),
        cpus: Vec::new(),
        polling: config::Polling::default(),
    }
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
