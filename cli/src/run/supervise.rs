//! Holding a run together: the machine on this thread, the conversation beside it, bytes and signals carried in between.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::artifacts::Collected;
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

/// What happens between a machine's start and its end, and in a run that has several machines, one after the other.
pub struct Supervision {
    pub events: Sender<Event>,
    heard: Receiver<Event>,
    manners: Manners,
    /// The first machine's start, from which the run has its time.
    began: Option<Instant>,
    /// Copies out of the guest what is to outlive it.
    collect: Option<Collect>,
}

/// What is done once a guest's work is, and before it is let go; on a thread of its own.
pub type Collect = Arc<dyn Fn() -> Vec<Collected> + Send + Sync>;

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    pub account: Account,
    pub end: MachineEnd,
    /// Bytes that came out of the stdout and stderr ports.
    pub received: (u64, u64),
}

impl Supervision {
    pub fn new(manners: Manners, collect: Option<Collect>) -> Supervision {
        let (events, heard) = mpsc::channel();
        Supervision { events, heard, manners, began: None, collect }
    }

    /// Runs until the machine has ended, which `wait` waits for on this thread. `kill` ends it hard; `tell` hears what is
    /// worth a line, on another thread.
    pub fn run(
        &mut self,
        channels: Channels,
        input: Input,
        started: Instant,
        kill: impl Fn() + Send,
        wait: impl FnOnce() -> MachineEnd,
        tell: &mut (impl FnMut(News) + Send),
    ) -> io::Result<Outcome> {
        // The command's output comes after the line that says that it starts; keys are not typed into a guest that boots.
        let mut not_ready = Vec::new();
        let [stdout_begins, stderr_begins, keys_begin] = std::array::from_fn(|_| {
            let (not_yet, begins) = mpsc::channel::<()>();
            not_ready.push(not_yet);
            begins
        });
        let Supervision { events, heard, manners, began, collect } = self;
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
        let listening = conversation::listen(&channels.control, events.clone())?;
        let first = match *began {
            Some(first) => first,
            None => {
                carry_signals(events.clone())?;
                *began.insert(started)
            }
        };
        let spent = started.saturating_duration_since(first);
        let manners =
            Manners { timeout: manners.timeout.map(|limit| limit.saturating_sub(spent)), ..manners.clone() };

        let counts = (stdout.count(), stderr.count());
        let machine = Remote { kill, counts, collect: collect.clone(), events: events.clone() };
        let control = channels.control;
        let (account, end) = thread::scope(|scope| -> io::Result<_> {
            let heard = &mut *heard;
            let conversation =
                thread::Builder::new().name("conversation".into()).spawn_scoped(scope, move || {
                    conversation::hold(control, heard, &manners, started, &machine, tell)
                })?;
            let end = {
                let _told = TellsOfTheEnd(events);
                let end = wait();
                // Its end of the channel is closed: all that was said comes before the end.
                listening.join().map_err(|_| io::Error::other("the control channel's thread panicked"))?;
                end
            };
            let account =
                conversation.join().map_err(|_| io::Error::other("the conversation's thread panicked"))?;
            Ok((account, end))
        })?;
        // A reader that takes its time is waited for, but not by somebody who wanted the hard end.
        let limit = account.killed.then_some(Duration::from_secs(1));
        let received = (stdout.finish(limit), stderr.finish(limit));
        self.forget_the_machine();
        Ok(Outcome { account, end, received })
    }

    /// What is left unheard is the last machine's, but for what somebody wants of the run.
    fn forget_the_machine(&self) {
        let wanted = |event: &Event| matches!(event, Event::Interrupted { .. } | Event::StopAsked);
        let kept: Vec<Event> = self.heard.try_iter().filter(wanted).collect();
        // We have the other end.
        kept.into_iter().for_each(|event| drop(self.events.send(event)));
    }
}

/// Without it nothing would end the conversation, whatever ends the wait for the machine.
struct TellsOfTheEnd<'a>(&'a Sender<Event>);

impl Drop for TellsOfTheEnd<'_> {
    fn drop(&mut self) {
        // The conversation may have ended with its last event already.
        let _ = self.0.send(Event::MachineEnded);
    }
}

struct Remote<K> {
    kill: K,
    counts: (Arc<AtomicU64>, Arc<AtomicU64>),
    collect: Option<Collect>,
    events: Sender<Event>,
}

impl<K: Fn()> Machine for Remote<K> {
    fn kill(&self) {
        (self.kill)();
    }

    fn received(&self) -> (u64, u64) {
        (self.counts.0.load(Ordering::Acquire), self.counts.1.load(Ordering::Acquire))
    }

    fn collect(&self) -> bool {
        let Some(collect) = self.collect.clone() else { return false };
        let events = self.events.clone();
        // A machine that ends meanwhile ends it too, and nobody hears of it.
        let collecting = move || drop(events.send(Event::Collected(collect())));
        thread::Builder::new().name("artifacts".into()).spawn(collecting).is_ok()
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
        let mut supervision = Supervision::new(Manners::patient(STOP), None);
        let events = supervision.events.clone();
        let news = Mutex::new(Vec::new());
        let mut tell = |one: News| {
            if matches!(one, News::Ready { .. }) {
                events.send(Event::StopAsked).unwrap();
            }
            news.lock().unwrap().push(one);
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
        let outcome = supervision
            .run(ours, Input::Nothing, Instant::now(), || panic!("killed"), wait, &mut tell)
            .unwrap();
        assert_eq!(outcome.account.stopped, Some(vec![]));
        assert_eq!((outcome.account.killed, outcome.received), (false, (0, 0)));
        assert_eq!(*told.lock().unwrap(), [ToGuest::InputEnded { bytes: 0 }, STOP, ToGuest::Received]);
        assert_eq!(news.lock().unwrap().len(), 5, "starting, ready, ready, stopping, stopped");
    }

    /// The first process of a guest that reboots once it is ready, while others want something of the run.
    #[test]
    fn a_machine_after_another_hears_what_is_wanted_of_the_run_and_nothing_that_the_first_said() {
        let mut supervision = Supervision::new(Manners::patient(STOP), None);
        let events = supervision.events.clone();
        let (ours, ends) = channels::open().unwrap();
        let wait = || {
            let control = UnixStream::from(ends.into_iter().next().unwrap().stream);
            let say = |message: &FromGuest| (&control).write_all(&vmprof_job::line(message)).unwrap();
            say(&FromGuest::Hello { kernel: "6.1".into(), uptime_ms: 1 });
            say(&FromGuest::Ready { uptime_ms: 6 });
            MachineEnd::Reboot
        };
        let first = supervision.run(ours, Input::Nothing, Instant::now(), || (), wait, &mut |_| ()).unwrap();
        assert_eq!(first.end, MachineEnd::Reboot);
        // Too late for the first.
        events.send(Event::StopAsked).unwrap();
        events.send(Event::Said(FromGuest::Failed { message: "of the first".into() })).unwrap();
        supervision.forget_the_machine();

        let (ours, ends) = channels::open().unwrap();
        let (kill, killed) = mpsc::channel();
        let wait = || {
            killed.recv().unwrap();
            drop(ends);
            MachineEnd::Killed
        };
        let kill = || kill.send(()).unwrap();
        let second = supervision.run(ours, Input::Nothing, Instant::now(), kill, wait, &mut |_| ()).unwrap();
        assert!(second.account.stop_asked && second.account.hello_after.is_none(), "{second:?}");
        assert_eq!((second.account.failed, second.end), (None, MachineEnd::Killed));
    }
}
