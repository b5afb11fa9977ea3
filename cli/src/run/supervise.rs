//! Holding a run together: the machine on this thread, the conversation beside it, bytes and signals carried in between.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
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
    /// Keys of our terminal, to the stdin port: the console is the inner vmprof's to serve.
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
        Supervision { events, heard, channels, manners }
    }

    /// Runs until the machine has ended, which `wait` waits for on this thread. `kill` ends it hard; `tell` hears what is
    /// worth a line, on another thread.
    pub fn run(
        self,
        input: Input,
        started: Instant,
        kill: impl Fn() + Send + 'static,
        wait: impl FnOnce() -> MachineEnd,
        tell: impl FnMut(News) + Send + 'static,
    ) -> io::Result<Outcome> {
        let Supervision { events, heard, channels, manners } = self;
        vmprof_sys::signals::read_a_foreign_terminal_as_an_error()?;
        // On a console the inner vmprof's own lines come on stderr; stdout carries the console, which returns its carriage.
        let lines =
            if let Input::Keys = input { copy::Lines::ForRawTerminal } else { copy::Lines::AsTheyAre };
        let stdout =
            copy::output(channels.stdout, rustix::stdio::stdout(), copy::Lines::AsTheyAre, events.clone())?;
        let stderr = copy::output(channels.stderr, rustix::stdio::stderr(), lines, events.clone())?;
        match input {
            Input::Stdin => copy::input(rustix::stdio::stdin(), channels.stdin, events.clone())?,
            Input::Keys => terminal::carry_keys(channels.stdin, true, events.clone())?,
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

fn carry_signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let event = match signal {
                // The vmprof around an emulated host has no other way to ask the one inside.
                SIGUSR1 => Event::StopAsked,
                _ => Event::Interrupted { signal },
            };
            if events.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
