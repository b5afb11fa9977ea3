//! What the queues of one network device share, and what is read of it from outside.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmprof_sys::vring::RingError;

use super::counters::{NetCounters, NetSnapshot, QueueKind};
use crate::config;
use crate::iothread::Waker;
use crate::net::{LONGEST_FRAME, MOST_ETHERNET_BYTES};
use crate::virtio::config_changes::ConfigChanges;
use crate::virtio::distress::Distress;

/// Payload of a frame where nobody says otherwise.
const USUAL_MTU: usize = 1_500;

/// Whether frames can go anywhere, as the guest is shown it.
#[derive(Debug)]
pub(super) struct Link {
    up: AtomicBool,
    pub(super) changes: Arc<ConfigChanges>,
}

impl Link {
    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    fn go_down(&self) {
        if self.up.swap(false, Ordering::AcqRel) {
            self.changes.tell();
        }
    }
}

/// What the queues of one device share. It holds nothing of the backend: whoever reads its counters may outlive the machine.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) name: String,
    pub(super) mac: [u8; 6],
    pub(super) mtu: Option<u16>,
    pub(super) pairs: u16,
    pub(super) link: Link,
    /// The pairs that the driver uses: the first ones.
    active_pairs: AtomicU16,
    /// The IOThreads of the queues, which look at `active_pairs` when they are woken.
    pub(super) wakers: Vec<Waker>,
    pub(super) distress: Arc<Distress>,
    pub(super) counters: Vec<Arc<NetCounters>>,
    /// Why the device needs a reset or its link is down; written by IOThreads, read by whoever asks for a snapshot.
    fault: Mutex<Option<String>>,
}

impl Adapter {
    /// A device as `config` has it, its link up. It has `pairs` pairs of queues.
    pub(super) fn new(config: &config::Net, pairs: u16, wakers: Vec<Waker>) -> Adapter {
        Adapter {
            name: config.name.clone(),
            mac: config.mac,
            mtu: config.mtu,
            pairs,
            link: Link { up: AtomicBool::new(true), changes: Arc::default() },
            active_pairs: AtomicU16::new(1),
            wakers,
            distress: Arc::default(),
            counters: config.virtqueues.iter().map(|_| Arc::default()).collect(),
            fault: Mutex::default(),
        }
    }

    pub(super) fn is_active(&self, pair: u16) -> bool {
        pair < self.active_pairs.load(Ordering::Acquire)
    }

    /// The driver uses the first `pairs` from now on.
    pub(super) fn set_pairs(&self, pairs: u16) {
        if self.active_pairs.swap(pairs, Ordering::AcqRel) != pairs {
            self.wakers.iter().for_each(Waker::wake);
        }
    }

    /// Without what is before a frame in a queue.
    pub(super) fn longest_frame(&self) -> usize {
        self.mtu.map_or(LONGEST_FRAME, |mtu| usize::from(mtu) + MOST_ETHERNET_BYTES)
    }

    /// Of frames that are one packet, where no mtu was given.
    pub(super) fn usual_frame(&self) -> usize {
        self.mtu.map_or(USUAL_MTU, usize::from) + MOST_ETHERNET_BYTES
    }

    pub(super) fn break_down(&self, queue: u16, error: RingError) {
        self.note(format!("virtqueue {queue}: {error}"));
        self.distress.raise();
    }

    /// The backend is gone: the guest sees its link go down.
    pub(super) fn lost(&self, why: String) {
        self.note(why);
        self.link.go_down();
    }

    /// The first fault is the one that the others may follow from.
    fn note(&self, fault: String) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
    }

    /// The driver lets go of the device. A link that is down stays so, and why.
    pub(super) fn reset(&self) {
        self.active_pairs.store(1, Ordering::Release);
        self.distress.clear();
        if self.link.is_up() {
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// Reads a device's counters while the transport has it.
#[derive(Debug, Clone)]
pub struct NetStats(pub(super) Arc<Adapter>);

impl NetStats {
    pub fn snapshot(&self) -> NetSnapshot {
        let adapter = &self.0;
        let control = 2 * adapter.pairs;
        let counted = (0..).zip(&adapter.counters);
        NetSnapshot {
            name: adapter.name.clone(),
            link: adapter.link.is_up(),
            virtqueues: counted
                .map(|(index, counters)| counters.snapshot(index, QueueKind::of(index, control)))
                .collect(),
            fault: adapter.fault.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
