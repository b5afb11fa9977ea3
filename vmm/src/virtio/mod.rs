//! virtio devices and the PCI transport they sit behind.

pub mod blk;
mod capability;
mod config_signal;
pub mod console;
pub mod device;
pub mod distress;
mod doorbell;
#[cfg(test)]
pub(crate) mod mock;
pub mod function;
pub mod msix;
pub mod transport;
