//! How long a clean stop may take, for each of those who wait for it: the guest for its services, the VMM for the guest, the
//! emulated host around it for that VMM. Each waits longer than the one inside, so that the hard end is always somebody's
//! who has seen the clean one fail.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmprof_guests::Conduct;

/// What a guest gets past its own time to kill what is left, to write back and to power off, before its end is a hard one.
const MARGIN: Duration = Duration::from_secs(15);
/// A guest that has said its last word writes back what its disks have not seen, as much as its memory holds: it is waited for.
const WRITING_BACK: Duration = Duration::from_secs(120);
/// Emulated, everything takes longer.
const EMULATED: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// From the beginning of a clean stop to SIGKILL for everything in the guest.
    pub guest: Duration,
    /// To the hard end of the machine around it.
    pub machine: Duration,
    /// What that gets longer by when the guest has said its last word: the services of a command that has ended stop in
    /// their own time, and the disks are written back after it.
    pub last_word: Duration,
    /// To the hard end of the emulated host.
    pub lab: Duration,
}

impl Patience {
    pub fn with(conduct: &Conduct) -> Patience {
        Patience::of(Duration::from_millis(conduct.stop_within_ms))
    }

    /// Of an emulated host that makes a plan and boots nothing.
    pub fn without_guest() -> Patience {
        Patience::of(Duration::ZERO)
    }

    fn of(guest: Duration) -> Patience {
        let machine = guest.saturating_add(MARGIN);
        let lab = machine.saturating_add(WRITING_BACK).saturating_add(EMULATED);
        Patience { guest, machine, last_word: WRITING_BACK, lab }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_waits_longer_than_the_one_inside() {
        for seconds in [0, 5, 90, 3600] {
            let patience = Patience::of(Duration::from_secs(seconds));
            assert!(patience.guest < patience.machine);
            assert!(patience.machine + patience.last_word < patience.lab);
        }
        Patience::of(Duration::MAX);
    }
}
