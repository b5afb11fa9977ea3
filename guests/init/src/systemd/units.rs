//! The guest's services where they are systemd's: whether the boot has come to its end, which units failed, and the way to
//! power off. Asked by way of systemctl, which is there wherever systemd is and speaks to it without D-Bus.

use std::time::{Duration, Instant};

use rustix::process::Pid;
use vmprof_job::{Ended, FromGuest, ServiceState};

use super::failed::{Endings, Known, Look};
use super::question::{Question, complaint_of, not_reached, reached, systemctl};
use super::role::LastCall;
use crate::captured::Captured;
use crate::command::Surroundings;
use crate::failure::Failure;
use crate::kmsg;
use crate::wait::Wait;

/// What systemd as a whole is called where the outside is told of services.
const WHOLE: &str = "systemd";
/// A systemctl that could not reach systemd is tried again after this.
const AGAIN: Duration = Duration::from_millis(500);
/// After so many it is taken for one that never will.
const TRIES: u32 = 60;
/// What a look at failed units may take of a clean stop.
const LOOK: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Units {
    last_call: LastCall,
    endings: Endings,
    /// Under way, once the guest is ready or is being stopped.
    look: Option<Box<Look>>,
    known: Known,
    surroundings: Surroundings,
    phase: Phase,
    /// When the role began; systemd began shortly before.
    began: Instant,
    tries: u32,
    stopping: Option<Stopping>,
    /// What nobody has been told of.
    told: Vec<FromGuest>,
}

#[derive(Debug)]
enum Phase {
    /// To be asked at this time.
    Ask(Question, Instant),
    Asked(Question, Captured),
    /// At what failed.
    Looking(Box<Look>),
    Ready,
    Failed(String),
}

#[derive(Debug)]
struct Stopping {
    by: Instant,
    /// Power off is asked for after a look at what failed, since units that stop fail in ways of their own; but not later
    /// than this.
    look_until: Option<Instant>,
    /// The systemctl that asks for power off.
    asking: Option<Captured>,
    over: Option<Over>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// Every unit has stopped.
    Orderly,
    Late,
}

impl Units {
    pub(crate) fn new(last_call: LastCall, endings: Endings, surroundings: Surroundings) -> Self {
        let began = Instant::now();
        let starting = FromGuest::Service { name: WHOLE.into(), state: ServiceState::Starting };
        Units {
            last_call,
            endings,
            look: None,
            known: Known::default(),
            surroundings,
            phase: Phase::Ask(Question::State, began),
            began,
            tries: 0,
            stopping: None,
            told: vec![starting],
        }
    }

    /// The target that the guest boots to has been reached.
    pub(crate) fn are_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready)
    }

    pub(crate) fn are_over(&self) -> bool {
        self.over().is_some()
    }

    /// Whether all units had stopped when it was over.
    pub(crate) fn is_orderly(&self) -> bool {
        self.over() == Some(Over::Orderly)
    }

    fn over(&self) -> Option<Over> {
        self.stopping.as_ref().and_then(|stopping| stopping.over)
    }

    pub(crate) fn killed(&self) -> Vec<String> {
        match self.over() {
            Some(Over::Late) => vec![WHOLE.to_owned()],
            _ => Vec::new(),
        }
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        match &self.phase {
            Phase::Failed(because) => Some(Failure::Systemd { because: because.clone() }),
            _ => None,
        }
    }

    /// Asks systemd for power off, which may take this long.
    pub(crate) fn stop(&mut self, within: Duration, now: Instant) {
        let by = now + within;
        if let Some(stopping) = &mut self.stopping {
            stopping.by = by.min(stopping.by);
            return;
        }
        self.look = self.look.take().or_else(|| self.start_look());
        self.stopping = Some(Stopping { by, look_until: Some(now + LOOK), asking: None, over: None });
    }

    /// As `systemctl poweroff` does it, without the detour by a logind that may be going, too.
    fn ask_for_power_off(surroundings: &Surroundings) -> Option<Captured> {
        let words = ["start", "--no-block", "--job-mode=replace-irreversibly", "poweroff.target"];
        let told = |error: &_| kmsg::error(format_args!("systemctl cannot be asked for power off: {error}"));
        Captured::start(0, surroundings, &systemctl(&words)).inspect_err(told).ok()
    }

    fn start_look(&self) -> Option<Box<Look>> {
        let told = |error: &_| kmsg::error(format_args!("failed units are not told: {error}"));
        Look::start(&self.surroundings).inspect_err(told).ok().map(Box::new)
    }

    /// Whether the process was one of ours.
    pub(crate) fn ended(&mut self, pid: Pid, status: Ended) -> bool {
        let (asked, looking) = match &mut self.phase {
            Phase::Asked(_, asked) => (Some(asked), None),
            Phase::Looking(look) => (None, Some(&mut **look)),
            _ => (None, None),
        };
        let asking = self.stopping.as_mut().and_then(|stopping| stopping.asking.as_mut());
        let mut ours = asked.into_iter().chain(asking);
        ours.find(|one| one.is(pid)).map(|one| one.ended(status)).is_some()
            || looking.into_iter().chain(self.look.as_deref_mut()).any(|look| look.ended(pid, status))
    }

    /// Goes on with everything; what there is to tell the outside.
    pub(crate) fn step(&mut self, now: Instant) -> Vec<FromGuest> {
        if self.last_call.came() {
            let stopping =
                self.stopping.get_or_insert(Stopping { by: now, look_until: None, asking: None, over: None });
            if stopping.over.is_none() {
                stopping.over = Some(Over::Orderly);
                self.told.push(stopped(false));
            }
        }
        self.step_look(now);
        self.step_off(now);
        self.phase = match std::mem::replace(&mut self.phase, Phase::Ready) {
            // What it reached is of no interest any more.
            Phase::Ask(question, at) if self.stopping.is_none() && now >= at => self.ask(question, now),
            Phase::Asked(question, mut asked) => match asked.step() {
                true => self.answered(question, asked.into_answer(), now),
                false => Phase::Asked(question, asked),
            },
            Phase::Looking(mut look) => match look.step(&self.surroundings, &mut self.known) {
                Ok(false) => Phase::Looking(look),
                Ok(true) => {
                    self.told.append(&mut look.news);
                    self.ask(Question::Target(look.failed), now)
                }
                Err(because) => self.again(Question::State, &because, now),
            },
            other => other,
        };
        std::mem::take(&mut self.told)
    }

    /// Units that failed after the guest was ready.
    fn step_look(&mut self, now: Instant) {
        let quiet = matches!(self.phase, Phase::Ready) && self.stopping.is_none();
        if quiet && self.look.is_none() && self.endings.are_to_be_seen(now) {
            self.look = self.start_look();
        }
        let Some(look) = &mut self.look else { return };
        let seen = look.step(&self.surroundings, &mut self.known);
        self.told.append(&mut look.news);
        match seen {
            Ok(false) => return,
            Ok(true) => {}
            Err(because) => kmsg::error(format_args!("failed units are not told: {because}")),
        }
        self.look = None;
    }

    fn step_off(&mut self, now: Instant) {
        let Some(stopping) = &mut self.stopping else { return };
        if stopping.over.is_none() && now >= stopping.by {
            stopping.over = Some(Over::Late);
            self.told.push(stopped(true));
        }
        if stopping.look_until.is_some_and(|limit| self.look.is_none() || now >= limit) {
            stopping.look_until = None;
            stopping.asking = Self::ask_for_power_off(&self.surroundings);
        }
        if stopping.asking.as_mut().is_some_and(Captured::step)
            && let Some(FromGuest::Ran { status, stderr, .. }) =
                stopping.asking.take().and_then(Captured::into_answer)
            && status != Ended::Exited(0)
        {
            let said = String::from_utf8_lossy(stderr.as_bytes()).into_owned();
            kmsg::error(format_args!("systemctl was asked for power off: {}", said.trim_end()));
        }
    }

    fn ask(&mut self, question: Question, now: Instant) -> Phase {
        match Captured::start(0, &self.surroundings, &question.argv()) {
            Ok(asked) => Phase::Asked(question, asked),
            Err(error) => self.again(question, &format!("systemctl cannot be started: {error}"), now),
        }
    }

    fn again(&mut self, question: Question, because: &str, now: Instant) -> Phase {
        self.tries += 1;
        match self.tries < TRIES {
            true => Phase::Ask(question, now + AGAIN),
            false => Phase::Failed(because.to_owned()),
        }
    }

    fn answered(&mut self, question: Question, answer: Option<FromGuest>, now: Instant) -> Phase {
        let Some(FromGuest::Ran { status, stdout, stderr, .. }) = answer else {
            return Phase::Ask(question, now);
        };
        let said = String::from_utf8_lossy(stdout.as_bytes()).into_owned();
        let complaint = || complaint_of(status, &said, &String::from_utf8_lossy(stderr.as_bytes()));
        match question {
            // It ends with 0 for `running` alone; `offline` and no word at all are of a systemd that does not listen yet.
            Question::State => match said.trim() {
                "running" | "degraded" | "maintenance" => match Look::start(&self.surroundings) {
                    Ok(look) => Phase::Looking(Box::new(look)),
                    Err(error) => self.again(question, &format!("systemctl cannot be started: {error}"), now),
                },
                // Somebody powers off: that comes to its own end.
                "stopping" => Phase::Ask(Question::State, now + AGAIN),
                _ => self.again(Question::State, &complaint(), now),
            },
            _ if status != Ended::Exited(0) => self.again(question, &complaint(), now),
            Question::Target(failed) => match reached(&said) {
                Ok(()) => {
                    let after = now.saturating_duration_since(self.began);
                    let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                    let state = ServiceState::Ready { after_ms };
                    self.told.push(FromGuest::Service { name: WHOLE.into(), state });
                    Phase::Ready
                }
                Err(target) => Phase::Failed(not_reached(&target, &failed)),
            },
        }
    }

    pub(crate) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        self.last_call.expect(wait);
        match &self.phase {
            Phase::Ask(_, at) if self.stopping.is_none() => wait.until(*at),
            Phase::Asked(_, asked) => asked.expect(wait),
            Phase::Looking(look) => look.expect(wait),
            // Once the look that is under way is over.
            Phase::Ready if self.stopping.is_none() && self.look.is_none() => self.endings.expect(wait),
            _ => {}
        }
        self.look.iter().for_each(|look| look.expect(wait));
        if let Some(stopping) = &self.stopping {
            stopping.look_until.iter().for_each(|limit| wait.until(*limit));
            stopping.asking.iter().for_each(|asking| asking.expect(wait));
            if stopping.over.is_none() {
                wait.until(stopping.by);
            }
        }
    }
}

fn stopped(killed: bool) -> FromGuest {
    FromGuest::Service { name: WHOLE.into(), state: ServiceState::Stopped { killed } }
}

#[cfg(test)]
mod tests;
