//! Waiting: for descriptors and for a point in time, whichever is first; and for something to appear that sends no word.

use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What the next poll waits for. Each part of the supervisor adds what it would go on with.
#[derive(Default)]
pub(crate) struct Wait<'a> {
    descriptors: Vec<PollFd<'a>>,
    until: Option<Instant>,
}

impl<'a> Wait<'a> {
    pub(crate) fn on(&mut self, descriptor: BorrowedFd<'a>, flags: PollFlags) {
        self.descriptors.push(PollFd::from_borrowed_fd(descriptor, flags));
    }

    pub(crate) fn until(&mut self, instant: Instant) {
        self.until = Some(self.until.map_or(instant, |until| until.min(instant)));
    }

    /// Returns when anything may have changed. Whoever asked tries again; nobody is told which descriptor it was, since
    /// all of them are non-blocking and trying costs one system call.
    pub(crate) fn sleep(mut self) {
        let timeout = self.until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ }
        });
        // A signal ends the poll early, which is an answer like any other: SIGCHLD has been noted in its pipe.
        let _ = poll(&mut self.descriptors, timeout.as_ref());
    }
}

/// Asks `appeared` again and again: sysfs sends no event. Devices come one after the other, at any time after their
/// driver was loaded.
pub(crate) fn until_there<T, E>(
    limit: Duration,
    mut appeared: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        let now = Instant::now();
        match appeared()? {
            Some(thing) => return Ok(Some(thing)),
            None if now >= end => return Ok(None),
            None => thread::sleep(pause.min(end - now)),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_appears_late_is_found() {
        let mut asked = 0;
        let found = until_there(Duration::from_secs(60), || {
            asked += 1;
            Ok::<_, ()>((asked == 4).then_some("port"))
        });
        assert_eq!((found, asked), (Ok(Some("port")), 4));
    }

    #[test]
    fn what_never_appears_is_asked_for_once_more_at_the_end() {
        let mut asked = 0;
        let found = until_there(Duration::ZERO, || {
            asked += 1;
            Ok::<Option<()>, ()>(None)
        });
        assert_eq!((found, asked), (Ok(None), 1));
    }
}
