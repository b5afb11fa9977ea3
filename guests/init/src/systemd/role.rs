//! The program under systemd, as one of its services: the supervisor again, for a guest whose services are systemd's.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::process::{Signal, getpid, set_child_subreaper};
use vmprof_job::Job;

use super::failed::{self, Endings};
use super::{Units, handover};
use crate::boot::{self, DEVICE_WAIT};
use crate::command::Surroundings;
use crate::control::Control;
use crate::failure::Failure;
use crate::keeping::Keeping;
use crate::network::Network;
use crate::ports::Port;
use crate::power::{self, Buttons};
use crate::reap::Children;
use crate::supervisor::Supervisor;
use crate::wait::Wait;
use crate::{agent, job, kmsg, ports};

/// First argument of the program in this role.
pub(crate) const WORD: &str = "under-systemd";

/// SIGTERM, which comes once every unit has stopped: the unit is no part of what stops them, and nobody may stop it by hand.
#[derive(Debug)]
pub(crate) struct LastCall {
    bytes: OwnedFd,
}

impl LastCall {
    pub(crate) fn watch() -> io::Result<Self> {
        let (bytes, signal) = UnixStream::pair()?;
        bytes.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(Signal::TERM.as_raw(), signal)?;
        Ok(LastCall { bytes: bytes.into() })
    }

    #[cfg(test)]
    pub(crate) fn made(bytes: OwnedFd) -> Self {
        LastCall { bytes }
    }

    /// Whether it came since the last look.
    pub(crate) fn came(&self) -> bool {
        let mut came = false;
        while rustix::io::read(&self.bytes, &mut [0; 64]).is_ok_and(|read| read > 0) {
            came = true;
        }
        came
    }

    pub(crate) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        wait.on(self.bytes.as_fd(), PollFlags::IN);
    }
}

/// The whole role. What it returns is for systemd, which goes on with the end of the machine.
pub(crate) fn run() -> u8 {
    kmsg::open();
    // systemd then powers off, by the unit's FailureAction=.
    std::panic::set_hook(Box::new(|panic| kmsg::error(format_args!("panic: {panic}"))));
    let control = match control() {
        Ok(control) => control,
        Err(failure) => {
            kmsg::error(failure.message());
            return 1;
        }
    };
    let prepared = prepare();
    let (job, children, units) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => return fail(control, &failure),
    };
    let surroundings = Surroundings::of(&job);
    let launch = match boot::launch(job.command.as_ref(), surroundings.clone()) {
        Ok(launch) => launch,
        Err(failure) => return fail(control, &failure),
    };
    let agent = agent::start(&surroundings);
    let supervisor = Supervisor {
        control,
        children: &children,
        buttons: Buttons::open(Path::new("/dev/input")),
        keeper: Keeping::Systemd(units),
        // systemd's own.
        network: &mut Network::default(),
        surroundings,
        // Everything is systemd's, which ends it when it powers off.
        everything: &|_| {},
        stop_within: Duration::from_millis(job.stop_within_ms),
        uptime_ms: boot::uptime_ms,
    };
    let end = supervisor.run(launch);
    agent.end();
    if end.is_orderly {
        return 0;
    }
    kmsg::error("systemd has not stopped everything in its time: the machine is turned off without it");
    power::end_without_systemd()
}

fn control() -> Result<Control, Failure> {
    use vmprof_job::port::CONTROL;
    let device = ports::device(Path::new("/sys"), CONTROL, DEVICE_WAIT)?;
    let taken = handover::take_port(&Path::new("/dev").join(&device));
    let port = match taken {
        Some(port) => Port::new(port),
        None => boot::port(CONTROL)?,
    };
    Ok(Control::new(port))
}

fn prepare() -> Result<(Job, Children, Units), Failure> {
    let job = job::read(Path::new(handover::JOB))?;
    let children = Children::watch().map_err(Failure::step("watching for processes that end"))?;
    // What the command leaves behind is reaped here, as it is without systemd.
    set_child_subreaper(Some(getpid()))
        .map_err(|errno| Failure::step("becoming the parent of orphans")(errno.into()))?;
    let last_call = LastCall::watch().map_err(Failure::step("watching for SIGTERM"))?;
    let endings = Endings::watch(Path::new(failed::ACTIVE));
    Ok((job, children, Units::new(last_call, endings, Surroundings::of_root())))
}

/// Tells the outside; then the unit fails, and with it the guest.
fn fail(mut control: Control, failure: &Failure) -> u8 {
    boot::say_failed(&mut control, failure);
    1
}
