//! The KVM virtual machine monitor: [`config::VmConfig`] in, [`exit::Exit`] out, and in between [`Vm`] in its stages.
//!
//! | thread | owns |
//! |---|---|
//! | `CPU n/KVM` | one vCPU; its exits are answered on it, through the [`bus`] and the registers of PCI functions |
//! | `IO name` | one io_uring and any set of virtqueues ([`iothread`]) |
//! | `vmprof` | the [`emulator`]'s event loop: the serial console's streams, the virtio console's ports, random bytes for the guest |
//!
//! A PCI function's registers are behind a lock that vCPU threads and the end of the machine meet at; the threads that serve
//! its queues never take it.

pub mod acpi;
pub mod backing;
pub mod boot;
pub mod bus;
pub mod config;
pub mod emulator;
pub mod exit;
pub mod interrupts;
pub mod iothread;
pub mod kvm;
pub mod layout;
mod machine;
pub mod net;
pub mod pause;
pub mod pci;
pub mod power;
pub mod serial;
pub mod stats;
pub mod thread;
mod vcpu;
pub mod vhost_user;
pub mod virtio;
pub mod vm;

pub use machine::{BuildError, Channels, Port};
pub use vm::Vm;
