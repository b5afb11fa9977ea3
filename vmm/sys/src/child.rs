//! Child processes: those that never outlive us, and those that are to.

// UNSAFETY: only code between fork and exec can ask for the parent's death signal before there is a child to lose.
#![allow(unsafe_code, reason = "pre_exec is unsafe: what runs there must be async-signal-safe")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
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

/// Has the child find no file open but its standard streams and `kept`, under the number that it has here. Whatever else our own
/// caller had left open, and whoever waits for its end, is not for a process that goes on when we have ended (close_range(2),
/// CLOSE_RANGE_CLOEXEC, Linux 5.11). `kept` must be open until the child is started.
pub fn inherits_only<'a>(command: &'a mut Command, kept: BorrowedFd<'_>) -> &'a mut Command {
    const FIRST: RawFd = 3;
    let kept = kept.as_raw_fd();
    let close = move || {
        // SAFETY: files are marked to be closed by the exec that follows, and nothing is closed before it. The call takes
        // numbers alone.
        let marked =
            unsafe { libc::syscall(libc::SYS_close_range, FIRST, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        // SAFETY: the number is taken as such: where nothing is open under it, the kernel says so.
        if marked != 0 || unsafe { libc::fcntl(kept, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: `close` makes two system calls and builds an error from its number, as in `dies_with_this_thread`.
    unsafe { command.pre_exec(close) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use rustix::io::{FdFlags, fcntl_setfd};

    use super::*;

    #[test]
    fn a_child_finds_what_was_kept_for_it_and_nothing_else() {
        let [kept, other] = ["/dev/full", "/dev/zero"].map(|path| File::open(path).unwrap());
        fcntl_setfd(&other, FdFlags::empty()).unwrap();
        let found = |command: &mut Command| {
            let output = command.args(["-c", "for file in /proc/$$/fd/*; do readlink $file; done"]).output();
            let list = String::from_utf8(output.unwrap().stdout).unwrap();
            ["/dev/full", "/dev/zero"].map(|path| list.lines().any(|line| line == path))
        };
        assert_eq!(found(&mut Command::new("sh")), [false, true]);
        assert_eq!(found(inherits_only(&mut Command::new("sh"), kept.as_fd())), [true, false]);
    }
}
