//! A machine's own program: what `vmprof up` goes on as when all is planned, built and taken. The VMM is this very process.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use signal_hook::consts::SIGPIPE;
use vmprof_job::ToGuest;
use vmprof_profiles::CpuSet;
use vmprof_sys::{affinity, program};
use vmprof_vmm::backing::DiskError;
use vmprof_vmm::config::IoThread;
use vmprof_vmm::exit::Exit;
use vmprof_vmm::iothread::IoThreadError;
use vmprof_vmm::kvm;
use vmprof_vmm::pause::PauseNews;
use vmprof_vmm::vm::{Control, StartError};
use vmprof_vmm::{BuildError, Channels, Port, Vm, thread};

use super::handover::Handover;
use super::lease::{Lease, Leased};
use super::tuned::{InForce, Tuned};
use crate::failure::{Failure, Kind};
use crate::lower::milliseconds;
use crate::report::Report;
use crate::run::channels::{self, PortEnd};
use crate::run::console::{Stderr, WholeLines};
use crate::run::control::{self, Answers, Request};
use crate::run::conversation::{Event, Manners};
use crate::run::detached::Detached;
use crate::run::record::Kept;
use crate::run::status::Status;
use crate::run::supervise::{self, Input, Supervision};
use crate::run::terminal::{self, RawTerminal};
use crate::run::verdict::MachineEnd;
use crate::stats::{Stats, as_qemu_counts};
use crate::verify::read_back;

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
    let outcome = run_machine(report, handover, detached.as_ref());
    // To the end of the run, also where an error ends it.
    drop(leased);
    let status = outcome.unwrap_or_else(|failure| failed(&failure, with_command));
    // All is said: the log ends.
    drop(detached);
    status
}

fn run_machine(report: Report, handover: Handover, detached: Option<&Detached>) -> Result<u8, Failure> {
    let Handover {
        telling, with_command, timeout, patience, config, plan, threads, keeper, record, job, ..
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
    let (ours, ends) = channels::open().map_err(os("the channels to the guest cannot be opened"))?;
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
    let mut supervision = Supervision::new(ours, manners);
    let serial =
        Serial::open(telling.console, &mut supervision).map_err(os("the console cannot be opened"))?;
    let channels = Channels {
        ports: ends
            .into_iter()
            .map(|PortEnd { port, stream }| Port { name: port.to_owned(), stream })
            .collect(),
        serial_out: serial.out,
        serial_in: serial.input.map(Into::into),
    };

    let kept = Kept::new(keeper);
    let started = Instant::now();
    let built = Vm::build(&kvm, &config, channels, &job).map_err(not_built)?;
    // What built it is not needed again.
    drop(job);
    // Where the kernel keeps the pages, since they are locked in memory, the machine runs as well.
    let _ = program::let_go_of_code();
    let vm = built.start().map_err(not_started)?;
    let control = vm.control();
    let in_force = InForce { plan, threads, iothreads: config.iothreads };
    let answers = Here {
        tuned: Tuned::new(in_force, allowed.into_iter().collect::<CpuSet>(), kept.clone()),
        kept: kept.clone(),
        control: control.clone(),
        events: supervision.events.clone(),
    };
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
    control::serve(&record, Arc::new(answers)).map_err(os("the control socket cannot be opened"))?;

    if let Some(detached) = detached {
        detached.started();
    }
    let input = if with_command && !telling.console { Input::Stdin } else { Input::Nothing };
    let tell = telling.teller(report, Some(kept), detached.cloned(), serial.raw.is_some());
    let outcome = supervision
        .run(input, started, move || control.kill(), || end_of(vm.wait()), tell)
        .map_err(os("the run cannot be supervised"))?;
    drop(serial.raw);
    let spoke = match outcome.account.hello_after {
        Some(after) => format!("spoke after {:.1} s", after.as_secs_f64()),
        None => "never spoke".to_owned(),
    };
    let (name, ran) = (&telling.name, started.elapsed().as_secs_f64());
    report.notice(format_args!("{name} ran {ran:.1} s; its first process {spoke}"));
    Ok(telling.conclude(report, &outcome))
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
            return Ok(Serial { out: Box::new(WholeLines::new(Stderr)), input: None, raw: None });
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

/// An IOThread in the shape of QEMU's `query-iothreads` (qapi/misc.json, IOThreadInfo). vmprof has no bound on the batches of
/// an engine but the engine's own, which is what 0 says there.
fn as_qemu_tells(iothread: &IoThread, tid: i32) -> Value {
    json!({
        "id": iothread.name,
        "thread-id": tid,
        "poll-max-ns": iothread.polling.max_ns,
        "poll-grow": iothread.polling.grow,
        "poll-shrink": iothread.polling.shrink,
        "aio-max-batch": 0,
    })
}

struct Here {
    tuned: Tuned,
    kept: Kept,
    control: Control,
    events: std::sync::mpsc::Sender<Event>,
}

impl Answers for Here {
    fn answer(&self, request: Request) -> Result<Value, String> {
        let as_json = |value: serde_json::Result<Value>| value.map_err(|error| error.to_string());
        match request {
            Request::Plan => as_json(serde_json::from_str(&self.tuned.in_force().plan)),
            Request::Status => {
                let plan: Value =
                    serde_json::from_str(&self.tuned.in_force().plan).map_err(|error| error.to_string())?;
                let digest = plan["digest"].as_str().map(str::to_owned);
                let paused = self.control.stats().paused;
                as_json(serde_json::to_value(Status::of(self.kept.run(), paused, digest)))
            }
            Request::QueryIothreads => {
                let running = self.control.stats().iothreads;
                let iothreads = self.tuned.in_force().iothreads;
                let told = iothreads.iter().filter_map(|iothread| {
                    let thread = running.iter().find(|thread| thread.id == iothread.id)?;
                    Some(as_qemu_tells(iothread, thread.tid))
                });
                Ok(told.collect())
            }
            Request::QueryBlockstats => Ok(as_qemu_counts(&self.control.stats().disks)),
            Request::Stats => as_json(serde_json::to_value(Stats::of(self.control.stats()))),
            Request::IothreadSet(set) => {
                let snapshot = |id| self.control.stats().iothreads.into_iter().find(|thread| thread.id == id);
                let takes_times = |id| snapshot(id).is_some_and(|thread| thread.latency);
                let gone = |id| {
                    Err(IoThreadError::Ended { name: format!("iothread{id}"), how: "it is not there".into() })
                };
                let apply = |id, change| self.control.change_iothread(id, change).unwrap_or_else(|| gone(id));
                as_json(serde_json::to_value(self.tuned.change(&set, takes_times, apply)?))
            }
            Request::Verify => {
                let threads = self.tuned.in_force().threads;
                as_json(serde_json::to_value(read_back(&threads, "/proc/self/task".as_ref())))
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
