//! Who keeps the guest's services, as the supervisor sees it: the first process itself, or systemd.

use std::time::{Duration, Instant};

use rustix::process::Pid;
use vmprof_job::{Ended, FromGuest};

use crate::failure::Failure;
use crate::services::Keeper;
use crate::systemd::Units;
use crate::wait::Wait;

#[derive(Debug)]
pub(crate) enum Keeping {
    Own(Keeper),
    Systemd(Units),
}

impl Keeping {
    /// There are none: the command is all there is.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Keeping::Own(keeper) => keeper.is_empty(),
            Keeping::Systemd(_) => false,
        }
    }

    pub(crate) fn are_ready(&self) -> bool {
        match self {
            Keeping::Own(keeper) => keeper.are_ready(),
            Keeping::Systemd(units) => units.are_ready(),
        }
    }

    pub(crate) fn are_over(&self) -> bool {
        match self {
            Keeping::Own(keeper) => keeper.are_over(),
            Keeping::Systemd(units) => units.are_over(),
        }
    }

    /// They ended as they should, or may yet.
    pub(crate) fn is_orderly(&self) -> bool {
        match self {
            Keeping::Own(_) => true,
            Keeping::Systemd(units) => units.is_orderly(),
        }
    }

    /// To stop them is to turn the machine off: nothing can be said after that.
    pub(crate) fn go_with_the_machine(&self) -> bool {
        matches!(self, Keeping::Systemd(_))
    }

    /// The names of those that had to be killed.
    pub(crate) fn killed(&self) -> Vec<String> {
        match self {
            Keeping::Own(keeper) => keeper.killed(),
            Keeping::Systemd(units) => units.killed(),
        }
    }

    /// Why the guest serves nothing.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            Keeping::Own(keeper) => keeper.failure(),
            Keeping::Systemd(units) => units.failure(),
        }
    }

    /// The console is the command's.
    pub(crate) fn leave_console(&mut self) {
        match self {
            Keeping::Own(keeper) => keeper.leave_console(),
            // Its units write to the journal.
            Keeping::Systemd(_) => {}
        }
    }

    /// Stops them within this time; a second one may make it shorter.
    pub(crate) fn stop(&mut self, within: Duration, now: Instant) {
        match self {
            Keeping::Own(keeper) => keeper.stop(within, now),
            Keeping::Systemd(units) => units.stop(within, now),
        }
    }

    /// Whether the process was one of theirs.
    pub(crate) fn ended(&mut self, pid: Pid, status: Ended, now: Instant) -> bool {
        match self {
            Keeping::Own(keeper) => keeper.ended(pid, status, now),
            Keeping::Systemd(units) => units.ended(pid, status),
        }
    }

    /// Goes on with everything; what there is to tell the outside.
    pub(crate) fn step(&mut self, now: Instant) -> Vec<FromGuest> {
        match self {
            Keeping::Own(keeper) => keeper.step(now),
            Keeping::Systemd(units) => units.step(now),
        }
    }

    pub(crate) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        match self {
            Keeping::Own(keeper) => keeper.expect(wait),
            Keeping::Systemd(units) => units.expect(wait),
        }
    }
}
