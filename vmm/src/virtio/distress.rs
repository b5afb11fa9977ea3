//! How a device's threads tell the transport that the driver broke the device: DEVICE_NEEDS_RESET (virtio 1.3, 2.1) and
//! the configuration interrupt that must follow it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Shared by a device, the threads that serve it and its transport.
#[derive(Default)]
pub struct Distress {
    raised: AtomicBool,
    tell: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Distress {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Distress").field("raised", &self.raised).finish_non_exhaustive()
    }
}

impl Distress {
    /// What to do when it is raised (send the configuration interrupt), said once by the transport. Called on IOThreads:
    /// it must not wait for anything that a vCPU may hold while it resets the device.
    pub fn on_raise(&self, tell: impl Fn() + Send + Sync + 'static) {
        // The transport sets it once, before the driver can see the device.
        let _ = self.tell.set(Box::new(tell));
    }

    /// The driver broke the device: only a reset helps. Told once until then.
    pub fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel)
            && let Some(tell) = self.tell.get()
        {
            tell();
        }
    }

    /// Whether the status register shows DEVICE_NEEDS_RESET.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// The device was reset.
    pub fn clear(&self) {
        self.raised.store(false, Ordering::Release);
    }
}
