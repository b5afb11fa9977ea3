//! What may stand on the command line. Types only: nothing here looks at the machine.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::lab::Shape;

/// Declarative VM images and tuning profiles, with a KVM virtual machine monitor of their own.
#[derive(Debug, Parser)]
#[command(name = "vmprof", version, max_term_width = 100, arg_required_else_help = true)]
#[command(
    after_help = "Exit status: 0 ok, 1 failure, 3 the profile or guest is invalid, 4 this host cannot satisfy it, \
                        64 usage, 102 hash mismatch, 104 not deterministic. `up` has more: see `vmprof up --help`."
)]
pub struct Arguments {
    #[command(subcommand)]
    pub verb: Verb,
}

impl Arguments {
    /// The arguments of this process; what clap's attributes cannot say is refused like what they can.
    pub fn read() -> Result<Arguments, clap::Error> {
        let arguments = Arguments::try_parse()?;
        match &arguments.verb {
            Verb::Plan(plan)
                if plan.diff.is_some() && !matches!(plan.format, PlanFormat::Text | PlanFormat::Json) =>
            {
                let message = "--diff has the formats text and json";
                Err(Arguments::command().error(clap::error::ErrorKind::ArgumentConflict, message))
            }
            _ => Ok(arguments),
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Show which thread goes on which CPU and which virtqueue on which IOThread, and why
    Plan(PlanArguments),
    /// Check profiles without looking at any host
    Check(CheckArguments),
    /// Lay out profiles and guests canonically, comments kept
    Fmt(FmtArguments),
    /// Print the JSON Schema of a plan
    Schema,
    /// Make a profile of what another tool describes
    #[command(subcommand)]
    Import(ImportVerb),
    /// Show the topology of a host as vmprof sees it
    Host(HostArguments),
    /// Resolve a guest's packages into its lock file
    Lock(LockArguments),
    /// Build a guest's kernel, initramfs and root image, and print where they are
    Build(BuildArguments),
    /// Plan, build what is missing, and boot
    Up(Box<UpArguments>),
    /// List the running VMs
    Ps(PsArguments),
    /// Stop a running VM
    Stop(StopArguments),
    /// Read back where every thread of a running VM really is
    Verify(NamedArguments),
    /// Counters of a running VM: per vCPU, per IOThread, per virtqueue
    Stats(NamedArguments),
    /// Look into the content-addressed store
    #[command(subcommand)]
    Store(StoreVerb),
    /// Say what the code of a diagnostic means and what to do about it; without CODE, list all codes
    Explain(ExplainArguments),
    /// Print a shell's completion script
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, of vmprof or of one verb
    Man { verb: Option<String> },
    /// Ask a running VM through its control socket; the lab's emulated host is asked this way
    #[command(hide = true)]
    Ask { name: String, request: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// How `plan` shows a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlanFormat {
    /// The host as a grid with every thread on it, and a line with the reason of each choice
    Text,
    /// vmprof.plan/1, for programs and for `up --plan`; with --diff vmprof.diff/1
    Json,
    /// A picture that stands for itself
    Svg,
    /// A shell command that starts QEMU 10 or newer with this plan
    Qemu,
    /// A domain for libvirt 10 or newer
    Libvirt,
}

#[derive(Debug, Args)]
pub struct HostChoice {
    /// Plan for the host that FILE describes: what `vmprof host --capture FILE` or hwloc's `lstopo --of xml FILE` wrote
    #[arg(long, value_name = "FILE", conflicts_with = "sysroot")]
    pub host: Option<PathBuf>,
    /// Read DIR/sys and DIR/proc instead of this host's
    #[arg(long, value_name = "DIR")]
    pub sysroot: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof plan profiles/db.kdl                          on this host\n  \
    vmprof plan profiles/db.kdl --explain                with the best rejected alternatives\n  \
    vmprof plan profiles/db.kdl --host server.json       for another host\n  \
    vmprof plan profiles/db.kdl --format svg > plan.svg  as a picture\n  \
    vmprof plan profiles/db.kdl --format json > db.json  to keep, for `up --plan db.json`\n  \
    vmprof plan profiles/db.kdl --diff db.json           what is different now")]
pub struct PlanArguments {
    /// The profile, a KDL file
    pub profile: PathBuf,
    #[command(flatten)]
    pub on: HostChoice,
    /// Show below each choice the best one that was not taken, and why not
    #[arg(long)]
    pub explain: bool,
    /// Show what differs from OTHER: another profile, another host's file, or a saved plan
    #[arg(long, value_name = "OTHER", conflicts_with = "explain")]
    pub diff: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    pub format: PlanFormat,
}

#[derive(Debug, Subcommand)]
pub enum ImportVerb {
    /// A profile of a libvirt domain; what it cannot say is listed on stderr
    #[command(after_help = "Example:\n  \
        virsh dumpxml --inactive db | vmprof import libvirt - -o profiles/db.kdl")]
    Libvirt {
        /// The domain's XML, as `virsh dumpxml` prints it; `-` is standard input
        file: PathBuf,
        /// Write the profile here instead of on standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof check profiles/*.kdl\n  \
    vmprof check --format json profiles/db.kdl  for an editor or a CI job")]
pub struct CheckArguments {
    /// The profiles, KDL files
    #[arg(required = true)]
    pub profiles: Vec<PathBuf>,
    /// json: vmprof.check/1 on stdout, every problem with its place
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof fmt profiles/*.kdl guests/*.kdl\n  \
    vmprof fmt --check profiles/*.kdl       for a CI job: changes nothing, and ends with 1 where it would\n  \
    vmprof fmt - < profiles/db.kdl          from standard input to standard output")]
pub struct FmtArguments {
    /// KDL files, rewritten in place; `-` is standard input, and goes to standard output
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Change nothing: name the files that are laid out otherwise, and end with status 1 where there are any
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Args)]
pub struct HostArguments {
    /// Read DIR/sys and DIR/proc instead of this host's
    #[arg(long, value_name = "DIR")]
    pub sysroot: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
    /// Write what vmprof reads of the host to FILE, for `plan --host FILE` anywhere
    #[arg(long, value_name = "FILE")]
    pub capture: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LockArguments {
    /// The guest's recipe, a KDL file
    pub guest: PathBuf,
}

#[derive(Debug, Args)]
pub struct BuildArguments {
    /// A profile or a guest's recipe, a KDL file
    pub file: PathBuf,
    /// Build again and compare with what the store holds
    #[arg(long)]
    pub check: bool,
    #[command(flatten)]
    pub sources: Sources,
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

#[derive(Debug, Clone, Copy, Args)]
pub struct Sources {
    /// Refuse a lock file that is missing or does not fit its recipe
    #[arg(long)]
    pub frozen: bool,
    /// Touch no network: what the store lacks is an error
    #[arg(long)]
    pub offline: bool,
}

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
    Without CMD: 0 power-off or `vmprof stop`, 1 guest panic or failure, a service's for good included, 124 --timeout ran out, 125 the lab failed, 130 interrupted.\n\
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
    /// The guest's console on this terminal, interactive: Ctrl-C goes to the guest, Ctrl-A x leaves. A guest that serves has a
    /// shell there
    #[arg(long)]
    pub console: bool,
    /// Stop the VM after this time and end with status 124: 90, 90s, 5m, 1h
    #[arg(long, value_name = "D", value_parser = duration)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub sources: Sources,
    /// The emulated host's shape, such as nodes=8+4,threads=2,nvme=2,memory=6GiB; what is left out keeps its default
    #[arg(long, value_name = "SHAPE", default_value_t)]
    pub lab: Shape,
    /// The image that the emulated host was given, instead of building one
    #[arg(long, value_name = "FILE", hide = true)]
    pub image: Option<PathBuf>,
    /// Run this in the guest, as root, instead of what the guest's recipe names
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct PsArguments {
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

#[derive(Debug, Args)]
pub struct StopArguments {
    /// Name of the running VM
    pub name: String,
}

#[derive(Debug, Args)]
pub struct NamedArguments {
    /// Name of the running VM
    pub name: String,
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

#[derive(Debug, Subcommand)]
pub enum StoreVerb {
    /// List the entries, with their sizes
    Ls {
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Print the store's own path
    Path,
    /// Read every entry again and compare it with its name
    Verify,
}

#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// A code such as vmprof::plan::dense_host, or its last word
    pub code: Option<String>,
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

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor_ms = match &text[digits.len()..] {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => return Err(format!("`{unit}` is no unit of time here: write ms, s, m or h, as in 90s")),
    };
    let amount: u64 = digits.parse().map_err(|_| format!("`{text}` is no time: write 90, 90s, 5m or 1h"))?;
    match amount.checked_mul(factor_ms) {
        Some(0) => Err("a run of no time cannot start: leave --timeout out for no limit".into()),
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => Err(format!("`{text}` is longer than can be counted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_hold_together() {
        Arguments::command().debug_assert();
    }

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
    fn a_name_cannot_leave_its_directory() {
        for bad in ["", "..", "a/b", ".hidden", "-x", "a b", &"n".repeat(33)] {
            assert!(vm_name(bad).is_err(), "{bad}");
        }
        assert_eq!(vm_name("db-2.test").unwrap(), "db-2.test");
    }
}
