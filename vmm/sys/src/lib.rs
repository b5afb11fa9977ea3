//! System calls and memory that the guest or the kernel shares with us. All unsafe code of vmprof lives in this crate:
//! every other crate denies it. Each module opts in with a line that says why safe code will not do.

pub mod affinity;
pub mod aio;
pub mod aligned;
pub mod blocking;
pub mod child;
pub mod eventfd;
pub mod inherited;
pub mod kick;
pub mod kvm;
pub mod memory;
pub mod mempolicy;
pub mod packets;
#[cfg(feature = "peers")]
pub mod peers;
pub mod program;
pub mod regions;
pub mod ring;
pub mod scheduling;
pub mod segments;
pub mod shared;
pub mod signals;
mod slab;
pub mod tap;
pub mod vring;
