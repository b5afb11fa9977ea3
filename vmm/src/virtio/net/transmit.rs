//! A transmit queue while an IOThread serves it: the driver's frames to the backend. A backend that takes no more is watched
//! until it does, and no doorbell is asked for meanwhile.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use vmprof_sys::packets::{Piece, Vectors};
use vmprof_sys::ring::{Buffers, Watched};
use vmprof_sys::segments::GuestBuffers;
use vmprof_sys::vring::{Position, RingError, Vring};

use super::Adapter;
use super::chains::{Chain, Chains, MOST_PIECES, Side};
use super::counters::NetCounters;
use super::header::HEADER_BYTES;
use super::outgoing::{Limits, may_go};
use super::watching::Watching;
use crate::iothread::service::{Drained, Io, QueueService};
use crate::net::stream::Frame;
use crate::net::tap::Tap;
use crate::net::{Backend, FrameStream};
use crate::virtio::device::{ActiveQueue, QueueInterrupt};

/// Frames taken in one turn, for each request that a disk's queue takes in one; and bytes, after which it ends.
const FRAMES_PER_REQUEST: usize = 8;
const BYTES_PER_TURN: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct TxQueue {
    index: u16,
    interrupt: QueueInterrupt,
    taking: Taking,
    sink: Sink,
    watching: Watching,
    /// The backend took not all, and is watched.
    blocked: bool,
}

/// The driver's side.
#[derive(Debug)]
struct Taking {
    adapter: Arc<Adapter>,
    ring: Vring,
    chains: Chains,
    limits: Limits,
    counters: Arc<NetCounters>,
}

/// Where frames go.
#[derive(Debug)]
enum Sink {
    Stream {
        stream: FrameStream,
        /// Taken and not sent, with their heads.
        frames: VecDeque<Frame>,
        heads: VecDeque<u16>,
        /// A part of a frame may be left to be sent, of the machine before too.
        has_rest: bool,
    },
    Tap {
        tap: Arc<Tap>,
        vectors: Vectors,
        /// Taken, and refused until the device has room.
        held: Option<(u16, GuestBuffers)>,
    },
}

/// What a turn left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Blocked,
    /// The turn is over.
    More,
}

impl TxQueue {
    /// On the IOThread that will serve the queue.
    pub(super) fn begin(
        adapter: Arc<Adapter>,
        queue: ActiveQueue,
        backend: Backend,
        offloads: bool,
        counters: Arc<NetCounters>,
        io: &Io<'_>,
    ) -> TxQueue {
        counters.serve_as(io.iothread());
        let ActiveQueue { index, ring, interrupt, .. } = queue;
        let sink = match backend {
            Backend::Stream(stream) => {
                Sink::Stream { stream, frames: VecDeque::new(), heads: VecDeque::new(), has_rest: true }
            }
            Backend::Tap(tap) => Sink::Tap { tap, vectors: Vectors::default(), held: None },
        };
        let chains = Chains::new(&ring, Side::Driver);
        let limits = Limits { longest_frame: adapter.longest_frame(), offloads };
        let taking = Taking { adapter, ring, chains, limits, counters };
        TxQueue { index, interrupt, taking, sink, watching: Watching::default(), blocked: false }
    }

    /// Watches the backend, which took not all, until it takes more.
    fn wait(&mut self, io: &mut Io<'_>) {
        self.blocked = true;
        if !self.watching.is_idle() {
            return;
        }
        let descriptor = match &self.sink {
            Sink::Stream { stream, .. } => stream.descriptor(),
            Sink::Tap { tap, .. } => tap.descriptor((self.index / 2).into()),
        };
        let begun = descriptor.and_then(|file| self.watching.begin(Watched::Writable(file), io));
        if let Err(error) = begun {
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &io::Error) {
        self.watching.give_up();
        self.taking
            .adapter
            .lost(format!("virtqueue {}: its backend cannot be waited for: {error}", self.index));
    }
}

impl Taking {
    /// The next frame that may go, with its head and its header still before it. Others are given back at once, each of which
    /// counts as one of `left`.
    fn next(&mut self, left: &mut usize) -> Result<Option<(u16, GuestBuffers)>, RingError> {
        while *left > 0 {
            let Some(Chain { head, buffers, is_sound }) = self.chains.take(&mut self.ring)? else { break };
            *left -= 1;
            if is_sound && may_go(&buffers, &self.limits) {
                return Ok(Some((head, buffers)));
            }
            self.dropped(head, buffers);
        }
        Ok(None)
    }

    fn give_back(&mut self, head: u16, buffers: GuestBuffers) {
        self.ring.push_used(head, 0);
        self.chains.keep(buffers);
    }

    fn dropped(&mut self, head: u16, buffers: GuestBuffers) {
        self.counters.dropped.add(1);
        self.give_back(head, buffers);
    }

    fn sent(&mut self, head: u16, bytes: u64, buffers: GuestBuffers) {
        self.counters.packets.add(1);
        self.counters.bytes.add(bytes);
        self.give_back(head, buffers);
    }

    /// Sends frames over a stream, many with one system call.
    fn send(
        &mut self,
        stream: &FrameStream,
        frames: &mut VecDeque<Frame>,
        heads: &mut VecDeque<u16>,
        has_rest: &mut bool,
        mut left: usize,
    ) -> Result<Left, RingError> {
        let mut bytes: u64 = frames.iter().map(Frame::bytes).sum();
        let mut pieces: usize = frames.iter().map(Frame::pieces).sum();
        let mut is_over = false;
        let outcome = loop {
            // One piece is the rest of a frame that was sent in part.
            if bytes >= BYTES_PER_TURN || pieces > MOST_PIECES {
                is_over = true;
                break Ok(());
            }
            match self.next(&mut left) {
                Ok(Some((head, mut buffers))) => {
                    buffers.advance(HEADER_BYTES as u64);
                    let frame = Frame::new(buffers);
                    (bytes, pieces) = (bytes + frame.bytes(), pieces + frame.pieces());
                    frames.push_back(frame);
                    heads.push_back(head);
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        let mut blocked = false;
        if (*has_rest || !frames.is_empty()) && !stream.is_closed() {
            let sent = stream.send(frames);
            blocked = sent.blocked;
            for frame in frames.drain(..sent.frames) {
                if let Some(head) = heads.pop_front() {
                    self.sent(head, frame.bytes(), frame.into_buffers());
                }
            }
        }
        if stream.is_closed() {
            blocked = false;
            for (frame, head) in frames.drain(..).zip(heads.drain(..)) {
                self.dropped(head, frame.into_buffers());
            }
        }
        *has_rest = blocked;
        outcome?;
        Ok(match (blocked, is_over || left == 0 || !frames.is_empty()) {
            (true, _) => Left::Blocked,
            (false, true) => Left::More,
            (false, false) => Left::Nothing,
        })
    }

    /// Writes frames to a tap device's queue, one with each system call.
    fn write(
        &mut self,
        tap: &Tap,
        pair: usize,
        vectors: &mut Vectors,
        held: &mut Option<(u16, GuestBuffers)>,
        mut left: usize,
    ) -> Result<Left, RingError> {
        let mut bytes = 0;
        loop {
            let next = match held.take() {
                Some(held) => Some(held),
                None => self.next(&mut left)?,
            };
            let Some((head, buffers)) = next else {
                return Ok(if left == 0 { Left::More } else { Left::Nothing });
            };
            let written = match tap.queue(pair) {
                Some(queue) => vectors.write(queue, [Piece::Guest(&buffers)]),
                None => Err(io::ErrorKind::NotFound.into()),
            };
            match written {
                Ok(_) => {
                    let frame = buffers.bytes() - HEADER_BYTES as u64;
                    bytes += frame;
                    self.sent(head, frame, buffers);
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => *held = Some((head, buffers)),
                    Some(Errno::AGAIN) => {
                        *held = Some((head, buffers));
                        return Ok(Left::Blocked);
                    }
                    // A header that the kernel does not take, a device that is down, or gone: as a cable that is not there.
                    _ => self.dropped(head, buffers),
                },
            }
            if bytes >= BYTES_PER_TURN {
                return Ok(Left::More);
            }
        }
    }
}

impl QueueService for TxQueue {
    fn drain(&mut self, quota: usize, io: &mut Io<'_>) -> Result<Drained, RingError> {
        if self.blocked {
            // A watch that was ending when this one was to begin may have ended by now.
            self.wait(io);
            return Ok(Drained::All);
        }
        self.watching.end(io);
        let left = quota * FRAMES_PER_REQUEST;
        let pair = usize::from(self.index / 2);
        let left = match &mut self.sink {
            Sink::Stream { stream, frames, heads, has_rest } => {
                self.taking.send(stream, frames, heads, has_rest, left)
            }
            Sink::Tap { tap, vectors, held } => self.taking.write(tap, pair, vectors, held, left),
        };
        match left? {
            Left::Nothing => Ok(Drained::All),
            Left::More => Ok(Drained::More),
            Left::Blocked => {
                self.wait(io);
                Ok(Drained::All)
            }
        }
    }

    fn resume(&mut self, io: &mut Io<'_>) -> Drained {
        self.watching.end(io);
        Drained::All
    }

    fn completed(&mut self, _tag: u16, _result: io::Result<u32>, _buffers: Buffers, _io: &mut Io<'_>) {}

    fn ready(&mut self, _tag: u16) {
        self.blocked = false;
    }

    fn unwatched(&mut self, _tag: u16, error: Option<io::Error>) {
        self.watching.ended();
        if let Some(error) = error {
            self.give_up(&error);
        }
    }

    fn publish(&mut self) {
        if self.taking.ring.publish() {
            self.taking.counters.interrupts.add(1);
            self.interrupt.signal();
        }
    }

    fn look(&mut self) -> Result<bool, RingError> {
        if self.blocked { Ok(false) } else { self.taking.ring.look() }
    }

    fn arm(&mut self) {
        if !self.blocked {
            self.taking.ring.arm();
        }
    }

    fn disarm(&mut self) {
        self.taking.ring.disarm();
    }

    fn kicked(&mut self) {
        self.taking.counters.kicks.add(1);
    }

    fn in_flight(&self) -> usize {
        self.watching.open()
    }

    fn position(&self) -> Position {
        self.taking.ring.position()
    }

    fn broken(&mut self, error: RingError) {
        self.taking.adapter.break_down(self.index, error);
    }

    fn end(&mut self, _io: &mut Io<'_>) {}
}
