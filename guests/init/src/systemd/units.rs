//! The guest's services where they are systemd's: whether the boot has come to its end, which units failed, and the way to
//! power off. Asked by way of systemctl, which is there wherever systemd is and speaks to it without D-Bus.

use std::time::{Duration, Instant};

use rustix::process::Pid;
use vmprof_job::{Bytes, Ended, FromGuest, ServiceState};

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

#[derive(Debug)]
pub(crate) struct Units {
    last_call: LastCall,
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
    Ready,
    Failed(String),
}

#[derive(Debug)]
struct Stopping {
    by: Instant,
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

#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    /// Answered when no job is left of the boot.
    State,
    Failed,
    /// With the units that failed.
    Target(Vec<FailedUnit>),
}

impl Question {
    fn argv(&self) -> Vec<Bytes> {
        let words: &[&str] = match self {
            Question::State => &["is-system-running", "--wait"],
            Question::Failed => &["show", "--property=Id,Result", "--state=failed", "*"],
            Question::Target(_) => &["show", "--property=Id,ActiveState", "default.target"],
        };
        systemctl(words)
    }
}

fn systemctl(words: &[&str]) -> Vec<Bytes> {
    ["systemctl"].iter().chain(words).map(|word| (*word).into()).collect()
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FailedUnit {
    name: String,
    /// systemd's word for how: `exit-code`, `timeout`, `dependency`.
    result: String,
}

impl Units {
    pub(crate) fn new(last_call: LastCall, surroundings: Surroundings) -> Self {
        let began = Instant::now();
        let starting = FromGuest::Service { name: WHOLE.into(), state: ServiceState::Starting };
        Units {
            last_call,
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
        // As `systemctl poweroff` does it, without the detour by a logind that may be going, too.
        let words = ["start", "--no-block", "--job-mode=replace-irreversibly", "poweroff.target"];
        let asking = match Captured::start(0, &self.surroundings, &systemctl(&words)) {
            Ok(asking) => Some(asking),
            Err(error) => {
                kmsg::error(format_args!("systemctl cannot be asked for power off: {error}"));
                None
            }
        };
        self.stopping = Some(Stopping { by, asking, over: None });
    }

    /// Whether the process was one of ours.
    pub(crate) fn ended(&mut self, pid: Pid, status: Ended) -> bool {
        let asked = match &mut self.phase {
            Phase::Asked(_, asked) => Some(asked),
            _ => None,
        };
        let asking = self.stopping.as_mut().and_then(|stopping| stopping.asking.as_mut());
        let mut ours = asked.into_iter().chain(asking);
        ours.find(|one| one.is(pid)).map(|one| one.ended(status)).is_some()
    }

    /// Goes on with everything; what there is to tell the outside.
    pub(crate) fn step(&mut self, now: Instant) -> Vec<FromGuest> {
        if self.last_call.came() {
            let stopping = self.stopping.get_or_insert(Stopping { by: now, asking: None, over: None });
            if stopping.over.is_none() {
                stopping.over = Some(Over::Orderly);
                self.told.push(stopped(false));
            }
        }
        if let Some(stopping) = &mut self.stopping {
            if stopping.asking.as_mut().is_some_and(Captured::step)
                && let Some(FromGuest::Ran { status, stderr, .. }) =
                    stopping.asking.take().and_then(Captured::into_answer)
                && status != Ended::Exited(0)
            {
                let said = String::from_utf8_lossy(stderr.as_bytes()).into_owned();
                kmsg::error(format_args!("systemctl was asked for power off: {}", said.trim_end()));
            }
            if stopping.over.is_none() && now >= stopping.by {
                stopping.over = Some(Over::Late);
                self.told.push(stopped(true));
            }
        }
        self.phase = match std::mem::replace(&mut self.phase, Phase::Ready) {
            // What it reached is of no interest any more.
            Phase::Ask(question, at) if self.stopping.is_none() && now >= at => self.ask(question, now),
            Phase::Asked(question, mut asked) => match asked.step() {
                true => self.answered(question, asked.into_answer(), now),
                false => Phase::Asked(question, asked),
            },
            other => other,
        };
        std::mem::take(&mut self.told)
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
        let complaint = || {
            let complaint = String::from_utf8_lossy(stderr.as_bytes());
            format!(
                "systemctl does not reach it ({}): {}{}",
                status.shell_status(),
                said.trim_end(),
                complaint.trim_end()
            )
        };
        match question {
            // It ends with 0 for `running` alone; `offline` and no word at all are of a systemd that does not listen yet.
            Question::State => match said.trim() {
                "running" | "degraded" | "maintenance" => self.ask(Question::Failed, now),
                // Somebody powers off: that comes to its own end.
                "stopping" => Phase::Ask(Question::State, now + AGAIN),
                _ => self.again(Question::State, &complaint(), now),
            },
            _ if status != Ended::Exited(0) => self.again(question, &complaint(), now),
            Question::Failed => self.ask(Question::Target(failed_units(&said)), now),
            Question::Target(failed) => {
                self.told.extend(failed.iter().map(told));
                match reached(&said) {
                    Ok(()) => {
                        let after = now.saturating_duration_since(self.began);
                        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                        let state = ServiceState::Ready { after_ms };
                        self.told.push(FromGuest::Service { name: WHOLE.into(), state });
                        Phase::Ready
                    }
                    Err(target) => Phase::Failed(not_reached(&target, &failed)),
                }
            }
        }
    }

    pub(crate) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        self.last_call.expect(wait);
        match &self.phase {
            Phase::Ask(_, at) if self.stopping.is_none() => wait.until(*at),
            Phase::Asked(_, asked) => asked.expect(wait),
            _ => {}
        }
        if let Some(stopping) = &self.stopping {
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

fn told(unit: &FailedUnit) -> FromGuest {
    let because = format!("{}; `journalctl -u {}` in the guest says more", unit.result, unit.name);
    FromGuest::Service { name: unit.name.clone(), state: ServiceState::Failed { because } }
}

/// The units of `systemctl show`: blocks of KEY=VALUE, with an empty line between them.
fn failed_units(text: &str) -> Vec<FailedUnit> {
    let unit = |block: &str| {
        let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let result = value("Result").filter(|result| !result.is_empty()).unwrap_or("failed");
        Some(FailedUnit { name: value("Id")?.to_owned(), result: result.to_owned() })
    };
    text.split("\n\n").filter_map(unit).collect()
}

/// `Err` names the target that is not active.
fn reached(text: &str) -> Result<(), String> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    match value("ActiveState=") {
        Some("active") => Ok(()),
        _ => Err(value("Id=").unwrap_or("default.target").to_owned()),
    }
}

fn not_reached(target: &str, failed: &[FailedUnit]) -> String {
    let names: Vec<&str> = failed.iter().map(|unit| unit.name.as_str()).collect();
    match names.as_slice() {
        [] => format!("{target} was not reached, and no unit failed"),
        names => format!("{target} was not reached; units that failed: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests;
