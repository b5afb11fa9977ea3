//! Where an IOThread without io_uring sleeps: in epoll, edge-triggered, so that an eventfd that was written is told of once
//! for each write and never read, as a ring's multishot poll does it. Other files are watched in the same way.

use std::io;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use vmprof_sys::ring::{Completion, Wait, Watched};

use crate::iothread::service::Token;

/// Bells told of by one call.
const BATCH: usize = 64;

pub(super) struct Bells {
    epoll: OwnedFd,
    /// By the number that epoll tells.
    watched: Vec<Option<(Watched, Token)>>,
    events: Vec<Event>,
    heard: Vec<Completion<Token>>,
}

impl std::fmt::Debug for Bells {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "epoll with {} bells", self.watched.iter().flatten().count())
    }
}

impl Bells {
    pub(super) fn new() -> io::Result<Self> {
        let (epoll, events) = (epoll::create(CreateFlags::CLOEXEC)?, Vec::with_capacity(BATCH));
        Ok(Bells { epoll, watched: Vec::new(), events, heard: Vec::new() })
    }

    /// As a ring's watch: what is there already is told, too.
    pub(super) fn watch(&mut self, watched: Watched, token: Token) -> io::Result<usize> {
        let index = self.watched.iter().position(Option::is_none).unwrap_or(self.watched.len());
        let flags = match watched {
            Watched::Bell(_) => EventFlags::IN,
            Watched::Readable(_) => EventFlags::IN | EventFlags::RDHUP,
            Watched::Writable(_) => EventFlags::OUT,
        };
        epoll::add(&self.epoll, &watched, EventData::new_u64(index as u64), flags | EventFlags::ET)?;
        if index == self.watched.len() {
            self.watched.push(None);
        }
        self.watched[index] = Some((watched, token));
        Ok(index)
    }

    pub(super) fn unwatch(&mut self, index: usize) {
        let Some((watched, token)) = self.watched.get_mut(index).and_then(Option::take) else { return };
        // Fails only for what is not there, and then it is as wanted.
        let _ = epoll::delete(&self.epoll, &watched);
        self.heard.push(Completion::Unwatched { token, error: None });
    }

    pub(super) fn has_heard(&self) -> bool {
        !self.heard.is_empty()
    }

    /// Waits for a bell as long as it may.
    pub(super) fn wait(&mut self, wait: Wait) -> io::Result<()> {
        let time = match wait {
            _ if self.has_heard() => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
            Wait::Never => Some(Timespec { tv_sec: 0, tv_nsec: 0 }),
            Wait::Forever => None,
            Wait::AtMost(time) => {
                Some(Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) })
            }
        };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), time.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        for event in &self.events {
            let index = event.data.u64() as usize;
            if let Some(Some((_, token))) = self.watched.get(index) {
                self.heard.push(Completion::Rang { token: *token });
            }
        }
        Ok(())
    }

    pub(super) fn reap(&mut self, into: &mut Vec<Completion<Token>>) {
        into.append(&mut self.heard);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    fn heard(bells: &mut Bells) -> Vec<Completion<Token>> {
        let mut found = Vec::new();
        bells.reap(&mut found);
        found
    }

    #[test]
    fn a_bell_rings_for_each_write_without_being_read() {
        let mut bells = Bells::new().unwrap();
        let bell = EventFd::new(EFD_NONBLOCK).unwrap();
        bell.write(1).unwrap();
        let watch = bells.watch(bell.try_clone().unwrap().into(), Token::Doorbell { slot: 7 }).unwrap();
        bells.wait(Wait::Forever).unwrap();
        let rang = |found: &[Completion<Token>]| {
            matches!(found, [Completion::Rang { token: Token::Doorbell { slot: 7 } }])
        };
        assert!(rang(&heard(&mut bells)), "rung before it was watched");
        bells.wait(Wait::AtMost(Duration::from_micros(50))).unwrap();
        assert!(heard(&mut bells).is_empty(), "told once");
        for _ in 0..100 {
            bell.write(1).unwrap();
            bells.wait(Wait::Forever).unwrap();
            assert!(rang(&heard(&mut bells)));
        }
        bell.write(1).unwrap();
        bells.unwatch(watch);
        bells.unwatch(watch);
        bells.wait(Wait::Forever).unwrap();
        let found = heard(&mut bells);
        assert!(matches!(found[..], [Completion::Unwatched { error: None, .. }]), "{found:?}");
        bell.write(1).unwrap();
        bells.wait(Wait::Never).unwrap();
        assert!(!bells.has_heard());
    }

    #[test]
    fn a_socket_is_told_of_when_it_has_more_to_read_or_to_write_and_when_it_closes() {
        use std::io::Write as _;

        let mut bells = Bells::new().unwrap();
        let (mut theirs, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let again = || ours.try_clone().unwrap().into();
        let readable = bells.watch(Watched::Readable(again()), Token::Source { slot: 3, tag: 1 }).unwrap();
        bells.wait(Wait::Never).unwrap();
        assert!(heard(&mut bells).is_empty());
        let rang = |bells: &mut Bells| {
            bells.wait(Wait::Forever).unwrap();
            heard(bells)
                .iter()
                .all(|told| matches!(told, Completion::Rang { token: Token::Source { slot: 3, .. } }))
        };
        for _ in 0..10 {
            theirs.write_all(b"frame").unwrap();
            assert!(rang(&mut bells), "nobody reads, and each arrival is told");
        }
        let writable = bells.watch(Watched::Writable(again()), Token::Source { slot: 3, tag: 2 }).unwrap();
        assert!(rang(&mut bells), "there is room already");
        bells.unwatch(writable);
        assert!(matches!(heard(&mut bells)[..], [Completion::Unwatched { error: None, .. }]));
        drop(theirs);
        assert!(rang(&mut bells));
        bells.unwatch(readable);
    }
}
