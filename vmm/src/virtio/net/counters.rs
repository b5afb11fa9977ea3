//! What a network device's queues have done, counted by the IOThread that serves each and read by anyone.

use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};

use crate::iothread::counters::Counter;

/// Of one queue.
#[derive(Debug)]
pub(super) struct NetCounters {
    served_by: AtomicI64,
    pub(super) packets: Counter,
    pub(super) bytes: Counter,
    pub(super) dropped: Counter,
    pub(super) kicks: Counter,
    pub(super) interrupts: Counter,
}

const NOBODY: i64 = -1;

impl Default for NetCounters {
    fn default() -> Self {
        let zero = Counter::default;
        NetCounters {
            served_by: AtomicI64::new(NOBODY),
            packets: zero(),
            bytes: zero(),
            dropped: zero(),
            kicks: zero(),
            interrupts: zero(),
        }
    }
}

impl NetCounters {
    /// Said by the IOThread on itself before it serves the queue.
    pub(super) fn serve_as(&self, iothread: u32) {
        self.served_by.store(i64::from(iothread), Ordering::Relaxed);
    }

    pub(super) fn snapshot(&self, queue: u16, kind: QueueKind) -> NetQueueSnapshot {
        NetQueueSnapshot {
            vq: queue,
            kind,
            iothread: u32::try_from(self.served_by.load(Ordering::Relaxed)).ok(),
            packets: self.packets.get(),
            bytes: self.bytes.get(),
            dropped: self.dropped.get(),
            kicks: self.kicks.get(),
            interrupts: self.interrupts.get(),
        }
    }
}

/// What a queue carries; named as the guest's driver sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    Receive,
    Transmit,
    Control,
}

impl QueueKind {
    /// virtio 1.3, 5.1.2: of queue `index`, where `control` is the control queue.
    pub(super) fn of(index: u16, control: u16) -> QueueKind {
        match index {
            index if index == control => QueueKind::Control,
            index if index % 2 == 0 => QueueKind::Receive,
            _ => QueueKind::Transmit,
        }
    }
}

/// One virtqueue of a network device at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetQueueSnapshot {
    /// The virtqueue's index, as the plan has it.
    pub vq: u16,
    pub kind: QueueKind,
    /// The IOThread that serves it, in its own words; `None` before the driver enabled the queue.
    pub iothread: Option<u32>,
    /// Frames that went through, and their bytes without the queue's headers; of a control queue, commands.
    pub packets: u64,
    pub bytes: u64,
    /// Frames that could not, and buffers that no frame fits: nobody was there, or the sender broke a rule.
    pub dropped: u64,
    /// Doorbells heard, and interrupts sent.
    pub kicks: u64,
    pub interrupts: u64,
}

/// A network device at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetSnapshot {
    pub name: String,
    /// Whether the guest is shown a link.
    pub link: bool,
    pub virtqueues: Vec<NetQueueSnapshot>,
    /// Why the device needs a reset, or its link is down, if so.
    pub fault: Option<String>,
}
