//! Virtio-serial ports: found by name, read and written without blocking.
//!
//! A port has one opener. While nobody is connected outside, a read returns 0, a write is refused with EAGAIN, and poll
//! reports a hang-up without end. So a port that is away is left alone for a while and then tried again: whoever comes
//! back finds it.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::failure::Failure;
use crate::wait::{Wait, until_there};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// How a read or a write went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    Bytes(usize),
    /// Nothing to read, or no room to write: poll tells when.
    NotNow,
    /// Nobody at the other end.
    Away,
}

#[derive(Debug)]
pub(crate) struct Port {
    descriptor: OwnedFd,
    away: Option<Away>,
}

#[derive(Debug)]
struct Away {
    since: Instant,
    pause: Duration,
    retry: Instant,
}

impl Port {
    /// `descriptor` is non-blocking.
    pub(crate) fn new(descriptor: OwnedFd) -> Self {
        Port { descriptor, away: None }
    }

    pub(crate) fn read(&mut self, bytes: &mut [u8], now: Instant) -> Moved {
        if self.is_away(now) {
            return Moved::Away;
        }
        match rustix::io::read(&self.descriptor, bytes) {
            Ok(0) => self.went_away(now),
            Ok(read) => self.moved(read),
            Err(Errno::AGAIN | Errno::INTR) => self.not_now(),
            Err(_) => self.went_away(now),
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8], now: Instant) -> Moved {
        if self.is_away(now) {
            return Moved::Away;
        }
        match rustix::io::write(&self.descriptor, bytes) {
            Ok(written) => self.moved(written),
            Err(Errno::AGAIN) if self.hung_up() => self.went_away(now),
            Err(Errno::AGAIN | Errno::INTR) => self.not_now(),
            Err(_) => self.went_away(now),
        }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Adds to `wait` what makes `flags` worth trying.
    pub(crate) fn expect<'a>(&'a self, flags: PollFlags, now: Instant, wait: &mut Wait<'a>) {
        match &self.away {
            Some(away) if now < away.retry => wait.until(away.retry),
            _ => wait.on(self.descriptor.as_fd(), flags),
        }
    }

    /// How long nobody has been at the other end.
    pub(crate) fn away_for(&self, now: Instant) -> Duration {
        self.away.as_ref().map_or(Duration::ZERO, |away| now.saturating_duration_since(away.since))
    }

    fn is_away(&self, now: Instant) -> bool {
        self.away.as_ref().is_some_and(|away| now < away.retry)
    }

    fn hung_up(&self) -> bool {
        let mut descriptors = [PollFd::new(&self.descriptor, PollFlags::empty())];
        matches!(poll(&mut descriptors, Some(&Timespec::default())), Ok(1))
            && descriptors[0].revents().contains(PollFlags::HUP)
    }

    fn moved(&mut self, bytes: usize) -> Moved {
        self.away = None;
        Moved::Bytes(bytes)
    }

    fn not_now(&mut self) -> Moved {
        self.away = None;
        Moved::NotNow
    }

    fn went_away(&mut self, now: Instant) -> Moved {
        let (since, pause) = match &self.away {
            Some(away) => (away.since, (away.pause * 2).min(LONGEST_PAUSE)),
            None => (now, FIRST_PAUSE),
        };
        self.away = Some(Away { since, pause, retry: now + pause });
        Moved::Away
    }
}

/// The port with this name, waited for: the outside names a port only after the driver has greeted it.
pub(crate) fn open(sys: &Path, dev: &Path, name: &'static str, limit: Duration) -> Result<Port, Failure> {
    let device = device(sys, name, limit)?;
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(dev.join(device));
    opened.map(|file| Port::new(file.into())).map_err(|source| Failure::Port { name, source })
}

/// The name of its device.
pub(crate) fn device(sys: &Path, name: &'static str, limit: Duration) -> Result<String, Failure> {
    let class = sys.join("class/virtio-ports");
    // A class without a directory is one whose driver has not come up yet.
    let device = until_there(limit, || Ok::<_, Failure>(find(&class, name).unwrap_or_default()))?;
    device.ok_or_else(|| {
        let found = names(&class).unwrap_or_default().into_iter().map(|(_, name)| name).collect();
        Failure::NoPort { name, waited_ms: limit.as_millis(), found }
    })
}

fn find(class: &Path, name: &str) -> io::Result<Option<String>> {
    Ok(names(class)?.into_iter().find(|(_, found)| found == name).map(|(device, _)| device))
}

/// Device and name of every port that has been given a name.
fn names(class: &Path) -> io::Result<Vec<(String, String)>> {
    let mut ports = Vec::new();
    for entry in fs::read_dir(class)? {
        let entry = entry?;
        if let Ok(name) = fs::read_to_string(entry.path().join("name")) {
            ports.push((entry.file_name().to_string_lossy().into_owned(), name.trim_end().to_owned()));
        }
    }
    ports.sort();
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn port() -> (Port, UnixStream) {
        let (inside, outside) = UnixStream::pair().unwrap();
        inside.set_nonblocking(true).unwrap();
        (Port::new(inside.into()), outside)
    }

    #[test]
    fn a_port_is_found_by_the_name_the_outside_gave_it() {
        let sys = tempfile::tempdir().unwrap();
        let class = sys.path().join("class/virtio-ports");
        for (device, name) in
            [("vport1p1", Some("vmprof.control\n")), ("vport1p2", Some("other\n")), ("vport2p1", None)]
        {
            fs::create_dir_all(class.join(device)).unwrap();
            if let Some(name) = name {
                fs::write(class.join(device).join("name"), name).unwrap();
            }
        }
        assert_eq!(find(&class, "vmprof.control").unwrap().as_deref(), Some("vport1p1"));
        assert_eq!(find(&class, "vmprof.stdin").unwrap(), None);

        let missing = open(sys.path(), sys.path(), "vmprof.stdin", Duration::ZERO).unwrap_err().message();
        assert_eq!(missing, "no virtio-serial port `vmprof.stdin` within 0 ms; found: vmprof.control, other");
    }

    #[test]
    fn bytes_go_both_ways_and_nothing_blocks() {
        let (mut port, mut outside) = port();
        let now = Instant::now();
        let mut bytes = [0; 8];
        assert_eq!(port.read(&mut bytes, now), Moved::NotNow);
        outside.write_all(b"in").unwrap();
        assert_eq!(port.read(&mut bytes, now), Moved::Bytes(2));
        assert_eq!(port.write(b"out", now), Moved::Bytes(3));
        outside.read_exact(&mut bytes[..3]).unwrap();
        assert_eq!(&bytes[..3], b"out");
    }

    #[test]
    fn a_port_nobody_holds_is_left_alone_for_longer_and_longer() {
        let (mut port, outside) = port();
        drop(outside);
        let start = Instant::now();
        assert_eq!(port.read(&mut [0; 8], start), Moved::Away);
        let first = port.away.as_ref().unwrap().retry;
        assert!(first > start);
        assert_eq!(port.read(&mut [0; 8], first), Moved::Away);
        let second = port.away.as_ref().unwrap().retry;
        assert!(second - first > first - start);
        assert_eq!(port.away_for(second), second - start);
    }
}
