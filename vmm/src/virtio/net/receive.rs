//! A receive queue while an IOThread serves it: frames from the backend into buffers that the driver offers. Without buffers
//! frames stay in the backend, and the doorbell says when there are some again; with buffers and without frames the backend's
//! readiness does, and no doorbell is asked for.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use vmprof_sys::packets::Vectors;
use vmprof_sys::ring::{Buffers, Watched};
use vmprof_sys::vring::{Position, RingError};

use super::Adapter;
use super::counters::NetCounters;
use super::header::{self, HEADER_BYTES};
use super::offered::{Offered, Room};
use super::watching::Watching;
use crate::iothread::service::{Drained, Io, QueueService};
use crate::net::stream::Refill;
use crate::net::tap::Tap;
use crate::net::{Backend, ETHERNET_BYTES, FrameStream, LONGEST_FRAME};
use crate::virtio::device::{ActiveQueue, QueueInterrupt};

/// Buffers taken in one turn, for each request that a disk's queue takes in one.
const BUFFERS_PER_REQUEST: usize = 8;

#[derive(Debug)]
pub(super) struct RxQueue {
    adapter: Arc<Adapter>,
    index: u16,
    interrupt: QueueInterrupt,
    offered: Offered,
    source: Source,
    watching: Watching,
    /// Nothing was found since it was told that there is something.
    readable: bool,
    /// A frame waits for buffers.
    starved: bool,
    counters: Arc<NetCounters>,
}

/// Where frames come from.
#[derive(Debug)]
enum Source {
    Stream(FrameStream),
    Tap(TapSource),
}

#[derive(Debug)]
struct TapSource {
    tap: Arc<Tap>,
    pair: u16,
    vectors: Vectors,
    /// What of a frame the buffers had no room for.
    spill: Box<[u8]>,
    /// The most that a frame is expected to be, with its header.
    usual_bytes: usize,
    waiting: Option<Waiting>,
}

/// A frame that was read and waits for more buffers: what these could hold is in them, the rest was spilled.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    bytes: usize,
    in_buffers: usize,
}

/// Whether there is more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// The source has nothing.
    Nothing,
    /// The driver has no buffers.
    Starved,
    /// The turn is over.
    More,
}

impl From<Room> for Left {
    /// Of a frame that does not fit now.
    fn from(room: Room) -> Left {
        if room == Room::Wait { Left::Starved } else { Left::More }
    }
}

impl RxQueue {
    /// On the IOThread that will serve the queue. Frames may lie over several buffers if it `merges`; with `large` the guest
    /// takes several packets as one frame.
    pub(super) fn begin(
        adapter: Arc<Adapter>,
        queue: ActiveQueue,
        backend: Backend,
        (merges, large): (bool, bool),
        counters: Arc<NetCounters>,
        io: &Io<'_>,
    ) -> RxQueue {
        counters.serve_as(io.iothread());
        let ActiveQueue { index, ring, interrupt, .. } = queue;
        let source = match backend {
            Backend::Stream(stream) => Source::Stream(stream),
            Backend::Tap(tap) => Source::Tap(TapSource {
                tap,
                pair: index / 2,
                vectors: Vectors::default(),
                spill: vec![0; LONGEST_FRAME].into_boxed_slice(),
                usual_bytes: HEADER_BYTES + if large { LONGEST_FRAME } else { adapter.usual_frame() },
                waiting: None,
            }),
        };
        let offered = Offered::new(ring, merges, Arc::clone(&counters));
        let (watching, readable, starved) = (Watching::default(), false, false);
        RxQueue { adapter, index, interrupt, offered, source, watching, readable, starved, counters }
    }

    /// Whether the driver wants frames of this queue.
    fn is_active(&self) -> bool {
        self.adapter.is_active(self.index / 2)
    }

    /// Watches the backend while frames are wanted, and has a tap device's queue attached as long.
    fn follow(&mut self, io: &mut Io<'_>) {
        let active = self.is_active();
        let attach = |active| match &self.source {
            Source::Tap(source) => source.tap.set_attached(source.pair.into(), active),
            Source::Stream(_) => Ok(()),
        };
        let followed = if active && self.watching.is_idle() {
            // A queue that is not attached cannot be watched.
            attach(true).and_then(|()| {
                let descriptor = match &self.source {
                    Source::Tap(source) => source.tap.descriptor(source.pair.into()),
                    Source::Stream(stream) => stream.descriptor(),
                };
                self.watching.begin(Watched::Readable(descriptor?), io)
            })
        } else if !active && self.watching.is_idle() {
            attach(false)
        } else {
            if !active {
                self.watching.end(io);
            }
            Ok(())
        };
        if let Err(error) = followed {
            self.watching.give_up();
            self.adapter.lost(format!("virtqueue {}: its frames cannot be waited for: {error}", self.index));
        }
    }
}

/// Frames that were read from a stream, or are.
fn from_stream(
    stream: &FrameStream,
    offered: &mut Offered,
    readable: &mut bool,
    longest: usize,
) -> Result<Left, RingError> {
    let mut receiver = stream.receiver();
    loop {
        let Some(frame) = receiver.peek() else {
            if !*readable {
                return Ok(Left::Nothing);
            }
            *readable = receiver.refill() == Refill::Bytes;
            continue;
        };
        let bytes = HEADER_BYTES + frame.len();
        if !(ETHERNET_BYTES..=longest).contains(&frame.len()) {
            offered.drop_frame();
        } else {
            match offered.gather(bytes)? {
                Room::Enough => {
                    offered.write_at(0, &header::plain(0));
                    offered.write_at(HEADER_BYTES, frame);
                    offered.give(bytes);
                }
                Room::Never => offered.drop_frame(),
                room => return Ok(room.into()),
            }
        }
        receiver.pop();
        if offered.turn_is_over() {
            return Ok(Left::More);
        }
    }
}

impl TapSource {
    /// Frames from the device, each straight into the driver's buffers.
    fn take(
        &mut self,
        offered: &mut Offered,
        readable: &mut bool,
        adapter: &Adapter,
    ) -> Result<Left, RingError> {
        loop {
            if let Some(Waiting { bytes, in_buffers }) = self.waiting {
                match offered.gather(bytes)? {
                    Room::Enough => {
                        offered.write_at(in_buffers, &self.spill[..bytes - in_buffers]);
                        offered.give(bytes);
                    }
                    Room::Never => offered.drop_frame(),
                    room => return Ok(room.into()),
                }
                self.waiting = None;
            }
            if offered.turn_is_over() {
                return Ok(Left::More);
            }
            if !*readable {
                return Ok(Left::Nothing);
            }
            let room = offered.gather(self.usual_bytes)?;
            let (count, in_buffers) = offered.front(self.usual_bytes);
            if count == 0 {
                return Ok(room.into());
            }
            let Some(queue) = self.tap.queue(self.pair.into()) else { return Ok(Left::Nothing) };
            let read = self.vectors.read(queue, offered.buffers(count), &mut self.spill);
            match read {
                Ok(bytes) if bytes < HEADER_BYTES + ETHERNET_BYTES => offered.drop_frame(),
                Ok(bytes) if bytes <= in_buffers => offered.give(bytes),
                Ok(bytes) if offered.merges() && bytes - in_buffers <= self.spill.len() => {
                    self.waiting = Some(Waiting { bytes, in_buffers });
                }
                Ok(_) => offered.drop_frame(),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::INTR) => {}
                    Some(Errno::AGAIN) => *readable = false,
                    // A detached queue of a device with several; else the device is gone.
                    Some(Errno::BADFD) if !adapter.is_active(self.pair) => *readable = false,
                    _ => {
                        *readable = false;
                        adapter.lost(format!("the tap device gives no more frames: {error}"));
                    }
                },
            }
        }
    }
}

impl QueueService for RxQueue {
    fn drain(&mut self, quota: usize, io: &mut Io<'_>) -> Result<Drained, RingError> {
        self.follow(io);
        self.starved = false;
        if !self.is_active() {
            return Ok(Drained::All);
        }
        let RxQueue { offered, source, readable, adapter, .. } = self;
        offered.begin_turn(quota * BUFFERS_PER_REQUEST);
        let left = match source {
            Source::Stream(stream) => from_stream(stream, offered, readable, adapter.longest_frame()),
            Source::Tap(tap) => tap.take(offered, readable, adapter),
        }?;
        self.starved = left == Left::Starved;
        Ok(if left == Left::More { Drained::More } else { Drained::All })
    }

    fn resume(&mut self, io: &mut Io<'_>) -> Drained {
        self.watching.end(io);
        Drained::All
    }

    fn completed(&mut self, _tag: u16, _result: io::Result<u32>, _buffers: Buffers, _io: &mut Io<'_>) {}

    fn ready(&mut self, _tag: u16) {
        self.readable = true;
    }

    fn unwatched(&mut self, _tag: u16, error: Option<io::Error>) {
        self.watching.ended();
        if let Some(error) = error {
            self.watching.give_up();
            self.adapter.lost(format!("virtqueue {}: its frames cannot be waited for: {error}", self.index));
        }
    }

    fn publish(&mut self) {
        if self.offered.ring.publish() {
            self.counters.interrupts.add(1);
            self.interrupt.signal();
        }
    }

    fn look(&mut self) -> Result<bool, RingError> {
        if self.starved { self.offered.ring.look() } else { Ok(self.readable && self.is_active()) }
    }

    fn arm(&mut self) {
        // Buffers are waited for only when there is a frame for them.
        if self.starved {
            self.offered.ring.arm();
        }
    }

    fn disarm(&mut self) {
        self.offered.ring.disarm();
    }

    fn kicked(&mut self) {
        self.counters.kicks.add(1);
    }

    fn in_flight(&self) -> usize {
        self.watching.open()
    }

    fn position(&self) -> Position {
        self.offered.ring.position()
    }

    fn broken(&mut self, error: RingError) {
        self.adapter.break_down(self.index, error);
    }

    fn end(&mut self, _io: &mut Io<'_>) {}
}
