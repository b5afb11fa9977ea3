//! The verb `vhost-user-blk`: a disk, served over a socket to a VMM that is not ours. The serving is
//! [`vmprof_vmm::vhost_user`]'s; here is what its user says and hears.

use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vmprof_profiles::CpuSet;
use vmprof_vmm::backing::DiskError;
use vmprof_vmm::config;
use vmprof_vmm::vhost_user::{Event, Left, Server, ServerConfig, ServerError, SocketError, Stopper};

use crate::args::{AioWord, CacheWord, VhostUserBlkArguments};
use crate::failure::{Failure, Kind};
use crate::report::Report;

/// What virtio-blk's id has room for.
const LONGEST_ID: usize = 20;

pub fn serve(arguments: &VhostUserBlkArguments, report: Report) -> Result<(), Failure> {
    let config = config(arguments);
    let server = Server::start(&config).map_err(not_started)?;
    stop_on_signals(server.stopper(), report)?;
    report.notice(listening(&config));
    let mut clients = 0_u64;
    let outcome = server.run(|event| {
        clients += u64::from(event == Event::Connected);
        report.notice(told(&event));
    });
    let disk = server.disk();
    // The socket goes before the last line is read.
    drop(server);
    let sum = |count: fn(&Counts) -> u64| disk.virtqueues.iter().map(count).sum::<u64>();
    report.notice(format_args!(
        "served {clients} {}: {} reads, {} writes, {} flushes, {} of all requests failed",
        if clients == 1 { "client" } else { "clients" },
        sum(|queue| queue.reads),
        sum(|queue| queue.writes),
        sum(|queue| queue.flushes),
        sum(|queue| queue.errors),
    ));
    outcome.map_err(|error| Failure::caused(Kind::Failure, "vmprof::vhost_user::ended", error, ""))
}

type Counts = vmprof_vmm::iothread::counters::QueueSnapshot;

fn config(arguments: &VhostUserBlkArguments) -> ServerConfig {
    let engine = match arguments.aio {
        AioWord::IoUring => config::Engine::IoUring,
        AioWord::Native => config::Engine::Native,
        AioWord::Threads => config::Engine::Threads,
    };
    let iothread = |(id, cpus): (u32, Vec<u32>)| config::IoThread {
        id,
        name: format!("iothread{id}"),
        cpus,
        // Those of another VMM, which has told nothing of its threads.
        shares_cpus: true,
        polling: config::Polling { max_ns: arguments.poll_max_ns, ..config::Polling::default() },
        engines: vec![engine],
        ring: config::RingOptions { iopoll: arguments.iopoll, ..config::RingOptions::default() },
    };
    let threads = u32::from(arguments.iothreads);
    ServerConfig {
        socket: arguments.socket.clone(),
        disk: config::Disk {
            read_only: arguments.readonly,
            cache: match arguments.cache {
                CacheWord::None => config::CacheMode::None,
                CacheWord::Directsync => config::CacheMode::Directsync,
                CacheWord::Writeback => config::CacheMode::Writeback,
                CacheWord::Writethrough => config::CacheMode::Writethrough,
                CacheWord::Unsafe => config::CacheMode::Unsafe,
            },
            engine,
            iopoll: arguments.iopoll,
            queue_size: arguments.queue_size,
            // Round robin, as the planner deals them out.
            ..config::Disk::named(
                &id(arguments),
                &arguments.source,
                (0..u32::from(arguments.queues)).map(|queue| queue % threads).collect(),
            )
        },
        iothreads: (0..).zip(arguments.shares()).map(iothread).collect(),
    }
}

/// The guest's serial of the disk: as much of the file's name as there is room for.
fn id(arguments: &VhostUserBlkArguments) -> String {
    let name = arguments.source.file_name().unwrap_or(arguments.source.as_os_str()).to_string_lossy();
    let graphic = name.chars().filter(char::is_ascii_graphic);
    graphic.take(LONGEST_ID).collect()
}

fn listening(config: &ServerConfig) -> String {
    let on = |iothread: &config::IoThread| match iothread.cpus.is_empty() {
        true => iothread.name.clone(),
        false => format!("{} on {}", iothread.name, CpuSet::from_iter(iothread.cpus.iter().copied())),
    };
    let (disk, threads) = (&config.disk, config.iothreads.iter().map(on).collect::<Vec<_>>().join(", "));
    let queues = disk.virtqueues.len();
    format!(
        "listening at {}: {}, {queues} {} of {}; {threads}",
        config.socket.display(),
        disk.path.display(),
        if queues == 1 { "virtqueue" } else { "virtqueues" },
        disk.queue_size,
    )
}

fn told(event: &Event) -> String {
    match event {
        Event::Connected => "a client has connected".to_owned(),
        Event::TurnedAway => "another client was turned away: one at a time".to_owned(),
        Event::Broke { fault } => {
            format!("the client's driver broke the rules: {fault}; it must reset the disk")
        }
        Event::Left { how: Left::ByItself } => "the client has gone".to_owned(),
        Event::Left { how: Left::Refused(reason) } => format!("the client was sent away: {reason}"),
        Event::Left { how: Left::Stopped } => {
            "the client's requests are done, and it was disconnected".to_owned()
        }
    }
}

/// The first signal ends the server in order, the second at once.
fn stop_on_signals(stopper: Stopper, report: Report) -> Result<(), Failure> {
    let failed = |error| Failure::os("signals cannot be watched", error);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let watch = move || {
        let mut asked = false;
        for signal in signals.forever() {
            if std::mem::replace(&mut asked, true) {
                std::process::exit(128 + signal);
            }
            report.notice("stopping: requests that were begun end first; once more ends at once");
            stopper.stop();
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch).map(drop).map_err(failed)
}

fn not_started(error: ServerError) -> Failure {
    let (kind, code, help) = match &error {
        ServerError::Socket(error) => (Kind::Failure, "vmprof::vhost_user::socket", socket_help(error)),
        ServerError::Disk(DiskError::EngineNotHere { .. } | DiskError::NoDirect { .. }) => {
            (Kind::HostCannot, NOT_STARTED, "--aio and --cache choose another way to the disk")
        }
        ServerError::Disk(DiskError::NoPollQueues { .. }) => {
            (Kind::HostCannot, NOT_STARTED, crate::up::POLL_QUEUES)
        }
        ServerError::Disk(
            DiskError::NoDriveBelow { .. } | DiskError::IopollRing { .. } | DiskError::Iopoll { .. },
        ) => (
            Kind::HostCannot,
            NOT_STARTED,
            "put the disk on such a drive, as a device or on ext4 or XFS; or leave --iopoll out",
        ),
        ServerError::Disk(DiskError::InUse { .. }) => (
            Kind::Failure,
            NOT_STARTED,
            "`vmprof ps` lists this user's running VMs; another server may have it too",
        ),
        ServerError::IoThread(_) => {
            (Kind::HostCannot, NOT_STARTED, "`vmprof host` lists the CPUs; a cgroup's cpuset may allow fewer")
        }
        _ => (Kind::Failure, NOT_STARTED, ""),
    };
    Failure::caused(kind, code, error, help)
}

const NOT_STARTED: &str = "vmprof::vhost_user::not_started";

fn socket_help(error: &SocketError) -> &'static str {
    match error {
        SocketError::TooLong { .. } => "change to its directory and name it by a shorter path",
        SocketError::NoSocket { .. } => "nothing was changed: name a path that is free",
        SocketError::InUse { .. } => "stop that server, or name another path",
        SocketError::NoDirectory { .. } => "make the directory first",
        SocketError::Bind { .. } => "",
    }
}
