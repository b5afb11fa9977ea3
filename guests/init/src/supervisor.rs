//! The guest at work: one thread, one poll, everything non-blocking. Sees to the services, starts the command when they are
//! ready, passes its streams on, does what the control port says, reaps the dead, reports how it ended, and stops the
//! services.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use vmprof_job::{Ended, FromGuest, LINGER_MS, ToGuest};

use crate::captured::Captured;
use crate::command::Surroundings;
use crate::control::{Control, GONE};
use crate::disks;
use crate::failure::Failure;
use crate::keeping::Keeping;
use crate::kmsg;
use crate::network::Network;
use crate::power::Buttons;
use crate::pump::{FromCommand, ToCommand};
use crate::reap::Children;
use crate::wait::Wait;

/// Output that nobody takes is given up after this long without a reader; a slow reader is waited for.
const NO_READER: Duration = Duration::from_secs(10);
/// After a stop's SIGKILL: to reap and to drain.
const AFTER_KILL: Duration = Duration::from_secs(2);
/// In a stop, for the outside to fetch what was made here and to say so; one that waits for more ends the machine itself.
const FETCHED: Duration = Duration::from_secs(60);
/// What processes get that the command leaves behind.
const LEFT_BEHIND: Duration = Duration::from_secs(2);
/// One line, which nobody reads slowly; a boot that failed need not stand around for longer.
pub(crate) const FAILURE_HEARD: Duration = Duration::from_secs(15);

/// The command's streams where they lead to ports.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: ToCommand,
    pub(crate) stdout: FromCommand,
    pub(crate) stderr: FromCommand,
}

/// How the command came to run, and its streams.
pub(crate) type Started = (Result<Pid, Ended>, Option<Streams>);
/// Starts the command, once.
pub(crate) type Launch<'a> = Box<dyn FnOnce() -> Result<Started, Failure> + 'a>;

pub(crate) struct Supervisor<'a> {
    pub(crate) control: Control,
    pub(crate) children: &'a Children,
    pub(crate) buttons: Buttons,
    pub(crate) keeper: Keeping,
    /// What services and command start with, where it comes in time.
    pub(crate) network: &'a mut Network,
    /// For helpers: what the command has, too.
    pub(crate) surroundings: Surroundings,
    /// Signals all that runs in the guest.
    pub(crate) everything: &'a dyn Fn(Signal),
    /// What a clean stop may take at most.
    pub(crate) stop_within: Duration,
    pub(crate) uptime_ms: fn() -> u64,
}

/// How the run came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// What is left for all other processes.
    pub(crate) grace: Duration,
    /// Of services that systemd keeps: it has stopped them all, and turns the machine off.
    pub(crate) is_orderly: bool,
}

/// What the run is for.
enum Main<'a> {
    /// The network and then services are getting ready; then this, or nothing but the services.
    Awaited(Option<Launch<'a>>),
    /// The services are all there is.
    Serving,
    Running(Pid),
    /// Its output may still be on the way.
    Over(Ended),
    /// The outside was told how it ended, and has until then to say that it knows.
    Told {
        until: Instant,
    },
    /// Nothing is left but to stop the services.
    Known,
}

struct Stop {
    /// For all that runs.
    by: Instant,
    /// For the command: services that it used need their time, too.
    command_by: Instant,
    killed: bool,
}

/// Everything of one run that changes.
struct Course<'a> {
    main: Main<'a>,
    streams: Option<Streams>,
    helpers: Vec<Captured>,
    stop: Option<Stop>,
    /// Of the input, said before there was a command.
    input_ends: Option<u64>,
    /// The command shall end by this before it has started.
    signalled: Option<i32>,
}

impl<'a> Supervisor<'a> {
    /// Returns when the outside knows how it ended and the services have stopped.
    pub(crate) fn run(mut self, launch: Option<Launch<'a>>) -> End {
        let mut course = Course {
            main: Main::Awaited(launch),
            streams: None,
            helpers: Vec::new(),
            stop: None,
            input_ends: None,
            signalled: None,
        };
        loop {
            let now = Instant::now();
            self.reap(&mut course, now);
            self.obey(&mut course, now);
            self.kill_late(&mut course, now);
            if let Some(message) = self.network.step(now) {
                self.control.send(&message);
            }
            // What shall stop need not start first.
            if !self.network.is_awaited() || course.stop.is_some() {
                for message in self.keeper.step(now) {
                    self.control.send(&message);
                }
            }
            if let Some(streams) = &mut course.streams {
                streams.step(now);
            }
            for answer in course.helpers.extract_if(.., Captured::step).filter_map(Captured::into_answer) {
                self.control.send(&answer);
            }
            if self.advance(&mut course, now) {
                // What changed may change more.
                continue;
            }
            if matches!(course.main, Main::Known) && self.keeper.are_over() {
                let by = course.stop.as_ref().map(|stop| stop.by.saturating_duration_since(now));
                return End { grace: by.unwrap_or(LEFT_BEHIND), is_orderly: self.keeper.is_orderly() };
            }
            self.sleep(&course, now);
        }
    }

    fn reap(&mut self, course: &mut Course, now: Instant) {
        for (pid, status) in self.children.reap() {
            match course.main {
                Main::Running(running) if running == pid => {
                    if let Some(streams) = &mut course.streams {
                        streams.stdout.writer_ended();
                        streams.stderr.writer_ended();
                    }
                    course.main = Main::Over(status);
                    self.stop_services_if_asked(course, now);
                }
                _ if self.keeper.ended(pid, status, now) => {}
                _ => course
                    .helpers
                    .iter_mut()
                    .filter(|helper| helper.is(pid))
                    .for_each(|helper| helper.ended(status)),
            }
        }
    }

    /// What the outside wants.
    fn obey(&mut self, course: &mut Course, now: Instant) {
        let mut grace = self.buttons.pressed().then_some(self.stop_within);
        // Somebody in the guest had systemd turn the machine off: it waits for this process, and not for long.
        let unfinished = matches!(course.main, Main::Awaited(_) | Main::Serving | Main::Running(_));
        if unfinished && course.stop.is_none() && self.keeper.go_with_the_machine() && self.keeper.are_over()
        {
            grace = Some(self.stop_within);
        }
        for message in self.control.step(now) {
            match message {
                ToGuest::InputEnded { bytes } => match &mut course.streams {
                    Some(streams) => streams.stdin.ends_after(bytes),
                    None => course.input_ends = Some(bytes),
                },
                ToGuest::Signal { number } => match &course.main {
                    Main::Running(group) => signal(*group, number),
                    Main::Awaited(_) | Main::Serving if is_the_end(number) => {
                        course.signalled = Some(number);
                        grace = Some(self.stop_within);
                    }
                    _ => kmsg::note(format_args!("control: signal {number}, and no command it could be for")),
                },
                ToGuest::Stop { grace_ms } => grace = Some(Duration::from_millis(grace_ms)),
                ToGuest::Run { id, argv } => match Captured::start(id, &self.surroundings, &argv) {
                    Ok(helper) => course.helpers.push(helper),
                    Err(error) => {
                        let errno = error.raw_os_error().unwrap_or_default();
                        let status = Ended::NotStarted { status: 126, errno };
                        self.control.send(&FromGuest::Ran {
                            id,
                            status,
                            stdout: "".into(),
                            stderr: "".into(),
                        });
                    }
                },
                ToGuest::Schedulers { id } => {
                    let disks = disks::schedulers(Path::new("/sys"));
                    self.control.send(&FromGuest::Schedulers { id, disks });
                }
                ToGuest::Ping => self.control.send(&FromGuest::Pong),
                ToGuest::Received => match course.main {
                    Main::Told { .. } => self.known(course, now),
                    _ => kmsg::error("control: nothing was sent that could have been received"),
                },
            }
        }
        if let Some(grace) = grace {
            self.stop(course, grace, now);
        }
    }

    /// A second stop may shorten the first, and is asked again; it does not lengthen it.
    fn stop(&mut self, course: &mut Course, grace: Duration, now: Instant) {
        let within = grace.min(self.stop_within);
        let by = now + within;
        let command_by = if self.keeper.is_empty() { by } else { now + within / 2 };
        let (earlier, killed) = match &course.stop {
            Some(stop) => (Some((stop.by, stop.command_by)), stop.killed),
            None => (None, false),
        };
        let (by, command_by) = earlier.map_or((by, command_by), |(a, b)| (by.min(a), command_by.min(b)));
        course.stop = Some(Stop { by, command_by, killed });
        for gentle in [Signal::TERM, Signal::CONT] {
            self.signal_all_but_services(course, gentle);
        }
        match course.main {
            // The services are for it.
            Main::Running(_) => {}
            // It need not be told again.
            Main::Told { .. } => self.known(course, now),
            _ => self.keeper.stop(by.saturating_duration_since(now), now),
        }
    }

    fn stop_services_if_asked(&mut self, course: &Course, now: Instant) {
        if let Some(stop) = &course.stop {
            self.keeper.stop(stop.by.saturating_duration_since(now), now);
        }
    }

    /// Services have an order of their own. Where there are none, everything else is all there is.
    fn signal_all_but_services(&self, course: &Course, to_all: Signal) {
        if self.keeper.is_empty() {
            return (self.everything)(to_all);
        }
        let command = match course.main {
            Main::Running(group) => Some(group),
            _ => None,
        };
        for group in command.into_iter().chain(course.helpers.iter().filter_map(Captured::running)) {
            let _ = kill_process_group(group, to_all);
        }
    }

    fn kill_late(&mut self, course: &mut Course, now: Instant) {
        let late = course.stop.as_ref().is_some_and(|stop| !stop.killed && now >= stop.command_by);
        if late {
            self.signal_all_but_services(course, Signal::KILL);
            course.stop.iter_mut().for_each(|stop| stop.killed = true);
        }
    }

    /// The next part of the run, where this one is at its end.
    fn advance(&mut self, course: &mut Course<'a>, now: Instant) -> bool {
        let stopping = course.stop.is_some();
        let gave_up = course.stop.as_ref().is_some_and(|stop| now >= stop.command_by + AFTER_KILL);
        match &mut course.main {
            Main::Awaited(_) | Main::Serving if stopping => {
                if !self.keeper.are_over() {
                    return false;
                }
                let told = match (&course.main, course.signalled) {
                    (Main::Awaited(Some(_)), Some(signal)) => {
                        FromGuest::Ended { status: Ended::Signaled(signal), stdout: 0, stderr: 0 }
                    }
                    _ => FromGuest::Stopped { killed: self.keeper.killed() },
                };
                self.tell(course, &told, FETCHED, now);
            }
            Main::Awaited(_) | Main::Serving if self.keeper.failure().is_some() => {
                if let Some(failure) = self.keeper.failure() {
                    self.fail(course, &failure, now);
                }
            }
            Main::Awaited(launch) if self.keeper.are_ready() && !self.network.is_awaited() => {
                let launch = launch.take();
                self.control.send(&FromGuest::Ready { uptime_ms: (self.uptime_ms)() });
                course.main = Main::Serving;
                match launch.map(|launch| launch()) {
                    None => {}
                    Some(Err(failure)) => self.fail(course, &failure, now),
                    Some(Ok((started, streams))) => {
                        if streams.is_none() {
                            self.keeper.leave_console();
                        }
                        course.streams = streams;
                        if let (Some(streams), Some(bytes)) = (&mut course.streams, course.input_ends) {
                            streams.stdin.ends_after(bytes);
                        }
                        course.main = started.map_or_else(Main::Over, Main::Running);
                    }
                }
            }
            // All that it served with ran once, or has ended by itself.
            Main::Serving if self.keeper.are_over() => {
                let stopped = FromGuest::Stopped { killed: Vec::new() };
                self.tell(course, &stopped, FAILURE_HEARD, now);
            }
            Main::Over(status) if gave_up || drained(course.streams.as_ref(), now) => {
                let status = *status;
                let sent = course.streams.take().map_or((0, 0), |all| (all.stdout.sent(), all.stderr.sent()));
                let (stdout, stderr) = sent;
                let limit = if stopping { FETCHED } else { Duration::from_millis(LINGER_MS) };
                self.tell(course, &FromGuest::Ended { status, stdout, stderr }, limit, now);
            }
            // Not even SIGKILL ended it: stuck in the kernel, and power off is what was asked for.
            Main::Running(_) if gave_up => {
                kmsg::error("the command did not end");
                self.known(course, now);
            }
            Main::Told { until } if now >= *until || self.control.away_for(now) >= GONE => {
                kmsg::error("the outside did not say that it received the end");
                self.known(course, now);
            }
            _ => return false,
        }
        true
    }

    /// Nothing is left to say.
    fn known(&mut self, course: &mut Course, now: Instant) {
        course.main = Main::Known;
        match course.stop {
            Some(_) => self.stop_services_if_asked(course, now),
            None => self.keeper.stop(self.stop_within, now),
        }
    }

    /// The services go before the machine does, and need not wait until the outside has read everything, where they can.
    fn tell(&mut self, course: &mut Course, told: &FromGuest, limit: Duration, now: Instant) {
        self.control.send(told);
        course.main = Main::Told { until: now + limit };
        match course.stop {
            Some(_) => self.stop_services_if_asked(course, now),
            None if self.keeper.go_with_the_machine() => {}
            None => self.keeper.stop(self.stop_within, now),
        }
    }

    fn fail(&mut self, course: &mut Course, failure: &Failure, now: Instant) {
        let message = failure.message();
        // The outside shows it.
        kmsg::note(&message);
        self.tell(course, &FromGuest::Failed { message }, FAILURE_HEARD, now);
    }

    fn sleep(&self, course: &Course, now: Instant) {
        let mut wait = Wait::default();
        self.children.expect(&mut wait);
        self.buttons.expect(&mut wait);
        self.control.expect(now, &mut wait);
        self.keeper.expect(&mut wait);
        self.network.expect(&mut wait);
        if let Some(streams) = &course.streams {
            streams.expect(now, &mut wait);
        }
        course.helpers.iter().for_each(|helper| helper.expect(&mut wait));
        if let Some(stop) = &course.stop {
            match course.main {
                _ if !stop.killed => wait.until(stop.command_by),
                Main::Running(_) | Main::Over(_) => wait.until(stop.command_by + AFTER_KILL),
                _ => {}
            }
        }
        if let Main::Told { until } = course.main {
            wait.until(until);
        }
        wait.sleep();
    }
}

fn drained(streams: Option<&Streams>, now: Instant) -> bool {
    let over = |output: &FromCommand| output.is_drained() || output.stuck_for(now) >= NO_READER;
    streams.is_none_or(|streams| over(&streams.stdout) && over(&streams.stderr))
}

impl Streams {
    fn step(&mut self, now: Instant) {
        self.stdin.step(now);
        self.stdout.step(now);
        self.stderr.step(now);
    }

    fn expect<'a>(&'a self, now: Instant, wait: &mut Wait<'a>) {
        self.stdin.expect(now, wait);
        self.stdout.expect(now, wait);
        self.stderr.expect(now, wait);
    }
}

/// To the command's process group, as a terminal would send it. It may have ended while the message travelled.
fn signal(group: Pid, number: i32) {
    match Signal::from_named_raw(number) {
        Some(signal) => drop(kill_process_group(group, signal)),
        None => kmsg::error(format_args!("control: {number} is no signal with a name")),
    }
}

/// What ends a program that has not asked for anything else; one that has not started yet, too.
fn is_the_end(number: i32) -> bool {
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::KILL, Signal::TERM]
        .iter()
        .any(|end| end.as_raw() == number)
}

#[cfg(test)]
mod tests;
