//! The scheduling policy of the calling thread, of the two that any process may choose between.

// UNSAFETY: neither rustix nor nix has sched_setscheduler.
#![allow(unsafe_code, reason = "sched_getscheduler and sched_setscheduler")]

use std::io;

/// sched(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// SCHED_OTHER: a thread that wakes may take its CPU from one that runs.
    Other,
    /// SCHED_BATCH: it waits until that one sleeps or has used its slice.
    Batch,
}

/// The calling thread's; `None` is any other policy, such as a real-time one.
pub fn policy() -> io::Result<Option<Policy>> {
    // SAFETY: the call takes no pointer; pid 0 is the calling thread.
    match unsafe { libc::sched_getscheduler(0) } {
        libc::SCHED_OTHER => Ok(Some(Policy::Other)),
        libc::SCHED_BATCH => Ok(Some(Policy::Batch)),
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(None),
    }
}

/// Puts the calling thread under `policy`; its nice value stays.
pub fn set_policy(policy: Policy) -> io::Result<()> {
    let number = match policy {
        Policy::Other => libc::SCHED_OTHER,
        Policy::Batch => libc::SCHED_BATCH,
    };
    // Both have the static priority 0, and no other.
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: `priority` outlives the call, which reads it alone; pid 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, number, &raw const priority) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_under_the_policy_that_it_chose() {
        let chosen = std::thread::spawn(|| {
            [Policy::Batch, Policy::Other].map(|wanted| {
                set_policy(wanted).unwrap();
                (wanted, policy().unwrap())
            })
        });
        for (wanted, found) in chosen.join().unwrap() {
            assert_eq!(found, Some(wanted));
        }
    }
}
