//! The loop of an IOThread. Awake, it takes what its queues hold, submits all of it with one system call, takes what
//! completed and shows it to the drivers; they need not notify it. Before it sleeps it arms every queue, fences, and looks
//! once more: a driver that made a request available either sees the armed event and rings, or had its request seen here
//! (docs/dataplane.md tells why). It sleeps in its ring, where doorbells, commands and completions all end the wait.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;
use vmprof_sys::ring::{Completion, Completions, Ring, Wait, WatchId};
use vmprof_sys::vring::RingError;
use vmprof_sys::vring::handshake::{Machine, ask_then_look};

use super::counters::IoThreadCounters;
use super::poll::PollWindow;
use super::service::{Begin, Drained, Io, QueueService, Token};
use super::{Command, IoThreadError, Positions, QueueKey, Queues};
use crate::config;

/// Requests taken from one queue before the next has its turn.
const QUOTA: usize = 64;
/// How long requests wait for another thread to leave a block, before asking again.
const STALL: Duration = Duration::from_micros(100);

#[derive(Debug)]
struct Served {
    key: QueueKey,
    service: Box<dyn QueueService>,
    /// `None` once the ring has closed the doorbell.
    watch: Option<WatchId>,
    state: State,
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
    ring: Ring<Token>,
    id: u32,
    queues: Vec<Option<Served>>,
    /// Where the next round over the queues begins, so that none is always first.
    turn: usize,
    leaving: Vec<Leaving>,
    commands: mpsc::Receiver<Command>,
    commanded: bool,
    stopping: bool,
    window: PollWindow,
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
        let refused = |source| IoThreadError::Ring { name: config.name.clone(), source };
        let mut ring = Ring::new().map_err(refused)?;
        // The kernel does a part of the work on threads of its own: they belong where this one is.
        ring.confine_workers(&config.cpus).map_err(|source| {
            let (name, asked) = (config.name.clone(), config.cpus.clone());
            IoThreadError::Workers { name, asked, source }
        })?;
        ring.watch(bell, Token::Commands);
        Ok(Worker {
            ring,
            id: config.id,
            queues: Vec::new(),
            turn: 0,
            leaving: Vec::new(),
            commands,
            commanded: true,
            stopping: false,
            window: PollWindow::new(config.polling),
            counters,
            done: Vec::new(),
        })
    }

    pub(super) fn completions(&self) -> Completions {
        self.ring.completions()
    }

    /// Until told to stop, and then until the last queue is drained. An error is one of the ring itself.
    pub(super) fn run(mut self) -> io::Result<()> {
        loop {
            if self.commanded {
                self.take_commands();
            }
            let drained = self.drain();
            self.publish();
            self.settle_leaving();
            if self.stopping && self.queues.iter().all(Option::is_none) {
                return Ok(());
            }
            match drained {
                Drained::More => self.submit()?,
                Drained::All => self.idle(Wait::Forever)?,
                Drained::Stalled => self.idle(Wait::AtMost(STALL))?,
            }
            self.complete()?;
        }
    }

    /// One round over the queues. What it answers is the most urgent of what they left.
    fn drain(&mut self) -> Drained {
        let (mut more, mut stalled) = (false, false);
        let count = self.queues.len();
        self.turn = if self.turn + 1 < count { self.turn + 1 } else { 0 };
        for step in 0..count {
            let slot = (self.turn + step) % count;
            let Some(served) = &mut self.queues[slot] else { continue };
            let mut io = Io { ring: &mut self.ring, slot, iothread: self.id };
            let drained = match served.state {
                State::Live => served.service.drain(QUOTA, &mut io),
                State::Broken | State::Leaving => Ok(served.service.resume(&mut io)),
            };
            match drained {
                Ok(Drained::All) => {}
                Ok(Drained::More) => more = true,
                Ok(Drained::Stalled) => stalled = true,
                Err(error) => break_queue(served, error),
            }
        }
        match (more, stalled) {
            (true, _) => Drained::More,
            (false, true) => Drained::Stalled,
            (false, false) => Drained::All,
        }
    }

    /// Hands over what was started and goes on.
    fn submit(&mut self) -> io::Result<()> {
        if self.ring.has_submissions() || self.ring.holds_back() {
            self.counters.enters.add(1);
            self.ring.enter(Wait::Never)?;
        }
        Ok(())
    }

    /// Nothing is left to take: looks for a while if that has paid, then sleeps.
    fn idle(&mut self, wait: Wait) -> io::Result<()> {
        if !self.window.adapts() {
            return self.sleep(wait);
        }
        let begun = Instant::now();
        let window = self.window.length();
        if window.is_zero() || !self.poll(begun, window)? {
            self.sleep(wait)?;
        }
        self.window.waited(begun.elapsed());
        Ok(())
    }

    /// Looks for work until the window closes, submitting first what was started. Whether there was any.
    fn poll(&mut self, begun: Instant, window: Duration) -> io::Result<bool> {
        self.submit()?;
        loop {
            if self.ring.has_completions() || self.look() {
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
    }

    /// Arms, fences, looks, and only then waits: with requests in flight too, or a second request behind a first would
    /// wait for it.
    fn sleep(&mut self, wait: Wait) -> io::Result<()> {
        let arm = |worker: &mut Self| worker.live().for_each(|served| served.service.arm());
        if ask_then_look::<Machine, _, _>(self, arm, Self::look) {
            self.submit()?;
        } else {
            self.counters.enters.add(1);
            self.counters.wakeups.add(1);
            self.ring.enter(wait)?;
        }
        self.live().for_each(|served| served.service.disarm());
        Ok(())
    }

    /// Whether any queue holds a request.
    fn look(&mut self) -> bool {
        let mut found = false;
        for served in self.live() {
            match served.service.look() {
                Ok(there) => found |= there,
                Err(error) => break_queue(served, error),
            }
        }
        found
    }

    fn live(&mut self) -> impl Iterator<Item = &mut Served> {
        self.queues.iter_mut().flatten().filter(|served| served.state == State::Live)
    }

    /// Takes what the ring has, each to the queue it belongs to.
    fn complete(&mut self) -> io::Result<()> {
        self.ring.reap(&mut self.done);
        let mut done = std::mem::take(&mut self.done);
        for completion in done.drain(..) {
            match completion {
                Completion::Done { token: Token::Request { slot, tag }, result, buffers } => {
                    if let Some(Some(served)) = self.queues.get_mut(slot) {
                        let mut io = Io { ring: &mut self.ring, slot, iothread: self.id };
                        served.service.completed(tag, result, buffers, &mut io);
                    }
                }
                Completion::Rang { token: Token::Commands } => self.commanded = true,
                Completion::Rang { token: Token::Doorbell { slot } } => {
                    if let Some(Some(served)) = self.queues.get_mut(slot) {
                        served.service.kicked();
                    }
                }
                Completion::Unwatched { token: Token::Doorbell { slot }, error: None } => {
                    if let Some(Some(served)) = self.queues.get_mut(slot) {
                        served.watch = None;
                    }
                }
                // A thread that no longer hears its bells would hang its guest in silence: it ends instead.
                Completion::Unwatched { error: Some(error), .. } => return Err(error),
                // Requests and watches answer in no other way.
                Completion::Done { .. } | Completion::Rang { .. } | Completion::Unwatched { .. } => {}
            }
        }
        self.done = done;
        Ok(())
    }

    fn publish(&mut self) {
        for served in self.queues.iter_mut().flatten() {
            if served.state != State::Broken {
                served.service.publish();
            }
        }
    }

    fn take_commands(&mut self) {
        self.commanded = false;
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
        let mut service = begin(&mut Io { ring: &mut self.ring, slot, iothread: self.id })?;
        service.disarm();
        // From here on each ring of the bell is a completion. The round that follows this command looks at the queue, for
        // what came before.
        let watch = Some(self.ring.watch(doorbell, Token::Doorbell { slot }));
        if slot == self.queues.len() {
            self.queues.push(None);
        }
        self.queues[slot] = Some(Served { key, service, watch, state: State::Live, broken: false });
        Ok(())
    }

    fn release(&mut self, which: impl Fn(&Served) -> bool) {
        for served in self.queues.iter_mut().flatten().filter(|served| which(served)) {
            served.state = State::Leaving;
            if let Some(watch) = served.watch {
                self.ring.unwatch(watch);
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
                served.service.end(&mut Io { ring: &mut self.ring, slot, iothread: self.id });
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
