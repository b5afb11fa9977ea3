//! While the command runs: one thread, one poll, everything non-blocking. Passes the streams on, does what the control
//! port says, reaps the dead, and reports how the command ended.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use vmprof_job::{Ended, FromGuest, LINGER_MS, ToGuest};

use crate::captured::Captured;
use crate::command::Surroundings;
use crate::control::Control;
use crate::kmsg;
use crate::power::{BUTTON_GRACE, Buttons};
use crate::pump::{FromCommand, ToCommand};
use crate::reap::Children;
use crate::wait::Wait;

/// Output that nobody takes is given up after this long without a reader; a slow reader is waited for.
const NO_READER: Duration = Duration::from_secs(10);
/// After a stop's SIGKILL: to reap, to drain, to hear that the outside has it.
const AFTER_KILL: Duration = Duration::from_secs(2);
/// What processes get that the command leaves behind.
const LEFT_BEHIND: Duration = Duration::from_secs(2);

/// The command's streams where they lead to ports.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) stdin: ToCommand,
    pub(crate) stdout: FromCommand,
    pub(crate) stderr: FromCommand,
}

pub(crate) struct Supervisor<'a> {
    pub(crate) control: Control,
    pub(crate) children: &'a Children,
    pub(crate) buttons: Buttons,
    pub(crate) streams: Option<Streams>,
    /// For helpers: what the command has, too.
    pub(crate) surroundings: Surroundings,
    /// Signals all that runs in the guest.
    pub(crate) everything: &'a dyn Fn(Signal),
}

enum Command {
    Running(Pid),
    /// Its output may still be on the way.
    Over(Ended),
}

struct Stop {
    kill_at: Instant,
    killed: bool,
}

impl Supervisor<'_> {
    /// Returns when the outside knows how the command ended; the grace is what is left for all others.
    pub(crate) fn run(mut self, started: Result<Pid, Ended>) -> Duration {
        let mut command = started.map_or_else(Command::Over, Command::Running);
        let mut helpers: Vec<Captured> = Vec::new();
        let mut stop: Option<Stop> = None;
        loop {
            let now = Instant::now();
            for (pid, status) in self.children.reap() {
                match &command {
                    Command::Running(running) if *running == pid => {
                        self.writer_ended();
                        command = Command::Over(status);
                    }
                    _ => helpers
                        .iter_mut()
                        .filter(|helper| helper.is(pid))
                        .for_each(|helper| helper.ended(status)),
                }
            }
            let mut grace = self.buttons.pressed().then_some(BUTTON_GRACE);
            for message in self.control.step(now) {
                match message {
                    ToGuest::InputEnded { bytes } => {
                        if let Some(streams) = &mut self.streams {
                            streams.stdin.ends_after(bytes);
                        }
                    }
                    ToGuest::Signal { number } => signal(&command, number),
                    ToGuest::Stop { grace_ms } => grace = Some(Duration::from_millis(grace_ms)),
                    ToGuest::Run { id, argv } => match Captured::start(id, &self.surroundings, &argv) {
                        Ok(helper) => helpers.push(helper),
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
                    ToGuest::Ping => self.control.send(&FromGuest::Pong),
                    ToGuest::Received => {
                        kmsg::error("control: nothing was sent that could have been received")
                    }
                }
            }
            if let Some(grace) = grace {
                // A second stop may shorten the first, and is asked again; it does not lengthen it.
                let kill_at = now + grace;
                let kill_at = stop.as_ref().map_or(kill_at, |stop| stop.kill_at.min(kill_at));
                stop = Some(Stop { kill_at, killed: stop.is_some_and(|stop| stop.killed) });
                (self.everything)(Signal::TERM);
                (self.everything)(Signal::CONT);
            }
            if let Some(stop) = &mut stop
                && !stop.killed
                && now >= stop.kill_at
            {
                (self.everything)(Signal::KILL);
                stop.killed = true;
            }
            if let Some(streams) = &mut self.streams {
                streams.step(now);
            }
            for answer in helpers.extract_if(.., Captured::step).filter_map(Captured::into_answer) {
                self.control.send(&answer);
            }

            let give_up = stop.as_ref().map(|stop| stop.kill_at + AFTER_KILL);
            let gave_up = give_up.is_some_and(|instant| now >= instant);
            let left = stop.as_ref().map_or(LEFT_BEHIND, |stop| stop.kill_at.saturating_duration_since(now));
            match &command {
                Command::Over(status) if gave_up || self.is_drained(now) => {
                    let (stdout, stderr) = self.sent();
                    self.streams = None;
                    self.control.send(&FromGuest::Ended { status: *status, stdout, stderr });
                    let limit = if stop.is_some() { AFTER_KILL } else { Duration::from_millis(LINGER_MS) };
                    if !self.control.farewell(limit, &mut self.buttons) {
                        kmsg::error("the outside did not say that it received the command's end");
                    }
                    return left;
                }
                // Not even SIGKILL ended it: stuck in the kernel, and power off is what was asked for.
                Command::Running(_) if gave_up => {
                    kmsg::error("the command did not end");
                    return Duration::ZERO;
                }
                _ => {}
            }

            let mut wait = Wait::default();
            self.children.expect(&mut wait);
            self.buttons.expect(&mut wait);
            self.control.expect(now, &mut wait);
            if let Some(streams) = &self.streams {
                streams.expect(now, &mut wait);
            }
            helpers.iter().for_each(|helper| helper.expect(&mut wait));
            if let Some(stop) = &stop {
                wait.until(if stop.killed { stop.kill_at + AFTER_KILL } else { stop.kill_at });
            }
            wait.sleep();
        }
    }

    fn writer_ended(&mut self) {
        if let Some(streams) = &mut self.streams {
            streams.stdout.writer_ended();
            streams.stderr.writer_ended();
        }
    }

    fn is_drained(&self, now: Instant) -> bool {
        let over = |output: &FromCommand| output.is_drained() || output.stuck_for(now) >= NO_READER;
        self.streams.as_ref().is_none_or(|streams| over(&streams.stdout) && over(&streams.stderr))
    }

    fn sent(&self) -> (u64, u64) {
        self.streams.as_ref().map_or((0, 0), |streams| (streams.stdout.sent(), streams.stderr.sent()))
    }
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

/// To the command's process group, as a terminal would send it. The command may have ended while the message travelled.
fn signal(command: &Command, number: i32) {
    match (command, Signal::from_named_raw(number)) {
        (Command::Running(group), Some(signal)) => {
            let _ = kill_process_group(*group, signal);
        }
        (Command::Running(_), None) => {
            kmsg::error(format_args!("control: {number} is no signal with a name"))
        }
        (Command::Over(_), _) => {}
    }
}

#[cfg(test)]
mod tests;
