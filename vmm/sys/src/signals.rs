//! Signals that must not stop or end the process.

// UNSAFETY: the safe interfaces install handlers; being ignored is a disposition of its own, which calls no code.
#![allow(unsafe_code, reason = "signal(2) with SIG_IGN")]

use std::io;

/// From now on reading a terminal that is another job's fails with EIO instead of stopping every thread (SIGTTIN): the
/// machine goes on without input.
pub fn read_a_foreign_terminal_as_an_error() -> io::Result<()> {
    // SAFETY: SIG_IGN names no code of ours that could run in a signal's context; SIGTTIN may be ignored.
    let before = unsafe { libc::signal(libc::SIGTTIN, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}
