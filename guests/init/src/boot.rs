//! From the kernel's hand-over to power off, as PID 1.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};
use vmprof_job::{FromGuest, Init, JOB_PATH, Job, Root, port};

use crate::become_user::Doorway;
use crate::cgroups::Cgroups;
use crate::command::{self, Surroundings};
use crate::control::Control;
use crate::failure::Failure;
use crate::keeping::Keeping;
use crate::network::Network;
use crate::power::{self, Buttons};
use crate::pump::{FromCommand, ToCommand};
use crate::reap::Children;
use crate::services::{Console, Keeper, Places};
use crate::supervisor::{FAILURE_HEARD, Launch, Started, Streams, Supervisor};
use crate::terminal::{self, Terminal};
use crate::{agent, cpus, disks, job, kmsg, modules, mounts, netlink, ports, sysctl, systemd, volumes};

/// Devices appear while the kernel probes them; an emulated machine on a busy host takes its time.
pub(crate) const DEVICE_WAIT: Duration = Duration::from_secs(30);
const SERIAL_CONSOLE: &str = "/dev/ttyS0";
const OURSELVES: &str = "/proc/self/exe";

pub(crate) fn boot() -> ! {
    // The profile aborts on panic, which as PID 1 would take the kernel along.
    std::panic::set_hook(Box::new(|panic| {
        kmsg::error(format_args!("panic: {panic}"));
        power::off();
    }));
    let control = match reach_the_outside() {
        Ok(control) => control,
        Err(failure) => {
            kmsg::error(failure.message());
            power::end(None, Duration::ZERO);
        }
    };
    supervise(control)
}

/// As far as the control port: before it, nobody outside can be told anything.
fn reach_the_outside() -> Result<Control, Failure> {
    mounts::kernel_filesystems()?;
    kmsg::open();
    console_as_streams()?;
    modules::load(Path::new(modules::DIRECTORY))?;
    Ok(Control::new(port(port::CONTROL)?))
}

fn supervise(mut control: Control) -> ! {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    control.send(&FromGuest::Hello { kernel, uptime_ms: uptime_ms() });
    let prepared = Children::watch()
        .map_err(Failure::step("watching for processes that end"))
        .and_then(|children| Ok((children, prepare()?)));
    let (children, job) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => fail(control, None, &failure),
    };
    match job.init {
        Init::Vmprof => {}
        Init::Systemd => {
            control.flush_within(FAILURE_HEARD);
            let failure = systemd::become_systemd(&job, &control);
            fail(control, Some(&children), &failure)
        }
    }
    // From here on it asks; what follows takes its time.
    let mut network = Network::start(&job.nets);
    let surroundings = Surroundings::of(&job);
    let command = job.command.as_ref();
    let readied =
        ready_services(&job).and_then(|keeper| Ok((keeper, launch(command, surroundings.clone())?)));
    let (keeper, launch) = match readied {
        Ok(readied) => readied,
        Err(failure) => fail(control, None, &failure),
    };
    let agent = agent::start(&surroundings);
    let supervisor = Supervisor {
        control,
        children: &children,
        buttons: Buttons::open(Path::new("/dev/input")),
        keeper: Keeping::Own(keeper),
        network: &mut network,
        surroundings,
        everything: &|signal| agent.signal_everything(signal),
        stop_within: Duration::from_millis(job.stop_within_ms),
        uptime_ms,
    };
    let end = supervisor.run(launch);
    agent.end();
    network.end();
    power::end(Some(&children), end.grace)
}

/// The services, none of them started.
fn ready_services(job: &Job) -> Result<Keeper, Failure> {
    let (cgroups, console) = match job.services.as_slice() {
        [] => (Cgroups::default(), Console::default()),
        _ => (Cgroups::mount(), console()),
    };
    let doorway = Doorway::ourselves();
    Keeper::new(job.services.clone(), Places::default(), doorway, cgroups, console)
}

/// A console of its own, to be written without waiting. A machine without one has the logs.
fn console() -> Console {
    let flags = OFlags::NOCTTY.bits() as i32;
    let opened = OpenOptions::new().write(true).custom_flags(flags).open("/dev/console");
    opened.and_then(|console| Console::new(console.into())).unwrap_or_default()
}

/// What starts the command; the ports it needs are looked for now, not when the services are ready.
pub(crate) fn launch(
    command: Option<&vmprof_job::Command>,
    surroundings: Surroundings,
) -> Result<Option<Launch<'_>>, Failure> {
    let Some(command) = command else { return Ok(None) };
    let outlets = Outlets::open(&command.streams)?;
    Ok(Some(Box::new(move || outlets.start(&surroundings, command))))
}

/// Tells the outside, as long as there is one, and ends the machine. The port is closed before: closing is answered by
/// the device, which has then seen all that was written.
fn fail(mut control: Control, children: Option<&Children>, failure: &Failure) -> ! {
    say_failed(&mut control, failure);
    drop(control);
    power::end(children, Duration::ZERO)
}

/// Waits, not for ever, until the outside has heard it.
pub(crate) fn say_failed(control: &mut Control, failure: &Failure) {
    let message = failure.message();
    kmsg::note(&message);
    control.send(&FromGuest::Failed { message });
    control.farewell(FAILURE_HEARD, &mut Buttons::default());
}

/// Everything the job asks for short of services and command; whoever becomes the first process finds it so.
fn prepare() -> Result<Job, Failure> {
    let job = job::read(&Path::new("/").join(JOB_PATH))?;
    let sys = Path::new("/sys");
    if job.online_cpus {
        cpus::bring_online(&sys.join("devices/system/cpu"))?;
    }
    if let Root::Disk { serial, filesystem, writable } = &job.root {
        let device = disks::find(sys, "root", serial, DEVICE_WAIT)?;
        mounts::switch_root(&device.node(), filesystem, *writable)?;
    }
    sysctl::write(Path::new("/proc/sys"), &job.sysctl)?;
    volumes::prepare(sys, &job, DEVICE_WAIT)?;
    for link in &job.links {
        disks::link(sys, link, DEVICE_WAIT)?;
    }
    rustix::system::sethostname(job.hostname.as_bytes())
        .map_err(|error| Failure::step(&format!("setting the host name `{}`", job.hostname))(error.into()))?;
    netlink::set_up(netlink::LOOPBACK).map_err(Failure::step("bringing up the loopback interface"))?;
    if job.command.is_some() && !Path::new(&job.directory).is_dir() {
        return Err(Failure::NoDirectory(job.directory));
    }
    Ok(job)
}

/// Where the command's streams lead, opened.
enum Outlets<'a> {
    Ports { stdin: ports::Port, stdout: ports::Port, stderr: ports::Port },
    Console(Terminal<'a>),
}

impl<'a> Outlets<'a> {
    fn open(streams: &'a vmprof_job::Streams) -> Result<Self, Failure> {
        Ok(match streams {
            vmprof_job::Streams::Ports => Outlets::Ports {
                stdin: port(port::STDIN)?,
                stdout: port(port::STDOUT)?,
                stderr: port(port::STDERR)?,
            },
            vmprof_job::Streams::Console { rows, columns, term } => {
                let path = Path::new(SERIAL_CONSOLE);
                Outlets::Console(Terminal { path, rows: *rows, columns: *columns, term, guise: None })
            }
        })
    }

    fn start(self, surroundings: &Surroundings, command: &vmprof_job::Command) -> Result<Started, Failure> {
        match self {
            Outlets::Ports { stdin, stdout, stderr } => {
                let piped = || {
                    let (started, pipes) = command::start(surroundings, &command.argv)?;
                    let streams = Streams {
                        stdin: ToCommand::new(stdin, pipes.stdin)?,
                        stdout: FromCommand::new(pipes.stdout, stdout)?,
                        stderr: FromCommand::new(pipes.stderr, stderr)?,
                    };
                    Ok((started, Some(streams)))
                };
                piped().map_err(Failure::step("making the command's pipes"))
            }
            Outlets::Console(terminal) => {
                let started = terminal::start(Path::new(OURSELVES), surroundings, &command.argv, &terminal)?;
                Ok((started, None))
            }
        }
    }
}

pub(crate) fn port(name: &'static str) -> Result<ports::Port, Failure> {
    ports::open(Path::new("/sys"), Path::new("/dev"), name, DEVICE_WAIT)
}

/// The kernel gives them to us only when the initramfs had a /dev/console.
fn console_as_streams() -> Result<(), Failure> {
    let open = || {
        let flags = OFlags::NOCTTY.bits() as i32;
        let console = OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/console")?;
        rustix::stdio::dup2_stdin(&console)?;
        rustix::stdio::dup2_stdout(&console)?;
        rustix::stdio::dup2_stderr(&console)?;
        Ok(())
    };
    match open() {
        // A machine without any console: ENODEV. It has a kernel log all the same.
        Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::NODEV) => Ok(()),
        outcome => outcome.map_err(Failure::step("opening /dev/console")),
    }
}

pub(crate) fn uptime_ms() -> u64 {
    let uptime = clock_gettime(ClockId::Boottime);
    u64::try_from(uptime.tv_sec * 1000 + uptime.tv_nsec / 1_000_000).unwrap_or_default()
}
