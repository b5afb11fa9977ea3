//! Benchmark (a): an IOThread with its virtio-blk device, against what an ordinary VMM does ([`epoll_loop`]) and against
//! reading the file with nothing around it ([`bare`]). One process: the served side on one CPU, the driver on another.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vmprof_sys::affinity;
use vmprof_vmm::config::{self, Polling};
use vmprof_vmm::iothread::{Change, IoThread};
use vmprof_vmm::thread;
use vmprof_vmm::virtio::blk::Blk;
use vmprof_vmm::virtio::device::VirtioDevice as _;

use crate::client::{Client, EVENT_IDX, FLUSH, Load, QUEUE_SIZE, Run, VERSION_1};
use crate::disk::Disk;
use crate::error::{Doing as _, Error};
use crate::measure::{Counted, Measurement, Ratio, Stolen, Summary};
use crate::point::{Point, Workload};
use crate::report::Verdict;
use crate::rounds::Turn;
use crate::settings::{POLL_MAX_NS, Settings};
use crate::usage::{Usage, Whose};

mod bare;
mod driver;
mod epoll_loop;
mod rig;

use epoll_loop::{EpollLoop, Shared};
use rig::Rig;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    IoThread {
        poll_max_ns: u64,
        /// Whether it takes the times of its requests.
        timed: bool,
    },
    Epoll,
    Bare,
}

const PLAIN: Subject = Subject::IoThread { poll_max_ns: 0, timed: false };
const TIMED: Subject = Subject::IoThread { poll_max_ns: 0, timed: true };

pub const SUBJECTS: [Subject; 5] = [
    PLAIN,
    Subject::IoThread { poll_max_ns: POLL_MAX_NS, timed: false },
    TIMED,
    Subject::Epoll,
    Subject::Bare,
];

impl Subject {
    pub fn name(self) -> String {
        match self {
            Subject::IoThread { timed: true, .. } => "IOThread, timed".to_owned(),
            Subject::IoThread { poll_max_ns: 0, .. } => "IOThread".to_owned(),
            Subject::IoThread { poll_max_ns, .. } => format!("IOThread, poll {poll_max_ns}"),
            Subject::Epoll => "epoll loop".to_owned(),
            Subject::Bare => "bare io_uring".to_owned(),
        }
    }
}

pub fn points(settings: &Settings) -> Vec<Point> {
    let point = |&depth: &u32| Point { workload: Workload::RandRead, queues: 1, depth };
    settings.depths.iter().map(point).collect()
}

/// What a loop counted of itself.
#[derive(Debug)]
pub struct Tally {
    requests: u64,
    wall: std::time::Duration,
    server: Usage,
    syscalls: u64,
    wrong: u64,
}

pub fn measure(
    settings: &Settings,
    disk: &Disk,
    turn: &Turn<'_, Subject>,
) -> Result<Option<Measurement>, Error> {
    let Turn { subject, point, round, seed } = *turn;
    let (name, load) = (subject.name(), settings.load(point, disk.area_bytes, seed));
    let stolen = Stolen::from_now(&[settings.server_cpu, settings.client_cpu]);
    let rig = Rig::new(point.depth as usize * point.workload.bytes() as usize)?;
    let (mut measurement, wrong) = match subject {
        Subject::Bare => {
            let tally = bare(settings, disk, &rig, &load)?;
            let waited_ns = 0;
            let counted =
                Counted { requests: tally.requests, wall: tally.wall, server: tally.server, waited_ns };
            let mut made = Measurement::new(&name, point, round, &counted, stolen.until_now());
            made.syscalls = Some(tally.syscalls as f64 / tally.requests.max(1) as f64);
            (made, tally.wrong)
        }
        Subject::IoThread { poll_max_ns, timed } => {
            let (run, syscalls) = iothread(settings, disk, &rig, &load, *poll_max_ns, *timed)?;
            let mut made = Measurement::of_client(&name, point, round, &run, stolen.until_now());
            made.syscalls = Some(syscalls);
            (made, run.wrong)
        }
        Subject::Epoll => {
            let (run, syscalls) = epoll(settings, disk, &rig, &load)?;
            let mut made = Measurement::of_client(&name, point, round, &run, stolen.until_now());
            made.syscalls = Some(syscalls);
            (made, run.wrong)
        }
    };
    if wrong > 0 {
        return Err(Error::WrongData { subject: name, failed: wrong });
    }
    measurement.round = round;
    Ok(Some(measurement))
}

/// The served side and the driver, with the driver on the calling thread. `syscalls` reads what the served side counted.
fn drive(
    settings: &Settings,
    rig: &Rig,
    load: &Load,
    syscalls: impl Fn() -> u64,
) -> Result<(Run, f64), Error> {
    affinity::pin_current_thread(&[settings.client_cpu])
        .doing(|| format!("the client may not run on CPU {}", settings.client_cpu))?;
    let mut client = Client::new(vec![rig.driver_end(load.workload.bytes())?], rig.data()?, settings.spin)?;
    // Counted over the whole run, warming up included: per request it is the same.
    let before = (syscalls(), client.requests());
    let run = client.run(load, Whose::RestOfUs)?;
    let requests = (client.requests() - before.1).max(1);
    Ok((run, (syscalls() - before.0) as f64 / requests as f64))
}

fn iothread(
    settings: &Settings,
    disk: &Disk,
    rig: &Rig,
    load: &Load,
    poll_max_ns: u64,
    timed: bool,
) -> Result<(Run, f64), Error> {
    let refused = |error: &dyn std::error::Error| Error::Asked(error.to_string());
    let polling = Polling { max_ns: poll_max_ns, ..Polling::default() };
    let cpus = vec![settings.server_cpu];
    let iothread = config::IoThread { cpus, polling, ..config::IoThread::named(0, "iothread0") };
    let iothread = IoThread::spawn(&iothread).map_err(|error| refused(&error))?;
    let change = Change { latency: Some(timed), ..Change::default() };
    iothread.change(change).map_err(|error| refused(&error))?;
    let disk = config::Disk {
        read_only: true,
        queue_size: QUEUE_SIZE,
        ..config::Disk::named("bench", &disk.path, vec![0])
    };
    let mut blk = Blk::new(&disk, std::slice::from_ref(&iothread)).map_err(|error| refused(&error))?;
    blk.activate(VERSION_1 | EVENT_IDX | FLUSH, vec![rig.device_end()?]).map_err(|error| refused(&error))?;
    let stats = blk.stats();
    // Its own calls of io_uring_enter, and a write of the interrupt's eventfd each.
    let syscalls = || {
        let interrupts: u64 = stats.snapshot().virtqueues.iter().map(|queue| queue.interrupts).sum();
        iothread.snapshot().enters + interrupts
    };
    let outcome = drive(settings, rig, load, syscalls);
    blk.reset();
    outcome
}

fn epoll(settings: &Settings, disk: &Disk, rig: &Rig, load: &Load) -> Result<(Run, f64), Error> {
    let (queue, bell) = (rig.device_end()?, rig.doorbell()?);
    let shared = Arc::new(Shared::default());
    let (file, ram, seen) = (open(disk)?, Arc::clone(rig.ram()), Arc::clone(&shared));
    let looping = thread::spawn("epoll loop", &[settings.server_cpu], move || {
        EpollLoop::new(ram, queue, file, seen).and_then(EpollLoop::run)
    })
    .map_err(|error| Error::Asked(error.to_string()))?;
    let outcome = drive(settings, rig, load, || shared.syscalls.load(Ordering::Relaxed));
    shared.stop.store(true, Ordering::Release);
    bell.write(1).doing(|| "the epoll loop could not be woken".to_owned())?;
    looping.join().map_err(Error::Asked)??;
    outcome
}

fn bare(settings: &Settings, disk: &Disk, rig: &Rig, load: &Load) -> Result<Tally, Error> {
    let file = open(disk)?;
    std::thread::scope(|scope| {
        let body = || {
            affinity::pin_current_thread(&[settings.server_cpu])
                .doing(|| format!("the bare loop may not run on CPU {}", settings.server_cpu))?;
            bare::run(file, rig, load)
        };
        scope.spawn(body).join().map_err(|_| Error::Asked("the bare loop panicked".to_owned()))?
    })
}

fn open(disk: &Disk) -> Result<File, Error> {
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    let opened = File::options().read(true).custom_flags(direct).open(&disk.path);
    opened.doing(|| format!("{} could not be opened with O_DIRECT", disk.path.display()))
}

/// What taking times costs, which has no target;
/// IOPS within 5 % of the bare loop at depth 32 and 128; at least 20 % less CPU per request than the epoll loop.
pub fn verdicts(all: &[Measurement], points: &[Point]) -> Vec<Verdict> {
    let ours =
        SUBJECTS.into_iter().filter(|subject| matches!(subject, Subject::IoThread { timed: false, .. }));
    let mut verdicts = Vec::new();
    for &point in points {
        let (ours, against) = (TIMED.name(), PLAIN.name());
        let ratio = Ratio::of(all, (&ours, point), (&against, point), |one| Some(one.cpu_us));
        let verdict =
            |ratio| Verdict { point, ours, against, what: "CPU / untimed", ratio, least: None, most: None };
        verdicts.extend(ratio.map(verdict));
    }
    for ours in ours.map(Subject::name) {
        for &point in points {
            let mut add = |theirs: Subject, what, value: fn(&Measurement) -> f64, least, most| {
                let theirs = theirs.name();
                let ratio = Ratio::of(all, (&ours, point), (&theirs, point), |one| Some(value(one)));
                let (ours, against) = (ours.clone(), theirs);
                verdicts.extend(ratio.map(|ratio| Verdict {
                    point,
                    ours,
                    against,
                    what,
                    ratio,
                    least,
                    most,
                }));
            };
            if point.depth >= 32 {
                add(Subject::Bare, "IOPS / bare", |one| one.iops, Some(0.95), None);
            }
            add(Subject::Epoll, "CPU / epoll", |one| one.cpu_us, None, Some(0.8));
        }
    }
    verdicts
}

pub fn summaries(all: &[Measurement], points: &[Point]) -> Vec<Summary> {
    let of_point = |&point: &Point| {
        SUBJECTS.into_iter().filter_map(move |subject| Summary::of(&subject.name(), point, all))
    };
    points.iter().flat_map(of_point).collect()
}
