//! The KVM virtual machine monitor.

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod backing;
pub mod config;
pub mod iothread;
pub mod emulator;
pub mod exit;
pub mod interrupts;
pub mod kvm;
pub mod layout;
mod machine;
pub mod pci;
pub mod power;
pub mod serial;
pub mod stats;
pub mod thread;
mod vcpu;
pub mod virtio;
pub mod vm;

pub use machine::{BuildError, Channels, Port};
pub use vm::Vm;
