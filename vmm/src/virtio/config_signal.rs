//! The interrupt for a change of a device's configuration (virtio 1.3, 4.1.5.2).

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::device::QueueInterrupt;

/// virtio 1.3, 4.1.4.5.
const ISR_CONFIG: u8 = 2;

/// The interrupt for a change of the configuration, which a device's own threads raise too.
#[derive(Debug, Default)]
pub(super) struct ConfigSignal {
    pub(super) isr: AtomicU8,
    /// The vector the driver chose. vCPU threads and IOThreads meet here, each for a moment and holding nothing else that the
    /// other could wait for.
    vector: Mutex<QueueInterrupt>,
}

impl ConfigSignal {
    pub(super) fn raise(&self) {
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.lock().signal();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, QueueInterrupt> {
        self.vector.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
