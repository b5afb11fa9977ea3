//! The command's streams: pipes between the command and this process, ports between this process and the outside.
//!
//! The command sees pipes, so end of input, EPIPE and a full pipe mean what they mean anywhere. Each direction holds one
//! chunk at most: a side that does not take its bytes stops the other side, all the way to the writer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread};

use crate::ports::{Moved, Port};
use crate::wait::Wait;

/// A port takes no more than this in one write.
const CHUNK: usize = 32 * 1024;
/// Chunks one pump moves before the others, and the control port, have their turn.
const TURN: usize = 16;

/// The reading end of a pipe that the command, or a helper, writes to.
#[derive(Debug)]
pub(crate) struct PipeOut {
    pipe: Option<OwnedFd>,
    left: Left,
}

/// How much may still be read.
#[derive(Debug, Clone, Copy)]
enum Left {
    /// The process runs: whatever comes.
    Unknown,
    /// It ended: what lay in the pipe then. A process it left behind may hold the pipe open and go on writing, but its
    /// output is not the command's.
    Bytes(u64),
}

impl PipeOut {
    pub(crate) fn new(pipe: OwnedFd) -> io::Result<Self> {
        non_blocking(&pipe)?;
        Ok(PipeOut { pipe: Some(pipe), left: Left::Unknown })
    }

    /// The process at the other end has ended.
    pub(crate) fn writer_ended(&mut self) {
        if let (Some(pipe), Left::Unknown) = (&self.pipe, self.left) {
            self.left = Left::Bytes(ioctl_fionread(pipe).unwrap_or(0));
        }
    }

    /// `None` where there is nothing to read now.
    pub(crate) fn read<'a>(&mut self, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
        let pipe = self.pipe.as_ref()?;
        let room = match self.left {
            Left::Unknown => buffer.len(),
            Left::Bytes(left) => buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
        };
        if room == 0 {
            self.close();
            return None;
        }
        match rustix::io::read(pipe, &mut buffer[..room]) {
            Ok(0) => self.close(),
            Ok(read) => {
                if let Left::Bytes(left) = &mut self.left {
                    *left -= read as u64;
                }
                return buffer.get(..read);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.close(),
        }
        None
    }

    pub(crate) fn close(&mut self) {
        self.pipe = None;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.pipe.is_none()
    }

    pub(crate) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        if let Some(pipe) = &self.pipe {
            wait.on(pipe.as_fd(), PollFlags::IN);
        }
    }
}

/// Bytes on their way: `bytes[start..]`.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    start: usize,
}

impl Held {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    fn take(&mut self, bytes: &[u8]) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.start = 0;
    }
}

/// Standard input: from the port to the command.
#[derive(Debug)]
pub(crate) struct ToCommand {
    port: Port,
    pipe: Option<OwnedFd>,
    held: Held,
    passed: u64,
    ends_after: Option<u64>,
}

impl ToCommand {
    pub(crate) fn new(port: Port, pipe: OwnedFd) -> io::Result<Self> {
        non_blocking(&pipe)?;
        Ok(ToCommand { port, pipe: Some(pipe), held: Held::default(), passed: 0, ends_after: None })
    }

    /// The outside has written `bytes` in all: after those the command sees the end of its input.
    pub(crate) fn ends_after(&mut self, bytes: u64) {
        self.ends_after = Some(bytes);
    }

    pub(crate) fn step(&mut self, now: Instant) {
        let mut buffer = [0; CHUNK];
        for _ in 0..TURN {
            let Some(pipe) = &self.pipe else { return };
            if !self.held.rest().is_empty() {
                match rustix::io::write(pipe, self.held.rest()) {
                    Ok(written) => {
                        self.held.start += written;
                        self.passed += written as u64;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => return,
                    // The command reads no more. Neither do we: the writer outside finds its stream full, not a reader
                    // that swallows everything.
                    Err(_) => self.pipe = None,
                }
            } else if self.ends_after.is_some_and(|end| self.passed >= end) {
                self.pipe = None;
            } else {
                match self.port.read(&mut buffer, now) {
                    Moved::Bytes(read) => self.held.take(&buffer[..read]),
                    Moved::NotNow | Moved::Away => return,
                }
            }
        }
    }

    pub(crate) fn expect<'a>(&'a self, now: Instant, wait: &mut Wait<'a>) {
        if let Some(pipe) = &self.pipe {
            if self.held.rest().is_empty() {
                self.port.expect(PollFlags::IN, now, wait);
            } else {
                wait.on(pipe.as_fd(), PollFlags::OUT);
            }
        }
    }
}

/// Standard output or error: from the command to the port.
#[derive(Debug)]
pub(crate) struct FromCommand {
    pipe: PipeOut,
    port: Port,
    held: Held,
    sent: u64,
}

impl FromCommand {
    pub(crate) fn new(pipe: OwnedFd, port: Port) -> io::Result<Self> {
        Ok(FromCommand { pipe: PipeOut::new(pipe)?, port, held: Held::default(), sent: 0 })
    }

    pub(crate) fn step(&mut self, now: Instant) {
        let mut buffer = [0; CHUNK];
        for _ in 0..TURN {
            if !self.held.rest().is_empty() {
                match self.port.write(self.held.rest(), now) {
                    Moved::Bytes(written) => {
                        self.held.start += written;
                        self.sent += written as u64;
                    }
                    Moved::NotNow | Moved::Away => return,
                }
            } else if let Some(bytes) = self.pipe.read(&mut buffer) {
                self.held.take(bytes);
            } else {
                return;
            }
        }
    }

    pub(crate) fn expect<'a>(&'a self, now: Instant, wait: &mut Wait<'a>) {
        if self.held.rest().is_empty() {
            self.pipe.expect(wait);
        } else {
            self.port.expect(PollFlags::OUT, now, wait);
        }
    }

    pub(crate) fn writer_ended(&mut self) {
        self.pipe.writer_ended();
    }

    /// Everything the command wrote is in the port.
    pub(crate) fn is_drained(&self) -> bool {
        self.pipe.is_closed() && self.held.rest().is_empty()
    }

    /// How long the bytes held have had nobody to go to.
    pub(crate) fn stuck_for(&self, now: Instant) -> Duration {
        self.port.away_for(now)
    }

    /// Bytes that the port took.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }
}

/// Only this end: the command's own end of the pipe stays as programs expect it.
fn non_blocking(pipe: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(pipe, fcntl_getfl(pipe)? | OFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write, pipe};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    fn port() -> (Port, UnixStream) {
        let (inside, outside) = UnixStream::pair().unwrap();
        inside.set_nonblocking(true).unwrap();
        (Port::new(inside.into()), outside)
    }

    #[test]
    fn input_ends_after_the_count_even_when_the_count_comes_first() {
        let (port, mut outside) = port();
        let (mut command, ours) = pipe().unwrap();
        let mut input = ToCommand::new(port, ours.into()).unwrap();
        input.ends_after(5);
        input.step(Instant::now());
        assert!(input.pipe.is_some());
        outside.write_all(b"hello").unwrap();
        input.step(Instant::now());
        let mut seen = String::new();
        command.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "hello");
    }

    #[test]
    fn no_input_at_all_is_an_end_at_once() {
        let (port, _outside) = port();
        let (mut command, ours) = pipe().unwrap();
        let mut input = ToCommand::new(port, ours.into()).unwrap();
        input.ends_after(0);
        input.step(Instant::now());
        assert_eq!(command.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_command_that_reads_no_more_leaves_the_rest_outside() {
        let (port, mut outside) = port();
        let (command, ours) = pipe().unwrap();
        let mut input = ToCommand::new(port, ours.into()).unwrap();
        drop(command);
        outside.write_all(b"unread").unwrap();
        input.step(Instant::now());
        assert!(input.pipe.is_none());
        let mut wait = Wait::default();
        input.expect(Instant::now(), &mut wait);
        wait.until(Instant::now());
        wait.sleep();
    }

    #[test]
    fn more_than_any_buffer_arrives_in_order_through_a_slow_reader() {
        let (port, mut outside) = port();
        let (ours, mut command) = pipe().unwrap();
        let mut output = FromCommand::new(ours.into(), port).unwrap();
        let bytes: Vec<u8> = (0..1_500_000u32).map(|i| (i ^ (i >> 8)) as u8).collect();
        let sent = bytes.clone();
        let writer = thread::spawn(move || command.write_all(&sent).unwrap());
        let reader = thread::spawn(move || {
            let mut seen = Vec::new();
            outside.read_to_end(&mut seen).unwrap();
            seen
        });
        while !output.is_drained() {
            output.step(Instant::now());
            let mut wait = Wait::default();
            output.expect(Instant::now(), &mut wait);
            wait.until(Instant::now() + Duration::from_millis(50));
            wait.sleep();
        }
        assert_eq!(output.sent(), bytes.len() as u64);
        drop(output);
        writer.join().unwrap();
        assert!(reader.join().unwrap() == bytes);
    }

    #[test]
    fn what_lay_in_the_pipe_at_the_end_is_drained_and_no_more() {
        let (port, mut outside) = port();
        let (ours, mut left_behind) = pipe().unwrap();
        let mut output = FromCommand::new(ours.into(), port).unwrap();
        left_behind.write_all(b"command").unwrap();
        output.writer_ended();
        left_behind.write_all(b" and someone else").unwrap();
        while !output.is_drained() {
            output.step(Instant::now());
        }
        assert_eq!(output.sent(), 7);
        drop(output);
        let mut seen = String::new();
        outside.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "command");
    }
}
