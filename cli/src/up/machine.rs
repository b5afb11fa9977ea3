//! A machine's own program: what `vmprof up` goes on as when all is planned, built and taken. The VMM is this very process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Instant;

use signal_hook::consts::SIGPIPE;
use vmprof_job::ToGuest;
use vmprof_profiles::CpuSet;
use vmprof_sys::{affinity, program};
use vmprof_vmm::backing::{DiskError, DiskLock};
use vmprof_vmm::config::VmConfig;
use vmprof_vmm::exit::Exit;
use vmprof_vmm::kvm::{self, Usable};
use vmprof_vmm::net::{FrameStream, NetError};
use vmprof_vmm::pause::PauseNews;
use vmprof_vmm::vm::{Running, StartError};
use vmprof_vmm::{BuildError, Channels, Port, Vm, thread};

use super::answers::Here;
use super::handover::Handover;
use super::lease::{Lease, Leased};
use super::nets::Carried;
use super::tuned::{InForce, Tuned};
use crate::failure::{Failure, Kind};
use crate::lower::milliseconds;
use crate::report::Report;
use crate::run::channels::{self, PortEnd};
use crate::run::console::server::Console;
use crate::run::console::{Stderr, WholeLines};
use crate::run::control::{self, Successive};
use crate::run::conversation::{Event, Manners};
use crate::run::detached::Detached;
use crate::run::events::Happening;
use crate::run::news::News;
use crate::run::reboots::{After, Reboots};
use crate::run::record::Kept;
use crate::run::sockets::{self, CONSOLE, VSOCK};
use crate::run::supervise::{self, Input, Supervision};
use crate::run::terminal::{self, RawTerminal};
use crate::run::verdict::MachineEnd;

/// The kernel names a process that begins as /proc/self/exe by that.
const NAME: &std::ffi::CStr = c"vmprof";

/// Runs the machine that was left to this program, before it has opened anything else. The exit status is `up`'s.
pub fn run(left: io::Result<OwnedFd>) -> u8 {
    let failed = |failure: &Failure, with_command| {
        Report::new().failure(failure);
        failure.kind.status_of_up(with_command)
    };
    let unread = |error| Failure::os("what the vmprof that planned has left cannot be taken", error);
    let taken = left.and_then(Handover::take).and_then(|mut handover| {
        let leases = std::mem::take(&mut handover.leases);
        let leased = leases.into_iter().map(Lease::take).collect::<io::Result<Vec<Leased>>>()?;
        let detached = handover.detached.take().map(Detached::take).transpose()?;
        Ok((handover, leased, detached))
    });
    let (handover, leased, detached) = match taken {
        Ok(taken) => taken,
        Err(error) => return failed(&unread(error), false),
    };
    let with_command = handover.with_command;
    let report = if detached.is_some() { Report::without_colour() } else { Report::new() };
    // It was there when it was left to us, and is missed by nobody but its reader.
    let events = handover.telling.events().unwrap_or_default();
    let outcome = run_machine(report, handover, detached.as_ref());
    // To the end of the run, also where an error ends it.
    drop(leased);
    let (status, failure) = match outcome {
        Ok(status) => (status, None),
        Err(failure) => (failed(&failure, with_command), Some(failure)),
    };
    super::say_ended(events, &Happening::end(status, failure.as_ref()), report);
    // All is said: the log ends.
    drop(detached);
    status
}

fn run_machine(report: Report, handover: Handover, detached: Option<&Detached>) -> Result<u8, Failure> {
    let Handover {
        telling,
        with_command,
        timeout,
        patience,
        config,
        plan,
        threads,
        keeper,
        record,
        reboots,
        artifacts,
        carriers,
        job,
        ..
    } = handover;
    let os = |what: &'static str| move |error: io::Error| Failure::os(what, error);
    supervise::may_lose_readers().map_err(os("a signal's handler cannot be installed"))?;
    rustix::thread::set_name(NAME).map_err(|error| os("this thread cannot be named")(error.into()))?;
    // What it was given, before the next lines take less of it.
    let allowed = affinity::cpus_of_thread(0).map_err(os("the CPUs of this process cannot be read"))?;
    let kvm = kvm::probe().map_err(|found| super::no_kvm(&found))?;
    // This thread, and with it everything that is no vCPU and no IOThread, belongs where the plan has the emulator.
    thread::pin("vmprof", &config.emulator_cpus).map_err(|error| not_started(error.into()))?;
    detached.map_or(Ok(()), Detached::begin_log).map_err(os("the log cannot be begun"))?;
    let stop = ToGuest::Stop { grace_ms: milliseconds(patience.guest) };
    let manners = Manners {
        interrupt: stop.clone(),
        clean_stop: stop,
        reader_gone: ToGuest::Signal { number: SIGPIPE },
        grace: patience.machine,
        last_word: patience.last_word,
        timeout,
        hello_within: None,
        silence: None,
    };
    let collect = artifacts.collector(&telling.name)?;
    let mut supervision = Supervision::new(manners, collect);
    let serial = Serial::open(telling.console, &record, supervision.events.clone())
        .map_err(os("the console cannot be opened"))?;
    let locks = config.disks.iter().map(DiskLock::take).collect::<Result<_, _>>();
    let locks = locks.map_err(|error| not_built(error.into()))?;
    let kept = Kept::new(keeper);
    let in_force = InForce { plan, threads, iothreads: config.iothreads.clone() };
    let tuned = Arc::new(Tuned::new(in_force, allowed.into_iter().collect::<CpuSet>(), kept.clone()));
    let vsock = sockets::listen(&record, VSOCK).map_err(os("the guest's socket cannot be opened"))?;
    // Dropped behind the machines: what is at the other end ends with the run.
    let carried = Carried::take(carriers, &record, &supervision.events)?;
    let nets = carried.streams.clone();
    let machines = Machines { kvm, config, locks, vsock, nets, job };
    let answers = Arc::new(Successive::default());
    let mut reboots = Reboots::new(reboots);

    let began = Instant::now();
    let mut tell = None;
    let outcome = loop {
        let (ours, ends) = channels::open().map_err(os("the channels to the guest cannot be opened"))?;
        let started = Instant::now();
        let vm = machines.start(&tuned, ends, &serial).map_err(|failure| match tell {
            None => failure,
            // A guest has run: what the host lacks now has failed it.
            Some(_) => Failure { kind: Kind::Failure, ..failure },
        })?;
        let control = vm.control();
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
        answers.next(Arc::new(Here {
            tuned: tuned.clone(),
            kept: kept.clone(),
            control: control.clone(),
            events: supervision.events.clone(),
        }));
        if tell.is_none() {
            control::serve(&record, answers.clone()).map_err(os("the control socket cannot be opened"))?;
            if let Some(detached) = detached {
                detached.started();
            }
        }
        // Made once the first machine runs, which it tells of.
        let tell = match &mut tell {
            Some(tell) => tell,
            none => {
                let made =
                    telling.teller(report, Some(kept.clone()), detached.cloned(), serial.raw.is_some());
                none.insert(made.map_err(os("the events cannot be written"))?)
            }
        };
        let input = if with_command && !telling.console { Input::Stdin } else { Input::Nothing };
        let readiness = serial.console.readiness();
        let mut hear = |news: News| {
            let is_ready = matches!(news, News::Ready { .. });
            tell(news);
            if is_ready {
                readiness();
            }
        };
        let mut outcome = supervision
            .run(ours, input, started, || control.kill(), || end_of(vm.wait()), &mut hear)
            .map_err(os("the run cannot be supervised"))?;
        serial.console.unplug();
        match reboots.after(telling.ran, &mut outcome) {
            After::Over => break outcome,
            After::Again(because) => {
                answers.reboots();
                tell(News::Reboots { because });
            }
        }
    };
    drop(serial);
    let spoke = match outcome.account.hello_after {
        Some(after) => format!("spoke after {:.1} s", after.as_secs_f64()),
        None => "never spoke".to_owned(),
    };
    let (name, ran) = (&telling.name, began.elapsed().as_secs_f64());
    report.notice(format_args!("{name} ran {ran:.1} s; its first process {spoke}"));
    Ok(telling.conclude(report, &outcome))
}

/// What each machine of the run is made of: a guest that reboots has a new one, which has nothing of the last but its disks.
struct Machines {
    kvm: Usable,
    config: VmConfig,
    /// Held from before the first machine to the end of the run.
    locks: Vec<DiskLock>,
    /// Where connections to the guest begin, whichever machine it is.
    vsock: UnixListener,
    /// They go on in the middle of what they carry.
    nets: Vec<FrameStream>,
    job: Vec<u8>,
}

impl Machines {
    /// With its IOThreads as they are by now.
    fn start(&self, tuned: &Tuned, ends: Vec<PortEnd>, serial: &Serial) -> Result<Vm<Running>, Failure> {
        let (out, input) =
            serial.plug().map_err(|error| Failure::os("the console cannot be opened", error))?;
        let vsock = self.vsock.try_clone();
        let vsock = vsock.map_err(|error| Failure::os("the guest's socket cannot be opened", error))?;
        let channels = Channels {
            ports: ends
                .into_iter()
                .map(|PortEnd { port, stream }| Port { name: port.to_owned(), stream })
                .collect(),
            vsock: Some(vsock),
            nets: self.nets.clone(),
            serial_out: out,
            serial_in: Some(input),
        };
        let config = VmConfig { iothreads: tuned.in_force().iothreads, ..self.config.clone() };
        let built = Vm::build_locked(&self.kvm, &config, &self.locks, channels, &self.job);
        let built = built.map_err(not_built)?;
        // Where the kernel keeps the pages, since they are locked in memory, the machine runs as well.
        let _ = program::let_go_of_code();
        built.start().map_err(not_started)
    }
}

/// The guest's serial console on our side.
struct Serial {
    console: Console,
    /// On the terminal that stdin and stdout are; else it is shown on stderr.
    interactive: bool,
    /// Given back when all is said on the console.
    raw: Option<RawTerminal>,
}

impl Serial {
    fn open(interactive: bool, record: &Path, events: Sender<Event>) -> io::Result<Serial> {
        let typed_by = interactive.then(std::process::id);
        let console = Console::start(sockets::listen(record, CONSOLE)?, typed_by)?;
        let mut raw = None;
        if interactive {
            raw = RawTerminal::take()?;
            // What waits until the guest is ready are the console's keys.
            let (_, begun) = mpsc::channel();
            terminal::carry_keys(console.keys(), raw.is_some(), begun, events)?;
        }
        Ok(Serial { console, interactive, raw })
    }

    /// The two ends for the next machine.
    fn plug(&self) -> io::Result<(Box<dyn Write + Send>, OwnedFd)> {
        let to: Box<dyn Write + Send> = match self.interactive {
            true => Box::new(File::from(rustix::stdio::stdout().try_clone_to_owned()?)),
            false => Box::new(WholeLines::new(Stderr)),
        };
        let (out, input) = self.console.plug(to)?;
        Ok((Box::new(out), input))
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
        BuildError::Net(NetError::Busy { .. }) => {
            (Kind::Failure, "`vmprof ps` lists this user's running VMs")
        }
        BuildError::Net(_) => (Kind::HostCannot, "`net passt` needs no device of the host's"),
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
