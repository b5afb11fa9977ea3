//! `vmprof exec`: a command in a running guest, with its streams here.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use rustix::termios::isatty;
use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;
use vmprof_job::agent::{Answer, Exec, Frame, Kind, Stream, Terminal, What};
use vmprof_job::{Bytes, Ended};

use crate::args::ExecArguments;
use crate::failure::{Failure, Kind as FailureKind};
use crate::places::Places;
use crate::report::Report;
use crate::run::outward::{Outward, Window};
use crate::run::reach;
use crate::run::terminal::{self, Keys, RawTerminal};

/// The exit status is the command's, 125 where vmprof itself failed, as `up` with CMD has it.
pub fn exec(arguments: &ExecArguments, report: Report) -> u8 {
    try_exec(arguments, report).unwrap_or_else(|failure| {
        report.failure(&failure);
        failure.kind.status_of_up(true)
    })
}

fn try_exec(arguments: &ExecArguments, report: Report) -> Result<u8, Failure> {
    if arguments.tty && !isatty(rustix::stdio::stdin()) {
        let help = "leave out --tty: without it the streams are the command's as they are";
        let message = "--tty gives the command this terminal, and standard input is none";
        return Err(Failure::said(FailureKind::Failure, "vmprof::exec::no_terminal", message, help));
    }
    let name = &arguments.name;
    let mut stream = reach::guest(&Places::from_environment()?, name)?;
    let lost = |error: io::Error| reach::lost(name, &error);
    match reach::ask(&mut stream, What::Exec(asked(arguments))).map_err(lost)? {
        Answer::Begun => {}
        Answer::Refused(why) => return Err(reach::refused(why)),
        _ => return Err(lost(io::ErrorKind::InvalidData.into())),
    }
    let here = |error| Failure::os("the streams of the command cannot be carried", error);
    let outward = Outward::of(&stream).map_err(here)?;
    // Before the terminal is raw: a signal that is not caught would leave it so.
    carry_signals(outward.clone()).map_err(here)?;
    // Restored before anything is said about the end.
    let raw = if arguments.tty { RawTerminal::take().map_err(here)? } else { None };
    let ended = carry(stream, outward, arguments);
    drop(raw);
    match ended.map_err(lost)? {
        Ended::NotStarted { status, errno } => {
            let program = arguments.command.first().map(|word| word.to_string_lossy()).unwrap_or_default();
            let error = io::Error::from_raw_os_error(errno);
            report.notice(format_args!("{program} cannot be run in {name}: {error}"));
            Ok(status as u8)
        }
        ended => Ok(ended.shell_status()),
    }
}

fn asked(arguments: &ExecArguments) -> Exec {
    let bytes = |word: &OsStr| Bytes::from(word.as_bytes());
    let terminal = arguments.tty.then(|| {
        let (rows, columns) = terminal::size();
        Terminal { rows, columns, term: std::env::var("TERM").unwrap_or_else(|_| "vt100".into()) }
    });
    Exec {
        argv: arguments.command.iter().map(|word| bytes(word)).collect(),
        env: arguments.env.iter().map(|(name, value)| (name.as_str().into(), bytes(value))).collect(),
        directory: arguments.directory.as_ref().map(|path| path.as_path().into()),
        user: arguments.user.clone(),
        terminal,
    }
}

fn carry(mut stream: Stream<UnixStream>, outward: Outward, arguments: &ExecArguments) -> io::Result<Ended> {
    vmprof_sys::signals::read_a_foreign_terminal_as_an_error()?;
    let window = Arc::<Window>::default();
    if arguments.no_stdin {
        outward.say(Kind::InputEnded, &[]);
    } else {
        let (outward, window, keys) = (outward.clone(), window.clone(), arguments.tty);
        thread::Builder::new().name("input".into()).spawn(move || carry_input(&outward, &window, keys))?;
    }
    let mut outputs = Outputs { outward, is_read: [true; 2] };
    loop {
        let frame = match stream.expect() {
            Err(_) if outputs.outward.is_left() => return Ok(Ended::Signaled(SIGHUP)),
            frame => frame?,
        };
        match frame.kind {
            Kind::Output => outputs.write(0, &frame),
            Kind::Errors => outputs.write(1, &frame),
            Kind::Taken => window.give_back(frame.number()?),
            Kind::Ended => return frame.json(),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

struct Outputs {
    outward: Outward,
    is_read: [bool; 2],
}

impl Outputs {
    /// A reader that has gone ends the command as it would end one here.
    fn write(&mut self, output: usize, frame: &Frame<'_>) {
        if !self.is_read[output] {
            return;
        }
        let written = match output {
            0 => io::stdout().write_all(frame.payload).and_then(|()| io::stdout().flush()),
            _ => io::stderr().write_all(frame.payload),
        };
        if written.is_err() {
            self.is_read[output] = false;
            self.outward.signal(SIGPIPE);
        }
    }
}

/// Never joined: it waits in read(2).
fn carry_input(outward: &Outward, window: &Window, typed: bool) {
    let mut keys = Keys::default();
    let mut buffer = vec![0; 64 * 1024];
    let mut stdin = io::stdin().lock();
    loop {
        let bytes = match stdin.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => &buffer[..count],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        if typed {
            let typed = keys.read(bytes);
            if typed.leave {
                return outward.leave();
            }
            window.take(typed.for_guest.len() as u32);
            outward.say(Kind::Input, &typed.for_guest);
        } else {
            window.take(bytes.len() as u32);
            outward.say(Kind::Input, bytes);
        }
    }
    outward.say(Kind::InputEnded, &[]);
}

/// Signals are the command's. A second one of those that end programs ends this one, whatever the command makes of it.
fn carry_signals(outward: Outward) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let mut asked = false;
        for signal in signals.forever() {
            match signal {
                SIGWINCH => {
                    let (rows, columns) = terminal::size();
                    let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
                    outward.say(Kind::Resize, &[a, b, c, d]);
                }
                SIGUSR1 | SIGUSR2 => outward.signal(signal),
                _ if asked => outward.leave(),
                _ => {
                    asked = true;
                    outward.signal(signal);
                }
            }
        }
    })?;
    Ok(())
}
