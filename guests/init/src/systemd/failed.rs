//! Which of systemd's units failed, how, and the last that each wrote: asked of systemctl and of the journal, one after the
//! other. When it is worth asking, systemd shows by itself: what it keeps of a unit below /run goes when the unit ends.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::inotify;
use rustix::process::Pid;
use vmprof_job::{Bytes, Ended, FromGuest, ServiceState};

use super::question::complaint_of;
use crate::captured::Captured;
use crate::command::Surroundings;
use crate::failure::last_words;
use crate::kmsg;
use crate::wait::Wait;

/// Links `invocation:UNIT`, one of each unit that is active.
pub(super) const ACTIVE: &str = "/run/systemd/units";
/// Units end in crowds, and a timer's unit may do so often: one look is for all that end within this.
const CROWD: Duration = Duration::from_secs(1);
/// What a unit wrote last, that is told.
const LAST_LINES: &str = "5";
/// A unit that keeps failing need not be told without end.
const MOST_TOLD: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FailedUnit {
    pub(super) name: String,
    because: String,
    /// Of this one start of it; a unit that never was started has none.
    invocation: String,
}

impl FailedUnit {
    fn told(&self, last: &[String]) -> FromGuest {
        let last = if last.is_empty() { String::new() } else { last_words(last) };
        let state = ServiceState::Failed { because: format!("{}{last}", self.because) };
        FromGuest::Service { name: self.name.clone(), state }
    }
}

/// The units of `systemctl show`: blocks of KEY=VALUE, with an empty line between them.
fn units(text: &str) -> Vec<FailedUnit> {
    let unit = |block: &str| {
        let value = |key: &str| block.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let (result, status) = (value("Result").unwrap_or_default(), value("ExecMainStatus").unwrap_or("0"));
        let because = match (result, status) {
            ("exit-code", status) if status != "0" => format!("it exited with status {status}"),
            ("signal" | "core-dump", status) if status != "0" => format!("it was killed by signal {status}"),
            ("timeout", _) => "it took longer than it may".to_owned(),
            ("" | "success", _) => "systemd does not say why".to_owned(),
            (word, _) => format!("systemd calls it `{word}`"),
        };
        let invocation = value("InvocationID").unwrap_or_default().to_owned();
        Some(FailedUnit { name: value("Id")?.to_owned(), because, invocation })
    };
    text.split("\n\n").filter_map(unit).collect()
}

/// One look at what failed.
#[derive(Debug)]
pub(super) struct Look {
    /// `None` once there is nothing left to ask.
    asked: Option<Captured>,
    at: At,
    /// Those that come after the one whose words are awaited.
    rest: VecDeque<FailedUnit>,
    /// All of them, told before or not.
    pub(super) failed: Vec<FailedUnit>,
    /// What nobody was told before.
    pub(super) news: Vec<FromGuest>,
}

#[derive(Debug)]
enum At {
    Listing,
    Syncing,
    LastWords(FailedUnit),
}

impl Look {
    pub(super) fn start(surroundings: &Surroundings) -> io::Result<Self> {
        let properties = "--property=Id,Result,ExecMainStatus,InvocationID";
        let asked = ask(surroundings, &["systemctl", "show", properties, "--state=failed", "*"])?;
        Ok(Look {
            asked: Some(asked),
            at: At::Listing,
            rest: VecDeque::new(),
            failed: Vec::new(),
            news: Vec::new(),
        })
    }

    /// Whether the process was one of its own.
    pub(super) fn ended(&mut self, pid: Pid, status: Ended) -> bool {
        let ours = self.asked.as_mut().filter(|asked| asked.is(pid));
        ours.map(|asked| asked.ended(status)).is_some()
    }

    /// True once it has seen everything. An error is why systemctl did not answer.
    pub(super) fn step(&mut self, surroundings: &Surroundings, known: &mut Known) -> Result<bool, String> {
        while let Some(asked) = &mut self.asked {
            if !asked.step() {
                return Ok(false);
            }
            let answer = self.asked.take().and_then(Captured::into_answer);
            let Some(FromGuest::Ran { status, stdout, stderr, .. }) = answer else { continue };
            let said = String::from_utf8_lossy(stdout.as_bytes()).into_owned();
            match &self.at {
                At::Listing if status != Ended::Exited(0) => {
                    let complaint = String::from_utf8_lossy(stderr.as_bytes());
                    return Err(complaint_of(status, &said, &complaint));
                }
                At::Listing => {
                    self.failed = units(&said);
                    self.rest = self.failed.iter().filter(|unit| known.is_new(unit)).cloned().collect();
                    if !self.rest.is_empty() {
                        // Answered when the journal has all that was written before.
                        self.asked = ask(surroundings, &["journalctl", "--sync"]).ok();
                        self.at = At::Syncing;
                    }
                }
                At::Syncing => {}
                // A journal that says nothing, or is not there, is no reason to say nothing of the unit.
                At::LastWords(unit) => {
                    let last: Vec<String> = said.lines().map(str::to_owned).collect();
                    self.news.push(unit.told(&last));
                }
            }
            if self.asked.is_none() {
                self.ask_next(surroundings);
            }
        }
        Ok(true)
    }

    /// Asks for the last words of the next unit that has any.
    fn ask_next(&mut self, surroundings: &Surroundings) {
        while let Some(unit) = self.rest.pop_front() {
            // The unit's own processes, not what systemd says of it. By its name: of one that ended at once the journal
            // learns no more.
            let whose = format!("_SYSTEMD_UNIT={}", unit.name);
            let how = ["--boot", "--quiet", "--no-pager", "--output=cat", "--lines", LAST_LINES];
            let words: Vec<&str> = ["journalctl"].into_iter().chain(how).chain([whose.as_str()]).collect();
            let asked = match unit.invocation.is_empty() {
                true => None,
                false => ask(surroundings, &words).ok(),
            };
            match asked {
                Some(asked) => {
                    (self.asked, self.at) = (Some(asked), At::LastWords(unit));
                    return;
                }
                None => self.news.push(unit.told(&[])),
            }
        }
    }

    pub(super) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        self.asked.iter().for_each(|asked| asked.expect(wait));
    }
}

fn ask(surroundings: &Surroundings, words: &[&str]) -> io::Result<Captured> {
    let argv: Vec<Bytes> = words.iter().map(|word| (*word).into()).collect();
    Captured::start(0, surroundings, &argv)
}

/// What has been told. A unit that fails once more, started anew, is told once more.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeSet<FailedUnit>);

impl Known {
    fn is_new(&mut self, unit: &FailedUnit) -> bool {
        self.0.len() < MOST_TOLD && self.0.insert(unit.clone())
    }
}

/// Whether units ended, and when to look at those that failed.
#[derive(Debug)]
pub(crate) struct Endings {
    watch: Option<OwnedFd>,
    due: Option<Instant>,
}

impl Endings {
    /// Without it failed units are seen at the end only, which is told.
    pub(crate) fn watch(active: &Path) -> Self {
        let watch = || {
            let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
            inotify::add_watch(&watch, active, inotify::WatchFlags::DELETE)?;
            Ok::<_, rustix::io::Errno>(watch)
        };
        let watch = watch().inspect_err(|error| {
            kmsg::error(format_args!(
                "{} is not watched, so failed units are told late: {error}",
                active.display()
            ));
        });
        Endings { watch: watch.ok(), due: None }
    }

    /// Whether to look now.
    pub(super) fn are_to_be_seen(&mut self, now: Instant) -> bool {
        let mut events = [0; 4096];
        let mut came = false;
        while self
            .watch
            .as_ref()
            .is_some_and(|watch| rustix::io::read(watch, &mut events).is_ok_and(|read| read > 0))
        {
            came = true;
        }
        if came && self.due.is_none() {
            self.due = Some(now + CROWD);
        }
        let due = self.due.is_some_and(|due| now >= due);
        if due {
            self.due = None;
        }
        due
    }

    pub(super) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        if let Some(watch) = &self.watch {
            wait.on(watch.as_fd(), PollFlags::IN);
        }
        if let Some(due) = self.due {
            wait.until(due);
        }
    }
}

#[cfg(test)]
mod tests;
