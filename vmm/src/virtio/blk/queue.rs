//! One virtqueue of a disk while an IOThread serves it: heads become requests, requests become transfers and flushes, and
//! what ended goes back to the driver. A head has its slot from its first request on, so that those after it allocate nothing:
//! drivers take the same few heads again and again, and a queue costs what it was ever deep. [`erasing`] has what gives ranges
//! back, [`failing`] what becomes of requests that fail.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use vmprof_sys::ring::{Buffers, Operation};
use vmprof_sys::segments::GuestBuffers;
use vmprof_sys::vring::{Descriptor, Position, RingError};

use super::Disk;
use super::erase::Erasure;
use super::in_flight::{InFlight, Moment};
use super::request::{self, Kind, Request, Status};
use crate::backing::bounce::BouncePool;
use crate::backing::transfer::{Direction, Step, Transfer};
use crate::iothread::counters::QueueCounters;
use crate::iothread::latency;
use crate::iothread::service::{Drained, Io, QueueService, Target};
use crate::virtio::device::ActiveQueue;

mod counting;
mod erasing;
mod failing;
mod timing;

use timing::Timing;

/// virtio 1.3, 5.2.6: the id string of GET_ID.
pub(super) const ID_BYTES: usize = 20;

#[derive(Debug)]
struct Slot {
    state: State,
    transfer: Transfer,
    /// Made at the first request of the slot that needs one.
    erasure: Option<Box<Erasure>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The driver has the head.
    Free,
    Moving(Request),
    /// A transfer that waits for a bounce buffer or a block.
    Stalled(Request),
    /// A flush, or a change that must be durable before it completes.
    Syncing(Request),
    /// A range is being given back or zeroed.
    Erasing(Request),
    /// The same by writing zeros.
    Zeroing(Request),
    /// It failed, and waits for the machine to go on.
    Held(Request, Stage),
}

/// Where a request failed, and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Moving,
    Syncing,
}

#[derive(Debug)]
pub(super) struct BlkQueue {
    disk: Arc<Disk>,
    queue: ActiveQueue,
    target: Target,
    /// By head, as far as the highest that was ever offered.
    slots: Vec<Slot>,
    /// An empty list, of which every slot has its own.
    buffers: GuestBuffers,
    in_flight: usize,
    stalled: VecDeque<u16>,
    held: VecDeque<u16>,
    /// How often the machine had been resumed when the last of `held` failed.
    held_since: u64,
    /// Nothing stops the machine any more: who offered these requests does not wait for them.
    ending: bool,
    bounces: BouncePool,
    /// The descriptors of the request that is being taken.
    chain: Vec<Descriptor>,
    counters: Arc<QueueCounters>,
    shown: Arc<InFlight>,
    /// Only while times are taken.
    timing: Option<Box<Timing>>,
}

impl BlkQueue {
    /// On the IOThread that will serve the queue.
    pub(super) fn begin(
        disk: Arc<Disk>,
        queue: ActiveQueue,
        counters: Arc<QueueCounters>,
        shown: Arc<InFlight>,
        io: &mut Io<'_>,
    ) -> io::Result<Self> {
        let file = Arc::clone(&disk.backing.file);
        let target = if disk.iopoll { io.open_polled(file) } else { io.open(file, disk.engine) }?;
        counters.serve_as(io.iothread());
        shown.clear();
        // All the room at once, of which the kernel fills what is touched.
        let slots = Vec::with_capacity(queue.ring.size().into());
        let buffers = GuestBuffers::new(queue.ring.ram());
        let (bounces, stalled, held) = (BouncePool::new(&disk.backing), VecDeque::new(), VecDeque::new());
        Ok(BlkQueue {
            disk,
            queue,
            target,
            slots,
            buffers,
            in_flight: 0,
            stalled,
            held,
            held_since: 0,
            ending: false,
            bounces,
            chain: Vec::new(),
            counters,
            shown,
            timing: None,
        })
    }

    /// Takes what the driver offers, up to `quota` requests.
    fn take(
        &mut self,
        quota: usize,
        chain: &mut Vec<Descriptor>,
        io: &mut Io<'_>,
    ) -> Result<Drained, RingError> {
        let mut left = quota;
        let mut next = self.queue.ring.pop(chain)?;
        if next.is_some() {
            let now = match self.timing {
                Some(_) => Moment::exactly(latency::now()),
                None => Moment::now(),
            };
            while let Some(head) = next {
                self.accept(head, chain, now, io)?;
                left -= 1;
                if left == 0 {
                    return Ok(Drained::More);
                }
                next = self.queue.ring.pop(chain)?;
            }
        }
        Ok(if self.stalled.is_empty() { Drained::All } else { Drained::Stalled })
    }

    /// Takes one request.
    fn accept(
        &mut self,
        head: u16,
        chain: &[Descriptor],
        now: Moment,
        io: &mut Io<'_>,
    ) -> Result<(), RingError> {
        let broken = RingError::HeadInFlight { head };
        if usize::from(head) >= self.slots.len() {
            self.make_slots(head);
        }
        let slot = self.slots.get_mut(usize::from(head)).ok_or(broken)?;
        // The driver may offer anything: a head that it does not have would give two requests one slot.
        if slot.state != State::Free {
            return Err(broken);
        }
        let ring = &self.queue.ring;
        let buffers = slot.transfer.guest_mut().ok_or(broken)?;
        let request = request::parse(head, chain, ring.regions(), &self.disk.limits, buffers)?;
        self.in_flight += 1;
        if let Some(timing) = &mut self.timing {
            timing.taken(head, now.nanos());
        }
        match request.kind {
            Kind::Read { offset } => {
                self.shown.begin(head, Kind::Read { offset }, now);
                slot.transfer.begin(Direction::Read, offset);
                self.advance(head, request, io);
            }
            Kind::Write { offset } => {
                self.shown.begin(head, Kind::Write { offset }, now);
                let durable = self.disk.cache.write_is_durable();
                slot.transfer.begin(Direction::Write { durable }, offset);
                self.advance(head, request, io);
            }
            Kind::Flush if self.disk.cache.flush_is_kept() => {
                self.shown.begin(head, Kind::Flush, now);
                self.sync(head, request, io);
            }
            Kind::Flush => self.finish(head, request, Status::Ok),
            Kind::GetId => {
                let id = self.disk.id;
                let written = buffers.fill_front(&id);
                // The rest of a longer buffer is not ours to fill: only what was written is reported.
                self.finish_with(head, request, Status::Ok, written as u64);
            }
            kind @ (Kind::Discard | Kind::WriteZeroes) => {
                self.shown.begin(head, kind, now);
                self.accept_erasure(head, request, io);
            }
            Kind::Refused(status) => self.finish(head, request, status),
        }
        Ok(())
    }

    /// Gives every head up to this one its slot, where the ring has it.
    #[cold]
    fn make_slots(&mut self, head: u16) {
        if head < self.queue.ring.size() {
            let slot = || Slot {
                state: State::Free,
                transfer: Transfer::new(Box::new(self.buffers.another())),
                erasure: None,
            };
            self.slots.resize_with(usize::from(head) + 1, slot);
        }
    }

    /// The next operation of a transfer.
    fn advance(&mut self, head: u16, request: Request, io: &mut Io<'_>) {
        let slot = &mut self.slots[usize::from(head)];
        match slot.transfer.step(&self.disk.backing, &mut self.bounces) {
            Step::Start(operation, buffers) => {
                slot.state = State::Moving(request);
                self.start(head, operation, buffers, io);
            }
            Step::Wait => {
                slot.state = State::Stalled(request);
                self.stalled.push_back(head);
            }
            Step::Done => {
                let durable = slot.transfer.is_durable();
                match request.kind {
                    Kind::Read { .. } => self.finish(head, request, Status::Ok),
                    _ => self.settle(head, request, durable, io),
                }
            }
        }
    }

    /// A change of the disk is made: ends it, or makes it durable first, also where the guest switched its write cache off
    /// meanwhile: what completes from then on is durable.
    fn settle(&mut self, head: u16, request: Request, durable: bool, io: &mut Io<'_>) {
        if !durable && self.disk.cache.write_is_durable() {
            self.sync(head, request, io);
        } else {
            self.finish(head, request, Status::Ok);
        }
    }

    fn sync(&mut self, head: u16, request: Request, io: &mut Io<'_>) {
        if self.disk.cache.is_lost() {
            return self.failed(head, request, Stage::Syncing, Errno::IO.into());
        }
        self.slots[usize::from(head)].state = State::Syncing(request);
        self.start(head, Operation::Sync, Buffers::None, io);
    }

    fn start(&mut self, head: u16, operation: Operation, buffers: Buffers, io: &mut Io<'_>) {
        if let Some(timing) = &mut self.timing {
            timing.started(head);
        }
        io.start(self.target, operation, buffers, head);
    }

    /// The end of these may be the next that is heard of them.
    fn time_what_was_taken_at_once(&mut self, io: &Io<'_>) {
        if let Some(timing) = &mut self.timing
            && timing.has_started()
            && io.takes_at_once(self.target)
        {
            timing.handed_over(latency::now());
        }
    }

    fn synced(&mut self, head: u16, request: Request, result: io::Result<u32>, io: &mut Io<'_>) {
        match result {
            // One that ran beside a flush that failed may not have been told.
            Ok(_) if self.disk.cache.is_lost() => {
                self.failed(head, request, Stage::Syncing, Errno::IO.into());
            }
            Ok(_) => self.finish(head, request, Status::Ok),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.sync(head, request, io),
            Err(error) => {
                self.disk.cache.flush_failed();
                self.failed(head, request, Stage::Syncing, error);
            }
        }
    }

    /// Goes on with requests that wait for something.
    fn go_on(&mut self, io: &mut Io<'_>) -> Drained {
        // One look for both, which find nothing almost always.
        if !(self.stalled.is_empty() & self.held.is_empty()) {
            self.try_stalled(io);
            self.try_held(io);
        }
        if self.stalled.is_empty() { Drained::All } else { Drained::Stalled }
    }

    #[cold]
    fn try_stalled(&mut self, io: &mut Io<'_>) {
        // Each once: who still has to wait is put back at the end.
        for _ in 0..self.stalled.len() {
            if let Some(head) = self.stalled.pop_front()
                && let State::Stalled(request) = self.slots[usize::from(head)].state
            {
                match request.kind {
                    Kind::WriteZeroes => self.advance_zeroes(head, request, io),
                    _ => self.advance(head, request, io),
                }
            }
        }
    }

    fn finish(&mut self, head: u16, request: Request, status: Status) {
        let written = match (request.kind, status) {
            (Kind::Read { .. }, Status::Ok) => request.writable,
            _ => 0,
        };
        self.finish_with(head, request, status, written);
    }

    /// Gives the head back. `written` bytes of data came before the status byte.
    fn finish_with(&mut self, head: u16, request: Request, status: Status, written: u64) {
        self.free(head);
        // Cannot fail: the address was in guest memory when the request was parsed, and guest memory does not change.
        let _ = self.queue.ring.regions().write_byte(request.status.0, status as u8);
        // virtio 1.3, 2.7.8.2: the length counts what was written from the first writable byte on, without a gap.
        let used = if written == request.writable { written + 1 } else { written };
        self.queue.ring.push_used(head, u32::try_from(used).unwrap_or(u32::MAX));
        self.count(head, request, status, written);
    }

    fn free(&mut self, head: u16) {
        self.slots[usize::from(head)].state = State::Free;
        self.shown.end(head);
        self.in_flight -= 1;
        if let Some(timing) = &mut self.timing {
            timing.ended(head);
        }
    }
}

impl QueueService for BlkQueue {
    fn drain(&mut self, quota: usize, io: &mut Io<'_>) -> Result<Drained, RingError> {
        self.go_on(io);
        let mut chain = std::mem::take(&mut self.chain);
        let drained = self.take(quota, &mut chain, io);
        self.chain = chain;
        self.time_what_was_taken_at_once(io);
        drained
    }

    fn resume(&mut self, io: &mut Io<'_>) -> Drained {
        // Nobody waits for what had failed: it would be given back to a driver that has forgotten it.
        self.ending = true;
        while let Some(head) = self.held.pop_front() {
            self.free(head);
        }
        let drained = self.go_on(io);
        self.time_what_was_taken_at_once(io);
        drained
    }

    fn completed(&mut self, tag: u16, result: io::Result<u32>, buffers: Buffers, io: &mut Io<'_>) {
        if let Some(timing) = &mut self.timing {
            timing.found(io.found_ns());
        }
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        match slot.state {
            State::Moving(request) => {
                match slot.transfer.completed(result, buffers, &self.disk.backing, &mut self.bounces) {
                    Ok(()) => self.advance(tag, request, io),
                    Err(error) => self.failed(tag, request, Stage::Moving, error),
                }
            }
            State::Zeroing(request) => {
                match slot.transfer.completed(result, buffers, &self.disk.backing, &mut self.bounces) {
                    Ok(()) => self.advance_zeroes(tag, request, io),
                    Err(error) => self.failed(tag, request, Stage::Moving, error),
                }
            }
            State::Syncing(request) => self.synced(tag, request, result, io),
            State::Erasing(request) => self.erased(tag, request, result, io),
            State::Free | State::Stalled(_) | State::Held(..) => {}
        }
    }

    fn publish(&mut self) {
        if self.queue.ring.publish() {
            self.counters.interrupts.add(1);
            self.queue.interrupt.signal();
        }
        if let Some(timing) = &mut self.timing {
            timing.shown();
        }
    }

    fn look(&mut self) -> Result<bool, RingError> {
        self.queue.ring.look()
    }

    fn arm(&mut self) {
        self.queue.ring.arm();
    }

    fn disarm(&mut self) {
        self.queue.ring.disarm();
    }

    fn kicked(&mut self) {
        self.counters.kicks.add(1);
    }

    fn take_times(&mut self, take: bool) {
        let size = self.queue.ring.size();
        let latency = || Arc::clone(self.counters.latency.get_or_init(Arc::default));
        self.timing =
            take.then(|| self.timing.take().unwrap_or_else(|| Box::new(Timing::new(latency(), size))));
    }

    fn handed_over(&mut self, at_ns: u64) {
        if let Some(timing) = &mut self.timing {
            timing.handed_over(at_ns);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn position(&self) -> Position {
        self.queue.ring.position()
    }

    fn broken(&mut self, error: RingError) {
        self.disk.break_down(self.queue.index, error);
    }

    fn end(&mut self, io: &mut Io<'_>) {
        io.close(self.target);
    }
}
