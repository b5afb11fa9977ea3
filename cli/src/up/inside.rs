//! `up` in the lab: the same `up`, run by the vmprof inside an emulated KVM host.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use serde_json::Value;
use signal_hook::consts::{SIGTERM, SIGUSR1, SIGUSR2};
use vmprof_guests::{RootImage, Store, append_archive, emulator, lab_host};
use vmprof_job::{
    Bytes, Command, DeviceLink, Ended, Init, JOB_PATH, JOB_SCHEMA, Job, Root, Streams, ToGuest,
};
use vmprof_profiles::{DiskSource, Profile};
use vmprof_vmm::vhost_user::VsockServer;

use super::nets;
use super::{BootImage, Guest, Patience, Upping, promises, sources};
use crate::failure::{Failure, Kind};
use crate::lab::{Drive, EmulatedHost, Inside, Media, Shape, Start, pack};
use crate::lower::{ROOT_SERIAL, milliseconds};
use crate::progress::Stages;
use crate::run::artifacts::Artifact;
use crate::run::channels;
use crate::run::control::{self, Answer, Answers, Request};
use crate::run::conversation::{Event, Manners};
use crate::run::record::{self, DiskInUse, Kept, OwnRecord, Run, State};
use crate::run::relay;
use crate::run::sockets::{self, VSOCK};
use crate::run::status::Status;
use crate::run::supervise::{Input, Supervision};
use crate::run::terminal::{self, RawTerminal};
use crate::run::verdict::{MachineEnd, Ran};

/// How long an emulated host may take to its first word, on a machine with other work to do.
const HELLO_WITHIN: Duration = Duration::from_secs(180);
/// How long an emulated host may be silent before it counts as stalled.
const SILENCE: Duration = Duration::from_secs(120);

pub fn up(upping: &Upping) -> Result<u8, Failure> {
    let report = upping.report;
    promises::in_the_lab(&upping.profile)?;
    let shape = &upping.arguments.lab;
    let directory = upping.places.disks_of(&upping.profile.name);
    let paths = sources::paths(&upping.profile, &directory);

    let store = Store::open(&upping.places.store)?;
    let dry = upping.arguments.dry_run;
    let guest = if dry { None } else { Some(upping.guest(&store)?) };
    let patience =
        guest.as_ref().map_or(Patience::without_guest(), |guest| Patience::with(&guest.image.conduct));
    let stages = Stages::new(report);
    let builder = upping.builder(&store, &stages);
    let using = store.using()?;
    let host = lab_host(&builder).map_err(in_the_lab)?;
    let emulator = emulator::find(&builder).map_err(in_the_lab)?;
    let of_the_lab = [&host.kernel, &host.initramfs].into_iter().map(PathBuf::as_path);
    let _held = using.hold(&upping.name, of_the_lab.chain(emulator.argv.iter().map(Path::new)))?;
    drop(using);

    let claimed = if dry { None } else { Some(claim(upping, &paths)?) };
    // Before anything boots: a port may be in use.
    let passts = match dry {
        true => Vec::new(),
        false => nets::passts(&nets::of_profile(&upping.name, &upping.profile), &builder)?,
    };
    // Made here and not inside, where the copy would be in memory: it hangs from the emulated host as a drive to write to.
    let (image, _private_root) = match guest {
        Some(Guest { image, .. }) => {
            let (image, copy) = image.with_private_root(&upping.places, &upping.name)?;
            (Some(image), copy)
        }
        None => (None, None),
    };

    let (artifacts_inside, artifacts) = upping.artifacts()?.by_way_of(Inside::ARTIFACTS.as_ref());
    let job = job(upping, &paths, image.as_ref(), patience, &artifacts_inside);
    let archive = archive(upping, image.as_ref(), &job)?;
    let initramfs = pack(&host.initramfs, &archive)?;
    drop(archive);
    let no_channels = |error| Failure::os("the channels to the lab cannot be opened", error);
    let (ours, mut ports) = channels::open().map_err(no_channels)?;
    let (state_inside, its_end) = relay::open().map_err(no_channels)?;
    ports.push(its_end);
    report.notice(format_args!(
        "the lab: {} CPUs on {}, emulated by QEMU {}",
        shape.cpus(),
        match shape.nodes.len() {
            1 => "one node".to_owned(),
            nodes => format!("{nodes} nodes"),
        },
        emulator.version
    ));
    if let Some(detached) = &upping.detached {
        detached.begin_log().map_err(|error| Failure::os("the log cannot be begun", error))?;
    }
    let drives = drives(upping, &paths, image.as_ref(), shape);
    let (kernel, poll_queues) = (host.kernel.clone(), upping.profile.disks.iter().any(|disk| disk.iopoll));
    let raw = match upping.arguments.console {
        true => RawTerminal::take().map_err(|error| Failure::os("the terminal cannot be made raw", error))?,
        false => None,
    };
    let (vsock, its_vsock) = match &claimed {
        Some(Claimed { own, .. }) => {
            let listener = sockets::listen(own.directory(), VSOCK).map_err(no_channels)?;
            let (ours, theirs) = UnixStream::pair().map_err(no_channels)?;
            (Some((ours, listener)), Some(theirs.into()))
        }
        // Nobody reaches a host that only plans.
        None => (None, None),
    };
    let started = Instant::now();
    let machine = EmulatedHost::start(Start {
        emulator: &emulator.argv,
        shape,
        kernel,
        initramfs,
        drives,
        poll_queues,
        ports,
        vsock: its_vsock,
    })?;
    // Its guest is the emulated host; that of the VM is reached by way of it.
    let vsock = vsock.map(|(client, listener)| VsockServer::start(client, listener)).transpose();
    let _vsock = vsock.map_err(|error| Failure::caused(Kind::Lab, "vmprof::lab::prepare", error, ""))?;
    let manners = Manners {
        interrupt: ToGuest::Signal { number: SIGTERM },
        clean_stop: ToGuest::Signal { number: SIGUSR1 },
        // Not SIGPIPE, which the vmprof inside gets for much else.
        reader_gone: ToGuest::Signal { number: SIGUSR2 },
        grace: patience.lab,
        last_word: patience.last_word,
        timeout: upping.arguments.timeout,
        hello_within: Some(HELLO_WITHIN),
        silence: Some(SILENCE),
    };
    let mut supervision = Supervision::new(manners, artifacts.collector(&upping.name)?);
    relay::listen(state_inside, supervision.events.clone()).map_err(no_channels)?;
    let _carried = nets::lab::carry_all(passts, &upping.places, &upping.name, &supervision.events)
        .map_err(no_channels)?;
    if let Some(Claimed { own, kept, .. }) = &claimed {
        let (name, kept) = (upping.name.clone(), kept.clone());
        let answers = Forwarded { name, kept, events: supervision.events.clone() };
        control::serve(own.directory(), Arc::new(answers))
            .map_err(|error| Failure::os("the control socket cannot be opened", error))?;
    }

    let input = match (upping.arguments.console, upping.with_command()) {
        (true, _) if raw.is_some() => Input::Keys,
        // What a console gets at the end of a file, the vmprof inside knows.
        (true, _) | (false, true) => Input::Stdin,
        (false, false) => Input::Nothing,
    };
    let (handle, words) = (machine.handle(), machine.handle());
    let wait = || {
        // An emulator that cannot be waited for is gone as far as we can tell; what it said goes with it.
        let _ = machine.wait();
        MachineEnd::LabGone(words.last_words())
    };
    let ran = Ran::Inside { with_command: upping.with_command() };
    let kept = claimed.as_ref().map(|claimed| claimed.kept.clone());
    let telling = upping.telling(ran, image.as_ref());
    let tell = telling.teller(report, kept, upping.detached.clone(), raw.is_some());
    let mut tell = tell.map_err(|error| Failure::os("the events cannot be written", error))?;
    let outcome = supervision
        .run(ours, input, started, move || handle.kill(), wait, &mut tell)
        .map_err(|error| Failure::os("the lab cannot be supervised", error))?;
    drop(raw);
    if let Some(up_after) = outcome.account.hello_after {
        let (up_after, all) = (up_after.as_secs_f64(), started.elapsed().as_secs_f64());
        report.notice(format_args!("the lab was up after {up_after:.1} s and ran {all:.1} s"));
    }
    Ok(telling.conclude(report, &outcome))
}

/// What this run has to itself, to its end.
struct Claimed {
    own: OwnRecord,
    kept: Kept,
    /// The emulator's own locks do not say who has the disk.
    _locks: Vec<File>,
}

/// Makes the disks that are missing, and takes them and the name.
fn claim(upping: &Upping, paths: &[PathBuf]) -> Result<Claimed, Failure> {
    let disks = sources::make(&upping.profile, paths)?;
    let own = OwnRecord::claim(&upping.places, &upping.name)?;
    record::refuse_shared_disks(&upping.places, &disks)?;
    let in_use = nets::in_use(&nets::of_profile(&upping.name, &upping.profile));
    record::refuse_shared_nets(&upping.places, &upping.name, &in_use)?;
    let run = Run::new(&upping.name, &upping.path, "lab", String::new(), disks.clone()).with_nets(in_use);
    let kept = Kept::new(own.write(run)?);
    let locks = lock_all(upping, paths, &disks)?;
    Ok(Claimed { own, kept, _locks: locks })
}

/// A failure to make the lab is the lab's, unless it is a wrong hash.
fn in_the_lab(error: vmprof_guests::GuestError) -> Failure {
    let failure = Failure::from(error);
    match failure.kind {
        Kind::Failure | Kind::Invalid => Failure { kind: Kind::Lab, ..failure },
        _ => failure,
    }
}

/// What the emulated host's first process shall do: run the inner `up`, with its disks where the profile has them.
fn job(
    upping: &Upping,
    paths: &[PathBuf],
    image: Option<&BootImage>,
    patience: Patience,
    artifacts: &[Artifact],
) -> Job {
    let arguments = &upping.arguments;
    let mut argv: Vec<Bytes> = [Inside::VMPROF, "up", "--on", "kvm"].map(Into::into).into();
    match image {
        Some(_) => argv.extend(["--image", Inside::IMAGE].map(Bytes::from)),
        None => argv.push("--dry-run".into()),
    }
    argv.extend(["--name".into(), upping.name.as_str().into()]);
    for (word, is_asked_for) in [("--console", arguments.console), ("--no-reboot", arguments.no_reboot)] {
        if is_asked_for {
            argv.push(word.into());
        }
    }
    for Artifact { from, into, .. } in artifacts {
        let both = [from.as_os_str().as_bytes(), into.as_os_str().as_bytes()].join(&b'=');
        argv.extend(["--artifact".into(), both.as_slice().into()]);
    }
    argv.push(Inside::file(&upping.path).as_str().into());
    // The emulated host is the one that it was made for: the vmprof inside sees whether it still is.
    if upping.saved.is_some() {
        argv.extend(["--plan", Inside::PLAN].map(Bytes::from));
    }
    if upping.with_command() {
        argv.push("--".into());
        argv.extend(arguments.command.iter().map(|word| bytes(word)));
    }
    let link = |path: &Path, serial: &str| DeviceLink {
        path: path.to_string_lossy().into_owned(),
        serial: serial.to_owned(),
    };
    let mut links: Vec<DeviceLink> = upping
        .profile
        .disks
        .iter()
        .zip(paths)
        .map(|(disk, outside)| link(&path_inside(&upping.profile, &disk.source, outside), &disk.name.value))
        .collect();
    if image.is_some_and(|image| image.root.is_some()) {
        links.push(link(Inside::ROOT.as_ref(), ROOT_SERIAL));
    }
    let (rows, columns) = terminal::size();
    let mut env: Vec<(String, String)> = [
        ("PATH", "/usr/bin:/bin"),
        ("HOME", "/root"),
        ("VMPROF_STORE", Inside::STORE),
        ("VMPROF_STATE", Inside::STATE),
        ("VMPROF_RUNTIME", Inside::RUNTIME),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    env.push(("LINES".into(), rows.to_string()));
    env.push(("COLUMNS".into(), columns.to_string()));
    env.extend(
        ["TERM", "NO_COLOR"].iter().filter_map(|name| Some((name.to_string(), std::env::var(name).ok()?))),
    );
    Job {
        schema: JOB_SCHEMA.to_owned(),
        hostname: "lab".to_owned(),
        online_cpus: true,
        root: Root::Initramfs,
        disks: links
            .iter()
            .map(|link| vmprof_job::Disk {
                name: link.serial.clone(),
                serial: link.serial.clone(),
                scheduler: None,
                format: None,
            })
            .collect(),
        links,
        nets: Vec::new(),
        sysctl: Vec::new(),
        mounts: Vec::new(),
        init: Init::Vmprof,
        services: Vec::new(),
        // The inner `up` stops its own guest first; its clean stop is asked of it alone.
        stop_within_ms: milliseconds(patience.lab),
        command: Some(Command {
            argv,
            env: env.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect(),
            directory: "/".to_owned(),
            streams: Streams::Ports,
        }),
    }
}

fn bytes(word: &OsStr) -> Bytes {
    word.as_bytes().into()
}

/// Where the inner `up` will look for the source that lies at `outside` here.
fn path_inside(profile: &Profile, source: &DiskSource, outside: &Path) -> PathBuf {
    match source {
        DiskSource::File { path, .. } if Path::new(path).is_relative() => {
            Path::new(Inside::STATE).join("disks").join(&profile.name).join(path)
        }
        _ => outside.to_owned(),
    }
}

/// What the profile was read from, each file with its place inside: its own, and those that it extends.
fn texts(upping: &Upping) -> impl Iterator<Item = (String, Vec<u8>)> {
    upping.profile.source().files().iter().enumerate().map(|(position, file)| {
        let outside = match position {
            0 => upping.path.clone(),
            // Its path leads from the directory of the profile's own.
            _ => upping.path.with_file_name(file.path.as_ref()),
        };
        (Inside::file(&outside), file.text.as_bytes().to_vec())
    })
}

/// Everything the emulated host needs besides its own boot files.
fn archive(upping: &Upping, image: Option<&BootImage>, job: &Job) -> Result<Vec<u8>, Failure> {
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|error| Failure::os(format!("{} cannot be read for the lab", path.display()), error))
    };
    let name = |path: &str| path.trim_start_matches('/').to_owned();
    let mut files = vec![
        (name(Inside::VMPROF), 0o755, read("/proc/self/exe".as_ref())?),
        (JOB_PATH.to_owned(), 0o600, vmprof_job::line(job)),
    ];
    if let Some(image) = image {
        let inside = BootImage {
            kernel: Inside::KERNEL.into(),
            initramfs: Inside::INITRAMFS.into(),
            root: image.root.as_ref().map(|root| RootImage { path: Inside::ROOT.into(), ..root.clone() }),
            ..image.clone()
        };
        let description = serde_json::to_vec(&inside)
            .map_err(|error| Failure::os("the image cannot be described", error.into()))?;
        files.push((name(Inside::KERNEL), 0o444, read(&image.kernel)?));
        files.push((name(Inside::INITRAMFS), 0o444, read(&image.initramfs)?));
        files.push((name(Inside::IMAGE), 0o444, description));
    }
    files.extend(texts(upping).map(|(path, text)| (name(&path), 0o444, text)));
    if let Some(saved) = &upping.saved {
        files.push((name(Inside::PLAN), 0o444, read(&saved.path)?));
    }
    let files: Vec<(&str, u16, Vec<u8>)> =
        files.iter_mut().map(|(path, mode, bytes)| (path.as_str(), *mode, std::mem::take(bytes))).collect();
    Ok(append_archive(&files)?)
}

/// The profile's disks on node 0, then drives that are only there to be seen, the nodes in turn; the root image beside.
fn drives(upping: &Upping, paths: &[PathBuf], image: Option<&BootImage>, shape: &Shape) -> Vec<Drive> {
    let media = |source: &DiskSource, path: &Path| match source {
        // A plan needs to know that the drive is there, not what is on it; nothing of the user's is opened or made.
        DiskSource::File { .. } if upping.arguments.dry_run => Media::Empty,
        DiskSource::File { .. } => Media::File(path.to_owned()),
        DiskSource::Device { .. } => Media::BlockDevice(path.to_owned()),
    };
    let mut drives: Vec<Drive> = upping
        .profile
        .disks
        .iter()
        .zip(paths)
        .map(|(disk, path)| Drive {
            serial: disk.name.value.clone(),
            media: media(&disk.source, path),
            read_only: disk.readonly || upping.arguments.dry_run,
            node: Some(0),
        })
        .collect();
    // With disks of its own, node 0 needs no spare one.
    let first_spare = usize::from(!drives.is_empty());
    drives.extend((first_spare..shape.nvme as usize).map(|spare| Drive {
        serial: format!("spare{spare}"),
        media: Media::Empty,
        read_only: false,
        node: Some(spare % shape.nodes.len()),
    }));
    drives.extend(image.and_then(|image| image.root.as_ref()).map(|root| Drive {
        serial: ROOT_SERIAL.to_owned(),
        media: Media::File(root.path.clone()),
        read_only: !root.writable,
        node: None,
    }));
    drives
}

/// Locks every disk as the VMM would, so that nobody uses one twice, in the lab or out of it.
fn lock_all(upping: &Upping, paths: &[PathBuf], disks: &[DiskInUse]) -> Result<Vec<File>, Failure> {
    let mut locks = Vec::new();
    for ((disk, path), in_use) in upping.profile.disks.iter().zip(paths).zip(disks) {
        let lock = || -> std::io::Result<File> {
            let file = File::options().read(true).write(!disk.readonly).open(path)?;
            match disk.readonly {
                true => file.try_lock_shared()?,
                false => file.try_lock()?,
            }
            Ok(file)
        };
        locks.push(lock().map_err(|error| {
            record::refuse_shared_disks(&upping.places, std::slice::from_ref(in_use)).map_or_else(
                Failure::from,
                |()| {
                    let message = format!(
                        "disk `{}` ({}) cannot be locked for this run",
                        disk.name.value,
                        path.display()
                    );
                    Failure::os(message, error)
                },
            )
        })?);
    }
    Ok(locks)
}

/// Requests are the inner vmprof's to answer.
struct Forwarded {
    name: String,
    kept: Kept,
    events: Sender<Event>,
}

impl Forwarded {
    /// The guest is the inner vmprof's to tell of, the process and the profile are ours.
    fn status(&self) -> Result<Value, String> {
        let run = self.kept.run();
        let as_json = |status: Status| serde_json::to_value(status).map_err(|error| error.to_string());
        // The emulated host may not have a VM yet, or no vmprof that answers.
        if run.state == State::Starting {
            return as_json(Status::of(run, None, None));
        }
        let inner: Status =
            serde_json::from_value(self.pass_on(&Request::Status)?).map_err(|error| error.to_string())?;
        as_json(Status::of(run, inner.paused, inner.plan_digest))
    }

    fn pass_on(&self, request: &Request) -> Result<Value, String> {
        let mut argv: Vec<Bytes> =
            [Inside::VMPROF, "ask", "--relay", &self.name, request.word()].map(Bytes::from).into();
        argv.extend(request.arguments().map(|arguments| arguments.to_string().as_str().into()));
        let (answer, ran) = mpsc::channel();
        self.events.send(Event::RunAsked { argv, answer }).map_err(|_| OVER.to_owned())?;
        let ran =
            ran.recv_timeout(Duration::from_secs(50)).map_err(|_| "the lab did not answer".to_owned())?;
        match ran.status {
            Ended::Exited(0) => match serde_json::from_slice(&ran.stdout) {
                Ok(Answer::Ok(value)) => Ok(value),
                Ok(Answer::Error(reason)) => Err(reason),
                Err(error) => Err(error.to_string()),
            },
            _ => Err(String::from_utf8_lossy(&ran.stderr).trim().to_owned()),
        }
    }
}

const OVER: &str = "the run is ending already";

impl Answers for Forwarded {
    fn answer(&self, request: Request) -> Result<Value, String> {
        match request {
            Request::Stop => {
                self.events.send(Event::StopAsked).map(|()| Value::Bool(true)).map_err(|_| OVER.to_owned())
            }
            Request::Status => self.status(),
            request => self.pass_on(&request),
        }
    }
}
