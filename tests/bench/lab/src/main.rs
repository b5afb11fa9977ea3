//! One guest on vmprof and on QEMU side by side in one emulated host: what a request, a boot and a machine cost each of them.
//!
//! This program is three, told apart by how it is started: on the user's machine it boots the emulated host and reports
//! ([`outside`], [`report`]); in there it starts the machines and counts ([`inside`], [`machine`], [`counters`]); and in the guests
//! it is the first program of all, which says on the console that the kernel has reached it ([`mark`]).

mod counters;
mod host;
mod inside;
mod machine;
mod mark;
mod outside;
mod record;
mod report;
mod settings;
mod trace;
mod work;

use std::process::ExitCode;

use clap::Parser as _;

/// What went wrong, in words for whoever runs the benchmark.
type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    if rustix::process::getpid() == rustix::process::Pid::INIT {
        mark::become_first_process();
    }
    let done = match std::env::args().nth(1).as_deref() {
        Some(inside::WORD) => inside::run(),
        _ => outside::run(&settings::Arguments::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmprof-bench-lab: {error}");
            ExitCode::FAILURE
        }
    }
}
