//! Every dead process ends up here: the command, the helpers, and orphans that became ours. One place waits for all of
//! them, so that nobody takes away the status somebody else waits for.
//!
//! Processes are started and reaped by the same thread: the standard library waits for a child whose exec failed, and
//! must find it.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, wait};
use vmprof_job::Ended;

use crate::wait::Wait;

/// So many at a time: who makes orphans faster than they are reaped holds up nothing else.
const TURN: usize = 1024;

#[derive(Debug)]
pub(crate) struct Children {
    /// One byte or more since the last look: some child died.
    deaths: OwnedFd,
    /// The last look ended before the dead did.
    more: Cell<bool>,
}

impl Children {
    pub(crate) fn watch() -> io::Result<Self> {
        let (deaths, signal) = UnixStream::pair()?;
        deaths.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(Signal::CHILD.as_raw(), signal)?;
        Ok(Children { deaths: deaths.into(), more: Cell::new(false) })
    }

    /// Those that died since the last call.
    pub(crate) fn reap(&self) -> Vec<(Pid, Ended)> {
        // First the bytes, then the dead: who dies in between is noted again.
        while rustix::io::read(&self.deaths, &mut [0; 64]).is_ok_and(|read| read > 0) {}
        let mut dead = Vec::new();
        for _ in 0..TURN {
            let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) else {
                self.more.set(false);
                return dead;
            };
            dead.extend(ended(status).map(|ended| (pid, ended)));
        }
        self.more.set(true);
        dead
    }

    /// Waits until no process is left, or until `limit`. Statuses are nobody's business any more.
    pub(crate) fn all_gone(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            self.reap();
            // With no child at all, dead or alive, the wait fails.
            if wait(WaitOptions::NOHANG).is_err() {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            let mut wait = Wait::default();
            self.expect(&mut wait);
            wait.until(end);
            wait.sleep();
        }
    }

    pub(crate) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        wait.on(self.deaths.as_fd(), PollFlags::IN);
        if self.more.get() {
            wait.until(Instant::now());
        }
    }
}

fn ended(status: WaitStatus) -> Option<Ended> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Ended::Exited(code)),
        (None, Some(signal)) => Some(Ended::Signaled(signal)),
        (None, None) => None,
    }
}

/// Tests that have children run one at a time: a wait for any child takes another test's child as well.
#[cfg(test)]
pub(crate) static ONE_FAMILY_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn each_child_is_reaped_with_its_own_status() {
        let _alone = ONE_FAMILY_AT_A_TIME.lock();
        let children = Children::watch().unwrap();
        let start = |script: &str| Command::new("sh").args(["-c", script]).spawn().unwrap().id();
        let expected = [(start("exit 7"), Ended::Exited(7)), (start("kill -9 $$"), Ended::Signaled(9))];
        let mut dead = Vec::new();
        while dead.len() < 2 {
            let mut wait = Wait::default();
            children.expect(&mut wait);
            wait.sleep();
            dead.extend(children.reap());
        }
        for (pid, status) in expected {
            assert!(dead.contains(&(Pid::from_raw(pid as i32).unwrap(), status)), "{dead:?}");
        }
        assert!(children.all_gone(Duration::ZERO));
    }
}
