//! A guest's first process. The kernel starts it from the initramfs; it loads modules, finds ports and disks, makes the
//! root disk `/`, mounts what the job mounts, starts its services and its command, reports how that ended, stops everything in
//! order, and powers off. What it is told and what it answers is
//! in `vmprof-job`. Where the job hands over to systemd, it goes on as one of its services (`systemd.rs`). Guests of `up` and the lab's emulated host run the same program.

mod agent;
mod as_user;
mod become_user;
mod boot;
mod captured;
mod cgroups;
mod command;
mod control;
mod cpus;
mod disks;
mod failure;
mod filesystems;
mod job;
mod keeping;
mod kmsg;
mod modules;
mod mounts;
mod netlink;
mod network;
mod ports;
mod power;
mod pump;
mod reap;
mod services;
mod supervisor;
mod sysctl;
mod systemd;
mod terminal;
mod users;
mod volumes;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use rustix::process::{Pid, getpid};

/// Asked for what it does not do: sysexits' word for it.
const USAGE: u8 = 64;

fn main() -> ExitCode {
    // As PID 1 the arguments are what the kernel did not know on its command line: nothing for us.
    if getpid() == Pid::INIT {
        boot::boot();
    }
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.split_first() {
        Some((word, rest)) if word == agent::WORD => agent::run(rest),
        Some((word, rest)) if word == network::WORD => network::run(rest),
        Some((word, rest)) if word == network::LEASE_WORD => network::keep_lease(rest),
        Some((word, rest)) if word == terminal::WORD => ExitCode::from(terminal::become_command(rest)),
        Some((word, rest)) if word == as_user::WORD => ExitCode::from(as_user::become_command(rest)),
        Some((word, rest)) if word == become_user::WORD => ExitCode::from(become_user::become_user(rest)),
        Some((word, [])) if word == systemd::WORD => ExitCode::from(systemd::run()),
        Some((word, [])) if word == systemd::HOLD_WORD => systemd::hold(),
        _ => {
            eprintln!(
                "vmprof-init is the first process of a guest: the kernel starts it, as process 1, and nobody else."
            );
            ExitCode::from(USAGE)
        }
    }
}
