//! virtio devices and the PCI transport they sit behind.

pub mod device;
