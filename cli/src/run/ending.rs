//! Processes that are being ended. SIGKILL is never refused, but what a process has, its locks among it, is free only when its memory
//! is: seconds for a large VM.

use std::fs;

/// SIGKILL in the sets of signals of /proc/PID/status, whose lowest bit is signal 1.
const KILL: u64 = 1 << (9 - 1);
/// PF_EXITING of the kernel's include/linux/sched.h, among the flags of /proc/PID/stat.
const EXITING: u64 = 0x4;

/// Whether that process is gone, or will be without doing anything more.
pub fn is_ending(pid: u32) -> bool {
    let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
    match (file("stat"), file("status")) {
        (Ok(stat), Ok(status)) => exits(&stat) || is_killed(&status),
        // It went between the two.
        _ => true,
    }
}

/// proc(5): the state and the flags are the first and the seventh field behind the name in brackets, which may have brackets too.
fn exits(stat: &str) -> bool {
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let state = fields.next();
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    matches!(state, Some("Z" | "X")) || flags.is_some_and(|flags| flags & EXITING != 0)
}

/// Whether SIGKILL waits for its main thread or for all of it.
fn is_killed(status: &str) -> bool {
    let pending = |line: &str| {
        let (key, set) = line.split_once(':')?;
        matches!(key, "SigPnd" | "ShdPnd").then(|| u64::from_str_radix(set.trim(), 16).ok())?
    };
    status.lines().filter_map(pending).any(|set| set & KILL != 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_state_and_the_flags_stand_behind_the_name_whatever_it_is() {
        let stat = |state: &str, flags: u64| format!("7 (a) Z (b) {state} 1 7 7 0 -1 {flags} 0 0\n");
        for (state, flags, ends) in [("S", 0x40_0000, false), ("R", 0x40_0004, true), ("Z", 0x40_0000, true)]
        {
            assert_eq!(exits(&stat(state, flags)), ends, "{state} {flags:x}");
        }
        assert!(!exits(""));
    }

    #[test]
    fn a_kill_that_waits_is_seen_and_other_signals_are_not() {
        for (status, killed) in [
            ("Name:\tv\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n", true),
            ("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n", true),
            ("SigPnd:\t0000000000004000\nShdPnd:\t0000000000000001\nSigBlk:\t0000000000000100\n", false),
        ] {
            assert_eq!(is_killed(status), killed, "{status}");
        }
    }

    #[test]
    fn a_process_is_ending_from_its_kill_on_and_not_before() {
        assert!(!is_ending(std::process::id()));
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        assert!(!is_ending(child.id()));
        child.kill().unwrap();
        while !is_ending(child.id()) {
            std::thread::yield_now();
        }
        // Dead, and not yet waited for.
        assert!(is_ending(child.id()));
        child.wait().unwrap();
        assert!(is_ending(child.id()));
    }
}
