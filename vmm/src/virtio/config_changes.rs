//! How a device's threads tell the transport that its configuration has changed: the generation that a driver compares (virtio
//! 1.3, 2.5.1), and the configuration interrupt.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// Shared by a device, the threads that serve it and its transport.
#[derive(Default)]
pub struct ConfigChanges {
    generation: AtomicU8,
    tell: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for ConfigChanges {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ConfigChanges").field("generation", &self.generation).finish_non_exhaustive()
    }
}

impl ConfigChanges {
    /// What to do at a change (send the configuration interrupt), said once by the transport. Called on IOThreads: it must not
    /// wait for anything that a vCPU may hold while it resets the device.
    pub fn on_change(&self, tell: impl Fn() + Send + Sync + 'static) {
        // The transport sets it once, before the driver can see the device.
        let _ = self.tell.set(Box::new(tell));
    }

    /// Something that the driver may have read reads differently from now on.
    pub fn tell(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if let Some(tell) = self.tell.get() {
            tell();
        }
    }

    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }
}
