//! The lab: a KVM host emulated with QEMU, for machines whose own KVM cannot run a stock Linux kernel. Inside it the very
//! same vmprof boots the very same image under KVM; out here remain the files behind its drives and the ends of its
//! channels.

mod emulated;
mod pack;
mod shape;

pub use emulated::{Drive, EmulatedHost, LabError, Media, Start};
pub use pack::{Inside, pack};
pub use shape::Shape;
