//! One virtqueue of a disk while an IOThread serves it: heads become requests, requests become transfers and flushes, and
//! what ended goes back to the driver. Every head has its slot, made when the queue goes live, so that a request allocates
//! nothing.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use vmprof_sys::ring::{Buffers, Operation};
use vmprof_sys::segments::GuestBuffers;
use vmprof_sys::vring::{Descriptor, Position, RingError};

use super::Disk;
use super::request::{self, Kind, Request, Status};
use crate::backing::bounce::BouncePool;
use crate::backing::transfer::{Direction, Step, Transfer};
use crate::iothread::counters::QueueCounters;
use crate::iothread::service::{Drained, Io, QueueService, Target};
use crate::virtio::device::ActiveQueue;

/// virtio 1.3, 5.2.6: the id string of GET_ID.
pub(super) const ID_BYTES: usize = 20;

#[derive(Debug)]
struct Slot {
    state: State,
    transfer: Transfer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The driver has the head.
    Free,
    Moving(Request),
    /// A transfer that waits for a bounce buffer or a block.
    Stalled(Request),
    /// A flush, or a write that became subject to one while it was under way.
    Syncing(Request),
}

#[derive(Debug)]
pub(super) struct BlkQueue {
    disk: Arc<Disk>,
    queue: ActiveQueue,
    target: Target,
    slots: Vec<Slot>,
    in_flight: usize,
    stalled: VecDeque<u16>,
    bounces: BouncePool,
    /// The descriptors of the request that is being taken.
    chain: Vec<Descriptor>,
    counters: Arc<QueueCounters>,
}

impl BlkQueue {
    /// On the IOThread that will serve the queue.
    pub(super) fn begin(
        disk: Arc<Disk>,
        queue: ActiveQueue,
        counters: Arc<QueueCounters>,
        io: &mut Io<'_>,
    ) -> io::Result<Self> {
        let target = io.open(Arc::clone(&disk.backing.file), disk.engine)?;
        counters.serve_as(io.iothread());
        let ram = queue.ring.ram();
        let slot = || Slot { state: State::Free, transfer: Transfer::new(GuestBuffers::new(ram)) };
        let slots = std::iter::repeat_with(slot).take(queue.ring.size().into()).collect();
        let (bounces, stalled) = (BouncePool::new(&disk.backing), VecDeque::new());
        Ok(BlkQueue {
            disk,
            queue,
            target,
            slots,
            in_flight: 0,
            stalled,
            bounces,
            chain: Vec::new(),
            counters,
        })
    }

    /// Takes what the driver offers, up to `quota` requests.
    fn take(
        &mut self,
        quota: usize,
        chain: &mut Vec<Descriptor>,
        io: &mut Io<'_>,
    ) -> Result<Drained, RingError> {
        for _ in 0..quota {
            let Some(head) = self.queue.ring.pop(chain)? else {
                return Ok(if self.stalled.is_empty() { Drained::All } else { Drained::Stalled });
            };
            self.accept(head, chain, io)?;
        }
        Ok(Drained::More)
    }

    /// Takes one request.
    fn accept(&mut self, head: u16, chain: &[Descriptor], io: &mut Io<'_>) -> Result<(), RingError> {
        let broken = RingError::HeadInFlight { head };
        let slot = self.slots.get_mut(usize::from(head)).ok_or(broken)?;
        // The driver may offer anything: a head that it does not have would give two requests one slot.
        if slot.state != State::Free {
            return Err(broken);
        }
        let ring = &self.queue.ring;
        let buffers = slot.transfer.guest_mut().ok_or(broken)?;
        let request = request::parse(head, chain, ring.regions(), &self.disk.limits, buffers)?;
        self.in_flight += 1;
        match request.kind {
            Kind::Read { offset } => {
                slot.transfer.begin(Direction::Read, offset);
                self.advance(head, request, io);
            }
            Kind::Write { offset } => {
                let durable = self.disk.cache.write_is_durable();
                slot.transfer.begin(Direction::Write { durable }, offset);
                self.advance(head, request, io);
            }
            Kind::Flush if self.disk.cache.flush_is_kept() => self.sync(head, request, io),
            Kind::Flush => self.finish(head, request, Status::Ok),
            Kind::GetId => {
                let id = self.disk.id;
                let written = buffers.fill_front(&id);
                // The rest of a longer buffer is not ours to fill: only what was written is reported.
                self.finish_with(head, request, Status::Ok, written as u64);
            }
            Kind::Refused(status) => self.finish(head, request, status),
        }
        Ok(())
    }

    /// The next operation of a transfer.
    fn advance(&mut self, head: u16, request: Request, io: &mut Io<'_>) {
        let slot = &mut self.slots[usize::from(head)];
        match slot.transfer.step(&self.disk.backing, &mut self.bounces) {
            Step::Start(operation, buffers) => {
                slot.state = State::Moving(request);
                io.start(self.target, operation, buffers, head);
            }
            Step::Wait => {
                slot.state = State::Stalled(request);
                self.stalled.push_back(head);
            }
            Step::Done => {
                let write = matches!(request.kind, Kind::Write { .. });
                if write && !slot.transfer.is_durable() && self.disk.cache.write_is_durable() {
                    // The guest switched its write cache off meanwhile: what completes from then on is durable.
                    self.sync(head, request, io);
                } else {
                    self.finish(head, request, Status::Ok);
                }
            }
        }
    }

    fn sync(&mut self, head: u16, request: Request, io: &mut Io<'_>) {
        if self.disk.cache.is_lost() {
            return self.finish(head, request, Status::IoError);
        }
        self.slots[usize::from(head)].state = State::Syncing(request);
        io.start(self.target, Operation::Sync, Buffers::None, head);
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
        self.slots[usize::from(head)].state = State::Free;
        self.in_flight -= 1;
        // Cannot fail: the address was in guest memory when the request was parsed, and guest memory does not change.
        let _ = self.queue.ring.regions().write(request.status.0, &[status as u8]);
        // virtio 1.3, 2.7.8.2: the length counts what was written from the first writable byte on, without a gap.
        let used = if written == request.writable { written + 1 } else { written };
        self.queue.ring.push_used(head, u32::try_from(used).unwrap_or(u32::MAX));
        self.count(request, status, written);
    }

    fn count(&self, request: Request, status: Status, read: u64) {
        let counters = &self.counters;
        match request.kind {
            Kind::Read { .. } => {
                counters.reads.add(1);
                counters.read_bytes.add(read);
            }
            Kind::Write { .. } => {
                counters.writes.add(1);
                counters.written_bytes.add(if status == Status::Ok { request.readable } else { 0 });
            }
            Kind::Flush => counters.flushes.add(1),
            Kind::GetId | Kind::Refused(_) => counters.others.add(1),
        }
        if status != Status::Ok {
            counters.errors.add(1);
        }
    }
}

impl QueueService for BlkQueue {
    fn drain(&mut self, quota: usize, io: &mut Io<'_>) -> Result<Drained, RingError> {
        self.resume(io);
        let mut chain = std::mem::take(&mut self.chain);
        let drained = self.take(quota, &mut chain, io);
        self.chain = chain;
        drained
    }

    fn resume(&mut self, io: &mut Io<'_>) -> Drained {
        // Each once: who still has to wait is put back at the end.
        for _ in 0..self.stalled.len() {
            if let Some(head) = self.stalled.pop_front()
                && let State::Stalled(request) = self.slots[usize::from(head)].state
            {
                self.advance(head, request, io);
            }
        }
        if self.stalled.is_empty() { Drained::All } else { Drained::Stalled }
    }

    fn completed(&mut self, tag: u16, result: io::Result<u32>, buffers: Buffers, io: &mut Io<'_>) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else { return };
        match slot.state {
            State::Moving(request) => {
                match slot.transfer.completed(result, buffers, &self.disk.backing, &mut self.bounces) {
                    Ok(()) => self.advance(tag, request, io),
                    Err(_) => self.finish(tag, request, Status::IoError),
                }
            }
            State::Syncing(request) => match result {
                // One that ran beside a flush that failed may not have been told.
                Ok(_) if self.disk.cache.is_lost() => self.finish(tag, request, Status::IoError),
                Ok(_) => self.finish(tag, request, Status::Ok),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.sync(tag, request, io),
                Err(_) => {
                    self.disk.cache.flush_failed();
                    self.finish(tag, request, Status::IoError);
                }
            },
            State::Free | State::Stalled(_) => {}
        }
    }

    fn publish(&mut self) {
        if self.queue.ring.publish() {
            self.counters.interrupts.add(1);
            self.queue.interrupt.signal();
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
