//! `vmprof console`: the serial console of a running VM, on this terminal.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::{net, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::args::ConsoleArguments;
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::report::Report;
use crate::run::console::client::{self, Attachment, Left};
use crate::run::console::protocol::Because;
use crate::run::reach;
use crate::run::sockets::CONSOLE;
use crate::run::terminal::{Keys, RawTerminal};

pub fn console(arguments: &ConsoleArguments, report: Report) -> Result<(), Failure> {
    let places = Places::from_environment()?;
    let name = &arguments.name;
    let stream = reach::socket(&places, name, CONSOLE)?;
    attach(stream, name, !arguments.read_only, report)
}

/// Until whoever types leaves, or the other end of `stream` does. `keyboard`: to type, where there is a terminal and nobody
/// else does.
fn attach(stream: UnixStream, name: &str, keyboard: bool, report: Report) -> Result<(), Failure> {
    let wants = keyboard && io::stdin().is_terminal();
    let attachment = client::attach(stream, wants).map_err(|error| unreachable(name, error))?;
    let types = attachment.granted.keyboard;
    match (types, attachment.granted.typed_by.filter(|_| wants)) {
        (true, _) => report.notice(format_args!("this is {name}'s console: Ctrl-A x leaves it")),
        (false, Some(pid)) => {
            report.notice(format_args!("read-only: {name}'s console is typed on by pid {pid}"));
        }
        (false, None) if io::stdin().is_terminal() => {
            report.notice(format_args!("read-only: Ctrl-C leaves {name}'s console"));
        }
        (false, None) => {}
    }
    let failed = |error| Failure::os("the console cannot be had on this terminal", error);
    // Before the terminal is raw: from then on they must not end this process as it is.
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT]).map_err(failed)?;
    let raw = if types { RawTerminal::take().map_err(failed)?.map(Arc::new) } else { None };
    let leaving = Leaving::new(&attachment).map_err(failed)?;
    leaving.at_signals(signals, raw.as_ref().map_or_else(Weak::new, Arc::downgrade)).map_err(failed)?;
    if raw.is_some() {
        let keys = attachment.keys().map_err(failed)?;
        let leaving = leaving.clone();
        let carry = move || {
            // An error is the other end's, which is seen where it is read from.
            if carry_keys(io::stdin(), keys).unwrap_or(false) {
                leaving.leave();
            }
        };
        thread::Builder::new().name("console keys".into()).spawn(carry).map_err(failed)?;
    }
    let mut ends_a_line = true;
    let end = attachment.copy(|bytes| {
        ends_a_line = bytes.last().map_or(ends_a_line, |last| *last == b'\n');
        report.bytes(bytes)
    });
    drop(raw);
    if !ends_a_line && io::stdout().is_terminal() {
        report.text("\n");
    }
    conclude(end?, leaving.has_left(), name, report)
}

fn conclude(end: Left, has_left: bool, name: &str, report: Report) -> Result<(), Failure> {
    match end {
        Left::BrokenOff if has_left => {
            report.notice(format_args!("detached from {name}'s console: it goes on"));
            Ok(())
        }
        Left::Unwanted => Ok(()),
        Left::Because(Because::Over) => {
            report.notice(format_args!("{name} has ended"));
            Ok(())
        }
        Left::Because(Because::Behind) => Err(Failure::said(
            Kind::Failure,
            "vmprof::console::behind",
            format!("detached from {name}'s console: too much of what it printed was not taken in time"),
            format!(
                "`vmprof console {name}` attaches anew; `vmprof logs {name}` has all that a detached run printed"
            ),
        )),
        Left::BrokenOff => Err(Failure::said(
            Kind::Failure,
            "vmprof::console::broken_off",
            format!("{name}'s console broke off without a word"),
            "`vmprof ps` shows whether it still runs",
        )),
    }
}

fn unreachable(name: &str, error: io::Error) -> Failure {
    let help = match error.kind() {
        ErrorKind::NotFound => "its machine is not made yet, or another version of vmprof runs it",
        _ => "is it just ending? `vmprof ps` lists the running ones",
    };
    let error = Unreachable { name: name.to_owned(), source: error };
    Failure::caused(Kind::Failure, "vmprof::console::unreachable", error, help)
}

#[derive(Debug, thiserror::Error)]
#[error("the console of the running VM `{name}` cannot be reached")]
struct Unreachable {
    name: String,
    source: io::Error,
}

/// How this side ends it: the stream is shut down, which whoever reads it sees.
#[derive(Debug, Clone)]
struct Leaving {
    stream: Arc<UnixStream>,
    left: Arc<AtomicBool>,
}

impl Leaving {
    fn new(attachment: &Attachment) -> io::Result<Leaving> {
        Ok(Leaving { stream: Arc::new(attachment.keys()?), left: Arc::default() })
    }

    fn leave(&self) {
        self.left.store(true, Ordering::Release);
        // Where it is gone there is nothing left to end.
        let _ = self.stream.shutdown(net::Shutdown::Both);
    }

    fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Ctrl-C of one who only watches leaves; other signals end this process as they would, once the terminal is what it was.
    fn at_signals(&self, mut signals: Signals, raw: Weak<RawTerminal>) -> io::Result<()> {
        let leaving = self.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                let raw = raw.upgrade();
                if signal == SIGINT && raw.is_none() {
                    leaving.leave();
                    continue;
                }
                raw.iter().for_each(|raw| raw.restore());
                // It does not come back from these.
                let _ = emulate_default_handler(signal);
            }
        })?;
        Ok(())
    }
}

/// Whether it ended since whoever types has left.
fn carry_keys(mut from: impl Read, mut to: impl Write) -> io::Result<bool> {
    let mut keys = Keys::default();
    let mut buffer = [0; 1024];
    loop {
        let typed = match from.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => keys.read(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(&typed.for_guest)?;
        if typed.leave {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_to_the_guest_until_ctrl_a_x() {
        let mut to = Vec::new();
        assert!(carry_keys(&b"ls\r\x03\x01\x01\x01x"[..], &mut to).unwrap());
        assert_eq!(to, b"ls\r\x03\x01");
        assert!(!carry_keys(&b"x"[..], &mut to).unwrap(), "a terminal that is gone has not left");
    }

    #[test]
    fn each_end_is_told_and_only_what_nobody_wanted_fails() {
        let report = Report::without_colour();
        let concluded = |end, has_left| conclude(end, has_left, "db", report);
        concluded(Left::BrokenOff, true).unwrap();
        concluded(Left::Because(Because::Over), false).unwrap();
        concluded(Left::Unwanted, false).unwrap();
        for (end, code) in [
            (Left::BrokenOff, "vmprof::console::broken_off"),
            (Left::Because(Because::Behind), "vmprof::console::behind"),
        ] {
            let failure = concluded(end, false).unwrap_err();
            assert_eq!(failure.problem.code().unwrap().to_string(), code);
        }
    }
}
