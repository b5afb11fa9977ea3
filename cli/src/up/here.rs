//! `up` on this host's KVM: the VMM is this very process.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use signal_hook::consts::SIGPIPE;
use vmprof_guests::{Store, append_archive};
use vmprof_job::{JOB_PATH, Streams, ToGuest};
use vmprof_profiles::{CpuSet, Plan};
use vmprof_vmm::backing::DiskError;
use vmprof_vmm::exit::Exit;
use vmprof_vmm::kvm::Usable;
use vmprof_vmm::pause::PauseNews;
use vmprof_vmm::vm::{Control, StartError};
use vmprof_vmm::{BuildError, Channels, Port, Vm, thread};

use super::{Guest, Patience, Upping, engines, promises, sources};
use crate::failure::{Failure, Kind};
use crate::lower;
use crate::profile;
use crate::run::channels::{self, PortEnd};
use crate::run::console::WholeLines;
use crate::run::control::{self, Answers, Request};
use crate::run::conversation::{Event, Manners};
use crate::run::record::{self, OwnRecord, Run};
use crate::run::supervise::{self, Input, Supervision};
use crate::run::terminal::{self, RawTerminal};
use crate::run::verdict::MachineEnd;
use crate::stats::Stats;
use crate::verify::{PlannedThread, read_back};

pub fn up(upping: &Upping, kvm: &Usable) -> Result<u8, Failure> {
    let (report, arguments) = (upping.report, &upping.arguments);
    supervise::may_lose_readers()
        .map_err(|error| Failure::os("a signal's handler cannot be installed", error))?;
    let directory = upping.places.disks_of(&upping.profile.name);
    let paths = sources::paths(&upping.profile, &directory);
    let host = profile::Host::live(&upping.profile, &directory, &record::running(&upping.places));
    let plan = upping.plan(&host)?;
    promises::of_plan(&plan)?;
    report.text(&host.text(&plan, false));

    if arguments.dry_run {
        report.data(&plan.to_json())?;
        return Ok(0);
    }

    let engines = engines::choose(&plan, report)?;
    let store = Store::open(&upping.places.store)?;
    let Guest { image, filesystems, work, held: _held } = upping.guest(&store)?;
    let disks = sources::make(&upping.profile, &paths)?;
    let own = OwnRecord::claim(&upping.places, &upping.name)?;
    record::refuse_shared_disks(&upping.places, &disks)?;
    let keeper = own.write(Run::new(&upping.name, &upping.path, "kvm", host.pinned(&plan), disks))?;
    // To the end of the run, also where an error ends it.
    let (image, _private_root) = image.with_private_root(&upping.places, &upping.name)?;

    let streams = match arguments.console {
        true => {
            let (rows, columns) = terminal::size();
            Streams::Console { rows, columns, term: std::env::var("TERM").unwrap_or_else(|_| "vt100".into()) }
        }
        false => Streams::Ports,
    };
    let job = lower::job(&plan, &image, &filesystems, &work, streams);
    let config = lower::machine(&upping.name, &plan, &image, &paths, &engines);
    let job = append_archive(&[(JOB_PATH, 0o600, vmprof_job::line(&job))])?;

    // This thread, and with it everything that is no vCPU and no IOThread, belongs where the plan has the emulator.
    thread::pin("vmprof", &config.emulator_cpus).map_err(|error| not_started(error.into()))?;
    let (ours, ends) =
        channels::open().map_err(|error| Failure::os("the channels to the guest cannot be opened", error))?;
    let patience = Patience::with(&image.conduct);
    let stop = ToGuest::Stop { grace_ms: lower::milliseconds(patience.guest) };
    let manners = Manners {
        interrupt: stop.clone(),
        clean_stop: stop,
        reader_gone: ToGuest::Signal { number: SIGPIPE },
        grace: patience.machine,
        last_word: patience.last_word,
        timeout: arguments.timeout,
        hello_within: None,
        silence: None,
    };
    let mut supervision = Supervision::new(ours, manners);
    let serial = Serial::open(arguments.console, &mut supervision)
        .map_err(|error| Failure::os("the console cannot be opened", error))?;
    let channels = Channels {
        ports: ends
            .into_iter()
            .map(|PortEnd { port, stream }| Port { name: port.to_owned(), stream })
            .collect(),
        serial_out: serial.out,
        serial_in: serial.input.map(Into::into),
    };

    let started = Instant::now();
    let vm = Vm::build(kvm, &config, channels, &job).map_err(not_built)?.start().map_err(not_started)?;
    let control = vm.control();
    let answers = Here { plan: plan.clone(), control: control.clone(), events: supervision.events.clone() };
    let events = supervision.events.clone();
    // Nobody to hear it means that the run is over.
    control.on_pause(move |news| {
        let event = match news {
            PauseNews::Paused(failure) => {
                Event::Paused { failure: failure.map(|failure| failure.to_string()) }
            }
            PauseNews::Resumed => Event::Resumed,
        };
        let _ = events.send(event);
    });
    control::serve(own.directory(), Arc::new(answers))
        .map_err(|error| Failure::os("the control socket cannot be opened", error))?;

    let input = if upping.with_command() && !arguments.console { Input::Stdin } else { Input::Nothing };
    let tell = upping.teller(work.ran(), Some(&image), Some(keeper), serial.raw.is_some());
    let outcome = supervision
        .run(input, started, move || control.kill(), || end_of(vm.wait()), tell)
        .map_err(|error| Failure::os("the run cannot be supervised", error))?;
    drop(serial.raw);
    let spoke = match outcome.account.hello_after {
        Some(after) => format!("spoke after {:.1} s", after.as_secs_f64()),
        None => "never spoke".to_owned(),
    };
    report.notice(format_args!(
        "{} ran {:.1} s; its first process {spoke}",
        upping.name,
        started.elapsed().as_secs_f64()
    ));
    Ok(upping.conclude(work.ran(), &outcome))
}

/// The guest's serial console on our side.
struct Serial {
    out: Box<dyn Write + Send>,
    input: Option<UnixStream>,
    raw: Option<RawTerminal>,
}

impl Serial {
    /// Shown on stderr; interactive on the terminal that stdin and stdout are.
    fn open(interactive: bool, supervision: &mut Supervision) -> io::Result<Serial> {
        if !interactive {
            let out = File::from(rustix::stdio::stderr().try_clone_to_owned()?);
            return Ok(Serial { out: Box::new(WholeLines::new(out)), input: None, raw: None });
        }
        let out = File::from(rustix::stdio::stdout().try_clone_to_owned()?);
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        let raw = RawTerminal::take()?;
        let ready = supervision.readiness();
        terminal::carry_keys(ours, raw.is_some(), ready, supervision.events.clone())?;
        Ok(Serial { out: Box::new(out), input: Some(theirs), raw })
    }
}

/// What the plan asks for and this host does not give is the host's; a disk that somebody uses is not.
fn not_built(error: BuildError) -> Failure {
    let (kind, help) = match &error {
        BuildError::Disk(DiskError::NativeNeedsDirect { .. }) => {
            (Kind::HostCannot, "write cache=none, or aio=io_uring, which goes with every cache mode")
        }
        BuildError::Disk(DiskError::NoPollQueues { .. }) => (Kind::HostCannot, POLL_QUEUES),
        BuildError::Disk(
            DiskError::NoDriveBelow { .. } | DiskError::IopollRing { .. } | DiskError::Iopoll { .. },
        ) => (
            Kind::HostCannot,
            "put the disk on such a drive, as a device or on ext4 or XFS; or remove `iopoll`",
        ),
        BuildError::Disk(DiskError::NoDirect { .. }) => (
            Kind::HostCannot,
            "put the file on a filesystem that has direct I/O, or give the disk a cached mode",
        ),
        BuildError::Disk(DiskError::NoDiscard { .. }) => {
            (Kind::HostCannot, "write discard=ignore, or leave it out: what the guest frees stays allocated")
        }
        BuildError::Disk(DiskError::InUse { .. }) => {
            (Kind::Failure, "`vmprof ps` lists this user's running VMs")
        }
        BuildError::Disk(DiskError::PartialLogicalBlock { .. }) => (
            Kind::HostCannot,
            "give the source a size that is a multiple of the block, or leave the logical block's size out",
        ),
        BuildError::Disk(_) => (Kind::Failure, ""),
        BuildError::Memory(_) => {
            (Kind::HostCannot, "`vmprof host` shows each node's memory and free huge pages")
        }
        BuildError::IoThread(_) => {
            (Kind::HostCannot, "vmprof starts no run whose threads or engines are not as planned")
        }
        BuildError::ThreadsPerCore { .. } => {
            (Kind::HostCannot, "this host's siblings cannot be shown to a guest: leave `smt require` out")
        }
        BuildError::TooManyVcpus { .. } => (Kind::HostCannot, "give the profile fewer vCPUs"),
        _ => (Kind::Failure, ""),
    };
    Failure::caused(kind, "vmprof::up::not_built", error, help)
}

/// Where a drive's queues to look at come from.
pub const POLL_QUEUES: &str = "the kernel makes such queues when the drive's driver starts: nvme.poll_queues=N for NVMe, \
    virtio_blk.num_poll_queues=N, null_blk.poll_queues=N; or remove `iopoll`";

fn not_started(error: StartError) -> Failure {
    let help = "vmprof starts no run whose threads are not where the plan has them; \
                a cgroup's cpuset or the caller's affinity may have changed";
    Failure::caused(Kind::HostCannot, "vmprof::up::not_started", error, help)
}

fn end_of(exit: Exit) -> MachineEnd {
    match exit {
        Exit::PowerOff => MachineEnd::PowerOff,
        Exit::Reset => MachineEnd::Reboot,
        Exit::Panicked => MachineEnd::Panicked,
        Exit::Killed => MachineEnd::Killed,
        Exit::TripleFault { vcpu, registers } => {
            MachineEnd::Broken(format!("the guest's vCPU {vcpu} shut down on a triple fault at {registers}"))
        }
        Exit::Failed(error) => MachineEnd::Broken(format!("the virtual machine cannot go on: {error}")),
    }
}

struct Here {
    plan: Plan,
    control: Control,
    events: std::sync::mpsc::Sender<Event>,
}

impl Answers for Here {
    fn answer(&self, request: Request) -> Result<Value, String> {
        let json = |value: serde_json::Result<Value>| value.map_err(|error| error.to_string());
        match request {
            Request::Plan => json(serde_json::to_value(&self.plan)),
            Request::Stats => json(serde_json::to_value(Stats::of(self.control.stats()))),
            Request::Verify => {
                let planned = |(name, cpus): (String, CpuSet)| PlannedThread { name, cpus: cpus.to_string() };
                let threads: Vec<PlannedThread> = self.plan.threads().into_iter().map(planned).collect();
                json(serde_json::to_value(read_back(&threads, "/proc/self/task".as_ref())))
            }
            Request::Pause => {
                self.control.pause().map(|()| Value::Bool(true)).map_err(|error| error.to_string())
            }
            Request::Resume => {
                self.control.resume().map(|()| Value::Bool(true)).map_err(|error| error.to_string())
            }
            Request::Stop => match self.events.send(Event::StopAsked) {
                Ok(()) => Ok(Value::Bool(true)),
                Err(_) => Err("the run is ending already".into()),
            },
        }
    }
}
