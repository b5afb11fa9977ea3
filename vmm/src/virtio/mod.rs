//! virtio devices and the PCI transport they sit behind.

pub mod device;
pub mod function;
pub mod msix;
pub mod transport;
