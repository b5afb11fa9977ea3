//! The KVM virtual machine monitor.

pub mod acpi;
pub mod boot;
pub mod config;
pub mod emulator;
pub mod interrupts;
pub mod kvm;
pub mod layout;
pub mod pci;
pub mod power;
pub mod serial;
pub mod thread;
pub mod virtio;
