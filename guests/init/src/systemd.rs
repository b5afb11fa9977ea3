//! Handing over to the distribution's systemd. Before it becomes process 1, this program leaves itself, the job and a unit
//! below /run; the unit starts it again, under systemd, in the role that `systemd/role.rs` has.
//!
//! The control port is not closed in between: what lies in a port's queue is lost with its last opener. A third copy of the
//! program, which does nothing else, holds it until the role takes it over.

mod failed;
mod handover;
mod question;
mod role;
mod units;

pub(crate) use handover::{HOLD_WORD, become_systemd, hold};
pub(crate) use role::{WORD, run};
pub(crate) use units::Units;
