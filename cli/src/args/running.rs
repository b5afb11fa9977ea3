//! The verbs about running VMs: `up`, `ps`, `console`, `logs`, `stop`, `pause`, `resume`, `verify`, `stats`, `top`, `iothread`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, ValueEnum};
use vmprof_document::{DurationError, parse_duration};
use vmprof_profiles::CpuSet;

use super::{Arguments, Format, Sources};
use crate::lab::Shape;
use crate::run::artifacts::Artifact;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum On {
    /// This host's KVM where it can run a stock kernel, else the lab, with a notice
    Auto,
    /// This host's KVM
    Kvm,
    /// A KVM host emulated with QEMU
    Lab,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof up profiles/db.kdl                        boot it, with its console here; a guest with services serves\n  \
    vmprof up profiles/ci.kdl -- make check          run a command in it, and end with its status\n  \
    vmprof up --dry-run profiles/db.kdl > db.json    save the plan that would be run, in the lab too\n  \
    vmprof up profiles/db.kdl --plan db.json         run the plan that was saved and looked at\n\n\
    With CMD, stdout is CMD's stdout and nothing else; plan, progress, notices and console go to stderr.\n\
    Exit status with CMD: CMD's own, 128+N for its signal N; 3, 4, 64 before anything boots; 124 --timeout ran out; \
    125 everything else that is not CMD's.\n\
    Without CMD: 0 power-off or `vmprof stop`, and with --no-reboot a reboot, which else starts the guest anew; 1 guest panic or failure, a service's for good included, 124 --timeout ran out, 125 the lab failed, 130 interrupted.\n\
    With --detach: 0 once the VM runs, or with --wait once it is ready; what ends before has its status.\n\
    Ctrl-C once stops cleanly, services in the time their recipe gives; twice at once.")]
pub struct UpArguments {
    /// The profile, a KDL file
    pub profile: PathBuf,
    /// Where the VM runs
    #[arg(long, value_enum, default_value = "auto")]
    pub on: On,
    /// Run exactly this plan, which --dry-run or `vmprof plan --format json` wrote; refused where the profile or the host
    /// has changed
    #[arg(long, value_name = "FILE")]
    pub plan: Option<PathBuf>,
    /// Print the plan that would be run as JSON, for --plan, and end there: nothing is built, and no guest boots
    #[arg(long, conflicts_with_all = ["console", "command"])]
    pub dry_run: bool,
    /// Name of the running VM [default: the profile's]
    #[arg(long, value_parser = vm_name)]
    pub name: Option<String>,
    /// Return once the VM runs, and leave it running, without input; `vmprof logs` shows what it says, `vmprof stop` ends it
    #[arg(long, conflicts_with_all = ["console", "dry_run"])]
    pub detach: bool,
    /// With --detach, return once the guest is ready: its services are, or CMD runs. A run that ends before gives its status
    #[arg(long, requires = "detach")]
    pub wait: bool,
    /// The guest's console on this terminal, interactive: Ctrl-C goes to the guest, Ctrl-A x leaves. A guest that serves has a
    /// shell there
    #[arg(long)]
    pub console: bool,
    /// End the run when the guest reboots, with status 0 as a power-off has, instead of starting the guest anew
    #[arg(long)]
    pub no_reboot: bool,
    /// Stop the VM after this time and end with status 124: 90, 90s, 5m, 1h
    #[arg(long, value_name = "D", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// When the guest's work is done, copy this out of it into a directory here, which is made where it is missing. What cannot be
    /// copied fails a run that went well
    #[arg(long, value_name = "GUESTPATH=DIR", value_parser = OsStringValueParser::new().try_map(artifact))]
    #[arg(conflicts_with = "dry_run")]
    pub artifact: Vec<Artifact>,
    /// Write what happens to the run into this file, a line of JSON each, for programs (docs/ci.md)
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub events: Option<PathBuf>,
    #[command(flatten)]
    pub sources: Sources,
    /// The emulated host's shape, such as nodes=8+4,threads=2,nvme=2,memory=6GiB; what is left out keeps its default. Without it
    /// the lab that `vmprof lab start` started is joined, where there is one
    #[arg(long, value_name = "SHAPE")]
    pub lab: Option<Shape>,
    /// The image that the emulated host was given, instead of building one
    #[arg(long, value_name = "FILE", hide = true)]
    pub image: Option<PathBuf>,
    /// Where the vmprof outside an emulated host that several runs share hears how far this one is
    #[arg(long, value_name = "SOCKET", hide = true)]
    pub relay: Option<PathBuf>,
    /// Run this in the guest, as root, instead of what the guest's recipe names
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Of a verb that needs to be told nothing else.
#[derive(Debug, Args)]
pub struct FormatArguments {
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

#[derive(Debug, Args)]
pub struct StopArguments {
    /// Names of running VMs
    #[arg(required_unless_present = "all", value_name = "NAME")]
    pub names: Vec<String>,
    /// Every VM of this user's that runs
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
}

#[derive(Debug, Args)]
pub struct NameArguments {
    /// Name of the running VM
    pub name: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "On a terminal, keys go to the guest, Ctrl-C too; Ctrl-A x leaves and Ctrl-A Ctrl-A is one Ctrl-A. \
    One at a time types: the others watch. Without a terminal on standard input, and with --read-only, it only shows what \
    comes, until the VM has ended.\n\
    Exit status: 0 when you leave or the VM has ended, 1 otherwise."
)]
pub struct ConsoleArguments {
    /// Name of the running VM
    pub name: String,
    /// Never type: leave the keyboard to others
    #[arg(long)]
    pub read_only: bool,
}

#[derive(Debug, Args)]
pub struct LogsArguments {
    /// Name of the VM
    pub name: String,
    /// Go on with what it says from now on, until it has ended
    #[arg(short, long)]
    pub follow: bool,
    /// No more than the last N lines of what it has said
    #[arg(short = 'n', long, value_name = "N")]
    pub lines: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    Text,
    Json,
    /// Prometheus' text format
    Prometheus,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof stats db                            counts since the VM began\n  \
    vmprof stats db --watch                    what it does now: rates, each second\n  \
    vmprof stats db --watch=10s --format json  a line of JSON with the counts, every ten seconds\n  \
    vmprof stats db --latency on               take the times of requests, to be shown by the above")]
pub struct StatsArguments {
    /// Name of the running VM
    pub name: String,
    /// Go on until the VM ends, and show what was done a second since the last time; how often: 500ms, 1s, 1m
    #[arg(long, value_name = "D", value_parser = duration, num_args = 0..=1, require_equals = true, default_missing_value = "1s")]
    pub watch: Option<Duration>,
    #[arg(long, value_enum, default_value = "text")]
    pub format: StatsFormat,
    /// Have its IOThreads take the times of requests from now on, or no longer: `stats` then shows how long requests waited in
    /// the ring, were with the device, and took back to the driver
    #[arg(long, value_enum, conflicts_with_all = ["watch", "format"])]
    pub latency: Option<Switch>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Keys: q leaves, Tab and the arrows to the sides show another VM, up and down scroll, s sorts by load and back."
)]
pub struct TopArguments {
    /// Name of the running VM to begin with [default: the first by name]
    pub name: Option<String>,
    /// How often it is asked: 500ms, 1s, 1m
    #[arg(long, value_name = "D", value_parser = duration, default_value = "1s")]
    pub every: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

impl StatsArguments {
    pub fn check(&self) -> Result<(), clap::Error> {
        if self.watch.is_some() && self.format == StatsFormat::Prometheus {
            let message = "Prometheus asks again by itself: leave --watch out, and have `vmprof stats NAME --format \
                           prometheus` run for each scrape";
            return Err(Arguments::command().error(ErrorKind::ArgumentConflict, message));
        }
        Ok(())
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof iothread db 0                          how it is\n  \
    vmprof iothread db 0 --cpuset 5               have it run on CPU 5 alone\n  \
    vmprof iothread db iothread0 --poll-max-ns 0  have it sleep at once when it has nothing to do\n\n\
    Nothing is restarted. The plan in force follows: `verify`, `query-iothreads` and other VMs that are planned here.")]
pub struct IothreadArguments {
    /// Name of the running VM
    pub name: String,
    /// The IOThread: its number, or its name
    pub id: String,
    /// The CPUs that it may run on from now on, as in 5 or 4-5; the threads and workers of its engines go with it
    #[arg(long, value_name = "LIST", value_parser = cpuset)]
    pub cpuset: Option<String>,
    /// How long it looks for work before it sleeps, in nanoseconds; 0 never polls
    #[arg(long, value_name = "N")]
    pub poll_max_ns: Option<u64>,
    /// What its window grows by; 0 is the built-in factor
    #[arg(long, value_name = "N")]
    pub poll_grow: Option<u32>,
    /// What its window shrinks by; 0 closes it at once
    #[arg(long, value_name = "N")]
    pub poll_shrink: Option<u32>,
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// At least one CPU, as the kernel writes lists.
fn cpuset(text: &str) -> Result<String, String> {
    match text.parse::<CpuSet>() {
        Ok(cpus) if cpus.is_empty() => Err("a CPU set has at least one CPU".to_owned()),
        Ok(cpus) => Ok(cpus.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Debug, Args)]
pub struct NamedArguments {
    /// Name of the running VM
    pub name: String,
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// A name is a directory under the runtime place and part of a socket's path, which ends at 108 bytes.
fn vm_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 32 || text.starts_with(['.', '-']) || !text.chars().all(fits) {
        return Err(
            "a name has 1 to 32 letters, digits, `-`, `_` and `.`, and begins with neither `.` nor `-`"
                .into(),
        );
    }
    Ok(text.to_owned())
}

fn artifact(text: OsString) -> Result<Artifact, String> {
    let bytes = text.as_bytes();
    let parts = bytes.iter().position(|byte| *byte == b'=').map(|at| (&bytes[..at], &bytes[at + 1..]));
    match parts {
        Some((from, into)) if from.starts_with(b"/") && !into.is_empty() => {
            let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
            Ok(Artifact { named: path(from), from: path(from), into: path(into) })
        }
        _ => Err("write GUESTPATH=DIR, the first an absolute path in the guest, as in /var/log=logs".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let seconds = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let with_unit = if seconds { format!("{text}s") } else { text.to_owned() };
    match parse_duration(&with_unit) {
        Ok(0) => Err("a run of no time cannot start: leave --timeout out for no limit".into()),
        Ok(ms) => Ok(Duration::from_millis(ms)),
        Err(DurationError::Unit(unit)) => {
            Err(format!("`{unit}` is no unit of time here: write ms, s, m or h, as in 90s"))
        }
        Err(DurationError::TooLong(_)) => Err(format!("`{text}` is longer than can be counted")),
        Err(_) => Err(format!("`{text}` is no time: write 90, 90s, 5m or 1h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration("90").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("5m").unwrap(), Duration::from_secs(300));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        for bad in ["", "0", "s", "5d", "-1", "1.5h", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_artifact_has_a_path_in_the_guest_and_a_directory_here() {
        let found = artifact("/var/log=/tmp/a=b".into()).unwrap();
        assert_eq!((found.from, found.into), ("/var/log".into(), "/tmp/a=b".into()));
        for bad in ["", "/a", "/a=", "=b", "a=b"] {
            assert!(artifact(bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_cannot_leave_its_directory() {
        for bad in ["", "..", "a/b", ".hidden", "-x", "a b", &"n".repeat(33)] {
            assert!(vm_name(bad).is_err(), "{bad}");
        }
        assert_eq!(vm_name("db-2.test").unwrap(), "db-2.test");
    }
}
