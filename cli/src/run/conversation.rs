//! What is said over the control channel during a run, and what follows from it: signals, the timeout, a clean stop and a
//! hard one, requests from other processes. One thread holds the conversation; everything reaches it as an [`Event`].

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmprof_job::{Bytes, DiskScheduler, Ended, FromGuest, ToGuest};

use super::artifacts::Collected;
use super::events::Happening;
use super::news::{Because, News};
use super::record::State;

/// Everything that can happen to a run.
#[derive(Debug)]
pub enum Event {
    Said(FromGuest),
    /// For the user, in a sentence: what becomes of the run is not decided by it.
    Notice(String),
    /// A line on the control channel that is none of ours.
    Garbled(String),
    InputEnded {
        bytes: u64,
    },
    /// Nobody reads our standard output or error any more.
    ReaderGone,
    /// SIGINT, SIGTERM or SIGHUP to this process, or Ctrl-A x on its console.
    Interrupted {
        signal: i32,
    },
    /// `vmprof stop`, or the SIGUSR1 by which the vmprof around an emulated host passes it on.
    StopAsked,
    /// Run this beside the command and hand over what came of it.
    RunAsked {
        argv: Vec<Bytes>,
        answer: Sender<Ran>,
    },
    /// Which block schedulers do the guest's disks have?
    SchedulersAsked {
        answer: Sender<Vec<DiskScheduler>>,
    },
    /// The machine stands still, because of a failure or because somebody asked.
    Paused {
        failure: Option<String>,
    },
    Resumed,
    /// What the vmprof inside an emulated host says of its own run.
    InsideIsAt(State),
    /// The same for programs.
    InsideSays(Happening),
    /// What was to be copied out of the guest has been, or could not be.
    Collected(Vec<Collected>),
    MachineEnded,
}

/// What a helper in the guest printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub status: Ended,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// How a run is ended before its time.
#[derive(Debug, Clone)]
pub struct Manners {
    /// The message that asks for a clean stop because of a signal or a key.
    pub interrupt: ToGuest,
    /// The message that asks for one because of `vmprof stop` or the timeout.
    pub clean_stop: ToGuest,
    /// The message that nobody reads the command's output any more.
    pub reader_gone: ToGuest,
    /// How long a clean stop may take before the hard one.
    pub grace: Duration,
    /// How much longer it may take once the guest has said its last word. What is left of its services stops in the time it
    /// had before, and then the disks are written back.
    pub last_word: Duration,
    /// How long the whole run may take, from the machine's start.
    pub timeout: Option<Duration>,
    /// How long the machine may take until its first process says hello; `None` trusts it.
    pub hello_within: Option<Duration>,
    /// How long the first process may leave a ping unanswered while the command runs, and how long it may take from its
    /// last word to the machine's end; `None` trusts it, as a guest with much to write back must be.
    pub silence: Option<Duration>,
}

impl Manners {
    /// When a clean stop that began at `began` has had its time; `over`: the guest has said its last word.
    fn hard_end(&self, began: Instant, over: bool) -> Instant {
        began + self.grace + if over { self.last_word } else { Duration::ZERO }
    }
}

#[cfg(test)]
impl Manners {
    /// Longer than any test takes, and without a limit to the run.
    pub fn patient(stop: ToGuest) -> Manners {
        Manners {
            interrupt: stop.clone(),
            clean_stop: stop,
            reader_gone: ToGuest::Signal { number: 13 },
            grace: Duration::from_secs(600),
            last_word: Duration::from_secs(600),
            timeout: None,
            hello_within: None,
            silence: None,
        }
    }
}

/// What a run came to, as far as the conversation tells.
#[derive(Debug, Default)]
pub struct Account {
    pub kernel: Option<String>,
    /// From the machine's start to the first process's first word.
    pub hello_after: Option<Duration>,
    pub ready_after: Option<Duration>,
    pub ended: Option<Finish>,
    /// A guest that served has stopped: the services that had to be killed.
    pub stopped: Option<Vec<String>>,
    /// The boot could not be finished, or a service failed for good: the first process's own words.
    pub failed: Option<String>,
    pub garbled: Option<String>,
    pub interrupted: Option<i32>,
    pub stop_asked: bool,
    /// The time ran out before the work was done.
    pub timed_out: bool,
    /// The machine was ended hard: it ignored a clean stop, or nobody wanted to wait for one.
    pub killed: bool,
    /// The machine never said hello in the time it had.
    pub mute: bool,
    /// It said hello, and later nothing any more.
    pub stalled: bool,
    /// What was to outlive the guest and is not here, each with the reason.
    pub uncollected: Vec<String>,
}

impl Account {
    /// Whether the first process has said its last word: nothing that happens later changes what the run came to.
    fn is_over(&self) -> bool {
        self.ended.is_some() || self.stopped.is_some() || self.failed.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    pub status: Ended,
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
}

/// Reads the control channel until it ends, each line an event.
pub fn listen(control: &UnixStream, events: Sender<Event>) -> io::Result<JoinHandle<()>> {
    let control = BufReader::new(control.try_clone()?);
    thread::Builder::new().name("control".into()).spawn(move || {
        for line in control.split(b'\n').map_while(Result::ok) {
            let event = match serde_json::from_slice(&line) {
                Ok(said) => Event::Said(said),
                Err(_) => Event::Garbled(String::from_utf8_lossy(&line).into_owned()),
            };
            if events.send(event).is_err() {
                return;
            }
        }
    })
}

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
    mut control: UnixStream,
    events: &Receiver<Event>,
    manners: &Manners,
    started: Instant,
    machine: &impl Machine,
    mut tell: impl FnMut(News),
) -> Account {
    let mut account = Account::default();
    let mut waiting: HashMap<u64, Sender<Ran>> = HashMap::new();
    let mut schedulers: HashMap<u64, Sender<Vec<DiskScheduler>>> = HashMap::new();
    let mut next_id = 0;
    // When the clean stop began, until a hard one takes its place.
    let mut stopping_since: Option<Instant> = None;
    let mut time_is_up = false;
    let mut pending: Vec<ToGuest> = Vec::new();
    // Whether what is to outlive the guest is on its way; `None`: its work is not done yet.
    let mut collecting: Option<bool> = None;
    let mut acknowledged = false;
    let mut paused = false;
    let mut heard_at = started;
    let mut ping_at = started;

    // A guest that is gone cannot be told anything, and its end reaches us as an event.
    let mut say = |message: &ToGuest| drop(control.write_all(&vmprof_job::line(message)));
    loop {
        let done = match account.ended {
            Some(finish) => machine.received() == (finish.stdout_bytes, finish.stderr_bytes),
            None => account.is_over(),
        };
        if done && collecting.is_none() {
            collecting = Some(machine.collect());
        }
        if collecting == Some(false) && !acknowledged {
            say(&ToGuest::Received);
            acknowledged = true;
        }
        let pinged = manners.silence.filter(|_| account.ready_after.is_some() && !account.is_over());
        if let Some(silence) = pinged
            && Instant::now() >= ping_at
        {
            say(&ToGuest::Ping);
            ping_at = Instant::now() + silence / PINGS;
        }
        let watched = manners.silence.filter(|_| (pinged.is_some() || acknowledged) && !account.killed);
        let awaits_output = account.ended.is_some() && collecting.is_none();
        let kill_at = stopping_since.map(|began| manners.hard_end(began, account.is_over()));
        let deadline = [
            awaits_output.then(|| Instant::now() + RECEIVED_EVERY),
            kill_at,
            pinged.map(|_| ping_at),
            watched.map(|silence| heard_at + silence),
            manners.timeout.filter(|_| !time_is_up).map(|limit| started + limit),
            manners
                .hello_within
                .filter(|_| account.hello_after.is_none() && !account.mute)
                .map(|limit| started + limit),
        ];
        let event = match deadline.into_iter().flatten().min() {
            None => events.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        let mut stop = None;
        if let Ok(Event::Said(_)) = event {
            heard_at = Instant::now();
        }
        match event {
            Ok(Event::Said(FromGuest::Hello { kernel, .. })) => {
                account.kernel = Some(kernel);
                account.hello_after = Some(started.elapsed());
                pending.drain(..).for_each(|message| say(&message));
            }
            Ok(Event::Said(FromGuest::Ready { .. })) => {
                let after = started.elapsed();
                account.ready_after = Some(after);
                tell(News::Ready { after });
            }
            Ok(Event::Notice(text)) => tell(News::Notice(text)),
            Ok(Event::Said(FromGuest::Notice { message })) => tell(News::Notice(message)),
            Ok(Event::Said(FromGuest::Service { name, state })) => tell(News::Service { name, state }),
            Ok(Event::Said(FromGuest::Failed { message })) => account.failed = Some(message),
            Ok(Event::Said(FromGuest::Stopped { killed })) => account.stopped = Some(killed),
            Ok(Event::Said(FromGuest::Ended { status, stdout, stderr })) => {
                account.ended = Some(Finish { status, stdout_bytes: stdout, stderr_bytes: stderr });
            }
            Ok(Event::Said(FromGuest::Ran { id, status, stdout, stderr })) => {
                if let Some(answer) = waiting.remove(&id) {
                    // Whoever asked may have left.
                    let owned = |bytes: Bytes| bytes.as_bytes().to_vec();
                    let _ = answer.send(Ran { status, stdout: owned(stdout), stderr: owned(stderr) });
                }
            }
            Ok(Event::Said(FromGuest::Schedulers { id, disks })) => {
                if let Some(answer) = schedulers.remove(&id) {
                    // Whoever asked may have left.
                    let _ = answer.send(disks);
                }
            }
            Ok(Event::Said(FromGuest::Pong)) => {}
            Ok(Event::InsideIsAt(state)) => tell(News::InsideIsAt(state)),
            Ok(Event::InsideSays(happening)) => tell(News::InsideSays(happening)),
            Ok(Event::Garbled(line)) => account.garbled = Some(line),
            Ok(Event::InputEnded { bytes }) => {
                let message = ToGuest::InputEnded { bytes };
                // Before hello nobody has opened the port, and what is written to it could be lost.
                if account.hello_after.is_some() { say(&message) } else { pending.push(message) }
            }
            Ok(Event::ReaderGone) => say(&manners.reader_gone),
            Ok(Event::RunAsked { argv, answer }) => {
                next_id += 1;
                waiting.insert(next_id, answer);
                say(&ToGuest::Run { id: next_id, argv });
            }
            Ok(Event::SchedulersAsked { answer }) => {
                next_id += 1;
                schedulers.insert(next_id, answer);
                let message = ToGuest::Schedulers { id: next_id };
                if account.hello_after.is_some() { say(&message) } else { pending.push(message) }
            }
            Ok(Event::Interrupted { signal }) => {
                let first = account.interrupted.is_none();
                stop = Some(if first {
                    Stop::Clean(&manners.interrupt, Because::Interrupted)
                } else {
                    Stop::Hard
                });
                account.interrupted.get_or_insert(signal);
            }
            Ok(Event::StopAsked) => {
                account.stop_asked = true;
                stop = Some(Stop::Clean(&manners.clean_stop, Because::Asked));
            }
            Ok(Event::Paused { failure }) => {
                paused = true;
                tell(News::Paused { failure });
            }
            Ok(Event::Resumed) => {
                paused = false;
                tell(News::Resumed);
            }
            Ok(Event::Collected(collected)) => {
                collecting = Some(false);
                for Collected { artifact, failure } in collected {
                    if let Some(why) = &failure {
                        account.uncollected.push(format!("{}: {why}", artifact.named.display()));
                    }
                    tell(News::Collected { artifact, failure });
                }
            }
            Ok(Event::MachineEnded) | Err(mpsc::RecvTimeoutError::Disconnected) => return account,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                if kill_at.is_some_and(|at| at <= now) {
                    stop = Some(Stop::Hard);
                } else if manners.timeout.is_some_and(|limit| started + limit <= now) && !time_is_up {
                    time_is_up = true;
                    // Work that was done in time stays done; what remains is hurried.
                    account.timed_out = !account.is_over();
                    stop = Some(Stop::Clean(&manners.clean_stop, Because::TimeIsUp));
                } else if manners.hello_within.is_some_and(|limit| started + limit <= now) {
                    account.mute = account.hello_after.is_none();
                    stop = account.mute.then_some(Stop::Hard);
                }
                if watched.is_some_and(|silence| heard_at + silence <= now) {
                    // Once its work is done, a machine that does not end has failed at nothing that matters.
                    account.stalled = !account.is_over();
                    stop = Some(Stop::Hard);
                }
            }
        }
        match stop {
            // Nobody inside listens yet: there is nothing to end cleanly.
            Some(Stop::Clean(..)) if account.hello_after.is_none() => {
                account.killed = true;
                machine.kill();
            }
            Some(Stop::Clean(message, because)) => {
                say(message);
                if stopping_since.is_none() {
                    tell(News::Stopping { because });
                    if paused {
                        // It hears of it when it goes on; until then nothing but its time ends it.
                        tell(News::CannotStopPaused);
                    }
                    stopping_since = Some(Instant::now());
                }
            }
            Some(Stop::Hard) => {
                account.killed = true;
                stopping_since = None;
                machine.kill();
            }
            None => {}
        }
    }
}

enum Stop<'a> {
    /// By this message.
    Clean(&'a ToGuest, Because),
    Hard,
}

#[cfg(test)]
mod tests;
