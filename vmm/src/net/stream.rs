//! Frames over a stream socket, as passt and QEMU's `-netdev stream` have them: 32 bits of length, big-endian, and then the
//! Ethernet frame. A frame may come and go in parts, so what is left of one is kept here and not in a machine's queues: the
//! machine that follows goes on in the middle of it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{RecvFlags, Shutdown, SocketType};
use vmprof_sys::packets::{Piece, Vectors};
use vmprof_sys::segments::{GuestBuffers, MOST_SEGMENTS};

use super::{LONGEST_FRAME, NetError};

const LENGTH_BYTES: usize = 4;
/// What one system call reads at most: any frame, and many of the usual ones.
const BUFFER_BYTES: usize = 128 << 10;
const _: () = assert!(BUFFER_BYTES > LENGTH_BYTES + LONGEST_FRAME);

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamEnd {
    #[error("the other side closed the stream of frames")]
    Closed,
    #[error(
        "the other side announced a frame of {bytes} bytes, and {LONGEST_FRAME} is the longest that there is"
    )]
    Framing { bytes: u32 },
    #[error("the stream of frames failed: {error}")]
    Failed { error: String },
}

type Tell = Box<dyn Fn(&StreamEnd) + Send>;

/// A connected stream socket with frames. Its clones are the same stream.
#[derive(Debug, Clone)]
pub struct FrameStream(Arc<Inner>);

struct Inner {
    socket: OwnedFd,
    /// One IOThread of one machine has each of these at a time; after it, that of the machine that follows.
    receive: Mutex<Receive>,
    transmit: Mutex<Transmit>,
    closed: AtomicBool,
    /// Whoever finds the end, on either IOThread, and those who ask for it meet here.
    end: Mutex<End>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("FrameStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct End {
    how: Option<StreamEnd>,
    /// The caller's; and that of the machine's device, which is another one after a reboot.
    caller: Option<Tell>,
    device: Option<Tell>,
}

impl FrameStream {
    /// Over `socket`, which is used without waiting whatever its flags are.
    pub fn new(socket: OwnedFd) -> Result<FrameStream, NetError> {
        let kind = rustix::net::sockopt::socket_type(&socket);
        let connected = rustix::net::getpeername(&socket).map(|_| ());
        match kind.and_then(|kind| connected.map(|()| kind)) {
            Ok(SocketType::STREAM) => {}
            Ok(_) => return Err(NetError::NotAStream { source: None }),
            Err(errno) => return Err(NetError::NotAStream { source: Some(errno.into()) }),
        }
        Ok(FrameStream(Arc::new(Inner {
            socket,
            receive: Mutex::default(),
            transmit: Mutex::default(),
            closed: AtomicBool::new(false),
            end: Mutex::default(),
        })))
    }

    /// Whether the stream has ended. Seen when a machine reads or writes it: one without a driver does neither.
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::Acquire)
    }

    /// How it ended, if it has.
    pub fn end(&self) -> Option<StreamEnd> {
        lock(&self.0.end).how.clone()
    }

    /// Who hears of the end, told once, and at once of an end that was there before. Called on IOThreads, where it
    /// must not wait for anything, nor use the stream.
    pub fn on_close(&self, tell: impl Fn(&StreamEnd) + Send + 'static) {
        let mut end = lock(&self.0.end);
        if let Some(how) = &end.how {
            tell(how);
        }
        end.caller = Some(Box::new(tell));
    }

    /// The same for the device of a machine, in the place of that of the machine before.
    pub(crate) fn tell_device(&self, tell: impl Fn(&StreamEnd) + Send + 'static) {
        let mut end = lock(&self.0.end);
        if let Some(how) = &end.how {
            tell(how);
        }
        end.device = Some(Box::new(tell));
    }

    /// A descriptor of its own for the same socket, to be watched by one thread.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.socket.try_clone()
    }

    /// The side that frames come from.
    pub(crate) fn receiver(&self) -> Receiver<'_> {
        Receiver { stream: self, state: lock(&self.0.receive) }
    }

    /// Sends frames from the front of `frames`, as many as one system call takes, behind what is left of one that went before. A
    /// frame whose beginning the socket took counts as sent: the rest is copied, and goes first the next time.
    pub(crate) fn send(&self, frames: &mut VecDeque<Frame>) -> Sent {
        lock(&self.0.transmit).send(self, frames)
    }

    /// The first end is the one that is told.
    fn close(&self, how: StreamEnd) {
        let mut end = lock(&self.0.end);
        if end.how.is_none() {
            self.0.closed.store(true, Ordering::Release);
            end.caller.iter().chain(&end.device).for_each(|tell| tell(&how));
            // The other side may not know yet; it fails where it does.
            let _ = rustix::net::shutdown(&self.0.socket, Shutdown::Both);
            end.how = Some(how);
        }
    }

    fn failed(&self, error: &io::Error) {
        self.close(match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => StreamEnd::Closed,
            _ => StreamEnd::Failed { error: error.to_string() },
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was read and not yet taken: `buffer[start..end]`.
#[derive(Debug, Default)]
struct Receive {
    /// Made when the socket is first read.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Receive {
    /// The length of the frame at the front, when that much of it is there.
    fn length(&self) -> Option<u32> {
        let length = self.buffer.get(self.start..self.end)?.first_chunk::<LENGTH_BYTES>()?;
        Some(u32::from_be_bytes(*length))
    }
}

/// What reading the socket brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refill {
    Bytes,
    /// Nothing is there: the socket is readable when there is.
    Empty,
    Ended,
}

#[derive(Debug)]
pub(crate) struct Receiver<'a> {
    stream: &'a FrameStream,
    state: MutexGuard<'a, Receive>,
}

impl Receiver<'_> {
    /// The next frame, if all of it was read. The same again until [`pop`](Self::pop).
    pub(crate) fn peek(&self) -> Option<&[u8]> {
        let bytes = self.state.length()? as usize;
        let from = self.state.start + LENGTH_BYTES;
        self.state.buffer.get(from..self.state.end)?.get(..bytes)
    }

    pub(crate) fn pop(&mut self) {
        if let Some(bytes) = self.peek().map(<[u8]>::len) {
            self.state.start += LENGTH_BYTES + bytes;
        }
    }

    /// Reads what the socket has, as far as there is room, with one system call. To be called without a whole frame.
    pub(crate) fn refill(&mut self) -> Refill {
        if self.stream.is_closed() {
            return Refill::Ended;
        }
        let state = &mut *self.state;
        if let Some(bytes) = state.length().filter(|bytes| *bytes as usize > LONGEST_FRAME) {
            // What follows cannot be told from frames any more.
            self.stream.close(StreamEnd::Framing { bytes });
            return Refill::Ended;
        }
        state.buffer.resize(BUFFER_BYTES, 0);
        state.buffer.copy_within(state.start..state.end, 0);
        (state.start, state.end) = (0, state.end - state.start);
        loop {
            let room = &mut state.buffer[state.end..];
            match rustix::net::recv(&self.stream.0.socket, room, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => self.stream.close(StreamEnd::Closed),
                Ok((_, bytes)) => {
                    state.end += bytes;
                    return Refill::Bytes;
                }
                Err(rustix::io::Errno::AGAIN) => return Refill::Empty,
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => self.stream.failed(&errno.into()),
            }
            return Refill::Ended;
        }
    }
}

/// A frame of the guest's on its way out.
#[derive(Debug)]
pub(crate) struct Frame {
    length: [u8; LENGTH_BYTES],
    buffers: GuestBuffers,
}

impl Frame {
    /// Of all that is in `buffers`; no longer than [`LONGEST_FRAME`].
    pub(crate) fn new(buffers: GuestBuffers) -> Frame {
        Frame { length: (buffers.bytes() as u32).to_be_bytes(), buffers }
    }

    pub(crate) fn into_buffers(self) -> GuestBuffers {
        self.buffers
    }

    /// Pieces of one system call that it takes.
    pub(crate) fn pieces(&self) -> usize {
        1 + self.buffers.pieces()
    }

    fn parts(&self) -> [Piece<'_>; 2] {
        [Piece::Own(&self.length), Piece::Guest(&self.buffers)]
    }

    /// Bytes of the frame itself, sent or not.
    pub(crate) fn bytes(&self) -> u64 {
        u32::from_be_bytes(self.length).into()
    }
}

/// What became of frames that were to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Those at the front that need nothing more.
    pub(crate) frames: usize,
    /// The socket took less than it was given: it is writable when it takes more.
    pub(crate) blocked: bool,
}

#[derive(Debug, Default)]
struct Transmit {
    /// What is left of a frame that was sent in part.
    rest: Vec<u8>,
    vectors: Vectors,
}

impl Transmit {
    fn send(&mut self, stream: &FrameStream, frames: &mut VecDeque<Frame>) -> Sent {
        let Transmit { rest, vectors } = self;
        let (mut pieces, mut whole) = (1, rest.len() as u64);
        let fits = |frame: &&Frame| {
            pieces += frame.pieces();
            let fits = pieces <= MOST_SEGMENTS;
            whole += if fits { LENGTH_BYTES as u64 + frame.bytes() } else { 0 };
            fits
        };
        let count = frames.iter().take_while(fits).count();
        let sent = loop {
            let parts = frames.iter().take(count).flat_map(Frame::parts);
            let pieces = std::iter::once(Piece::Own(rest)).chain(parts);
            match vectors.send(stream.0.socket.as_fd(), pieces) {
                Ok(sent) => break sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break 0,
                Err(error) => {
                    stream.failed(&error);
                    break 0;
                }
            }
        };
        Sent { frames: self.account(sent, frames), blocked: (sent as u64) < whole }
    }

    /// `sent` bytes of the rest and of `frames` are gone. How many frames need nothing more.
    fn account(&mut self, sent: usize, frames: &mut VecDeque<Frame>) -> usize {
        let of_rest = sent.min(self.rest.len());
        self.rest.drain(..of_rest);
        let mut left = sent - of_rest;
        for (done, frame) in frames.iter_mut().enumerate() {
            let bytes = LENGTH_BYTES + frame.bytes() as usize;
            if left >= bytes {
                left -= bytes;
                continue;
            }
            if left == 0 {
                return done;
            }
            self.rest.extend_from_slice(frame.length.get(left..).unwrap_or_default());
            frame.buffers.advance(left.saturating_sub(LENGTH_BYTES) as u64);
            let before = self.rest.len();
            self.rest.resize(before + frame.buffers.bytes() as usize, 0);
            frame.buffers.take_front(&mut self.rest[before..]);
            return done + 1;
        }
        frames.len()
    }
}

#[cfg(test)]
mod tests;
