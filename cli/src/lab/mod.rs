//! The lab: a KVM host emulated with QEMU, for machines whose own KVM cannot run a stock Linux kernel. Inside it the very
//! same vmprof boots the very same image under KVM; out here remain the files behind its drives and the ends of its
//! channels. A run has a host of its own, which goes with it, or joins one that stays ([`standing`]), which its [`keeper`] holds.

mod emulated;
mod errands;
pub mod exec;
mod job;
mod keeper;
mod pack;
mod paths;
mod qmp;
mod shape;
pub mod standing;
mod tenants;
mod verbs;

pub use emulated::{Drive, EmulatedHost, LabError, Media, Start};
pub use errands::{Prepared, run as run_errand};
pub use job::{ENVIRONMENT, job};
pub use pack::pack;
pub use paths::PathsInside;
pub use shape::Shape;
pub use verbs::run;
