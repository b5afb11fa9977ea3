//! An emulated host of the run's own: booted for it, and gone with it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use vmprof_guests::{Builder, Using, append_archive, emulator, lab_host};
use vmprof_job::{DeviceLink, JOB_PATH, Job};
use vmprof_vmm::vhost_user::VsockServer;

use super::command::{Going, Source, read};
use super::{Machine, no_channels};
use crate::failure::{Failure, Kind};
use crate::lab::{self, Drive, EmulatedHost, PathsInside, Shape, Start, pack};
use crate::lower::milliseconds;
use crate::run::channels;
use crate::run::record::OwnRecord;
use crate::run::relay;
use crate::run::sockets::{self, VSOCK};
use crate::run::verdict::MachineEnd;
use crate::up::{Patience, Upping};

/// What it boots from, and the emulator, kept in the store for as long as the run lasts.
pub(super) struct Means {
    host: vmprof_guests::LabHost,
    emulator: emulator::Emulator,
    _held: vmprof_guests::Hold,
}

impl Means {
    pub(super) fn find(upping: &Upping, builder: &Builder<'_>, using: &Using) -> Result<Means, Failure> {
        let host = lab_host(builder).map_err(in_the_lab)?;
        let emulator = emulator::find(builder).map_err(in_the_lab)?;
        let of_the_lab = [&host.kernel, &host.initramfs].into_iter().map(PathBuf::as_path);
        let held = using.hold(&upping.name, of_the_lab.chain(emulator.argv.iter().map(Path::new)))?;
        Ok(Means { host, emulator, _held: held })
    }

    pub(super) fn told(&self, shape: &Shape) -> String {
        format!(
            "the lab: {} CPUs on {}, emulated by QEMU {}",
            shape.cpus(),
            match shape.nodes.len() {
                1 => "one node".to_owned(),
                nodes => format!("{nodes} nodes"),
            },
            self.emulator.version
        )
    }

    /// Boots the host, whose first process runs the vmprof inside.
    pub(super) fn start(
        self,
        going: &Going<'_>,
        shape: &Shape,
        patience: Patience,
        own: Option<&OwnRecord>,
    ) -> Result<Machine, Failure> {
        let inside = PathsInside::alone();
        let sources = going.sources(&inside);
        let job = job(going, &inside, &sources, patience);
        let archive = archive(going, &inside, &job)?;
        let initramfs = pack(&self.host.initramfs, &archive)?;
        drop(archive);
        let (ours, mut ports) = channels::open().map_err(no_channels)?;
        let (relay, its_end) = relay::open().map_err(no_channels)?;
        ports.push(its_end);
        let (vsock, its_vsock) = match own {
            Some(own) => {
                let listener = sockets::listen(own.directory(), VSOCK).map_err(no_channels)?;
                let (ours, theirs) = UnixStream::pair().map_err(no_channels)?;
                (Some((ours, listener)), Some(theirs.into()))
            }
            // Nobody reaches a host that only plans.
            None => (None, None),
        };
        let poll_queues = going.upping.profile.disks.iter().any(|disk| disk.iopoll);
        let machine = EmulatedHost::start(Start {
            emulator: &self.emulator.argv,
            shape,
            kernel: self.host.kernel.clone(),
            initramfs,
            drives: drives(sources, shape),
            poll_queues,
            ports,
            vsock: its_vsock,
            monitor: None,
        })?;
        // Its guest is the emulated host; that of the VM is reached by way of it.
        let vsock = vsock.map(|(client, listener)| VsockServer::start(client, listener)).transpose();
        let vsock = vsock.map_err(|error| Failure::caused(Kind::Lab, "vmprof::lab::prepare", error, ""))?;
        let (handle, words) = (machine.handle(), machine.handle());
        let wait = move || {
            // An emulator that cannot be waited for is gone as far as we can tell; what it said goes with it.
            let _ = machine.wait();
            drop(vsock);
            drop(self);
            MachineEnd::LabGone(words.last_words())
        };
        Ok(Machine {
            inside,
            name: going.upping.name.clone(),
            channels: ours,
            relay: Box::new(relay),
            kill: Box::new(move || handle.kill()),
            wait: Box::new(wait),
        })
    }
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
fn job(going: &Going<'_>, inside: &PathsInside, sources: &[Source], patience: Patience) -> Job {
    let links =
        sources.iter().map(|source| DeviceLink { path: source.path.clone(), serial: source.name.clone() });
    let disks = sources.iter().map(|source| vmprof_job::Disk {
        name: source.name.clone(),
        serial: source.name.clone(),
        scheduler: None,
        format: None,
    });
    let mut argv = going.argv(inside, &going.upping.name);
    argv.extend(going.command());
    Job {
        disks: disks.collect(),
        links: links.collect(),
        // The inner `up` stops its own guest first; its clean stop is asked of it alone.
        stop_within_ms: milliseconds(patience.lab),
        ..lab::job(argv, going.env(inside))
    }
}

/// Everything the emulated host needs besides its own boot files.
fn archive(going: &Going<'_>, inside: &PathsInside, job: &Job) -> Result<Vec<u8>, Failure> {
    let name = |path: &str| path.trim_start_matches('/').to_owned();
    let mut files = vec![
        (name(&inside.vmprof), 0o755, read("/proc/self/exe".as_ref())?),
        (JOB_PATH.to_owned(), 0o600, vmprof_job::line(job)),
    ];
    if let Some(image) = going.image {
        files.push((name(&inside.kernel), 0o444, read(&image.kernel)?));
        files.push((name(&inside.initramfs), 0o444, read(&image.initramfs)?));
    }
    files.extend(going.files(inside)?.into_iter().map(|(path, bytes)| (name(&path), 0o444, bytes)));
    let files: Vec<(&str, u16, Vec<u8>)> =
        files.iter_mut().map(|(path, mode, bytes)| (path.as_str(), *mode, std::mem::take(bytes))).collect();
    Ok(append_archive(&files)?)
}

/// The run's NVMe drives on node 0, then drives that are only there to be seen, the nodes in turn; the root image beside.
fn drives(sources: Vec<Source>, shape: &Shape) -> Vec<Drive> {
    let drive = |source: Source| Drive {
        serial: source.name,
        media: source.media,
        read_only: source.read_only,
        node: source.is_nvme.then_some(0),
    };
    let (disks, others): (Vec<Source>, Vec<Source>) = sources.into_iter().partition(|source| source.is_nvme);
    // With disks of its own, node 0 needs no spare one.
    let first_spare = usize::from(!disks.is_empty());
    let spares = (first_spare..shape.nvme as usize).map(|number| Drive::spare(number, shape));
    disks.into_iter().map(drive).chain(spares).chain(others.into_iter().map(drive)).collect()
}
