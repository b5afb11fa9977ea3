//! Why the machines leave their guests and what their threads ask of the kernel, counted by the kernel's own histograms of
//! trace events. Counting costs time, so it has runs of its own, whose CPU times nobody uses.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;

use crate::Outcome;
use crate::counters::Role;

const EVENTS: &str = "/sys/kernel/tracing/events";
/// What is counted: the event, and the key beside the thread.
const COUNTED: [(&str, &str, &str); 2] =
    [("exit", "kvm/kvm_exit", "exit_reason"), ("syscall", "raw_syscalls/sys_enter", "id")];

pub fn start() -> Outcome<()> {
    trigger(|key| format!("hist:keys=common_pid,{key}:size=4096"))
}

pub fn clear() -> Outcome<()> {
    trigger(|key| format!("hist:keys=common_pid,{key}:size=4096:clear"))
}

pub fn stop() -> Outcome<()> {
    trigger(|key| format!("!hist:keys=common_pid,{key}:size=4096"))
}

fn trigger(words: impl Fn(&str) -> String) -> Outcome<()> {
    for (_, event, key) in COUNTED {
        let path = format!("{EVENTS}/{event}/trigger");
        // A kernel may keep the events of its modules to itself: then the table lacks the exits.
        if !fs::exists(&path)? {
            eprintln!("{path} is not there: not counted");
            continue;
        }
        // Not cut to nothing first: the kernel takes that for the removal of every trigger.
        let file = File::options().append(true).open(&path);
        file.and_then(|mut file| file.write_all(words(key).as_bytes()))
            .map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}

/// Counts since they were cleared: `vcpu exit hlt`, `io-thread syscall io_uring_enter`. Threads that are not in `roles` are
/// somebody else's.
pub fn read(roles: &BTreeMap<u32, Role>) -> Outcome<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for (kind, event, _) in COUNTED {
        let path = format!("{EVENTS}/{event}/hist");
        if !fs::exists(&path)? {
            continue;
        }
        let text = fs::read_to_string(path)?;
        for (tid, key, count) in text.lines().filter_map(entry) {
            let Some(role) = roles.get(&tid) else { continue };
            let role = match role {
                Role::IoThread => "iothread",
                Role::Vcpu => "vcpu",
                Role::Other => "other",
            };
            let name = if kind == "exit" { exit(key) } else { syscall(key) };
            *counts.entry(format!("{role} {kind} {name}")).or_default() += count;
        }
    }
    Ok(counts)
}

/// `{ common_pid:  123, exit_reason:  120 } hitcount:  55`
fn entry(line: &str) -> Option<(u32, u64, u64)> {
    let (keys, count) = line.trim().strip_prefix('{')?.split_once('}')?;
    let number = |text: &str| {
        let text = text.rsplit(':').next()?.trim();
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
    };
    let (tid, key) = keys.split_once(',')?;
    Some((u32::try_from(number(tid)?).ok()?, number(key)?, number(count)?))
}

/// AMD's exit codes (Architecture Programmer's Manual, volume 2, appendix C): the emulated host's processor is one.
fn exit(code: u64) -> String {
    let name = match code {
        0x60 => "interrupt of the host",
        0x64 => "interrupt window",
        0x6e => "rdtsc",
        0x72 => "cpuid",
        0x77 => "pause",
        0x78 => "hlt",
        0x7b => "port",
        0x7c => "msr",
        0x400 => "memory",
        0x401 => "avic, incomplete ipi",
        0x402 => "avic, unaccelerated",
        code => return format!("{code:#x}"),
    };
    name.to_owned()
}

/// Of x86-64; what a VMM asks often.
fn syscall(number: u64) -> String {
    let name = match number {
        0 => "read",
        1 => "write",
        7 => "poll",
        16 => "ioctl",
        18 => "pwrite64",
        20 => "writev",
        46 => "sendmsg",
        202 => "futex",
        228 => "clock_gettime",
        232 => "epoll_wait",
        271 => "ppoll",
        281 => "epoll_pwait",
        286 => "timerfd_settime",
        295 => "preadv",
        426 => "io_uring_enter",
        441 => "epoll_pwait2",
        number => return number.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histograms_lines_are_read_and_its_head_is_not() {
        assert_eq!(
            entry("{ common_pid:        251, exit_reason:        120 } hitcount:         55"),
            Some((251, 120, 55))
        );
        assert_eq!(entry("{ common_pid: 7, id: 0x10 } hitcount: 2"), Some((7, 16, 2)));
        assert_eq!(entry("# trigger info: hist:keys=common_pid,id:vals=hitcount"), None);
        assert_eq!(entry("    Hits: 57"), None);
    }
}
