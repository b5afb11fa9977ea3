//! On the user's machine: everything that the emulated host needs, out of vmprof's own store; its boot; what its driver tells.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use vmprof_guests::{
    Builder, GuestImage, Progress, Recipe, Silent, Stage, Store, Toolset, Total, append_archive, emulator,
    lab_host,
};
use vmprof_job::{
    Bytes, DeviceLink, Disk, FromGuest, Init, JOB_PATH, JOB_SCHEMA, Job, Root, Streams, ToGuest,
};

use crate::host::{Host, Start};
use crate::record::Record;
use crate::settings::{Arguments, Settings, place};
use crate::work::Work;
use crate::{Outcome, inside, machine, mark, report, work};

/// Makes the filesystem for the files.
const FILESYSTEMS: Toolset = Toolset {
    name: "bench-filesystems",
    suites: &["trixie"],
    packages: &["e2fsprogs"],
    programs: &["usr/sbin/mke2fs"],
    data: &["etc/mke2fs.conf"],
    linked: &[],
    layout: "1",
};

const ROOT_SERIAL: &str = "vmprof-root";
const FILES_SERIAL: &str = "bench-files";
/// The serial of the guest's disk: the profile's name of it.
const DATA_SERIAL: &str = "data";
const FILES_DISK_MIB: u64 = 1024;
/// How long the driver may take to its next word; a stalled emulated host never says one.
const PATIENCE: Duration = Duration::from_secs(300);
/// Emulated hosts that may be lost one after another without having ended a piece of work.
const HOSTS_LOST: u32 = 3;

/// A run, whole: what the JSON file holds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    pub schema: String,
    pub machine: MachineFacts,
    pub qemu: String,
    pub emulated_cpus: u32,
    pub seconds: u32,
    pub records: Vec<Record>,
}

/// The machine that emulated the host.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineFacts {
    pub processor: String,
    pub cpus: u32,
    pub kernel: String,
    pub load: String,
    pub unix_time: u64,
}

/// A run and its file, which has every record as soon as it is told: what was measured before something went wrong is worth
/// keeping.
struct Kept {
    run: Run,
    path: PathBuf,
}

impl Kept {
    fn push(&mut self, record: Record) -> Outcome<()> {
        self.run.records.push(record);
        Ok(fs::write(&self.path, serde_json::to_vec(&self.run)?)?)
    }
}

pub fn run(arguments: &Arguments) -> Outcome<()> {
    if let Some(earlier) = &arguments.show {
        let run: Run = serde_json::from_slice(&fs::read(earlier)?)?;
        print!("{}", report::text(&run));
        return Ok(());
    }
    if arguments.iothreads.is_empty() || !arguments.iothreads.iter().all(|n| (1..=4).contains(n)) {
        return Err("--iothreads takes numbers from 1 to 4: the disk has 4 queues".into());
    }
    let machine = machine_facts()?;
    let cpus = arguments.cpus.unwrap_or(machine.cpus);
    let store = Store::open(store_path()?)?;
    let told = Told;
    let builder = Builder::new(&store, &told);
    let using = store.using()?;
    let image = builder.build(&Recipe::read(Path::new("guests/fio.kdl"))?)?;
    let host = lab_host(&builder)?;
    let outer = emulator::find(&builder)?;
    let (inner, inner_directory) = emulator::packaged(&builder)?;
    let root = image.root.as_ref().ok_or("the guest has no root image")?;
    let of_the_store = [&host.kernel, &root.path].into_iter().map(PathBuf::as_path);
    let _held = using.hold("bench-lab", of_the_store.chain(outer.argv.iter().map(Path::new)))?;
    drop(using);
    let scratch = tempfile::tempdir()?;
    let files_disk = scratch.path().join("files");
    make_filesystem(&builder, &files_disk)?;

    let binary = match &arguments.vmprof {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("vmprof"),
    };
    let base = scratch.path().join("base");
    concatenate(&host.initramfs, &archive(&image, &binary, &inner_directory)?, &base)?;
    let disks = [(ROOT_SERIAL, root.path.as_path(), true), (FILES_SERIAL, files_disk.as_path(), false)];
    let initramfs = scratch.path().join("initramfs");
    eprintln!(
        "an emulated host of {cpus} CPUs boots; QEMU {} inside and {} outside",
        inner.version, outer.version
    );
    let start =
        Start { emulator: &outer.argv, cpus, kernel: &host.kernel, initramfs: &initramfs, disks: &disks };
    let qemu = moved(&inner.argv, &inner_directory);
    let run = Run {
        schema: "vmprof.bench-lab/1".to_owned(),
        machine,
        qemu: inner.version,
        emulated_cpus: cpus,
        seconds: arguments.seconds,
        records: Vec::new(),
    };
    let mut kept = Kept { run, path: arguments.json.clone() };
    let ended = measure(arguments, &mut kept, |left, kept| {
        let settings = Settings {
            work: left,
            points: arguments.points.clone(),
            seconds: arguments.seconds,
            qemu: qemu.clone(),
        };
        let told = append_archive(&[(name(place::SETTINGS), 0o444, serde_json::to_vec(&settings)?)])?;
        concatenate(&base, &told, &initramfs)?;
        converse(Host::start(&start)?, kept)
    });
    print!("{}", report::text(&kept.run));
    println!("\nall numbers: {}", arguments.json.display());
    ended
}

/// Has hosts do what is left until nothing is. One may be lost: its emulator takes a CPU down with it now and then.
fn measure(
    arguments: &Arguments,
    kept: &mut Kept,
    mut host: impl FnMut(Vec<Work>, &mut Kept) -> Outcome<()>,
) -> Outcome<()> {
    let mut lost = 0;
    loop {
        let left = work::left(arguments, &kept.run.records);
        if left.is_empty() {
            return Ok(());
        }
        let begun = left.len();
        match host(left, kept) {
            Ok(()) => {}
            Err(error) if lost == HOSTS_LOST => return Err(error),
            Err(error) => {
                eprintln!("another emulated host goes on: {error}");
                let why = error.to_string().lines().next().unwrap_or_default().to_owned();
                kept.push(Record::Lost { pair: None, why })?;
            }
        }
        // A host that got on with it may be followed by another that is lost.
        lost = if work::left(arguments, &kept.run.records).len() < begun { 0 } else { lost + 1 };
    }
}

fn machine_facts() -> Outcome<MachineFacts> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(MachineFacts {
        processor: processor.map_or_else(String::new, |(_, name)| name.to_owned()),
        cpus: u32::try_from(thread::available_parallelism()?.get())?,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        load: fs::read_to_string("/proc/loadavg")?.trim().to_owned(),
        unix_time: now.as_secs(),
    })
}

/// Where vmprof keeps its store (docs/guests.md).
fn store_path() -> Outcome<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("VMPROF_STORE")
        .or_else(|| variable("XDG_DATA_HOME").map(|data| data.join("vmprof/store")))
        .or_else(|| variable("HOME").map(|home| home.join(".local/share/vmprof/store")))
        .ok_or_else(|| "neither VMPROF_STORE nor HOME says where the store is".into())
}

/// The builder's notes, as they come.
struct Told;

impl Progress for Told {
    fn stage(&self, _name: &str, _total: Total) -> Box<dyn Stage> {
        Box::new(Silent)
    }

    fn note(&self, text: &str) {
        eprintln!("{text}");
    }
}

fn make_filesystem(builder: &Builder<'_>, disk: &Path) -> Outcome<()> {
    File::create(disk)?.set_len(FILES_DISK_MIB << 20)?;
    let tools = FILESYSTEMS.realise(builder)?;
    let argv = tools.argv("usr/sbin/mke2fs");
    let [program, own @ ..] = argv.as_slice() else { return Err("mke2fs has no words".into()) };
    let mut command = Command::new(program);
    command.args(own).args(["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0"]).arg(disk);
    command.env("MKE2FS_CONFIG", tools.path("etc/mke2fs.conf")).stdin(Stdio::null());
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("mke2fs: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// The emulator's own words with its directory where it will lie in the emulated host.
fn moved(argv: &[std::ffi::OsString], directory: &Path) -> Vec<String> {
    let directory = directory.to_string_lossy();
    let directory = directory.trim_end_matches('/');
    argv.iter().map(|word| word.to_string_lossy().replace(directory, place::QEMU)).collect()
}

fn concatenate(base: &Path, archive: &[u8], to: &Path) -> Outcome<()> {
    let mut out = File::create(to)?;
    let length = io::copy(&mut File::open(base)?, &mut out)?;
    // The kernel looks for the next archive at a multiple of four.
    let padding = [0_u8; 3];
    out.write_all(padding.get(..(4 - length as usize % 4) % 4).unwrap_or_default())?;
    Ok(out.write_all(archive)?)
}

/// The job of a guest that runs on QEMU, which gets it from nobody else: what vmprof would tell it.
fn guests_job(image: &GuestImage) -> Outcome<Job> {
    let root = image.root.as_ref().ok_or("the guest has no root image")?;
    let conduct = &image.conduct;
    Ok(Job {
        schema: JOB_SCHEMA.to_owned(),
        hostname: conduct.hostname.clone(),
        online_cpus: false,
        root: Root::Disk {
            serial: ROOT_SERIAL.to_owned(),
            filesystem: root.filesystem.clone(),
            writable: root.writable,
        },
        disks: vec![disk(DATA_SERIAL, Some("none"))],
        links: Vec::new(),
        nets: Vec::new(),
        sysctl: conduct.sysctl.clone(),
        mounts: Vec::new(),
        init: Init::Vmprof,
        services: conduct.services.clone(),
        stop_within_ms: conduct.stop_within_ms,
        env: environment(&conduct.env),
        directory: "/root".to_owned(),
        command: Some(command(&["/bin/sh"])),
    })
}

/// The job of the emulated host: the driver.
fn hosts_job(of_the_driver: &[(String, String)]) -> Job {
    Job {
        schema: JOB_SCHEMA.to_owned(),
        hostname: "lab".to_owned(),
        online_cpus: true,
        root: Root::Initramfs,
        disks: vec![disk(ROOT_SERIAL, None), disk(FILES_SERIAL, None)],
        links: [(place::ROOT_DISK, ROOT_SERIAL), (place::FILES_DISK, FILES_SERIAL)]
            .map(|(path, serial)| DeviceLink { path: path.to_owned(), serial: serial.to_owned() })
            .into(),
        nets: Vec::new(),
        sysctl: Vec::new(),
        mounts: Vec::new(),
        init: Init::Vmprof,
        services: Vec::new(),
        stop_within_ms: 5_000,
        env: environment(of_the_driver),
        directory: "/".to_owned(),
        command: Some(command(&[place::DRIVER, inside::WORD])),
    }
}

fn disk(serial: &str, scheduler: Option<&str>) -> Disk {
    let scheduler = scheduler.map(str::to_owned);
    Disk { name: serial.to_owned(), serial: serial.to_owned(), scheduler, format: None }
}

fn environment(of: &[(String, String)]) -> Vec<(Bytes, Bytes)> {
    of.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect()
}

fn command(argv: &[&str]) -> vmprof_job::Command {
    vmprof_job::Command { argv: argv.iter().map(|word| (*word).into()).collect(), streams: Streams::Ports }
}

/// A path as an archive names it.
fn name(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// Everything the emulated host needs besides its own boot files and what it is to do.
fn archive(image: &GuestImage, vmprof: &Path, qemu: &Path) -> Outcome<Vec<u8>> {
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let name = |path: &str| name(path).to_owned();
    let this = read("/proc/self/exe".as_ref())?;

    let marked = append_archive(&[(mark::PATH, 0o755, this.clone())])?;
    let job = append_archive(&[(JOB_PATH, 0o600, vmprof_job::line(&guests_job(image)?))])?;
    let work = tempfile::tempdir()?;
    let (without, with) = (work.path().join("without"), work.path().join("with"));
    concatenate(&image.initramfs, &marked, &without)?;
    concatenate(&without, &job, &with)?;

    let root =
        image.root.as_ref().map(|root| vmprof_guests::RootImage { path: place::ROOT.into(), ..root.clone() });
    let description = json!({
        "guest": image.name, "kernel": place::KERNEL, "initramfs": place::INITRAMFS, "root": root,
        "private_root": false, "digest": image.digest, "cmdline": machine::own_cmdline(),
        "conduct": image.conduct, "abilities": image.abilities,
    });
    let environment =
        [("PATH".to_owned(), "/usr/bin:/bin".to_owned()), ("HOME".to_owned(), "/root".to_owned())];
    let mut files = vec![
        (name(place::DRIVER), 0o755, this),
        (name(place::VMPROF), 0o755, read(vmprof)?),
        (name(place::IMAGE), 0o444, serde_json::to_vec(&description)?),
        (name(place::KERNEL), 0o444, read(&image.kernel)?),
        (name(place::INITRAMFS), 0o444, read(&without)?),
        (name(place::INITRAMFS_WITH_JOB), 0o444, read(&with)?),
        (JOB_PATH.to_owned(), 0o600, vmprof_job::line(&hosts_job(&environment))),
    ];
    let mut open = vec![qemu.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let below = path.strip_prefix(qemu)?.to_string_lossy().into_owned();
            let executable = path.metadata()?.permissions().mode() & 0o111 != 0;
            files.push((
                format!("{}/{below}", name(place::QEMU)),
                if executable { 0o755 } else { 0o644 },
                read(&path)?,
            ));
        }
    }
    let files: Vec<(&str, u16, Vec<u8>)> =
        files.iter_mut().map(|(path, mode, bytes)| (path.as_str(), *mode, std::mem::take(bytes))).collect();
    Ok(append_archive(&files)?)
}

enum Word {
    Said(FromGuest),
    Record(Box<Record>),
    Other(String),
}

/// Hears the driver to its end.
fn converse(mut host: Host, kept: &mut Kept) -> Outcome<()> {
    let (tell, words) = mpsc::channel();
    let (control, stdout) = (host.control.try_clone()?, host.stdout.try_clone()?);
    let said = tell.clone();
    thread::Builder::new().name("control".into()).spawn(move || {
        for line in BufReader::new(control).lines().map_while(Result::ok) {
            let word = serde_json::from_str(&line).map_or(Word::Other(line), Word::Said);
            if said.send(word).is_err() {
                return;
            }
        }
    })?;
    thread::Builder::new().name("records".into()).spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let word = serde_json::from_str(&line).map_or(Word::Other(line), Word::Record);
            if tell.send(word).is_err() {
                return;
            }
        }
    })?;
    let stderr = host.stderr.try_clone()?;
    thread::Builder::new().name("progress".into()).spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            eprintln!("{line}");
        }
    })?;
    loop {
        match words.recv_timeout(PATIENCE) {
            Ok(Word::Record(record)) => kept.push(*record)?,
            Ok(Word::Other(line)) => eprintln!("{line}"),
            Ok(Word::Said(FromGuest::Failed { message })) => {
                return Err(
                    format!("the emulated host could not boot: {message}\n{}", host.last_words()).into()
                );
            }
            Ok(Word::Said(FromGuest::Ended { status, .. })) => {
                // The records that are still on their way.
                while let Ok(word) = words.recv_timeout(Duration::from_secs(2)) {
                    if let Word::Record(record) = word {
                        kept.push(*record)?;
                    }
                }
                host.control.write_all(&vmprof_job::line(&ToGuest::Received))?;
                host.end();
                return match status.shell_status() {
                    0 => Ok(()),
                    status => Err(format!("the driver in the emulated host ended with {status}").into()),
                };
            }
            Ok(Word::Said(_)) => {}
            Err(error) => {
                let how = match error {
                    mpsc::RecvTimeoutError::Timeout => "is silent".to_owned(),
                    mpsc::RecvTimeoutError::Disconnected => host.end(),
                };
                return Err(
                    format!("the emulated host {how}; its console said:\n{}", host.last_words()).into()
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emulator_finds_its_files_where_they_lie_in_the_emulated_host() {
        let argv = ["/s/x-emulator/usr/lib/ld.so", "--argv0", "q", "/s/x-emulator/usr/bin/q"].map(Into::into);
        let words = moved(&argv, Path::new("/s/x-emulator/"));
        assert_eq!(words, ["/bench/qemu/usr/lib/ld.so", "--argv0", "q", "/bench/qemu/usr/bin/q"]);
    }
}
