//! Holding a run together: the machine on this thread, the conversation beside it, bytes and signals carried in between.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::channels::Channels;
use super::conversation::{self, Account, Event, Machine, Manners};
use super::copy;
use super::news::News;
use super::terminal;
use super::verdict::MachineEnd;

/// Where the command's input comes from.
#[derive(Debug)]
pub enum Input {
    /// Our standard input, to the stdin port.
    Stdin,
    /// Keys of our terminal, which is raw, to the stdin port: the console is the inner vmprof's to serve.
    Keys,
    /// None: the command reads an end of file.
    Nothing,
}

/// What happens between a machine's start and its end.
#[derive(Debug)]
pub struct Supervision {
    pub events: Sender<Event>,
    heard: Receiver<Event>,
    channels: Channels,
    manners: Manners,
    /// Dropped when the guest is ready.
    not_ready: Vec<Sender<()>>,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub account: Account,
    pub end: MachineEnd,
    /// Bytes that came out of the stdout and stderr ports.
    pub received: (u64, u64),
}

impl Supervision {
    pub fn new(channels: Channels, manners: Manners) -> Supervision {
        let (events, heard) = mpsc::channel();
        Supervision { events, heard, channels, manners, not_ready: Vec::new() }
    }

    /// Closed at its other end when the guest is ready, or never will be.
    pub fn readiness(&mut self) -> Receiver<()> {
        let (not_ready, readiness) = mpsc::channel();
        self.not_ready.push(not_ready);
        readiness
    }

    /// Runs until the machine has ended, which `wait` waits for on this thread. `kill` ends it hard; `tell` hears what is
    /// worth a line, on another thread.
    pub fn run(
        mut self,
        input: Input,
        started: Instant,
        kill: impl Fn() + Send + 'static,
        wait: impl FnOnce() -> MachineEnd,
        mut tell: impl FnMut(News) + Send + 'static,
    ) -> io::Result<Outcome> {
        // The command's output comes after the line that says that it starts; keys are not typed into a guest that boots.
        let [stdout_begins, stderr_begins, keys_begin] = std::array::from_fn(|_| self.readiness());
        let Supervision { events, heard, channels, manners, mut not_ready } = self;
        vmprof_sys::signals::read_a_foreign_terminal_as_an_error()?;
        // On a console the inner vmprof's own lines come on stderr; stdout carries the console, which returns its carriage.
        let lines = match input {
            Input::Keys => copy::Lines::ForRawTerminal,
            _ => copy::Lines::AsTheyAre,
        };
        let tell = move |news: News| {
            let is_ready = matches!(news, News::Ready { .. });
            tell(news);
            if is_ready {
                not_ready.clear();
            }
        };
        let stdout = copy::output(
            channels.stdout,
            rustix::stdio::stdout(),
            copy::Lines::AsTheyAre,
            stdout_begins,
            events.clone(),
        )?;
        let stderr =
            copy::output(channels.stderr, rustix::stdio::stderr(), lines, stderr_begins, events.clone())?;
        match input {
            Input::Stdin => copy::input(rustix::stdio::stdin(), channels.stdin, events.clone())?,
            Input::Keys => terminal::carry_keys(channels.stdin, true, keys_begin, events.clone())?,
            Input::Nothing => drop(events.send(Event::InputEnded { bytes: 0 })),
        }
        conversation::listen(&channels.control, events.clone())?;
        carry_signals(events.clone())?;

        let machine = Remote { kill, counts: (stdout.count(), stderr.count()) };
        let control = channels.control;
        let conversation = thread::Builder::new()
            .name("conversation".into())
            .spawn(move || conversation::hold(control, &heard, &manners, started, &machine, tell))?;
        let end = wait();
        // The conversation may have ended with its last event already.
        let _ = events.send(Event::MachineEnded);
        let account =
            conversation.join().map_err(|_| io::Error::other("the conversation's thread panicked"))?;
        // A reader that takes its time is waited for, but not by somebody who wanted the hard end.
        let limit = account.killed.then_some(Duration::from_secs(1));
        Ok(Outcome { account, end, received: (stdout.finish(limit), stderr.finish(limit)) })
    }
}

struct Remote<K> {
    kill: K,
    counts: (Arc<AtomicU64>, Arc<AtomicU64>),
}

impl<K: Fn()> Machine for Remote<K> {
    fn kill(&self) {
        (self.kill)();
    }

    fn received(&self) -> (u64, u64) {
        (self.counts.0.load(Ordering::Acquire), self.counts.1.load(Ordering::Acquire))
    }
}

/// To be called before anything is written: to be told that nobody reads it (SIGUSR2) ends this process until then.
pub fn may_lose_readers() -> io::Result<()> {
    signal_hook::flag::register(SIGUSR2, Arc::default()).map(drop)
}

fn carry_signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let event = match signal {
                // The vmprof around an emulated host has no other way to ask the one inside, or to tell it.
                SIGUSR1 => Event::StopAsked,
                SIGUSR2 => Event::ReaderGone,
                _ => Event::Interrupted { signal },
            };
            if events.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    use vmprof_job::{FromGuest, ServiceState, ToGuest};

    use super::super::channels;
    use super::*;

    const STOP: ToGuest = ToGuest::Stop { grace_ms: 30_000 };

    /// The first process of a guest that serves, as far as its control port shows it; gives what it was told.
    fn serve(control: UnixStream) -> Vec<ToGuest> {
        let say = |message: &FromGuest| (&control).write_all(&vmprof_job::line(message)).unwrap();
        let service = |state| FromGuest::Service { name: "db".into(), state };
        say(&FromGuest::Hello { kernel: "6.1".into(), uptime_ms: 1 });
        say(&service(ServiceState::Starting));
        say(&service(ServiceState::Ready { after_ms: 5 }));
        say(&FromGuest::Ready { uptime_ms: 6 });
        let mut told = Vec::new();
        for line in BufReader::new(&control).lines() {
            let message = serde_json::from_str(&line.unwrap()).unwrap();
            if message == STOP {
                say(&service(ServiceState::Stopped { killed: false }));
                say(&FromGuest::Stopped { killed: vec![] });
            }
            told.push(message);
            if told.last() == Some(&ToGuest::Received) {
                break;
            }
        }
        told
    }

    #[test]
    fn a_guest_that_serves_is_told_of_stopped_and_let_go() {
        let (ours, ends) = channels::open().unwrap();
        let mut ends = ends.into_iter().map(|end| UnixStream::from(end.stream));
        let control = ends.next().unwrap();
        control.set_nonblocking(false).unwrap();
        let guest = thread::spawn(move || serve(control));
        let manners = Manners {
            interrupt: STOP,
            clean_stop: STOP,
            reader_gone: ToGuest::Signal { number: 13 },
            grace: Duration::from_secs(600),
            last_word: Duration::from_secs(600),
            timeout: None,
            hello_within: None,
            silence: None,
        };
        let supervision = Supervision::new(ours, manners);
        let events = supervision.events.clone();
        let news = Arc::new(Mutex::new(Vec::new()));
        let tell = {
            let news = news.clone();
            move |one: News| {
                if matches!(one, News::Ready { .. }) {
                    events.send(Event::StopAsked).unwrap();
                }
                news.lock().unwrap().push(one);
            }
        };
        let told = Arc::new(Mutex::new(Vec::new()));
        let wait = {
            let told = told.clone();
            move || {
                *told.lock().unwrap() = guest.join().unwrap();
                // The machine's ends close with it, and with them the output.
                drop(ends);
                MachineEnd::PowerOff
            }
        };
        let outcome =
            supervision.run(Input::Nothing, Instant::now(), || panic!("killed"), wait, tell).unwrap();
        assert_eq!(outcome.account.stopped, Some(vec![]));
        assert_eq!((outcome.account.killed, outcome.received), (false, (0, 0)));
        assert_eq!(*told.lock().unwrap(), [ToGuest::InputEnded { bytes: 0 }, STOP, ToGuest::Received]);
        assert_eq!(news.lock().unwrap().len(), 5, "starting, ready, ready, stopping, stopped");
    }
}
