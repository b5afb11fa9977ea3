//! The lab: a KVM host emulated with QEMU, for machines whose own KVM cannot run a stock Linux kernel. Inside it the very
//! same vmprof boots the very same image under KVM; out here remain the files behind its drives and the ends of its
//! channels. A run has a host of its own, which goes with it, or joins one that stays ([`standing`]), which its [`keeper`] holds.

mod emulated;
mod inside;
mod keeper;
mod pack;
mod qmp;
mod shape;
pub mod standing;
mod tenants;
mod verbs;
pub mod within;

pub use emulated::{Drive, EmulatedHost, LabError, Media, Start};
pub use inside::{Prepared, run as run_inside};
pub use pack::{Inside, pack};
pub use shape::Shape;
pub use verbs::run;
