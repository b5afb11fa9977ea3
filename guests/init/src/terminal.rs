//! A command on a terminal of its own: the serial console becomes its controlling terminal, so that Ctrl-C, job control
//! and window size work there.
//!
//! That takes a process that leads a session before it becomes the command. It is this same program, started again
//! through /proc/self/exe, which stays valid when the initramfs is out of reach.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fchown, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, Uid, WaitOptions, ioctl_tiocsctty, setsid, waitpid};
use rustix::termios::{Winsize, tcsetwinsize};
use vmprof_job::{Bytes, Ended};

use crate::as_user::Guise;
use crate::command::{self, Surroundings, text};
use crate::failure::Failure;

/// First argument of the program in its second role; not for the command line of anybody else.
pub(crate) const WORD: &str = "on-terminal";
/// How the second role reports, on its standard output: one of these, a blank, an errno. Nothing at all is success.
const NO_TERMINAL: &str = "terminal";
const NO_PROGRAM: &str = "program";
const NO_USER: &str = "user";
/// Opening a serial line and becoming another program takes no time; not answering is an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A terminal, and how it looks.
#[derive(Debug)]
pub(crate) struct Terminal<'a> {
    pub(crate) path: &'a Path,
    pub(crate) rows: u16,
    pub(crate) columns: u16,
    pub(crate) term: &'a str,
    /// Who has it; `None`: as we are.
    pub(crate) guise: Option<&'a Guise>,
}

/// Starts `argv` as the leader of a session on `terminal`. `ourselves` is this program.
pub(crate) fn start(
    ourselves: &Path,
    surroundings: &Surroundings,
    argv: &[Bytes],
    terminal: &Terminal,
) -> Result<Result<Pid, Ended>, Failure> {
    let failed = |source| Failure::Terminal { terminal: terminal.path.into(), source };
    let program = match surroundings.find(argv) {
        Ok(program) => program,
        Err(status) => return Ok(Err(status)),
    };
    let (mut report, reporting) = io::pipe().map_err(failed)?;
    let mut helper = surroundings.command(ourselves, OsStr::new("vmprof-init"));
    helper.env("TERM", terminal.term).arg(WORD).arg(terminal.path);
    helper.arg(terminal.rows.to_string()).arg(terminal.columns.to_string());
    helper.args(Guise::words(terminal.guise));
    if terminal.guise.is_some() {
        // Its own directory is entered as the user.
        helper.current_dir("/");
    }
    helper.arg(program).args(argv.iter().map(text));
    helper.stdin(Stdio::null()).stdout(reporting);
    let pid = match command::spawn(&mut helper) {
        Ok(pid) => pid,
        Err(Ended::NotStarted { errno, .. }) => return Err(failed(io::Error::from_raw_os_error(errno))),
        Err(status) => return Ok(Err(status)),
    };
    // Our own copy of the writing end: while it is open, the report never ends.
    drop(helper);
    await_word(&report).map_err(failed)?;
    let mut words = String::new();
    report.read_to_string(&mut words).map_err(failed)?;
    let Some((what, errno)) = parse_report(&words) else { return Ok(Ok(pid)) };
    // Only process 1 has its children reaped with all others.
    let _ = waitpid(Some(pid), WaitOptions::empty());
    match what {
        NO_PROGRAM => Ok(Err(command::not_started(errno))),
        NO_USER => Err(Failure::step("becoming the user, in its directory")(errno.into())),
        _ => Err(failed(errno.into())),
    }
}

fn await_word(report: &io::PipeReader) -> io::Result<()> {
    let mut descriptors = [PollFd::new(report, PollFlags::IN)];
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as _, tv_nsec: 0 };
    loop {
        return match poll(&mut descriptors, Some(&patience)) {
            Ok(0) => Err(Errno::TIMEDOUT.into()),
            Ok(_) => Ok(()),
            Err(Errno::INTR) => continue,
            Err(errno) => Err(errno.into()),
        };
    }
}

fn parse_report(words: &str) -> Option<(&str, Errno)> {
    if words.is_empty() {
        return None;
    }
    let (what, errno) = words.trim_end().split_once(' ').unwrap_or((NO_TERMINAL, ""));
    Some((what, errno.parse().map_or(Errno::IO, Errno::from_raw_os_error)))
}

/// The second role. Returns only where it failed, which it has then reported; the value is for nobody.
pub(crate) fn become_command(arguments: &[OsString]) -> u8 {
    // A copy that exec closes: the first process sees the end of the report when the command is there.
    let Ok(report) = io::stdout().as_fd().try_clone_to_owned() else { return 126 };
    let Err((what, error)) = try_become(arguments);
    let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL).raw_os_error();
    let _ = io::PipeWriter::from(report).write_all(format!("{what} {errno}\n").as_bytes());
    126
}

type Never = std::convert::Infallible;

fn try_become(arguments: &[OsString]) -> Result<Never, (&'static str, io::Error)> {
    let [terminal, rows, columns, ids, groups, directory, program, name, rest @ ..] = arguments else {
        return Err((NO_TERMINAL, Errno::INVAL.into()));
    };
    let line = take(&PathBuf::from(terminal), rows, columns).map_err(|error| (NO_TERMINAL, error))?;
    let guise = Guise::of([ids, groups, directory]).map_err(|error| (NO_USER, error))?;
    if let Some(guise) = guise {
        // What the user's programs open by its name again.
        fchown(&line, Some(Uid::from_raw(guise.ids.uid)), None)
            .map_err(|errno| (NO_TERMINAL, errno.into()))?;
        guise.put_on().map_err(|error| (NO_USER, error))?;
    }
    let copy = || line.try_clone().map_err(|error| (NO_TERMINAL, error));
    let mut command = Command::new(program);
    command.arg0(name).args(rest).stdin(copy()?).stdout(copy()?).stderr(copy()?);
    Err((NO_PROGRAM, command.exec()))
}

/// Opens the terminal and makes it that of a session which this process leads.
fn take(terminal: &Path, rows: &OsStr, columns: &OsStr) -> io::Result<std::fs::File> {
    let number = |text: &OsStr| text.to_str().and_then(|text| text.parse().ok()).ok_or(Errno::INVAL);
    let size = Winsize { ws_row: number(rows)?, ws_col: number(columns)?, ws_xpixel: 0, ws_ypixel: 0 };
    setsid()?;
    // Opened without waiting for a carrier, which no serial console has.
    let flags = OFlags::NOCTTY | OFlags::NONBLOCK;
    let line = OpenOptions::new().read(true).write(true).custom_flags(flags.bits() as i32).open(terminal)?;
    fcntl_setfl(&line, fcntl_getfl(&line)? - OFlags::NONBLOCK)?;
    ioctl_tiocsctty(&line)?;
    tcsetwinsize(&line, size)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_success_and_words_are_told_apart() {
        assert_eq!(parse_report(""), None);
        assert_eq!(parse_report("program 2\n"), Some((NO_PROGRAM, Errno::NOENT)));
        assert_eq!(parse_report("terminal 5\n"), Some((NO_TERMINAL, Errno::IO)));
        assert_eq!(parse_report("user 13\n"), Some((NO_USER, Errno::ACCESS)));
        assert_eq!(parse_report("gibberish"), Some((NO_TERMINAL, Errno::IO)));
    }

    #[test]
    fn the_second_role_refuses_a_line_of_arguments_that_is_too_short() {
        let (what, error) = try_become(&["/dev/null".into(), "24".into()]).unwrap_err();
        assert_eq!((what, error.raw_os_error()), (NO_TERMINAL, Some(22)));
    }
}
