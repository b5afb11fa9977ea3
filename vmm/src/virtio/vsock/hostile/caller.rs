//! Somebody outside who asks for a connection, and what both ends of it know.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

use rustix::net::SendFlags;

use crate::virtio::vsock::muxer::FIRST_PORT;

/// Where the guest listens: a port for each caller.
pub(super) const FIRST_GUEST_PORT: u32 = 1000;

/// Byte `at` of what goes either way of a connection.
pub(super) fn content(port: u32, at: usize) -> u8 {
    (at ^ (at >> 8)) as u8 ^ (port as u8).wrapping_mul(29)
}

/// A caller outside, and what the guest knows of the connection. The device numbers callers as they come.
pub(super) struct Caller {
    pub(super) number: u32,
    /// `None` once it has left.
    pub(super) stream: Option<UnixStream>,
    pub(super) greeting: Vec<u8>,
    /// Of the greeting, then of its own.
    pub(super) greeted: usize,
    pub(super) wrote: usize,
    /// The answer to the greeting, then what came from the guest.
    pub(super) answer: Vec<u8>,
    pub(super) read: usize,

    /// What the guest sent and the device took, and what it was sent.
    pub(super) sent: usize,
    pub(super) heard: usize,
    /// Room and count of the guest's packets, those since the device was last held against them, and the one before.
    pub(super) credits: Vec<(u32, u32)>,
    pub(super) was_asked_for: bool,
    pub(super) is_deaf: bool,
    pub(super) is_over: bool,
}

impl Caller {
    pub(super) fn new(number: u32, stream: UnixStream, word: &str) -> Caller {
        Caller {
            number,
            stream: Some(stream),
            greeting: format!("{word} {}\n", FIRST_GUEST_PORT + number).into_bytes(),
            greeted: 0,
            wrote: 0,
            answer: Vec::new(),
            read: 0,
            sent: 0,
            heard: 0,
            credits: vec![(0, 0)],
            was_asked_for: false,
            is_deaf: false,
            is_over: false,
        }
    }

    pub(super) fn guest_port(&self) -> u32 {
        FIRST_GUEST_PORT + self.number
    }

    pub(super) fn host_port(&self) -> u32 {
        FIRST_PORT + self.number
    }

    /// Its greeting is whole, so that the guest is asked.
    pub(super) fn has_called(&self) -> bool {
        self.greeted == self.greeting.len()
    }

    pub(super) fn write(&mut self, count: usize) {
        let port = self.guest_port();
        let Some(stream) = &self.stream else { return };
        // One that the device closed takes nothing.
        let send = |bytes: &[u8]| {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            rustix::net::send(stream, bytes, flags).unwrap_or(0)
        };
        if self.greeted < self.greeting.len() {
            let end = self.greeting.len().min(self.greeted + count);
            self.greeted += send(&self.greeting[self.greeted..end]);
            return;
        }
        let bytes: Vec<u8> = (self.wrote..self.wrote + count).map(|at| content(port, at)).collect();
        self.wrote += send(&bytes);
    }

    /// `false`: nothing comes any more.
    pub(super) fn read(&mut self, count: usize) -> bool {
        let (guest_port, host_port) = (self.guest_port(), self.host_port());
        let Some(stream) = &mut self.stream else { return false };
        let mut bytes = vec![0; count];
        let count = match stream.read(&mut bytes) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        };
        for byte in &bytes[..count] {
            if self.answer.last() != Some(&b'\n') {
                self.answer.push(*byte);
                continue;
            }
            assert_eq!(*byte, content(guest_port, self.read), "byte {} of {guest_port}", self.read);
            self.read += 1;
        }
        let expected = format!("OK {host_port}\n");
        assert!(expected.as_bytes().starts_with(&self.answer), "{:?}", self.answer);
        assert!(self.read <= self.sent, "more came than the guest sent");
        true
    }
}
