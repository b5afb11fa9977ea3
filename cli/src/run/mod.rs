//! One run of a machine, seen from outside. The machine may be the VMM in this process or an emulated host: both have a
//! guest's first process inside that speaks the protocol of `vmprof-job` over the same four channels.

pub mod artifacts;
pub mod channels;
pub mod console;
pub mod control;
pub mod conversation;
pub mod copy;
pub mod detached;
pub mod ending;
pub mod events;
pub mod files;
pub mod log;
pub mod news;
pub mod outward;
pub mod reach;
pub mod reboots;
pub mod record;
pub mod relay;
pub mod retune;
pub mod sockets;
pub mod status;
pub mod supervise;
pub mod terminal;
pub mod verdict;
