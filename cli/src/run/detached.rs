//! A run that is left on its own: `up --detach`. The vmprof that the user called starts another one and waits until that one
//! says that the machine runs. Up to then it prints where the user looks; from then on into its log. What it says is a word a
//! line over a pipe, and the pipe's end is the end of the run.

use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{env, thread};

use rustix::process::{Pid, Signal, kill_process};
use rustix::stdio::{dup2_stderr, dup2_stdout};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmprof_sys::child::inherits_only;
use vmprof_sys::inherited;

use super::log;

/// Names the pipe by its number, in the environment of the vmprof that is left on its own.
const VARIABLE: &str = "VMPROF_DETACHED";

/// What whoever waits is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// The machine runs.
    Started,
    /// Its guest is ready, or its command runs.
    Ready,
}

impl Word {
    const fn text(self) -> &'static str {
        match self {
            Word::Started => "started",
            Word::Ready => "ready",
        }
    }

    fn from_text(text: &str) -> Option<Word> {
        [Word::Started, Word::Ready].into_iter().find(|word| word.text() == text)
    }
}

/// The side that is left on its own. Each copy is the same; the last that goes ends the log.
#[derive(Debug, Clone)]
pub struct Detached(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    waiting: File,
    log: PathBuf,
    kept: Option<(log::Writer, PipeWriter)>,
}

/// On its way to the program that the run goes on as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    waiting: RawFd,
    log: PathBuf,
}

impl Detached {
    /// Where this vmprof is one that was left on its own, of which `log` is to be the log: to be called once, and before anything
    /// is opened. It leaves the terminal's session.
    pub fn here(log: PathBuf) -> io::Result<Option<Detached>> {
        let Some(number) = env::var_os(VARIABLE) else { return Ok(None) };
        let number = number.to_str().and_then(|number| number.parse().ok());
        let waiting = inherited::take(number.ok_or(io::ErrorKind::InvalidInput)?)?;
        rustix::process::setsid()?;
        Ok(Some(Detached::with(waiting, log)))
    }

    fn with(waiting: OwnedFd, log: PathBuf) -> Detached {
        Detached(Arc::new(Mutex::new(Inner { waiting: waiting.into(), log, kept: None })))
    }

    pub fn pass(&self) -> io::Result<Passed> {
        let inner = self.inner();
        Ok(Passed { waiting: inherited::leave_open(inner.waiting.as_fd())?, log: inner.log.clone() })
    }

    /// In the next program, before it opens anything.
    pub fn take(passed: Passed) -> io::Result<Detached> {
        Ok(Detached::with(inherited::take(passed.waiting)?, passed.log))
    }

    /// Begins the log, into which nothing goes yet.
    pub fn begin_log(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.kept = Some(log::Writer::start(&inner.log)?);
        Ok(())
    }

    /// The machine runs: what is printed from now on goes into the log, and nobody need watch any more.
    pub fn started(&self) {
        let mut inner = self.inner();
        if let Some((_, to)) = &inner.kept {
            // All three are open, and no others are opened in their place meanwhile: there is no way to fail.
            let _ = dup2_stdout(to).and_then(|()| dup2_stderr(to));
        }
        inner.say(Word::Started);
    }

    pub fn ready(&self) {
        self.inner().say(Word::Ready);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn say(&mut self, word: Word) {
        // Whoever waited may have gone with its terminal: the run goes on.
        let _ = self.waiting.write_all(format!("{}\n", word.text()).as_bytes());
    }
}

/// How the other one is doing, when this one may go.
#[derive(Debug)]
pub enum Left {
    /// It goes on by itself.
    Running { pid: u32 },
    /// It has ended, after this word if any: its status, and 128+N for a signal N.
    Ended { status: u8, after: Option<Word> },
}

/// Starts this same vmprof once more with the same arguments, on its own, and waits until it says `word`. Signals that are to
/// end this one are handed on meanwhile.
pub fn leave(word: Word) -> io::Result<Left> {
    let (heard, said) = io::pipe()?;
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let mut arguments = env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_default());
    command.args(arguments).env(VARIABLE, said.as_raw_fd().to_string()).stdin(Stdio::null());
    let mut child = inherits_only(&mut command, said.as_fd()).spawn()?;
    // With ours it is the other one's alone, and ends with it.
    drop(said);
    let pid = Pid::from_child(&child);
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if let Some(signal) = Signal::from_named_raw(signal) {
                // This process ends with it, or before it is waited for: the number is still its.
                let _ = kill_process(pid, signal);
            }
        }
    })?;
    wait(&mut child, heard, word)
}

fn wait(child: &mut Child, heard: PipeReader, word: Word) -> io::Result<Left> {
    let mut after = None;
    for line in BufReader::new(heard).lines() {
        after = Word::from_text(&line?).max(after);
        if after >= Some(word) {
            return Ok(Left::Running { pid: child.id() });
        }
    }
    let ended = child.wait()?;
    let status = ended.code().or(ended.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(Left::Ended { status: u8::try_from(status).unwrap_or(1), after })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(script: &str, word: Word) -> Left {
        let (heard, said) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        let mut child = command.args(["-c", script]).stdout(said).spawn().unwrap();
        // The command has a copy of the pipe until it goes.
        drop(command);
        let left = wait(&mut child, heard, word).unwrap();
        let _ = child.wait();
        left
    }

    #[test]
    fn whoever_waits_goes_at_its_word_and_else_ends_as_the_run_does() {
        let started = "echo started; exec sleep 0.1";
        assert!(matches!(left(started, Word::Started), Left::Running { .. }));
        let ready = "echo started; echo ready; exec sleep 0.1";
        assert!(matches!(left(ready, Word::Started), Left::Running { .. }));
        assert!(matches!(left(ready, Word::Ready), Left::Running { .. }));
        assert!(matches!(left("exit 4", Word::Started), Left::Ended { status: 4, after: None }));
        let failed = left("echo started; exit 1", Word::Ready);
        assert!(matches!(failed, Left::Ended { status: 1, after: Some(Word::Started) }));
        assert!(matches!(left("kill -9 $$", Word::Ready), Left::Ended { status: 137, after: None }));
    }
}
