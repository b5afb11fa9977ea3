//! `exec`: a command whose streams are those of a connection. Three threads beside the command: this one takes what the host
//! says, one feeds the command's input, and one carries its output and says in the end how it ended.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process_group, waitid, waitpid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use vmprof_job::Ended;
use vmprof_job::agent::{Answer, Exec, Frame, Kind, Stream, Terminal as Size};
use vsock::VsockStream;

use super::OURSELVES;
use crate::as_user::{self, Guise, Login};
use crate::command::{self, Pipes, Surroundings, text};
use crate::failure::Failure;
use crate::terminal::{self, Terminal};

/// From SIGHUP to SIGKILL for a command whose host has gone.
const HUNG_UP: Duration = Duration::from_secs(10);

/// Reads of one output in a row: more than a pipe holds.
const READS: usize = 32;

/// What cannot be done where there is no pipe or terminal.
const STREAMS: &str = "making the command's streams";

/// The connection's writing side, which two threads share, a frame at a time.
type Outward = Arc<Mutex<Stream<VsockStream>>>;

fn lock(outward: &Outward) -> MutexGuard<'_, Stream<VsockStream>> {
    outward.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The command's ends of its streams, on our side.
struct Ends {
    stdin: OwnedFd,
    stdout: OwnedFd,
    /// A terminal has none of its own.
    stderr: Option<OwnedFd>,
    /// The terminal's master, to be told its size.
    terminal: Option<OwnedFd>,
}

pub(super) fn run(
    mut stream: Stream<VsockStream>,
    asked: &Exec,
    surroundings: &Surroundings,
) -> io::Result<()> {
    let (started, ends) = match start(asked, surroundings) {
        Ok(started) => started,
        Err(failure) => return stream.write_json(Kind::Answer, &Answer::Refused(failure.message())),
    };
    stream.write_json(Kind::Answer, &Answer::Begun)?;
    let outward: Outward = Arc::new(Mutex::new(Stream::new(stream.get_ref().try_clone()?)));
    let pid = match started {
        Ok(pid) => pid,
        Err(ended) => return lock(&outward).write_json(Kind::Ended, &ended),
    };
    let (over, is_over) = io::pipe()?;
    let terminal = ends.terminal.as_ref().map(OwnedFd::try_clone).transpose()?;
    let feeder = feed(ends.stdin, outward.clone())?;
    let is_reaped = Arc::<AtomicBool>::default();
    let output = thread::Builder::new().name("output".into()).spawn({
        let is_reaped = is_reaped.clone();
        move || {
            // A host that has gone hears nothing more, and the command that nobody reads gets SIGPIPE.
            let carried = carry_output(ends.stdout, ends.stderr, &over, &outward);
            let ended = wait(pid);
            is_reaped.store(true, Ordering::Release);
            let told = carried.and(ended).and_then(|ended| lock(&outward).write_json(Kind::Ended, &ended));
            if told.is_err() {
                let _ = lock(&outward).get_ref().shutdown(Shutdown::Both);
            }
        }
    })?;
    thread::Builder::new().name("end".into()).spawn(move || {
        await_end(pid);
        drop(is_over);
    })?;
    while let Ok(Some(frame)) = stream.read() {
        obey(&frame, pid, &feeder, terminal.as_ref());
    }
    drop(feeder);
    // The host has heard how it ended, or has gone: then what still runs of it has nobody.
    if !is_reaped.load(Ordering::Acquire) {
        hang_up(pid);
        let end = Instant::now() + HUNG_UP;
        while !is_reaped.load(Ordering::Acquire) && Instant::now() < end {
            thread::sleep(Duration::from_millis(100));
        }
        if !is_reaped.load(Ordering::Acquire) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
    let _ = output.join();
    Ok(())
}

/// A thread's wait and not a descriptor's: kernels before 5.3 have none for a process. It is left to be reaped by
/// [`wait`], so that its number means it until then.
fn await_end(pid: Pid) {
    let flags = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(Errno::INTR) = waitid(WaitId::Pid(pid), flags) {}
}

fn hang_up(pid: Pid) {
    for signal in [Signal::HUP, Signal::CONT] {
        let _ = kill_process_group(pid, signal);
    }
}

fn start(asked: &Exec, surroundings: &Surroundings) -> Result<(Result<Pid, Ended>, Ends), Failure> {
    let mut surroundings = surroundings.clone();
    let login = asked.user.as_deref().map(|user| Login::of(user, Path::new("/"))).transpose()?;
    if let Some(login) = &login {
        surroundings.environment.extend(login.environment.iter().cloned());
        surroundings.directory = if login.home.is_dir() { login.home.clone() } else { "/".into() };
    }
    surroundings.environment.extend(asked.env.iter().map(|(name, value)| (text(name), text(value))));
    if let Some(directory) = &asked.directory {
        surroundings.directory = surroundings.resolve(directory);
    }
    let guise = login.map(|login| Guise { ids: login.ids, directory: surroundings.directory.clone() });
    let Some(size) = &asked.terminal else {
        let (started, Pipes { stdin, stdout, stderr }) = match &guise {
            None => command::start(&surroundings, &asked.argv).map_err(Failure::step(STREAMS))?,
            Some(guise) => as_user::start(Path::new(OURSELVES), &surroundings, &asked.argv, guise)?,
        };
        return Ok((started, Ends { stdin, stdout, stderr: Some(stderr), terminal: None }));
    };
    let (master, path) = open_terminal().map_err(Failure::step(STREAMS))?;
    let Size { rows, columns, term } = size;
    let terminal = Terminal { path: &path, rows: *rows, columns: *columns, term, guise: guise.as_ref() };
    let started = terminal::start(Path::new(OURSELVES), &surroundings, &asked.argv, &terminal)?;
    let copy = || master.try_clone().map_err(Failure::step(STREAMS));
    let ends = Ends { stdin: copy()?, stdout: copy()?, stderr: None, terminal: Some(master) };
    Ok((started, ends))
}

/// A pty's master, and where its other end is.
fn open_terminal() -> io::Result<(OwnedFd, PathBuf)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    Ok((master, OsStr::from_bytes(name.as_bytes()).into()))
}

/// What the host says while the command runs. Nonsense is passed over: it is the user's own.
fn obey(frame: &Frame<'_>, pid: Pid, feeder: &mpsc::Sender<Feed>, terminal: Option<&OwnedFd>) {
    match frame.kind {
        // A feeder that has gone has said that it takes everything.
        Kind::Input => drop(feeder.send(Feed::Bytes(frame.payload.to_owned()))),
        Kind::InputEnded => drop(feeder.send(Feed::End)),
        Kind::Signal => {
            let signal = frame.number().ok().and_then(|number| Signal::from_named_raw(number as i32));
            if let Some(signal) = signal {
                let _ = kill_process_group(pid, signal);
            }
        }
        Kind::Resize => {
            if let ([a, b, c, d], Some(terminal)) = (frame.payload, terminal) {
                let (rows, columns) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
                let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                let _ = tcsetwinsize(terminal, size);
            }
        }
        _ => {}
    }
}

enum Feed {
    Bytes(Vec<u8>),
    End,
}

/// Feeds the command what comes. The host sends no more than a window ahead of what is reported as taken, so what waits
/// here is bounded by it.
fn feed(stdin: OwnedFd, outward: Outward) -> io::Result<mpsc::Sender<Feed>> {
    let (feeder, fed) = mpsc::channel();
    thread::Builder::new().name("input".into()).spawn(move || {
        let mut stdin = Some(File::from(stdin));
        for feed in fed {
            match feed {
                Feed::Bytes(bytes) => {
                    // One that reads no more is no failure: its input goes nowhere.
                    if let Some(open) = &mut stdin
                        && open.write_all(&bytes).is_err()
                    {
                        stdin = None;
                    }
                    let taken = (bytes.len() as u32).to_le_bytes();
                    if lock(&outward).write(Kind::Taken, &taken).is_err() {
                        return;
                    }
                }
                Feed::End => stdin = None,
            }
        }
    })?;
    Ok(feeder)
}

/// Until the command has ended and all that it wrote is on its way. What others that it left behind write after that has
/// nobody. An error: the host has gone.
fn carry_output(
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    over: &PipeReader,
    outward: &Outward,
) -> io::Result<()> {
    let mut outputs = vec![(File::from(stdout), Kind::Output)];
    outputs.extend(stderr.map(|stderr| (File::from(stderr), Kind::Errors)));
    let mut buffer = vec![0; 64 * 1024];
    let mut is_over = false;
    loop {
        let mut waits: Vec<PollFd<'_>> =
            outputs.iter().map(|(output, _)| PollFd::new(output, PollFlags::IN)).collect();
        if !is_over {
            waits.push(PollFd::from_borrowed_fd(over.as_fd(), PollFlags::IN));
            match poll(&mut waits, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            // Asked before the outputs are read: what it wrote is there by then.
            is_over = waits.last().is_some_and(|wait| !wait.revents().is_empty());
        }
        let mut open = Vec::new();
        for (mut output, kind) in outputs {
            if read_all(&mut output, &mut buffer, |bytes| lock(outward).write(kind, bytes))? {
                open.push((output, kind));
            }
        }
        outputs = open;
        if is_over {
            return Ok(());
        }
    }
}

/// What is there now, up to a bound, since others may go on writing. `false`: nothing comes any more. It asks before each
/// read: the terminal's end that is read is the one that is written, which has to wait where there is no room.
fn read_all(
    from: &mut File,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<bool> {
    for _ in 0..READS {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&now)) == Ok(0) {
            return Ok(true);
        }
        match from.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(count) => take(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal that nobody has open any more.
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

fn wait(pid: Pid) -> io::Result<Ended> {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                let signalled = status.terminating_signal().map(Ended::Signaled);
                return Ok(signalled.or(status.exit_status().map(Ended::Exited)).unwrap_or(Ended::Exited(0)));
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
