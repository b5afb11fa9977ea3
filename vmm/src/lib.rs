//! The KVM virtual machine monitor.

pub mod config;
pub mod thread;
pub mod virtio;
