//! Benchmark (b): `vmprof vhost-user-blk` against qemu-storage-daemon in each of its good configurations, with one client for
//! both, and fio on the same file as the limit. Each measurement has a server of its own, fresh, pinned to the same CPU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmprof_sys::affinity;

use crate::disk::Disk;
use crate::error::{Doing as _, Error};
use crate::host;
use crate::measure::{Measurement, Ratio, SPOILT, Stolen, Summary, chosen};
use crate::point::{Point, Workload};
use crate::report::Verdict;
use crate::rounds::Turn;
use crate::settings::{POLL_MAX_NS, Servers, Settings};
use crate::usage::Whose;

mod connection;
mod fio;
mod server;
mod syscalls;

use server::Server;

const LEAST_QEMU: u32 = 10;

/// The programs that take part.
#[derive(Debug)]
pub struct Tools {
    vmprof: PathBuf,
    daemon: PathBuf,
    fio: Option<PathBuf>,
    perf: Option<PathBuf>,
}

impl Tools {
    /// Says what is missing before anything is measured.
    pub fn find(servers: &Servers) -> Result<Tools, Error> {
        let beside = std::env::current_exe().ok().map(|own| own.with_file_name("vmprof"));
        let vmprof = match &servers.vmprof {
            Some(path) => host::find(path),
            None => beside.filter(|path| path.is_file()).or_else(|| host::find(Path::new("vmprof"))),
        };
        let vmprof = vmprof.ok_or_else(|| Error::Missing {
            tool: "vmprof",
            hint: "build it with `cargo build --release --package vmprof`, or name it with --vmprof"
                .to_owned(),
        })?;
        let daemon = host::find(&servers.qemu_storage_daemon).ok_or_else(|| Error::Missing {
            tool: "qemu-storage-daemon",
            hint: "Debian has it in qemu-utils (10 or newer: trixie, or backports); name it with --qemu-storage-daemon"
                .to_owned(),
        })?;
        let found = host::version(&daemon).unwrap_or_default();
        if host::major(&found).is_none_or(|major| major < LEAST_QEMU) {
            let option = "--qemu-storage-daemon";
            return Err(Error::TooOld { path: daemon, found, least: LEAST_QEMU, option });
        }
        let fio = host::find(&servers.fio);
        if fio.is_none() {
            eprintln!("fio is not here: the tables have no limit to compare with");
        }
        let perf = host::find(&servers.perf);
        if perf.is_none() {
            eprintln!("perf is not here: the servers' system calls are not counted");
        }
        Ok(Tools { vmprof, daemon, fio, perf })
    }

    pub fn versions(&self) -> BTreeMap<String, String> {
        let named = [
            ("vmprof", Some(&self.vmprof)),
            ("qemu-storage-daemon", Some(&self.daemon)),
            ("fio", self.fio.as_ref()),
        ];
        let version = |(name, path): (&str, Option<&PathBuf>)| Some((name.to_owned(), host::version(path?)?));
        named.into_iter().filter_map(version).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Vmprof { poll_max_ns: u64 },
    Daemon { aio: &'static str, poll_max_ns: u64 },
    Fio,
}

const SUBJECTS: [Subject; 7] = [
    Subject::Daemon { aio: "io_uring", poll_max_ns: 0 },
    Subject::Daemon { aio: "io_uring", poll_max_ns: POLL_MAX_NS },
    Subject::Daemon { aio: "native", poll_max_ns: 0 },
    Subject::Daemon { aio: "native", poll_max_ns: POLL_MAX_NS },
    Subject::Vmprof { poll_max_ns: 0 },
    Subject::Vmprof { poll_max_ns: POLL_MAX_NS },
    Subject::Fio,
];

impl Subject {
    fn name(self) -> String {
        let poll = |ns: u64| if ns == 0 { String::new() } else { format!(", poll {ns}") };
        match self {
            Subject::Vmprof { poll_max_ns } => format!("vmprof{}", poll(poll_max_ns)),
            Subject::Daemon { aio, poll_max_ns } => format!("daemon {aio}{}", poll(poll_max_ns)),
            Subject::Fio => fio::NAME.to_owned(),
        }
    }

    fn is_ours(self) -> bool {
        matches!(self, Subject::Vmprof { .. })
    }

    fn is_daemon(self) -> bool {
        matches!(self, Subject::Daemon { .. })
    }
}

#[derive(Debug)]
pub struct Bench<'run> {
    settings: &'run Settings,
    tools: &'run Tools,
    disk: Disk,
    subjects: Vec<Subject>,
    points: Vec<Point>,
}

impl<'run> Bench<'run> {
    pub fn new(settings: &'run Settings, servers: &Servers, tools: &'run Tools) -> Result<Self, Error> {
        let queues = servers.queues.clone().unwrap_or(if settings.quick { vec![1] } else { vec![1, 2] });
        let workloads = servers.workloads.clone().unwrap_or(match settings.quick {
            true => vec![Workload::RandRead],
            false => Workload::ALL.to_vec(),
        });
        let mut points = Vec::new();
        for &workload in &workloads {
            for &queues in &queues {
                points.extend(settings.depths.iter().map(|&depth| Point { workload, queues, depth }));
            }
        }
        let wanted =
            |subject: &Subject| servers.only.as_ref().is_none_or(|text| subject.name().contains(text));
        let subjects: Vec<Subject> = SUBJECTS.into_iter().filter(wanted).collect();
        if subjects.is_empty() {
            let names = SUBJECTS.map(|subject| format!("`{}`", subject.name())).join(", ");
            return Err(Error::Asked(format!("--only leaves no subject of {names}")));
        }
        let disk = Disk::prepare(&settings.file, settings.area_bytes)?;
        Ok(Bench { settings, tools, disk, subjects, points })
    }

    pub fn subjects(&self) -> &[Subject] {
        &self.subjects
    }

    pub fn points(&self) -> &[Point] {
        &self.points
    }

    pub fn measure(&self, turn: &Turn<'_, Subject>) -> Result<Option<Measurement>, Error> {
        let Turn { subject, point, round, seed } = *turn;
        let (name, settings) = (subject.name(), self.settings);
        if *subject == Subject::Fio {
            // fio has no queues: it is measured where there is one.
            return match point.queues {
                1 => self
                    .pin_client()
                    .and_then(|()| fio::measure(self.tools, settings, &self.disk, point, round, seed)),
                _ => Ok(None),
            };
        }
        let stolen = Stolen::from_now(&[settings.server_cpu, settings.client_cpu]);
        let mut server = self.start(*subject, point)?;
        let whose = Whose::Process(server.pid());
        self.pin_client()?;
        let connection = server.connect(point.queues, data_bytes(point))?;
        let load = settings.load(point, self.disk.area_bytes, seed);
        let run = connection.drive(settings.spin, |client| client.run(&load, whose))?;
        if run.wrong > 0 {
            return Err(Error::WrongData { subject: name, failed: run.wrong });
        }
        Ok(Some(Measurement::of_client(&name, point, round, &run, stolen.until_now())))
    }

    /// Fills in what perf counts, where it is there: a pass over every subject and point.
    pub fn count_syscalls(&self, all: &mut [Measurement]) -> Result<(), Error> {
        let Some(perf) = &self.tools.perf else { return Ok(()) };
        let window = Settings { seconds: self.settings.seconds.min(0.3), ..self.settings.clone() };
        for &point in &self.points {
            for subject in self.subjects.iter().filter(|subject| **subject != Subject::Fio) {
                let name = subject.name();
                let mut server = self.start(*subject, point)?;
                let whose = Whose::Process(server.pid());
                self.pin_client()?;
                let connection = server.connect(point.queues, data_bytes(point))?;
                let load = window.load(point, self.disk.area_bytes, 1);
                let (requests, counted) = connection.drive(self.settings.spin, |client| {
                    syscalls::count(perf, server.pid(), || {
                        client.run(&load, whose)?;
                        Ok(client.requests())
                    })
                })?;
                let Some(counted) = counted else {
                    eprintln!("perf may not count system calls here: they are left out");
                    return Ok(());
                };
                let own = all.iter_mut().filter(|one| one.subject == name && one.point == point);
                own.for_each(|one| one.syscalls = Some(counted as f64 / requests.max(1) as f64));
            }
        }
        Ok(())
    }

    fn pin_client(&self) -> Result<(), Error> {
        let cpu = self.settings.client_cpu;
        affinity::pin_current_thread(&[cpu]).doing(|| format!("the client may not run on CPU {cpu}"))
    }

    fn start(&self, subject: Subject, point: Point) -> Result<Server, Error> {
        let command = |socket: &Path| match subject {
            Subject::Vmprof { poll_max_ns } => self.vmprof(socket, point, poll_max_ns),
            Subject::Daemon { aio, poll_max_ns } => self.daemon(socket, point, aio, poll_max_ns),
            Subject::Fio => unreachable!("fio is no server"),
        };
        Server::start(&subject.name(), self.settings.server_cpu, command)
    }

    fn vmprof(&self, socket: &Path, point: Point, poll_max_ns: u64) -> Command {
        let mut command = Command::new(&self.tools.vmprof);
        command.arg("vhost-user-blk").arg("--socket").arg(socket).arg("--source").arg(&self.disk.path);
        command.args(["--cache", "none", "--aio", "io_uring", "--iothreads", "1"]);
        command.arg(format!("--queues={}", point.queues)).arg(format!("--poll-max-ns={poll_max_ns}"));
        command.arg(format!("--queue-size={}", crate::client::QUEUE_SIZE));
        command.arg(format!("--cpus={}", self.settings.server_cpu));
        command
    }

    fn daemon(&self, socket: &Path, point: Point, aio: &str, poll_max_ns: u64) -> Command {
        let mut command = Command::new(&self.tools.daemon);
        // A comma ends a value; doubled it is one.
        let path = |path: &Path| path.display().to_string().replace(',', ",,");
        command.arg("--object").arg(format!("iothread,id=iothread0,poll-max-ns={poll_max_ns}"));
        command.arg("--blockdev").arg(format!(
            "driver=file,node-name=disk,filename={},cache.direct=on,aio={aio}",
            path(&self.disk.path)
        ));
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,iothread=iothread0,writable=on,num-queues={},\
             addr.type=unix,addr.path={}",
            point.queues,
            path(socket)
        ));
        command
    }

    pub fn summaries(&self, all: &[Measurement]) -> Vec<Summary> {
        let of_point = |&point: &Point| {
            self.subjects.iter().filter_map(move |subject| Summary::of(&subject.name(), point, all))
        };
        self.points.iter().flat_map(of_point).collect()
    }

    /// The project's targets at every point, each figure against the daemon's best of that figure.
    pub fn verdicts(&self, all: &[Measurement]) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for &point in &self.points {
            let (iops, cpu) = asked(point.depth);
            for ours in self.subjects.iter().filter(|subject| subject.is_ours()).map(|ours| ours.name()) {
                let mut add = |theirs: Option<String>, there, what, value: Value, least, most| {
                    let Some(against) = theirs else { return };
                    if let Some(ratio) = Ratio::of(all, (&ours, point), (&against, there), value) {
                        let ours = ours.clone();
                        verdicts.push(Verdict { point, ours, against, what, ratio, least, most });
                    }
                };
                let most_iops = self.best(all, point, |one| Some(-one.iops));
                add(most_iops, point, "IOPS / daemon's", |one| Some(one.iops), Some(iops), None);
                let least_cpu = self.best(all, point, |one| Some(one.cpu_us));
                add(least_cpu, point, "CPU / daemon's", |one| Some(one.cpu_us), None, Some(cpu));
                let least_p99 = self.best(all, point, |one| one.p99_us);
                add(least_p99, point, "p99 / daemon's", |one| one.p99_us, None, Some(1.0));
                if point.depth >= 32 {
                    let (limit, there) = (Some(fio::NAME.to_owned()), Point { queues: 1, ..point });
                    add(limit, there, "IOPS / fio's", |one| Some(one.iops), Some(0.9), None);
                }
                if point.queues > 1 {
                    let (one_queue, there) = (Some(ours.clone()), Point { queues: 1, ..point });
                    add(one_queue, there, "IOPS / one queue's", |one| Some(one.iops), Some(1.0), None);
                }
            }
        }
        verdicts
    }

    /// The daemon's configuration with the least median of `value`.
    fn best(&self, all: &[Measurement], point: Point, value: Value) -> Option<String> {
        let median = |name: &String| {
            let own: Vec<&Measurement> =
                all.iter().filter(|one| one.subject == *name && one.point == point).collect();
            let (taken, _) = chosen(&own, |one| one.disturbed > SPOILT);
            crate::measure::Middle::of(taken.into_iter().filter_map(|one| value(one)))
                .map(|middle| middle.median)
        };
        let daemons = self.subjects.iter().filter(|subject| subject.is_daemon()).map(|daemon| daemon.name());
        let medians = daemons.filter_map(|name| median(&name).map(|median| (median, name)));
        medians.min_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, name)| name)
    }
}

type Value = fn(&Measurement) -> Option<f64>;

/// Times the daemon's IOPS at least, and times its CPU per request at most.
fn asked(depth: u32) -> (f64, f64) {
    match depth {
        ..32 => (1.2, 0.75),
        32..128 => (1.25, 0.8),
        128.. => (1.15, 0.8),
    }
}

fn data_bytes(point: Point) -> usize {
    point.depth as usize * point.workload.bytes() as usize
}
