//! Child processes that never outlive us.

// UNSAFETY: only code between fork and exec can ask for the parent's death signal before there is a child to lose.
#![allow(unsafe_code, reason = "pre_exec is unsafe: what runs there must be async-signal-safe")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the kernel kill the child with SIGKILL when the *thread* that spawns it ends, however that comes about, SIGKILL
/// included. Spawn it from a thread that lives as long as the child shall (prctl(2), PR_SET_PDEATHSIG).
///
/// The child also leads a process group of its own, so that the terminal's Ctrl-C reaches vmprof alone.
pub fn dies_with_this_thread(command: &mut Command) -> &mut Command {
    command.process_group(0);
    let parent = std::process::id();
    let ask = move || {
        // SAFETY: prctl with PR_SET_PDEATHSIG reads its integer arguments alone.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before the prctl: then nobody would send the signal any more.
        // SAFETY: getppid takes nothing and cannot fail.
        if unsafe { libc::getppid() } as u32 != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: `ask` makes two system calls and builds errors from their numbers: it allocates nothing, takes no lock and
    // touches no memory of other threads, as code after fork in a threaded process must not.
    unsafe { command.pre_exec(ask) }
}
