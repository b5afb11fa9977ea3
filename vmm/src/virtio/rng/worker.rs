//! The device on the emulator thread: it owns the queue while the device is live.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::budget::{Budget, PERIOD};
use crate::emulator::{Handler, Watch};
use crate::virtio::orders::{Heard, Order};
use crate::virtio::queue::{Broken, Queue};

/// The most that one chain gets: virtio 1.3, 5.4.6.1 lets a device write less than there is room for.
const MOST_BYTES: usize = 4096;

#[derive(Debug)]
pub struct RngHandler {
    heard: Heard,
    /// Runs while the guest waits for its next period.
    timer: OwnedFd,
    budget: Budget,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Idle,
    Live(Queue),
    /// The driver broke the queue: kept, unserved, for the reset that must come.
    Broken(Queue),
}

/// Why the queue is served no more.
enum Ended {
    Broken,
    /// The host gives no random bytes any more.
    Dry,
}

impl From<Broken> for Ended {
    fn from(_: Broken) -> Ended {
        Ended::Broken
    }
}

impl RngHandler {
    pub(super) fn new(heard: Heard) -> io::Result<RngHandler> {
        // A host that gives none (an old kernel, a filter of system calls) says so now.
        fill(&mut [0; 1])?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let budget = Budget::new(Instant::now());
        Ok(RngHandler { heard, timer, budget, phase: Phase::Idle })
    }

    fn obey(&mut self, watch: &Watch) {
        while let Some(order) = self.heard.next() {
            match order {
                // A driver that enables no queue gets nothing.
                Order::Start(mut queues) => {
                    self.phase =
                        queues.pop().map_or(Phase::Idle, |queue| Phase::Live(Queue::new(queue, watch)));
                }
                Order::StopQueue(_, answer) => drop(answer.send(None)),
                Order::Stop(answer) => {
                    match std::mem::replace(&mut self.phase, Phase::Idle) {
                        Phase::Idle => {}
                        Phase::Live(queue) | Phase::Broken(queue) => queue.forget(watch),
                    }
                    // Whoever asked may have gone.
                    let _ = answer.send(());
                }
            }
        }
    }

    fn work(&mut self) {
        let Phase::Live(queue) = &mut self.phase else { return };
        match serve(queue, &mut self.budget) {
            Ok(true) => {}
            // A timer that is open can be set (timerfd_settime(2): else the arguments are wrong).
            Ok(false) => drop(ring_after_period(&self.timer)),
            Err(Ended::Broken | Ended::Dry) => {
                if let Phase::Live(queue) = std::mem::replace(&mut self.phase, Phase::Idle) {
                    self.phase = Phase::Broken(queue);
                }
                self.heard.distress.raise();
            }
        }
    }
}

impl Handler for RngHandler {
    fn start(&mut self, watch: &Watch) {
        // An eventfd and a timer can be watched as long as the kernel has memory.
        let _ = watch.add_event(&self.heard.bell);
        let _ = watch.add(&self.timer);
    }

    fn ready(&mut self, watch: &Watch) {
        self.obey(watch);
        self.work();
    }

    /// Nothing of a guest's lies here.
    fn finish(&mut self) {}
}

/// Fills what is there. `false`: the guest has had its share, and more may be there.
fn serve(queue: &mut Queue, budget: &mut Budget) -> Result<bool, Ended> {
    let mut bytes = [0; MOST_BYTES];
    loop {
        let Some(share) = budget.next(Instant::now()) else {
            queue.rest();
            return Ok(false);
        };
        let Some(mut taken) = queue.take(true)? else {
            match queue.settle()? {
                true => continue,
                false => return Ok(true),
            }
        };
        let room = usize::try_from(taken.buffers.bytes()).unwrap_or(usize::MAX);
        let bytes = bytes.get_mut(..room.min(share).min(MOST_BYTES)).unwrap_or_default();
        // Else the rest of the buffer would be what the host's stack had before.
        fill(bytes).map_err(|_| Ended::Dry)?;
        let written = taken.buffers.fill_front(bytes);
        queue.give_back(taken.head, written as u32);
        budget.spend(written);
    }
}

/// From the kernel's pool, as getrandom(2) gives it without flags: after it was seeded, without an end.
fn fill(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => bytes = bytes.get_mut(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn ring_after_period(timer: &OwnedFd) -> rustix::io::Result<()> {
    let never = Timespec { tv_sec: 0, tv_nsec: 0 };
    let once = Timespec { tv_sec: 0, tv_nsec: PERIOD.subsec_nanos().into() };
    let time = Itimerspec { it_interval: never, it_value: once };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &time).map(drop)
}
