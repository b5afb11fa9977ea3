//! What is said over the control channel during a run, and what follows from it: signals, the timeout, a clean stop and a
//! hard one, requests from other processes. One thread holds the conversation; everything reaches it as an [`Event`].

mod account;
mod event;
mod manners;
mod questions;

use std::io::Write;
use std::mem;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use vmprof_job::{FromGuest, ToGuest};

pub use self::account::{Account, Finish};
pub use self::event::{Event, listen};
pub use self::manners::Manners;
use self::questions::Questions;
pub use self::questions::Ran;
use super::artifacts::Collected;
use super::news::{Because, News};

/// The machine as the conversation sees it.
pub trait Machine {
    /// Ends it hard; returns at once, and the end arrives as [`Event::MachineEnded`].
    fn kill(&self);
    /// Bytes that have come out of the stdout and stderr ports.
    fn received(&self) -> (u64, u64);
    /// Begins to copy out of the guest what is to outlive it; the end arrives as [`Event::Collected`]. `false`: nothing is.
    fn collect(&self) -> bool;
}

/// How often, once the command has ended, to look whether all it wrote has come.
const RECEIVED_EVERY: Duration = Duration::from_millis(2);

/// How many pings fit into the silence that is taken for a stall.
const PINGS: u32 = 6;

/// Holds the conversation until the machine ends. `started` is the machine's start; `tell` hears what is worth a line.
pub fn hold(
    control: UnixStream,
    events: &Receiver<Event>,
    manners: &Manners,
    started: Instant,
    machine: &impl Machine,
    tell: impl FnMut(News),
) -> Account {
    let mut conversation = Conversation {
        control,
        manners,
        machine,
        tell,
        started,
        account: Account::default(),
        questions: Questions::default(),
        until_hello: Vec::new(),
        parting: Parting::NotYet,
        is_paused: false,
        stopping_since: None,
        is_time_up: false,
        heard_at: started,
        ping_at: started,
    };
    loop {
        conversation.do_what_is_due();
        let happened = match conversation.wakes_at() {
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let stop = match happened {
            Ok(Event::MachineEnded) | Err(RecvTimeoutError::Disconnected) => return conversation.account,
            Ok(event) => conversation.hear(event),
            Err(RecvTimeoutError::Timeout) => conversation.look_at_the_clock(Instant::now()),
        };
        if let Some(stop) = stop {
            conversation.stop(stop);
        }
    }
}

/// With one machine's first process, from its start to its end.
struct Conversation<'a, M, T> {
    control: UnixStream,
    manners: &'a Manners,
    machine: &'a M,
    tell: T,
    /// The machine's start.
    started: Instant,
    account: Account,
    questions: Questions,
    /// What is said once somebody hears it.
    until_hello: Vec<ToGuest>,
    parting: Parting,
    /// The machine stands still.
    is_paused: bool,
    /// When the clean stop began, until a hard one takes its place.
    stopping_since: Option<Instant>,
    /// The timeout has been acted upon.
    is_time_up: bool,
    /// The first process's latest word.
    heard_at: Instant,
    /// When the next ping is due, while any are.
    ping_at: Instant,
}

/// How far it is with letting the guest go, which does not power off before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// Its work is not done, or not all that it wrote has come.
    NotYet,
    /// What is to outlive it is on its way.
    Collecting,
    /// It was told that it may go.
    LetGo,
}

/// What is to be done to the machine.
enum Stop {
    Clean(Because),
    Hard,
}

impl<M: Machine, T: FnMut(News)> Conversation<'_, M, T> {
    /// Before each wait: lets a guest go whose work is done, and sends a ping.
    fn do_what_is_due(&mut self) {
        if self.parting == Parting::NotYet && self.is_done() {
            match self.machine.collect() {
                true => self.parting = Parting::Collecting,
                false => self.let_go(),
            }
        }
        if let Some(silence) = self.pinged()
            && Instant::now() >= self.ping_at
        {
            self.say(&ToGuest::Ping);
            self.ping_at = Instant::now() + silence / PINGS;
        }
    }

    /// Whether the guest's work is done, and all has come that its command wrote.
    fn is_done(&self) -> bool {
        match self.account.ended {
            Some(finish) => self.machine.received() == (finish.stdout_bytes, finish.stderr_bytes),
            None => self.account.is_over(),
        }
    }

    fn let_go(&mut self) {
        self.parting = Parting::LetGo;
        self.say(&ToGuest::Received);
    }

    /// When there is something to do though nothing happens; `None`: never.
    fn wakes_at(&self) -> Option<Instant> {
        let awaits_output = self.account.ended.is_some() && self.parting == Parting::NotYet;
        let moments = [
            awaits_output.then(|| Instant::now() + RECEIVED_EVERY),
            self.pinged().map(|_| self.ping_at),
            self.killed_at(),
            self.time_is_up_at(),
            self.mute_at(),
            self.stalled_at(),
        ];
        moments.into_iter().flatten().min()
    }

    /// While it is pinged: the silence that is taken for a stall.
    fn pinged(&self) -> Option<Duration> {
        let is_at_work = self.account.ready_after.is_some() && !self.account.is_over();
        self.manners.silence.filter(|_| is_at_work)
    }

    /// When the clean stop has had its time.
    fn killed_at(&self) -> Option<Instant> {
        self.stopping_since.map(|began| self.manners.hard_end(began, self.account.is_over()))
    }

    /// When the run has had its time.
    fn time_is_up_at(&self) -> Option<Instant> {
        self.manners.timeout.filter(|_| !self.is_time_up).map(|limit| self.started + limit)
    }

    /// When a machine that has not said hello will not any more.
    fn mute_at(&self) -> Option<Instant> {
        let is_awaited = self.account.hello_after.is_none() && !self.account.mute;
        self.manners.hello_within.filter(|_| is_awaited).map(|limit| self.started + limit)
    }

    /// When a machine that ought to answer, or to end, has been silent for too long.
    fn stalled_at(&self) -> Option<Instant> {
        let is_watched = (self.pinged().is_some() || self.parting == Parting::LetGo) && !self.account.killed;
        self.manners.silence.filter(|_| is_watched).map(|silence| self.heard_at + silence)
    }

    /// Nothing has happened until `now`.
    fn look_at_the_clock(&mut self, now: Instant) -> Option<Stop> {
        let has_come = |moment: Option<Instant>| moment.is_some_and(|at| at <= now);
        let mut stop = None;
        if has_come(self.killed_at()) {
            stop = Some(Stop::Hard);
        } else if has_come(self.time_is_up_at()) {
            self.is_time_up = true;
            // Work that was done in time stays done; what remains is hurried.
            self.account.timed_out = !self.account.is_over();
            stop = Some(Stop::Clean(Because::TimeIsUp));
        } else if has_come(self.mute_at()) {
            self.account.mute = true;
            stop = Some(Stop::Hard);
        }
        if has_come(self.stalled_at()) {
            // Once its work is done, a machine that does not end has failed at nothing that matters.
            self.account.stalled = !self.account.is_over();
            stop = Some(Stop::Hard);
        }
        stop
    }

    /// What an event does, and the stop that follows from it.
    fn hear(&mut self, event: Event) -> Option<Stop> {
        match event {
            Event::Said(said) => {
                self.heard_at = Instant::now();
                self.hear_the_guest(said);
            }
            Event::Garbled(line) => self.account.garbled = Some(line),
            Event::Notice(text) => (self.tell)(News::Notice(text)),
            Event::InsideIsAt(state) => (self.tell)(News::InsideIsAt(state)),
            Event::InsideSays(happening) => (self.tell)(News::InsideSays(happening)),
            // Before hello nobody has opened the port, and what is written to it could be lost.
            Event::InputEnded { bytes } => self.say_after_hello(ToGuest::InputEnded { bytes }),
            Event::ReaderGone => self.say(&self.manners.reader_gone),
            Event::RunAsked { argv, answer } => {
                let question = self.questions.run(argv, answer);
                self.say(&question);
            }
            Event::SchedulersAsked { answer } => {
                let question = self.questions.schedulers(answer);
                self.say_after_hello(question);
            }
            Event::Interrupted { signal } => {
                let is_first = self.account.interrupted.is_none();
                self.account.interrupted.get_or_insert(signal);
                return Some(if is_first { Stop::Clean(Because::Interrupted) } else { Stop::Hard });
            }
            Event::StopAsked => {
                self.account.stop_asked = true;
                return Some(Stop::Clean(Because::Asked));
            }
            Event::Paused { failure } => {
                self.is_paused = true;
                (self.tell)(News::Paused { failure });
            }
            Event::Resumed => {
                self.is_paused = false;
                (self.tell)(News::Resumed);
            }
            Event::Collected(collected) => {
                for Collected { artifact, failure } in collected {
                    if let Some(why) = &failure {
                        self.account.uncollected.push(format!("{}: {why}", artifact.named.display()));
                    }
                    (self.tell)(News::Collected { artifact, failure });
                }
                // Else it is of a machine before this one, which rebooted meanwhile.
                if self.parting == Parting::Collecting {
                    self.let_go();
                }
            }
            // The conversation has ended with it.
            Event::MachineEnded => {}
        }
        None
    }

    fn hear_the_guest(&mut self, said: FromGuest) {
        match said {
            FromGuest::Hello { kernel, .. } => {
                self.account.kernel = Some(kernel);
                self.account.hello_after = Some(self.started.elapsed());
                mem::take(&mut self.until_hello).iter().for_each(|message| self.say(message));
            }
            FromGuest::Ready { .. } => {
                let after = self.started.elapsed();
                self.account.ready_after = Some(after);
                (self.tell)(News::Ready { after });
            }
            FromGuest::Notice { message } => (self.tell)(News::Notice(message)),
            FromGuest::Service { name, state } => (self.tell)(News::Service { name, state }),
            FromGuest::Failed { message } => self.account.failed = Some(message),
            FromGuest::Stopped { killed } => self.account.stopped = Some(killed),
            FromGuest::Ended { status, stdout, stderr } => {
                self.account.ended = Some(Finish { status, stdout_bytes: stdout, stderr_bytes: stderr });
            }
            FromGuest::Ran { id, status, stdout, stderr } => {
                let (stdout, stderr) = (stdout.as_bytes().to_vec(), stderr.as_bytes().to_vec());
                self.questions.has_run(id, Ran { status, stdout, stderr });
            }
            FromGuest::Schedulers { id, disks } => self.questions.has_schedulers(id, disks),
            FromGuest::Pong => {}
        }
    }

    fn stop(&mut self, stop: Stop) {
        match stop {
            // Nobody inside listens yet: there is nothing to end cleanly.
            Stop::Clean(_) if self.account.hello_after.is_none() => self.end_hard(),
            Stop::Clean(because) => self.begin_to_stop(because),
            Stop::Hard => self.end_hard(),
        }
    }

    /// Each time the guest is asked anew; the time that it has runs from the first.
    fn begin_to_stop(&mut self, because: Because) {
        self.say(self.manners.asking(because));
        if self.stopping_since.is_none() {
            (self.tell)(News::Stopping { because });
            if self.is_paused {
                // It hears of it when it goes on; until then nothing but its time ends it.
                (self.tell)(News::CannotStopPaused);
            }
            self.stopping_since = Some(Instant::now());
        }
    }

    fn end_hard(&mut self) {
        self.account.killed = true;
        self.stopping_since = None;
        self.machine.kill();
    }

    fn say_after_hello(&mut self, message: ToGuest) {
        match self.account.hello_after {
            Some(_) => self.say(&message),
            None => self.until_hello.push(message),
        }
    }

    /// A guest that is gone cannot be told anything, and its end reaches us as an event.
    fn say(&self, message: &ToGuest) {
        let _ = (&self.control).write_all(&vmprof_job::line(message));
    }
}

#[cfg(test)]
mod tests;
