//! virtio devices and the PCI transport they sit behind.

pub mod blk;
mod capability;
pub mod config_changes;
mod config_signal;
pub mod console;
pub mod device;
pub mod distress;
mod doorbell;
pub mod function;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), allow(dead_code, reason = "fuzz targets call some of it, tests all"))]
pub(crate) mod mock;
pub mod msix;
pub mod net;
pub(crate) mod orders;
pub(crate) mod queue;
pub mod rng;
pub mod transport;
pub mod vsock;
