//! What carries the frames of a run's network devices: a tap device, which is the machine's own business, or a stream to passt.
//! passt runs beside the `up` that the user called. In the lab that is not the one with the machine: there the frames come
//! through a socket of the run's record (`lab.rs`).

pub mod lab;
pub mod passt;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use vmprof_guests::Builder;
use vmprof_mac::MacAddress;
use vmprof_profiles::{Forward, NetBackend, NetPlan, Profile, Protocol};
use vmprof_vmm::net::FrameStream;

use crate::failure::{Failure, Kind};
use crate::lower;
use crate::run::conversation::Event;
use crate::run::record::NetInUse;
use crate::run::sockets;

/// How long the machine in the lab waits for the vmprof outside, which asks several times a second.
const OUTSIDE_WITHIN: Duration = Duration::from_secs(60);

/// A network device, of a profile or of a plan.
#[derive(Debug, Clone)]
pub struct Device<'a> {
    /// `net0`.
    pub name: String,
    /// Among all of the VM.
    pub position: usize,
    pub mac: MacAddress,
    pub backend: &'a NetBackend,
}

/// Those of a profile, which no condition changes.
pub fn of_profile<'a>(vm: &str, profile: &'a Profile) -> Vec<Device<'a>> {
    let devices = profile.nets.iter().enumerate().map(|(position, net)| Device {
        name: format!("net{position}"),
        position,
        mac: lower::mac(vm, position, net.mac),
        backend: &net.backend.value,
    });
    devices.collect()
}

pub fn of_plan<'a>(vm: &str, nets: &'a [NetPlan]) -> Vec<Device<'a>> {
    let devices = nets.iter().enumerate().map(|(position, net)| Device {
        name: net.name.clone(),
        position,
        mac: lower::mac(vm, position, lower::planned_mac(net)),
        backend: &net.backend,
    });
    devices.collect()
}

/// What a run has to itself for them: ports of this host, and tap devices.
pub fn in_use(devices: &[Device<'_>]) -> Vec<NetInUse> {
    let of_one = |device: &Device<'_>| match device.backend {
        NetBackend::Tap { name } => vec![NetInUse::Tap { name: name.clone() }],
        NetBackend::Passt { forwards } => forwards.iter().map(port).collect(),
    };
    devices.iter().flat_map(of_one).collect()
}

fn port(forward: &Forward) -> NetInUse {
    match forward.protocol {
        Protocol::Tcp => NetInUse::Tcp { port: forward.host },
        Protocol::Udp => NetInUse::Udp { port: forward.host },
    }
}

/// A passt for each device that has one, started and answering.
pub fn passts(devices: &[Device<'_>], builder: &Builder<'_>) -> Result<Vec<passt::Running>, Failure> {
    let wanted = devices.iter().filter_map(|device| match device.backend {
        NetBackend::Passt { forwards } => Some((device, forwards)),
        NetBackend::Tap { .. } => None,
    });
    let wanted: Vec<_> = wanted.collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let program = vmprof_guests::passt::find(builder)?;
    wanted.into_iter().map(|(device, forwards)| passt::start(&program, device, forwards)).collect()
}

/// What carries the frames of one device, on its way to the machine's program.
#[derive(Debug, Serialize, Deserialize)]
pub enum Carrier {
    Passt(passt::Passed),
    /// Whoever connects to this socket of the run's record.
    Outside {
        device: String,
    },
}

impl Carrier {
    /// In the lab: each device that has passt has it outside.
    pub fn outside(devices: &[Device<'_>]) -> Vec<Carrier> {
        let with_passt = devices.iter().filter(|device| matches!(device.backend, NetBackend::Passt { .. }));
        with_passt.map(|device| Carrier::Outside { device: device.name.clone() }).collect()
    }
}

/// The streams of a run, for each of its machines in turn, and what is at their other ends. Dropping it ends that.
#[derive(Debug, Default)]
pub struct Carried {
    /// Dropped first: that its streams end then is no news.
    _passts: Vec<passt::Carrying>,
    pub streams: Vec<FrameStream>,
}

impl Carried {
    /// What was left by the vmprof that planned. `record` is where the run's sockets are.
    pub fn take(carriers: Vec<Carrier>, record: &Path, events: &Sender<Event>) -> Result<Carried, Failure> {
        let untaken = |error| Failure::os("what carries the guest's frames cannot be taken", error);
        let mut carried = Carried::default();
        // All of them listen before the first is waited for.
        let mut ends = Vec::new();
        for carrier in carriers {
            ends.push(match carrier {
                Carrier::Passt(passed) => {
                    let (socket, carrying) =
                        passed.take().and_then(|it| it.carry(events.clone())).map_err(untaken)?;
                    carried._passts.push(carrying);
                    Ok(socket)
                }
                Carrier::Outside { device } => {
                    let listener = sockets::listen(record, &lab::socket(&device)).map_err(untaken)?;
                    Err((device, listener))
                }
            });
        }
        for end in ends {
            let socket = match end {
                Ok(socket) => socket,
                Err((device, listener)) => accept(&device, &listener)?,
            };
            let stream = FrameStream::new(socket).map_err(|error| untaken(io::Error::other(error)))?;
            carried.streams.push(stream);
        }
        Ok(carried)
    }
}

fn accept(device: &str, listener: &UnixListener) -> Result<OwnedFd, Failure> {
    let waited = || {
        let mut polled = [PollFd::new(listener, PollFlags::IN)];
        let limit = Timespec { tv_sec: OUTSIDE_WITHIN.as_secs() as i64, tv_nsec: 0 };
        if poll(&mut polled, Some(&limit))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        listener.accept().map(|(stream, _)| stream.into())
    };
    waited().map_err(|error| {
        let message = format!("nobody carries the frames of {device} out of the emulated host: {error}");
        Failure::said(
            Kind::Failure,
            "vmprof::net::not_carried",
            message,
            "run it again: the vmprof outside was lost",
        )
    })
}
