//! The control queue (virtio 1.3, 5.1.6.5): how many pairs the driver uses. It is offered no other command.

use std::io;
use std::sync::Arc;

use vmprof_sys::ring::Buffers;
use vmprof_sys::vring::{Descriptor, Position, RingError};

use super::Adapter;
use super::counters::NetCounters;
use crate::iothread::service::{Drained, Io, QueueService};
use crate::virtio::device::ActiveQueue;

/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const PAIRS_SET: [u8; 2] = [4, 0];
/// VIRTIO_NET_OK, VIRTIO_NET_ERR.
const OK: u8 = 0;
const ERR: u8 = 1;
/// Class, command, and the data of the longest command that there is.
const COMMAND_BYTES: usize = 4;

#[derive(Debug)]
pub(super) struct ControlQueue {
    adapter: Arc<Adapter>,
    queue: ActiveQueue,
    /// How many pairs the driver may use; `None`: it did not take MQ.
    pairs: Option<u16>,
    chain: Vec<Descriptor>,
    counters: Arc<NetCounters>,
}

impl ControlQueue {
    /// On the IOThread that will serve the queue.
    pub(super) fn begin(
        adapter: Arc<Adapter>,
        queue: ActiveQueue,
        pairs: Option<u16>,
        counters: Arc<NetCounters>,
        io: &Io<'_>,
    ) -> ControlQueue {
        counters.serve_as(io.iothread());
        ControlQueue { adapter, queue, pairs, chain: Vec::new(), counters }
    }

    /// Answers one command: what is written behind it.
    fn obey(&self) -> u8 {
        let mut command = Vec::with_capacity(COMMAND_BYTES);
        let regions = self.queue.ring.regions();
        for descriptor in self.chain.iter().filter(|descriptor| !descriptor.writable) {
            let wanted = (COMMAND_BYTES + 1 - command.len()).min(descriptor.len as usize);
            let mut bytes = [0; COMMAND_BYTES + 1];
            let Some(bytes) = bytes.get_mut(..wanted).filter(|bytes| !bytes.is_empty()) else { continue };
            if !regions.read(descriptor.address, bytes) {
                return ERR;
            }
            command.extend_from_slice(bytes);
        }
        match (command.as_slice(), self.pairs) {
            ([class, kind, low, high], Some(most)) if [*class, *kind] == PAIRS_SET => {
                let pairs = u16::from_le_bytes([*low, *high]);
                if !(1..=most).contains(&pairs) {
                    return ERR;
                }
                self.adapter.set_pairs(pairs);
                OK
            }
            _ => ERR,
        }
    }

    fn answer(&mut self, head: u16) {
        let answer = self.obey();
        let regions = self.queue.ring.regions();
        let ack = self.chain.iter().find(|descriptor| descriptor.writable && descriptor.len > 0);
        let written = ack.is_some_and(|ack| regions.write_byte(ack.address, answer));
        self.queue.ring.push_used(head, written.into());
        self.counters.packets.add(1);
        if answer != OK || !written {
            self.counters.dropped.add(1);
        }
    }
}

impl QueueService for ControlQueue {
    fn drain(&mut self, quota: usize, _io: &mut Io<'_>) -> Result<Drained, RingError> {
        for _ in 0..quota {
            let Some(head) = self.queue.ring.pop(&mut self.chain)? else { return Ok(Drained::All) };
            self.answer(head);
        }
        Ok(Drained::More)
    }

    fn resume(&mut self, _io: &mut Io<'_>) -> Drained {
        Drained::All
    }

    fn completed(&mut self, _tag: u16, _result: io::Result<u32>, _buffers: Buffers, _io: &mut Io<'_>) {}

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
        0
    }

    fn position(&self) -> Position {
        self.queue.ring.position()
    }

    fn broken(&mut self, error: RingError) {
        self.adapter.break_down(self.queue.index, error);
    }

    fn end(&mut self, _io: &mut Io<'_>) {}
}
