//! A receive queue's buffers, as the driver offers them: gathered until a frame fits, filled, and given back (virtio 1.3,
//! 5.1.6.4). With MRG_RXBUF a frame may lie over several.

use std::collections::VecDeque;
use std::sync::Arc;

use vmprof_sys::segments::GuestBuffers;
use vmprof_sys::vring::{RingError, Vring};

use super::chains::{Chain, Chains, MOST_PIECES, Side};
use super::counters::NetCounters;
use super::header::{HEADER_BYTES, NUM_BUFFERS_AT};

/// What there is for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Enough,
    /// The driver has to offer more.
    Wait,
    /// It fits into nothing that the driver offers.
    Never,
    /// To be asked again in the next turn.
    Later,
}

#[derive(Debug)]
pub(super) struct Offered {
    pub(super) ring: Vring,
    chains: Chains,
    /// Whether a frame may lie over several chains.
    merges: bool,
    /// Taken and not filled yet, in the driver's order.
    ready: VecDeque<Chain>,
    /// The bytes of all that are ready.
    bytes: usize,
    /// Chains that may still be taken in this turn, and frames that may be dropped.
    budget: usize,
    counters: Arc<NetCounters>,
}

impl Offered {
    pub(super) fn new(ring: Vring, merges: bool, counters: Arc<NetCounters>) -> Offered {
        let chains = Chains::new(&ring, Side::Device);
        Offered { ring, chains, merges, ready: VecDeque::new(), bytes: 0, budget: 0, counters }
    }

    pub(super) fn begin_turn(&mut self, budget: usize) {
        self.budget = budget;
    }

    pub(super) fn turn_is_over(&self) -> bool {
        self.budget == 0
    }

    /// Whether frames may lie over several chains.
    pub(super) fn merges(&self) -> bool {
        self.merges
    }

    /// Takes chains until `bytes` fit, header included.
    pub(super) fn gather(&mut self, bytes: usize) -> Result<Room, RingError> {
        loop {
            match self.ready.front() {
                Some(_) if self.merges && self.bytes >= bytes => return Ok(Room::Enough),
                Some(first) if !self.merges => {
                    let fits = first.buffers.bytes() >= bytes as u64;
                    return Ok(if fits { Room::Enough } else { Room::Never });
                }
                _ => {}
            }
            if self.budget == 0 {
                return Ok(Room::Later);
            }
            // A driver that offers buffers again while we have them does not make us keep more than there can be.
            if self.ready.len() >= self.ring.size().into() {
                return Ok(Room::Never);
            }
            let Some(chain) = self.chains.take(&mut self.ring)? else {
                // A driver that gave half of its ring has no more to give: what waits for that would wait for ever.
                let most = self.ready.len() >= usize::from(self.ring.size() / 2).max(1);
                return Ok(if most { Room::Never } else { Room::Wait });
            };
            self.budget -= 1;
            if !chain.is_sound || chain.buffers.bytes() < HEADER_BYTES as u64 {
                // virtio 1.3, 5.1.6.3.1: a buffer holds a header at least.
                self.counters.dropped.add(1);
                self.ring.push_used(chain.head, 0);
                self.chains.keep(chain.buffers);
                continue;
            }
            self.bytes += chain.buffers.bytes() as usize;
            self.ready.push_back(chain);
        }
    }

    /// A frame was dropped, which is a part of the turn's work.
    pub(super) fn drop_frame(&mut self) {
        self.counters.dropped.add(1);
        self.budget = self.budget.saturating_sub(1);
    }

    /// Chains at the front whose pieces one system call takes, for a frame that may be `bytes` long: how many, and the bytes
    /// they hold.
    pub(super) fn front(&self, bytes: usize) -> (usize, usize) {
        let (mut count, mut pieces, mut held) = (0, 0, 0);
        let most = if self.merges { usize::MAX } else { 1 };
        for chain in self.ready.iter().take(most) {
            pieces += chain.buffers.pieces();
            if held >= bytes || count > 0 && pieces > MOST_PIECES {
                break;
            }
            count += 1;
            held += chain.buffers.bytes() as usize;
        }
        (count, held)
    }

    pub(super) fn buffers(&self, count: usize) -> impl Iterator<Item = &GuestBuffers> {
        self.ready.iter().take(count).map(|chain| &chain.buffers)
    }

    /// Copies `source` to where `skip` bytes of the gathered buffers come before it; they hold that much.
    pub(super) fn write_at(&self, mut skip: usize, mut source: &[u8]) {
        for chain in &self.ready {
            let bytes = chain.buffers.bytes() as usize;
            if skip < bytes {
                let (now, later) = source.split_at(source.len().min(bytes - skip));
                chain.buffers.write_at(skip, now);
                source = later;
            }
            if source.is_empty() {
                return;
            }
            skip = skip.saturating_sub(bytes);
        }
    }

    /// Over how many buffers a frame with its header of `bytes` lies.
    fn count(&self, bytes: usize) -> u16 {
        let mut left = bytes;
        let mut count = 0;
        for chain in &self.ready {
            count += 1;
            left = left.saturating_sub(chain.buffers.bytes() as usize);
            if left == 0 {
                break;
            }
        }
        count
    }

    /// A frame whose bytes, behind a header, are in the gathered buffers: `bytes` with it. Says in the header over how many
    /// buffers it lies, and gives these back.
    pub(super) fn give(&mut self, bytes: usize) {
        let count = self.count(bytes);
        self.write_at(NUM_BUFFERS_AT, &count.to_le_bytes());
        let mut left = bytes;
        for _ in 0..count {
            let Some(chain) = self.ready.pop_front() else { break };
            let held = chain.buffers.bytes() as usize;
            let written = left.min(held);
            left -= written;
            self.bytes -= held;
            self.ring.push_used(chain.head, written as u32);
            self.chains.keep(chain.buffers);
        }
        self.counters.packets.add(1);
        self.counters.bytes.add((bytes - HEADER_BYTES) as u64);
    }
}
