//! The loop of an IOThread. Awake, it shows the drivers what completed, takes what its queues hold and submits it in
//! batches, a system call each; they need not notify it. Before it sleeps it arms its queues, fences, and looks once more: a driver that
//! made a request available either sees the armed event and rings, or had its request seen here (docs/dataplane.md tells
//! why). It sleeps where doorbells, commands and completions all end the wait.
//!
//! Only queues that are *awake* are gone over: a queue falls asleep armed, when the thread does or when it had nothing for
//! many rounds, and its doorbell or a completion wakes it. What a round costs follows the queues that have work.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;
use vmprof_sys::ring::{Completion, Completions, Wait};
use vmprof_sys::vring::RingError;
use vmprof_sys::vring::handshake::{Machine, ask_then_look};

use super::counters::IoThreadCounters;
use super::engines::{Engines, Watch};
use super::poll::Windows;
use super::preempting::Preempting;
use super::service::{Begin, Drained, Io, QueueService, Token};
use super::{Command, IoThreadError, Positions, QueueKey, Queues, latency};
use crate::config;

mod changing;

/// Requests taken from one queue before the next has its turn.
const QUOTA: usize = 8;
/// So many operations are handed over at once after a wait: the drive works on these while further requests are read. Twice
/// as many each time after that, up to the most: who finds ever more to take keeps the drive busy already.
const FIRST_BATCH: usize = 8;
const LARGEST_BATCH: usize = 64;
/// Rounds that a smaller batch waits for more of what drivers are just offering.
const ROUNDS_PER_BATCH: u32 = 8;
/// How long requests wait for another thread to leave a block, before asking again.
const STALL: Duration = Duration::from_micros(100);
/// How often a thread that polls asks for bells that it cannot see without a system call.
const LOOKS_PER_LISTENING: u32 = 32;
/// Rounds in which an awake queue may have nothing before it is left to its doorbell.
const PATIENCE: u32 = 256;

#[derive(Debug)]
struct Served {
    key: QueueKey,
    service: Box<dyn QueueService>,
    /// `None` once the doorbell is closed.
    watch: Option<Watch>,
    state: State,
    /// Whether it is gone over, and so disarmed.
    awake: bool,
    /// Rounds in a row in which nothing was seen of it.
    quiet: u32,
    /// It has requests that no completion tells of.
    stalled: bool,
    /// Its ring stands nowhere that anyone could go on from.
    broken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Live,
    /// The driver broke its rules: left alone until the device is reset.
    Broken,
    /// Released: takes nothing more, and goes when nothing is in flight.
    Leaving,
}

#[derive(Debug)]
struct Leaving {
    which: Queues,
    answer: mpsc::Sender<Positions>,
    gone: Positions,
}

#[derive(Debug)]
pub(super) struct Worker {
    /// Declared first, dropped first, on a panic too: it waits for what the kernel still holds, and only then do those who
    /// wait in `leaving` and behind `commands` learn that their queues are gone.
    engines: Engines,
    id: u32,
    name: String,
    queues: Vec<Option<Served>>,
    /// The places of those that are awake.
    awake: Vec<usize>,
    /// Where the next round over them begins, so that none is always first.
    turn: usize,
    leaving: Vec<Leaving>,
    commands: mpsc::Receiver<Command>,
    commanded: bool,
    stopping: bool,
    windows: Windows,
    preempting: Preempting,
    /// How many operations are handed over at once, and the rounds since any were.
    batch: usize,
    held_for: u32,
    /// Whether the times of requests are taken.
    takes_times: bool,
    counters: Arc<IoThreadCounters>,
    done: Vec<Completion<Token>>,
}

impl Worker {
    pub(super) fn new(
        config: &config::IoThread,
        commands: mpsc::Receiver<Command>,
        bell: EventFd,
        counters: Arc<IoThreadCounters>,
    ) -> Result<Self, IoThreadError> {
        let mut engines = Engines::new(config)?;
        let watched = engines.watch(bell, Token::Commands);
        watched.map_err(|source| IoThreadError::EventFd { name: config.name.clone(), source })?;
        Ok(Worker {
            engines,
            id: config.id,
            name: config.name.clone(),
            queues: Vec::new(),
            awake: Vec::new(),
            turn: 0,
            leaving: Vec::new(),
            commands,
            commanded: true,
            stopping: false,
            windows: Windows::new(config.polling),
            preempting: Preempting::new(config.shares_cpus),
            batch: FIRST_BATCH,
            held_for: 0,
            takes_times: false,
            counters,
            done: Vec::new(),
        })
    }

    pub(super) fn completions(&self) -> Option<Completions> {
        self.engines.completions()
    }

    /// Until told to stop, and then until the last queue is drained. An error is one of the engines themselves.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            if self.commanded {
                self.take_commands();
            }
            // First, so that drivers go on while we take what they offer.
            self.publish();
            let drained = self.drain();
            self.settle_leaving();
            if self.stopping && self.queues.iter().all(Option::is_none) {
                return Ok(());
            }
            match drained {
                Drained::More => self.hand_over()?,
                Drained::All => self.idle(Wait::Forever)?,
                Drained::Stalled => self.idle(Wait::AtMost(STALL))?,
            }
            self.complete()?;
        }
    }

    /// Has the rounds go over a queue.
    fn wake(&mut self, slot: usize) {
        let Some(Some(served)) = self.queues.get_mut(slot) else { return };
        served.quiet = 0;
        if !served.awake {
            served.awake = true;
            self.awake.push(slot);
            if served.state == State::Live {
                served.service.disarm();
            }
        }
    }

    /// One round over the queues that are awake. What it answers is the most urgent of what they left.
    fn drain(&mut self) -> Drained {
        let (mut more, mut stalled) = (false, false);
        let count = self.awake.len();
        self.turn = if self.turn + 1 < count { self.turn + 1 } else { 0 };
        let mut tired = false;
        for step in 0..count {
            let Some(&slot) = self.awake.get((self.turn + step) % count) else { continue };
            let Some(Some(served)) = self.queues.get_mut(slot) else { continue };
            let mut io = Io { engines: &mut self.engines, slot, iothread: self.id, found_ns: 0 };
            let drained = match served.state {
                State::Live => served.service.drain(QUOTA, &mut io),
                State::Broken | State::Leaving => Ok(served.service.resume(&mut io)),
            };
            served.quiet += 1;
            served.stalled = false;
            match drained {
                Ok(Drained::All) => tired |= served.quiet > PATIENCE,
                Ok(Drained::More) => (more, served.quiet) = (true, 0),
                Ok(Drained::Stalled) => (stalled, served.stalled) = (true, true),
                Err(error) => break_queue(served, error),
            }
            if served.state != State::Broken {
                // What needed no engine.
                served.service.publish();
            }
        }
        if tired {
            self.rest();
        }
        match (more, stalled) {
            (true, _) => Drained::More,
            (false, true) => Drained::Stalled,
            (false, false) => Drained::All,
        }
    }

    /// Leaves the queues that had nothing for long to their doorbells: armed, and looked at once more behind a fence.
    fn rest(&mut self) {
        let Worker { queues, awake, .. } = self;
        awake.retain(|slot| {
            let Some(Some(served)) = queues.get_mut(*slot) else { return false };
            if served.quiet <= PATIENCE || served.stalled {
                return true;
            }
            served.quiet = 0;
            if served.state == State::Live {
                match ask_then_look::<Machine, _, _>(
                    &mut served.service,
                    |service| service.arm(),
                    |service| service.look(),
                ) {
                    Ok(false) => {}
                    Ok(true) => {
                        served.service.disarm();
                        return true;
                    }
                    Err(error) => break_queue(served, error),
                }
            }
            served.awake = false;
            false
        });
    }

    /// There is more to take: hands over what was started once it is a batch. A system call for each request that a driver
    /// offers while another is taken would be most of what the request costs.
    fn hand_over(&mut self) -> io::Result<()> {
        self.held_for += 1;
        if self.engines.started() < self.batch
            && self.held_for < ROUNDS_PER_BATCH
            && !self.engines.must_look()
        {
            return Ok(());
        }
        self.batch = LARGEST_BATCH.min(2 * self.batch);
        self.submit()
    }

    /// Hands over what was started and goes on.
    fn submit(&mut self) -> io::Result<()> {
        self.held_for = 0;
        if self.engines.wants_enter() {
            self.enter(Wait::Never)?;
        }
        Ok(())
    }

    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        if self.takes_times && self.engines.started() > 0 {
            // Before the call, which may carry some of it out. What started something is awake.
            let now = latency::now();
            for slot in &self.awake {
                if let Some(Some(served)) = self.queues.get_mut(*slot) {
                    served.service.handed_over(now);
                }
            }
        }
        self.counters.enters.add(self.engines.enter(wait)?);
        Ok(())
    }

    /// Nothing is left to take: looks for a while if that has paid, then sleeps.
    fn idle(&mut self, wait: Wait) -> io::Result<()> {
        if self.engines.must_look() {
            // Nobody tells of what is in flight there. Queues and doorbells are looked at on the way round, as always.
            self.counters.looks.add(1);
            return self.submit();
        }
        let awaits_device = self.engines.in_flight() > 0;
        let Some(window) = self.windows.of(awaits_device) else { return self.sleep(wait) };
        let begun = Instant::now();
        let window = window.length();
        if window.is_zero() || !self.poll(begun, window)? {
            self.sleep(wait)?;
        }
        if let Some(window) = self.windows.of(awaits_device) {
            window.waited(begun.elapsed());
        }
        Ok(())
    }

    /// Looks for work until the window closes, submitting first what was started. Whether there was any.
    fn poll(&mut self, begun: Instant, window: Duration) -> io::Result<bool> {
        self.batch = FIRST_BATCH;
        self.submit()?;
        for look in 1_u32.. {
            if look.is_multiple_of(LOOKS_PER_LISTENING) {
                self.engines.listen()?;
            }
            if self.engines.has_completions() || self.look() {
                self.counters.poll_hits.add(1);
                self.submit()?;
                return Ok(true);
            }
            if begun.elapsed() >= window {
                self.counters.poll_misses.add(1);
                return Ok(false);
            }
            std::hint::spin_loop();
        }
        Ok(false)
    }

    /// Arms, fences, looks, and only then waits: with requests in flight too, or a second request behind a first would
    /// wait for it.
    fn sleep(&mut self, wait: Wait) -> io::Result<()> {
        let arm = |worker: &mut Self| worker.each_awake(|served| served.service.arm());
        if ask_then_look::<Machine, _, _>(self, arm, Self::look) {
            self.each_awake(|served| served.service.disarm());
            return self.hand_over();
        }
        (self.batch, self.held_for) = (FIRST_BATCH, 0);
        self.enter(wait)?;
        self.counters.wakeups.add(1);
        self.counters.batch.store(self.preempting.woke(), Ordering::Relaxed);
        // What is armed stays so until it is heard of.
        let Worker { queues, awake, .. } = self;
        awake.retain(|slot| {
            let Some(Some(served)) = queues.get_mut(*slot) else { return false };
            served.awake = served.stalled;
            if served.awake && served.state == State::Live {
                served.service.disarm();
            }
            served.awake
        });
        Ok(())
    }

    /// Whether any queue that is awake holds a request.
    fn look(&mut self) -> bool {
        let mut found = false;
        self.each_awake(|served| match served.service.look() {
            Ok(true) => (found, served.quiet) = (true, 0),
            Ok(false) => {}
            Err(error) => break_queue(served, error),
        });
        found
    }

    fn each_awake(&mut self, mut each: impl FnMut(&mut Served)) {
        for slot in &self.awake {
            if let Some(Some(served)) = self.queues.get_mut(*slot)
                && served.state == State::Live
            {
                each(served);
            }
        }
    }

    /// Takes what ended, each to the queue it belongs to.
    fn complete(&mut self) -> io::Result<()> {
        self.engines.reap(&mut self.done);
        let found_ns = if self.takes_times && !self.done.is_empty() { latency::now() } else { 0 };
        let mut done = std::mem::take(&mut self.done);
        for completion in done.drain(..) {
            match completion {
                Completion::Done { token: Token::Request { slot, tag }, result, buffers } => {
                    self.preempting.done();
                    self.wake(slot);
                    if let Some(Some(served)) = self.queues.get_mut(slot) {
                        let mut io = Io { engines: &mut self.engines, slot, iothread: self.id, found_ns };
                        served.service.completed(tag, result, buffers, &mut io);
                    }
                }
                Completion::Rang { token: Token::Commands } => self.commanded = true,
                Completion::Rang { token: Token::Doorbell { slot } } => {
                    self.wake(slot);
                    if let Some(Some(served)) = self.queues.get_mut(slot) {
                        served.service.kicked();
                    }
                }
                Completion::Unwatched { token: Token::Doorbell { slot }, error: None } => {
                    if let Some(Some(served)) = self.queues.get_mut(slot) {
                        served.watch = None;
                    }
                }
                Completion::Rang { token: Token::Source { slot, tag } } => {
                    self.wake(slot);
                    if let Some(Some(served)) = self.queues.get_mut(slot) {
                        served.service.ready(tag);
                    }
                }
                Completion::Unwatched { token: Token::Source { slot, tag }, error } => {
                    self.wake(slot);
                    if let Some(Some(served)) = self.queues.get_mut(slot) {
                        served.service.unwatched(tag, error);
                    }
                }
                // A thread that no longer hears its bells would hang its guest in silence: it ends instead.
                Completion::Unwatched { error: Some(error), .. } => return Err(error),
                // Engines have told what ended; requests and watches answer in no other way.
                Completion::Done { .. } | Completion::Rang { .. } | Completion::Unwatched { .. } => {}
            }
        }
        self.done = done;
        Ok(())
    }

    fn publish(&mut self) {
        for slot in &self.awake {
            if let Some(Some(served)) = self.queues.get_mut(*slot)
                && served.state != State::Broken
            {
                served.service.publish();
            }
        }
    }

    fn take_commands(&mut self) {
        self.commanded = false;
        self.obey();
        // Whoever rang may mean any of them: a queue may hold requests that wait for the machine to go on, or is to let go.
        (0..self.queues.len()).for_each(|slot| self.wake(slot));
    }

    fn obey(&mut self) {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Serve { key, begin, doorbell, answer }) => {
                    // Who asked may be gone; the queue is served until its device is released all the same.
                    let _ = answer.send(self.serve(key, begin, doorbell));
                }
                Ok(Command::Release { which, answer }) => {
                    self.release(|served| which.contain(served.key));
                    self.leaving.push(Leaving { which, answer, gone: Vec::new() });
                }
                Ok(Command::Register { ram, answer }) => {
                    let _ = answer.send(self.engines.register_memory(&ram));
                }
                Ok(Command::Change { change, answer }) => {
                    let _ = answer.send(self.change(change));
                }
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    self.stopping = true;
                    self.release(|_| true);
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    fn serve(&mut self, key: QueueKey, begin: Begin, doorbell: EventFd) -> io::Result<()> {
        let free = self.queues.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.queues.len());
        let mut io = Io { engines: &mut self.engines, slot, iothread: self.id, found_ns: 0 };
        let mut service = begin(&mut io)?;
        if self.takes_times {
            service.take_times(true);
        }
        // From here on each ring of the bell is heard. The round that follows this command looks at the queue, for what
        // came before.
        let watch = match io.engines.watch(doorbell, Token::Doorbell { slot }) {
            Ok(watch) => Some(watch),
            Err(error) => {
                service.end(&mut io);
                return Err(error);
            }
        };
        if slot == self.queues.len() {
            self.queues.push(None);
        }
        let (state, awake) = (State::Live, false);
        let served = Served { key, service, watch, state, awake, quiet: 0, stalled: false, broken: false };
        self.queues[slot] = Some(served);
        self.wake(slot);
        Ok(())
    }

    fn release(&mut self, which: impl Fn(&Served) -> bool) {
        for served in self.queues.iter_mut().flatten().filter(|served| which(served)) {
            served.state = State::Leaving;
            if let Some(watch) = served.watch {
                self.engines.unwatch(watch);
            }
        }
    }

    /// Drops the queues that are drained, and answers for devices that have none left.
    fn settle_leaving(&mut self) {
        if self.leaving.is_empty() && !self.stopping {
            return;
        }
        for slot in 0..self.queues.len() {
            let drained = |served: &Served| {
                served.state == State::Leaving && served.watch.is_none() && served.service.in_flight() == 0
            };
            if self.queues[slot].as_ref().is_some_and(drained)
                && let Some(mut served) = self.queues[slot].take()
            {
                self.awake.retain(|other| *other != slot);
                served.service.end(&mut Io {
                    engines: &mut self.engines,
                    slot,
                    iothread: self.id,
                    found_ns: 0,
                });
                let awaited = self.leaving.iter_mut().filter(|leaving| leaving.which.contain(served.key));
                for leaving in awaited.filter(|_| !served.broken) {
                    leaving.gone.push((served.key.queue, served.service.position()));
                }
            }
        }
        let queues = &self.queues;
        self.leaving.retain_mut(|leaving| {
            let here = queues.iter().flatten().any(|served| leaving.which.contain(served.key));
            if !here {
                // A waiter that went away does not mind.
                let _ = leaving.answer.send(std::mem::take(&mut leaving.gone));
            }
            here
        });
    }
}

fn break_queue(served: &mut Served, error: RingError) {
    (served.state, served.broken) = (State::Broken, true);
    served.service.broken(error);
}
