//! The verbs about profiles and hosts: `plan`, `check`, `fmt`, `import`, `host`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Format;

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
    vmprof check profiles/*.kdl guests/*.kdl\n  \
    vmprof check --format json profiles/db.kdl  for an editor or a CI job")]
pub struct CheckArguments {
    /// The profiles and guests, KDL files
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
