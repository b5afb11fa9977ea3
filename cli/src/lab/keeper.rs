//! The keeper of a lab that stays: a process with the emulated host as its child, which gives runs their places in it until it is
//! told to stop.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmprof_guests::{LabHost, append_archive, emulator, lab_host};
use vmprof_job::{Bytes, FromGuest, JOB_PATH, Job, ToGuest};
use vmprof_vmm::vhost_user::VsockServer;

use super::emulated::{Drive, EmulatedHost, Handle, Start};
use super::qmp::Qmp;
use super::standing::{Asked, Facts, OwnLab, SOCKET, Said, Standing, read_line};
use super::tenants::Tenants;
use super::verbs::is_up_already;
use super::{ENVIRONMENT, PathsInside, Shape, pack};
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::progress::Stages;
use crate::report::Report;
use crate::run::channels::{self, Channels};
use crate::run::detached::Detached;
use crate::run::sockets::{self, VSOCK};

/// How long the emulated host may take to its first word, on a machine with other work to do.
const UP_WITHIN: Duration = Duration::from_secs(180);
/// How long all runs together may take to a clean stop.
const STOPPED_WITHIN: Duration = Duration::from_secs(150);
/// For a lab that another starts or stops.
const OTHERS_WITHIN: Duration = Duration::from_secs(240);
/// How often a lab looks whether it is still found: a runtime directory goes when its user logs out.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// For whoever is asked by a signal and has just begun.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What happens to a lab.
enum Event {
    Said(FromGuest),
    /// The emulator has ended.
    Gone,
    /// `lab stop`; the connection of whoever asked closes with the process.
    StopAsked(UnixStream),
    Signalled,
}

/// Keeps a lab to its end.
pub fn keep(
    places: &Places,
    shape: Option<&Shape>,
    detached: &Detached,
    report: Report,
) -> Result<(), Failure> {
    let os = |what: &'static str| move |error: io::Error| Failure::os(what, error);
    let lab = |error| Failure::caused(Kind::Lab, "vmprof::lab::prepare", error, "");
    let Some(own) = take(places, shape, report)? else { return Ok(()) };
    let shape = &shape.cloned().unwrap_or_default();
    let store = vmprof_guests::Store::open(&places.store)?;
    let stages = Stages::new(report);
    let builder = crate::guest::builder(&store, &stages, crate::args::Sources::default());
    let using = store.using()?;
    let host = lab_host(&builder)?;
    let emulator = emulator::find(&builder)?;
    let of_the_lab = [&host.kernel, &host.initramfs].into_iter().map(PathBuf::as_path);
    let _held = using.hold("lab", of_the_lab.chain(emulator.argv.iter().map(Path::new)))?;
    drop(using);

    let initramfs = initramfs(&host)?;
    detached.begin_log().map_err(os("the log cannot be begun"))?;
    let no_channels = || os("the channels to the lab cannot be opened");
    let (ours, ports) = channels::open().map_err(no_channels())?;
    let (vsock, its_vsock) = UnixStream::pair().map_err(no_channels())?;
    let (monitor, its_monitor) = UnixStream::pair().map_err(no_channels())?;
    let listener = sockets::listen(own.directory(), VSOCK).map_err(no_channels())?;
    // Its children end with the thread that made them: this one stays.
    let machine = EmulatedHost::start(Start {
        emulator: &emulator.argv,
        shape,
        kernel: host.kernel.clone(),
        initramfs,
        drives: (0..shape.nvme as usize).map(|number| Drive::spare(number, shape)).collect(),
        // Who will look for himself, and at which drive, is not known yet.
        poll_queues: true,
        ports,
        vsock: Some(its_vsock.into()),
        monitor: Some(its_monitor.into()),
    })?;
    let _vsock = VsockServer::start(vsock, listener).map_err(lab)?;
    let handle = machine.handle();
    let (events, heard) = mpsc::channel();
    carry_signals(events.clone()).map_err(os("signals cannot be heard"))?;
    let Channels { control, stdin: _stdin, stdout: _stdout, stderr: _stderr } = ours;
    listen(control.try_clone().map_err(no_channels())?, events.clone()).map_err(no_channels())?;
    let kernel = match hello(&heard) {
        Ok(kernel) => kernel,
        Err(why) => {
            handle.kill();
            let _ = machine.wait();
            let message = format!("the emulated host did not come up: {why}");
            return Err(lost("vmprof::lab::start", message, &handle));
        }
    };
    let monitor = Qmp::begin(monitor).map_err(os("the emulator's monitor cannot be reached"))?;
    let tenants = Arc::new(Tenants::new(own.directory(), monitor));
    let socket = sockets::listen(own.directory(), SOCKET).map_err(os("the lab's socket cannot be opened"))?;
    serve(socket, tenants.clone(), events.clone()).map_err(os("the lab's socket cannot be served"))?;
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let facts = Facts::new(shape, &emulator.version, &kernel, started);
    facts.publish(own.directory()).map_err(os("the lab cannot be made known"))?;
    detached.started();
    detached.ready();
    report.notice(format_args!("the lab is up: {shape}, Linux {kernel}, QEMU {}", emulator.version));

    let known = Known { directory: own.directory().to_owned(), facts };
    let stopping = stop_when_asked(heard, tenants, handle.clone(), control, known);
    let stopping = stopping.map_err(os("the lab cannot be watched"))?;
    let _ = machine.wait();
    // Its last word to whoever waits, or nobody's any more.
    let _ = events.send(Event::Gone);
    let was_asked = stopping.join().unwrap_or(false);
    if !was_asked {
        return Err(lost("vmprof::lab::ended", "the emulated host has ended by itself", &handle));
    }
    report.notice("the lab has stopped");
    Ok(())
}

/// The lab's directory, once nobody else starts a lab there or stops one; `None`: one that is as good is up.
fn take(places: &Places, shape: Option<&Shape>, report: Report) -> Result<Option<OwnLab>, Failure> {
    let end = Instant::now() + OTHERS_WITHIN;
    let mut has_said = false;
    loop {
        let own = OwnLab::take(&places.lab);
        if let Some(own) = own.map_err(|error| Failure::os("the lab's directory cannot be taken", error))? {
            return Ok(Some(own));
        }
        if let Some(standing) = Standing::find(&places.lab).filter(|found| !found.facts.is_stopping) {
            return is_up_already(&standing.facts, shape, report).map(|()| None);
        }
        if Instant::now() >= end {
            let message = "a lab is being started, or stopped, already";
            let help = "`vmprof lab status` says how it is doing";
            return Err(Failure::said(Kind::Failure, "vmprof::lab::is_up", message, help));
        }
        if !has_said {
            report.notice("waiting for a lab that is being started, or stopped");
            has_said = true;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// What others find of the lab.
struct Known {
    directory: PathBuf,
    facts: Facts,
}

impl Known {
    fn is_found(&self) -> bool {
        Standing::find(&self.directory).is_some()
    }

    fn say_stopping(mut self) {
        self.facts.is_stopping = true;
        // Whoever wants to join is refused either way.
        let _ = self.facts.publish(&self.directory);
    }
}

/// The host's boot files, with this program and the job behind them.
fn initramfs(host: &LabHost) -> Result<OwnedFd, Failure> {
    let program =
        std::fs::read("/proc/self/exe").map_err(|error| Failure::os("this program cannot be read", error))?;
    let vmprof = PathsInside::VMPROF.trim_start_matches('/');
    let files = [(vmprof, 0o755, program), (JOB_PATH, 0o600, vmprof_job::line(&job()))];
    Ok(pack(&host.initramfs, &append_archive(&files)?)?)
}

/// With the last words of a host that has ended.
fn lost(code: &'static str, message: impl Into<String>, machine: &Handle) -> Failure {
    let words = machine.last_words();
    let help = if words.is_empty() { words } else { format!("its last words:\n{words}") };
    Failure::said(Kind::Lab, code, message, help)
}

/// Its first process keeps the host up, and is asked through its agent for everything else.
fn job() -> Job {
    let env = ENVIRONMENT.into_iter().chain([("VMPROF_STATE", "/vmprof/state")]);
    let env = env.map(|(name, value)| (name.into(), value.into())).collect();
    super::job([PathsInside::VMPROF, "inside", "stay"].map(Bytes::from).into(), env)
}

/// Waits until the host is there; its kernel's version, or why not.
fn hello(heard: &Receiver<Event>) -> Result<String, String> {
    let end = Instant::now() + UP_WITHIN;
    let mut kernel = String::new();
    loop {
        match heard.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Event::Said(FromGuest::Hello { kernel: found, .. })) => kernel = found,
            Ok(Event::Said(FromGuest::Ready { .. })) => return Ok(kernel),
            Ok(Event::Said(FromGuest::Failed { message })) => return Err(message),
            Ok(Event::Said(_) | Event::StopAsked(_)) => {}
            Ok(Event::Gone) => return Err("the emulator has ended".to_owned()),
            Ok(Event::Signalled) => return Err("it was stopped before".to_owned()),
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("it said nothing for {} s", UP_WITHIN.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => return Err("nobody listens".to_owned()),
        }
    }
}

fn listen(control: UnixStream, events: Sender<Event>) -> io::Result<()> {
    thread::Builder::new().name("control".into()).spawn(move || {
        for line in BufReader::new(control).split(b'\n').map_while(Result::ok) {
            if let Ok(said) = serde_json::from_slice(&line)
                && events.send(Event::Said(said)).is_err()
            {
                return;
            }
        }
        // Its end of the channel closes with the emulator.
        let _ = events.send(Event::Gone);
    })?;
    Ok(())
}

fn carry_signals(events: Sender<Event>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in signals.forever() {
            if events.send(Event::Signalled).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// A thread each connection: a place in the lab lasts as long as one.
fn serve(listener: UnixListener, tenants: Arc<Tenants>, events: Sender<Event>) -> io::Result<()> {
    thread::Builder::new().name("lab socket".into()).spawn(move || {
        for connection in listener.incoming() {
            let (tenants, events) = (tenants.clone(), events.clone());
            let served = connection.and_then(|connection| {
                thread::Builder::new().name("tenant".into()).spawn(move || {
                    // Whoever asked is gone.
                    let _ = serve_one(connection, &tenants, &events);
                })
            });
            if served.is_err() {
                // Out of descriptors or threads: the asker sees the connection close.
                thread::sleep(Duration::from_millis(100));
            }
        }
    })?;
    Ok(())
}

fn serve_one(stream: UnixStream, tenants: &Tenants, events: &Sender<Event>) -> io::Result<()> {
    let answer = |said: &Said| (&stream).write_all(&vmprof_job::line(said));
    match read_line(&stream)? {
        Asked::Runs => answer(&Said::Runs(tenants.all())),
        Asked::Stop => {
            answer(&Said::Stopping)?;
            let _ = events.send(Event::StopAsked(stream.try_clone()?));
            Ok(())
        }
        Asked::Join(join) => {
            let pid = socket_peercred(&stream)?.pid.as_raw_nonzero().get() as u32;
            match tenants.join(&join, pid) {
                Err(why) => answer(&Said::Refused(why)),
                Ok((number, joined)) => {
                    if answer(&Said::Joined(joined)).is_ok() {
                        // Nothing comes but its end.
                        let _ = (&stream).take(1).read(&mut [0]);
                    }
                    tenants.leave(number);
                    Ok(())
                }
            }
        }
    }
}

/// Has all runs stop when somebody wants it, or when nobody finds the lab any more, and ends the host; a second time at once.
/// Answers whether anybody did.
fn stop_when_asked(
    heard: Receiver<Event>,
    tenants: Arc<Tenants>,
    machine: Handle,
    control: UnixStream,
    known: Known,
) -> io::Result<thread::JoinHandle<bool>> {
    thread::Builder::new().name("lab".into()).spawn(move || {
        let mut asking = Vec::new();
        while known.is_found() {
            match heard.recv_timeout(LOOK_EVERY) {
                Ok(Event::StopAsked(who)) => {
                    asking.push(who);
                    break;
                }
                Ok(Event::Signalled) => break,
                Ok(Event::Gone) | Err(RecvTimeoutError::Disconnected) => return false,
                Ok(Event::Said(_)) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
        tenants.close();
        known.say_stopping();
        let end = Instant::now() + STOPPED_WITHIN;
        while !tenants.are_empty_within(Duration::ZERO) && Instant::now() < end {
            for tenant in tenants.all().iter().filter(|tenant| !tenant.is_leaving) {
                if let Some(pid) = Pid::from_raw(tenant.pid as i32) {
                    // As `vmprof stop` does: its connection is open, so the number is still its.
                    let _ = kill_process(pid, Signal::USR1);
                }
            }
            let until = Instant::now() + ASK_AGAIN;
            while Instant::now() < until && !tenants.are_empty_within(Duration::from_millis(100)) {
                match heard.try_recv() {
                    Ok(Event::Signalled) => {
                        machine.kill();
                        return true;
                    }
                    Ok(Event::StopAsked(who)) => asking.push(who),
                    _ => {}
                }
            }
        }
        // What it holds is in its memory, and nobody's.
        let _ = (&control).write_all(&vmprof_job::line(&ToGuest::Stop { grace_ms: 0 }));
        machine.kill();
        // Their connections close with this process.
        std::mem::forget(asking);
        true
    })
}
