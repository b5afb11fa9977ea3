//! Does what the machine of states says, and tells it what came of it: processes, sockets, logs. Part of the supervisor's
//! one loop, so nothing here waits.

use std::collections::VecDeque;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use vmprof_job::{Directory, Ended, FromGuest, Ready, Service, Step};

pub(crate) use super::log::Console;
use super::log::Log;
use super::notify::Notify;
use super::{Action, Event, Id, Role, Run, Services, reach, state};
use crate::become_user::{self, Doorway};
use crate::cgroups::{self, Cgroups};
use crate::failure::Failure;
use crate::users::{Accounts, Ids};
use crate::wait::Wait;
use crate::{command, kmsg};

/// Where the logs lie, in memory: they do not outlive the machine.
const LOGS: &str = "/run/log";
const SOCKETS: &str = "/run/vmprof/notify";
/// A report is one line.
const REPORT: usize = 4096;

/// Where in the guest things are found and put.
#[derive(Debug)]
pub(crate) struct Places {
    /// Holds etc/passwd and etc/group.
    pub(crate) root: PathBuf,
    pub(crate) logs: PathBuf,
    pub(crate) sockets: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Places { root: "/".into(), logs: LOGS.into(), sockets: SOCKETS.into() }
    }
}

#[derive(Debug)]
pub(crate) struct Keeper {
    services: Services,
    kept: Vec<Kept>,
    processes: Vec<Process>,
    cgroups: Cgroups,
    doorway: Doorway,
    places: Places,
    console: Console,
    /// States nobody has been told of.
    told: Vec<FromGuest>,
}

/// What a service has for as long as the guest runs.
#[derive(Debug)]
struct Kept {
    log: Log,
    cgroup: Option<PathBuf>,
    notify: Option<(Run, Notify)>,
    /// The start that came to nothing before its first process.
    broken: Option<Run>,
    /// The process group of the last main process.
    group: Option<Pid>,
}

#[derive(Debug)]
struct Process {
    pid: Pid,
    id: Id,
    run: Run,
    role: Role,
    /// Open until the process is the program it shall be.
    report: Option<OwnedFd>,
    words: Vec<u8>,
}

impl Keeper {
    pub(crate) fn new(
        services: Vec<Service>,
        places: Places,
        doorway: Doorway,
        cgroups: Cgroups,
        console: Console,
    ) -> Result<Self, Failure> {
        for service in &services {
            if Signal::from_named_raw(service.stop.signal).is_none() {
                let (service, number) = (service.name.clone(), service.stop.signal);
                return Err(Failure::ServiceSignal { service, number });
            }
        }
        let services = Services::new(services)?;
        if !services.is_empty() {
            fs::create_dir_all(&places.logs).map_err(Failure::step("making the directory of the logs"))?;
        }
        let kept = services.specs().map(|spec| {
            let log = Log::new(&spec.name, &places.logs)?;
            Ok(Kept { log, cgroup: None, notify: None, broken: None, group: None })
        });
        let kept =
            kept.collect::<io::Result<_>>().map_err(Failure::step("making the pipes of the services"))?;
        Ok(Keeper {
            services,
            kept,
            processes: Vec::new(),
            cgroups,
            doorway,
            places,
            console,
            told: Vec::new(),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    pub(crate) fn are_ready(&self) -> bool {
        self.services.are_ready()
    }

    pub(crate) fn are_over(&self) -> bool {
        self.services.are_over()
    }

    pub(crate) fn killed(&self) -> Vec<String> {
        self.services.killed()
    }

    /// The first service that failed for good: its name, why, and the last it had to say.
    pub(crate) fn failure(&self) -> Option<Failure> {
        let (id, because) = self.services.failed()?;
        let last = self.kept.get(id).map(|kept| kept.log.last().map(str::to_owned).collect());
        Some(Failure::Service {
            service: self.services.spec(id).map(|spec| spec.name.clone()).unwrap_or_default(),
            because: because.to_owned(),
            last: last.unwrap_or_default(),
        })
    }

    /// The console is the command's: what services write goes to their files alone.
    pub(crate) fn leave_console(&mut self) {
        self.console.close();
    }

    /// Stops all services, those last that others need, within this time.
    pub(crate) fn stop(&mut self, within: Duration, now: Instant) {
        self.happened(Event::Stop(within), now);
    }

    /// Whether the process was one of a service.
    pub(crate) fn ended(&mut self, pid: Pid, status: Ended, now: Instant) -> bool {
        let Some(at) = self.processes.iter().position(|process| process.pid == pid) else { return false };
        let mut process = self.processes.swap_remove(at);
        // Its report first: it may have become the program and ended before anybody looked.
        let execed = process.read_report();
        if let Some(kept) = self.kept.get_mut(process.id) {
            kept.log.process_ended(&mut self.console, now);
        }
        match (process.role, become_user::report(&process.words)) {
            (Role::Main, Some(because)) => {
                self.happened(Event::CouldNot(process.id, process.run, Role::Main, because), now);
            }
            (role, _) => {
                if execed && role == Role::Main {
                    self.happened(Event::Execed(process.id, process.run), now);
                }
                self.happened(Event::Ended(process.id, process.run, role, status), now);
            }
        }
        true
    }

    /// Goes on with everything; what there is to tell the outside.
    pub(crate) fn step(&mut self, now: Instant) -> Vec<FromGuest> {
        let mut events = vec![Event::Tick];
        for process in &mut self.processes {
            if process.report.is_some() && process.read_report() && process.role == Role::Main {
                // What failed is told when the process has ended, which it then does.
                if process.words.is_empty() {
                    events.push(Event::Execed(process.id, process.run));
                }
            }
        }
        for (id, kept) in self.kept.iter_mut().enumerate() {
            if let Some((run, notify)) = &kept.notify {
                for said in notify.step(kept.cgroup.as_deref()) {
                    if let Some(status) = said.status {
                        kept.log.note(&format!("status: {status}"), &mut self.console, now);
                    }
                    if said.ready {
                        events.push(Event::Notified(id, *run));
                    }
                }
            }
            kept.log.step(&mut self.console, now);
        }
        events.into_iter().for_each(|event| self.happened(event, now));
        self.console.step();
        std::mem::take(&mut self.told)
    }

    pub(crate) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        if let Some(next) = self.services.next() {
            wait.until(next);
        }
        for process in &self.processes {
            if let Some(report) = &process.report {
                wait.on(report.as_fd(), PollFlags::IN);
            }
        }
        for kept in &self.kept {
            kept.log.expect(wait);
            if let Some((_, notify)) = &kept.notify {
                notify.expect(wait);
            }
        }
        self.console.expect(wait);
    }

    fn happened(&mut self, event: Event, now: Instant) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.services.on(event, now) {
                events.extend(self.act(action));
            }
        }
    }

    fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Begin(id, run) => {
                if let Err(because) = self.begin(id, run) {
                    self.kept.get_mut(id)?.broken = Some(run);
                    return Some(Event::CouldNot(id, run, Role::Main, because));
                }
            }
            Action::Prepare(id, run, number) => {
                let step = self.services.spec(id)?.prepare.get(number)?.clone();
                return self.start(id, run, Role::Main, &step);
            }
            Action::Exec(id, run) => {
                let step = self.services.spec(id)?.exec.clone();
                return self.start(id, run, Role::Main, &step);
            }
            Action::Probe(id, run) => {
                let Ready::Command(step) = self.services.spec(id)?.ready.clone() else { return None };
                return self.start(id, run, Role::Probe, &step);
            }
            Action::Connect(id, run) => {
                let reached = match &self.services.spec(id)?.ready {
                    Ready::Unix { path } => reach::unix(&self.places.root.join(path.trim_start_matches('/'))),
                    Ready::Tcp { port } => reach::tcp(*port),
                    Ready::Started | Ready::Notify | Ready::Command(_) => false,
                };
                return Some(Event::Connected(id, run, reached));
            }
            Action::Signal(id, number) => {
                let main =
                    self.processes.iter().find(|process| process.id == id && process.role == Role::Main)?;
                let _ = kill_process(main.pid, Signal::from_named_raw(number)?);
                // A stopped process takes it only when it goes on.
                let _ = kill_process(main.pid, Signal::CONT);
            }
            Action::KillProbe(id) => {
                self.kill_groups(|process| process.id == id && process.role == Role::Probe)
            }
            Action::Kill(id) => {
                let kept = self.kept.get(id)?;
                if !kept.cgroup.as_deref().is_some_and(cgroups::kill) {
                    kept.group.map(|group| kill_process_group(group, Signal::KILL));
                }
                self.kill_groups(|process| process.id == id);
            }
            Action::Tell(id, state) => {
                let name = self.services.spec(id)?.name.clone();
                kmsg::note(format_args!("service {name}: {}", in_words(&state)));
                self.told.push(FromGuest::Service { name, state });
            }
        }
        None
    }

    fn kill_groups(&self, which: impl Fn(&Process) -> bool) {
        for process in self.processes.iter().filter(|process| which(process)) {
            let _ = kill_process_group(process.pid, Signal::KILL);
        }
    }

    /// Everything before the first process; `Err` says what could not be had.
    fn begin(&mut self, id: Id, run: Run) -> Result<(), String> {
        let (Some(spec), Some(kept)) = (self.services.spec(id), self.kept.get_mut(id)) else { return Ok(()) };
        kept.group = None;
        kept.notify = None;
        kept.cgroup = self.cgroups.of(&spec.name).map_err(|error| format!("its cgroup: {error}"))?;
        let accounts = Accounts::read(&self.places.root);
        for directory in &spec.directories {
            make_directory(&accounts, directory).map_err(|failure| failure.message())?;
        }
        if spec.ready == Ready::Notify {
            let ids = ids(&accounts, &spec.exec)?;
            let notify = Notify::new(&self.places.sockets, &spec.name, &ids);
            kept.notify = Some((run, notify.map_err(|error| format!("its notify socket: {error}"))?));
        }
        Ok(())
    }

    /// What went wrong, as an event; a process that could be started tells of itself later.
    fn start(&mut self, id: Id, run: Run, role: Role, step: &Step) -> Option<Event> {
        let kept = self.kept.get_mut(id)?;
        if kept.broken == Some(run) {
            return None;
        }
        let started = ids(&Accounts::read(&self.places.root), step).and_then(|ids| {
            let mut command = self.doorway.command(step, &ids, kept.cgroup.as_deref());
            if let Some((_, notify)) = &kept.notify
                && role == Role::Main
            {
                command.env("NOTIFY_SOCKET", &notify.path);
            }
            let pipes = || {
                let (report, reporting) = io::pipe()?;
                let report = OwnedFd::from(report);
                fcntl_setfl(&report, fcntl_getfl(&report)? | OFlags::NONBLOCK)?;
                // A check that fails ten times before the service is ready is no news.
                let output = || match role {
                    Role::Main => kept.log.pipe().map(Stdio::from),
                    Role::Probe => Ok(Stdio::null()),
                };
                Ok((report, reporting, output()?, output()?))
            };
            let (report, reporting, stdout, stderr) =
                pipes().map_err(|error: io::Error| format!("its pipes: {error}"))?;
            command.stdin(reporting).stdout(stdout).stderr(stderr);
            Ok((command::spawn(&mut command).map_err(state::told)?, report))
        });
        match started {
            Ok((pid, report)) => {
                if role == Role::Main {
                    kept.group = Some(pid);
                }
                self.processes.push(Process { pid, id, run, role, report: Some(report), words: Vec::new() });
                None
            }
            Err(because) => Some(Event::CouldNot(id, run, role, because)),
        }
    }
}

impl Process {
    /// Takes in what has been reported. True once the report is at its end.
    fn read_report(&mut self) -> bool {
        let Some(report) = &self.report else { return false };
        let mut buffer = [0; 512];
        loop {
            match rustix::io::read(report, &mut buffer) {
                Ok(read @ 1..) if self.words.len() < REPORT => {
                    self.words.extend_from_slice(buffer.get(..read).unwrap_or_default());
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return false,
                _ => break,
            }
        }
        self.report = None;
        true
    }
}

fn ids(accounts: &Accounts, step: &Step) -> Result<Ids, String> {
    accounts.ids(&step.user, step.group.as_deref()).map_err(|failure| failure.message())
}

/// Made where it is missing; owner and mode are set in any case. The directory itself is never reached through a link: who
/// may write beside it could have put one there.
pub(crate) fn make_directory(accounts: &Accounts, directory: &Directory) -> Result<(), Failure> {
    let (uid, gid) = accounts.owner(&directory.owner)?;
    let path = Path::new(&directory.path);
    let failed = |source| Failure::Directory { path: path.into(), source };
    fs::create_dir_all(path).map_err(failed)?;
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits() as i32;
    let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    fchown(&opened, Some(uid), Some(gid)).map_err(failed)?;
    opened.set_permissions(Permissions::from_mode(u32::from(directory.mode))).map_err(failed)
}

fn in_words(state: &vmprof_job::ServiceState) -> String {
    use vmprof_job::ServiceState::{Failed, Ready, Restarting, Starting, Stopped};
    match state {
        Starting => "starting".to_owned(),
        Ready { after_ms } => format!("ready after {after_ms} ms"),
        Restarting { because, in_ms } => format!("{because}; starting again in {in_ms} ms"),
        Failed { because } => format!("failed: {because}"),
        Stopped { killed: false } => "stopped".to_owned(),
        Stopped { killed: true } => "killed".to_owned(),
    }
}
