//! virtio devices and the PCI transport they sit behind.

pub mod blk;
pub mod console;
pub mod device;
pub mod distress;
#[cfg(test)]
pub(crate) mod mock;
pub mod function;
pub mod msix;
pub mod transport;
