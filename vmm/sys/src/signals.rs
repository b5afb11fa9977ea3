//! Signals that must not stop or end the process.

// UNSAFETY: the safe interfaces install handlers; being ignored is a disposition of its own, which calls no code.
#![allow(unsafe_code, reason = "signal(2) with SIG_IGN")]

use std::io;

/// From now on nobody is ended by the signal, in the program that this process goes on as either, until that has a handler for it.
pub fn ignore(signal: i32) -> io::Result<()> {
    // SAFETY: SIG_IGN names no code of ours that could run in a signal's context; what may not be ignored is refused.
    let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// From now on reading a terminal that is another job's fails with EIO instead of stopping every thread (SIGTTIN): the
/// machine goes on without input.
pub fn read_a_foreign_terminal_as_an_error() -> io::Result<()> {
    ignore(libc::SIGTTIN)
}
