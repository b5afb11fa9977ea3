//! A place in the lab that stays: drives plugged into it, files brought there, and the vmprof inside run through its agent.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use signal_hook::consts::SIGUSR1;
use vmprof_job::Bytes;
use vmprof_job::agent::{Item, Kind as Frame, Stream};

use super::command::Going;
use super::{Machine, no_channels, tenant};
use crate::failure::{Failure, Kind};
use crate::lab::standing::{Asked, Join, Joined, Said, Standing, Wanted};
use crate::lab::{PathsInside, Prepared, exec};
use crate::run::channels;
use crate::run::{files, reach};

/// How long a drive that was plugged in may take to be seen, and what is done then.
const PREPARED_WITHIN: Duration = Duration::from_secs(90);

/// What goes wrong on the way in is the lab's.
fn failed(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| {
        let message = format!("the lab that is up cannot be joined: {what}: {error}");
        let help = "`vmprof lab status` says how it is doing; without it (`vmprof lab stop`) a run boots a lab of its own";
        Failure::said(Kind::Lab, "vmprof::lab::join", message, help)
    }
}

pub(super) fn told(standing: &Standing) -> String {
    let facts = &standing.facts;
    format!("joining the lab that is up (pid {}): {}, QEMU {}", facts.pid, facts.shape, facts.emulator)
}

/// Joins, and begins the vmprof inside.
pub(super) fn start(going: &Going<'_>, standing: &Standing) -> Result<Machine, Failure> {
    // The keeper asks by it for a clean stop, and again while nobody has heard; until then it would end this process.
    signal_hook::flag::register(SIGUSR1, Arc::default())
        .map_err(|error| Failure::os("a signal's handler cannot be installed", error))?;
    let hashes = hashes(going)?;
    // The name inside is known with the place; where the drives lie depends on that alone.
    let drives = going.sources(&PathsInside::shared("", &hashes)).into_iter().map(|source| Wanted {
        media: source.media,
        read_only: source.read_only,
        is_nvme: source.is_nvme,
    });
    let join = Join { name: going.upping.name.clone(), drives: drives.collect() };
    let (said, place) = standing.ask(&Asked::Join(join)).map_err(failed("its keeper does not answer"))?;
    let Joined { name, serials } = match said {
        Said::Joined(joined) => joined,
        Said::Refused(why) => return Err(failed("its keeper refuses")(io::Error::other(why))),
        _ => return Err(failed("its keeper answers")(io::ErrorKind::InvalidData.into())),
    };
    let inside = PathsInside::shared(&name, &hashes);
    let host = &standing.directory;
    prepare(going, host, &inside, &name, &serials)?;
    let relay = relay(host, &inside)?;

    let mut argv = going.argv(&inside, &name);
    argv.extend(["--relay", &inside.relay()].map(Bytes::from));
    argv.extend(going.command());
    let (ours, ports) = channels::open().map_err(no_channels)?;
    let began = tenant::begin(host, exec::command(argv, going.env(&inside)), ports);
    let running = began.map_err(failed("the vmprof inside cannot be run"))?;
    let (kill, wait) = running.apart();
    Ok(Machine {
        inside,
        name,
        channels: ours,
        relay: Box::new(relay),
        kill: Box::new(kill),
        wait: Box::new(move || {
            let end = wait();
            // The place is given back with its connection.
            drop(place);
            end
        }),
    })
}

/// Of the program and the boot files, by which they are kept there for the next run.
fn hashes(going: &Going<'_>) -> Result<[String; 3], Failure> {
    let hash = |path: &Path| -> Result<String, Failure> {
        let unread = |error| Failure::os(format!("{} cannot be read for the lab", path.display()), error);
        let mut hasher = blake3::Hasher::new();
        fs::File::open(path).and_then(|file| hasher.update_reader(file).map(drop)).map_err(unread)?;
        Ok(hasher.finalize().to_hex().to_string())
    };
    let program = hash("/proc/self/exe".as_ref())?;
    match going.image {
        Some(image) => Ok([program, hash(&image.kernel)?, hash(&image.initramfs)?]),
        // A plan boots nothing.
        None => Ok([program, String::new(), String::new()]),
    }
}

/// Waits for the drives, and brings the files that are not there.
fn prepare(
    going: &Going<'_>,
    host: &Path,
    inside: &PathsInside,
    name: &str,
    serials: &[String],
) -> Result<(), Failure> {
    let mut kept = vec![(inside.vmprof.as_str(), Path::new("/proc/self/exe"), 0o755)];
    if let Some(image) = going.image {
        kept.push((&inside.kernel, &image.kernel, 0o444));
        kept.push((&inside.initramfs, &image.initramfs, 0o444));
    }
    let mut argv: Vec<Bytes> = [PathsInside::VMPROF, "inside", "prepare", name].map(Bytes::from).into();
    for (serial, source) in serials.iter().zip(going.sources(inside)) {
        argv.extend(["--link", &format!("{serial}={}", source.path)].map(Bytes::from));
    }
    for (path, ..) in &kept {
        argv.extend(["--has", path].map(Bytes::from));
    }
    let prepared = exec::run(host, argv, PREPARED_WITHIN).and_then(exec::Ran::printed);
    let prepared: Prepared = prepared
        .and_then(|answer| serde_json::from_slice(&answer).map_err(io::Error::from))
        .map_err(failed("the run's place cannot be made"))?;

    let bring = || failed("the run's files cannot be brought there");
    let directory = tempfile::tempdir().map_err(bring())?;
    for (path, from, mode) in kept.iter().filter(|(path, ..)| !prepared.has.iter().any(|has| has == path)) {
        // As it is to be there: what is sent has its mode.
        let copy = directory.path().join("kept");
        fs::copy(from, &copy).map_err(bring())?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(*mode)).map_err(bring())?;
        store(host, &copy, path).map_err(bring())?;
        fs::remove_file(&copy).map_err(bring())?;
    }
    let own = directory.path().join("own");
    for (path, bytes) in going.files(inside)? {
        let below = Path::new(&path).strip_prefix(inside.base()).unwrap_or(Path::new(&path));
        let path = own.join(below);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(&own))?;
            fs::write(&path, bytes)
        };
        write().map_err(bring())?;
    }
    for entry in fs::read_dir(&own).map_err(bring())? {
        let entry = entry.map_err(bring())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        store(host, &entry.path(), &format!("{}/{name}", inside.base())).map_err(bring())?;
    }
    Ok(())
}

/// Sends a file or a directory to that path in the emulated host.
fn store(host: &Path, from: &Path, to: &str) -> io::Result<()> {
    let item = Item::at(from).map_err(|error| io::Error::other(error.told()))?;
    let mut stream = reach::host(host)?;
    let put = files::put(&mut stream, "the lab", from, Path::new(to), item, &mut |_| {});
    put.map(drop).map_err(|failure| io::Error::other(failure.told()))
}

/// What the vmprof inside says of itself, as its output.
struct Words {
    stream: Stream<UnixStream>,
    unread: Vec<u8>,
}

/// Has somebody inside listen for it.
fn relay(host: &Path, inside: &PathsInside) -> Result<Words, Failure> {
    let begin = || -> io::Result<Words> {
        let argv = [&*inside.vmprof, "inside", "relay", &inside.relay()].map(Bytes::from).into();
        let stream = exec::begin(host, exec::command(argv, Vec::new()), None)?;
        let mut said = Words { stream, unread: Vec::new() };
        // It listens from its first byte on.
        said.read_exact(&mut [0])?;
        Ok(said)
    };
    begin().map_err(failed("the way out cannot be made"))
}

impl Read for Words {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.unread.is_empty() {
            let frame = self.stream.expect()?;
            match frame.kind {
                Frame::Output => self.unread.extend_from_slice(frame.payload),
                Frame::Ended => return Ok(0),
                _ => {}
            }
        }
        let count = into.len().min(self.unread.len());
        into[..count].copy_from_slice(&self.unread[..count]);
        self.unread.drain(..count);
        Ok(count)
    }
}
