//! What may stand on the command line. Types only: nothing here looks at the machine.

mod guests;
mod inside;
mod lab;
mod profiles;
mod running;
mod store;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

pub use guests::{BuildArguments, LockArguments, Sources};
pub use inside::{CpArguments, ExecArguments, Place};
pub use lab::{Errand, LabVerb};
pub use profiles::{CheckArguments, FmtArguments, HostArguments, ImportVerb, PlanArguments, PlanFormat};
pub use running::{
    ConsoleArguments, FormatArguments, IothreadArguments, LogsArguments, NameArguments, NamedArguments, On,
    StatsArguments, StatsFormat, StopArguments, Switch, TopArguments, UpArguments,
};
pub use store::StoreVerb;

mod vhost_user_blk;

pub use vhost_user_blk::{AioWord, CacheWord, VhostUserBlkArguments};

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
            Verb::Lock(lock) => lock.read().map(|_| ()).map(|()| arguments),
            Verb::VhostUserBlk(served) => served.check().map(|()| arguments),
            Verb::Stats(stats) => stats.check().map(|()| arguments),
            Verb::Cp(copied) => copied.check().map(|()| arguments),
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
    /// Look for what keeps VMs on this host from running well, or at all, with what to do about each
    Doctor(FormatArguments),
    /// Resolve a guest's packages into its lock file
    Lock(LockArguments),
    /// Build a guest's kernel, initramfs and root image, and print where they are
    Build(BuildArguments),
    /// Plan, build what is missing, and boot
    Up(Box<UpArguments>),
    /// List the running VMs
    Ps(FormatArguments),
    /// The serial console of a running VM on this terminal; several may watch, one of them types
    Console(ConsoleArguments),
    /// What a VM that was left running says, and has said
    Logs(LogsArguments),
    /// Run a command in the guest of a running VM, with its streams here, and end with its status
    Exec(ExecArguments),
    /// Copy files and directories into the guest of a running VM, or out of it
    Cp(CpArguments),
    /// Stop running VMs
    Stop(StopArguments),
    /// Have the guest of a running VM stand still; its disks end what they have begun
    Pause(NameArguments),
    /// Let a paused VM go on: requests that had paused it (rerror, werror) are tried again
    Resume(NameArguments),
    /// Read back whether a running VM is as planned: its threads, its memory, its disks, the block schedulers on both sides
    Verify(NamedArguments),
    /// Counters of a running VM: per vCPU, per IOThread, per virtqueue, with what is in flight and why it is paused
    Stats(StatsArguments),
    /// What running VMs do, live on this terminal: vCPUs, IOThreads and virtqueues with their rates
    Top(TopArguments),
    /// Show an IOThread of a running VM, or change where it runs and how long it polls
    Iothread(IothreadArguments),
    /// An emulated host that stays up for several runs
    #[command(subcommand)]
    Lab(LabVerb),
    /// Serve a disk to QEMU or another VMM, with vmprof's own IOThreads
    VhostUserBlk(VhostUserBlkArguments),
    /// Look into the content-addressed store
    #[command(subcommand)]
    Store(StoreVerb),
    /// Say what the code of a diagnostic means and what to do about it; without CODE, list all codes
    Explain(ExplainArguments),
    /// Print a shell's completion script
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, of vmprof or of one verb
    Man { verb: Option<String> },
    /// What the vmprof inside an emulated host does for the one outside
    #[command(hide = true, subcommand)]
    Inside(Errand),
    /// Ask a running VM through its control socket; the lab's emulated host is asked this way
    #[command(hide = true)]
    Ask {
        /// Print what came over the socket, a refusal too, for whoever passes it on
        #[arg(long)]
        relay: bool,
        name: String,
        request: String,
        /// Arguments of the request, as JSON
        arguments: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub struct ExplainArguments {
    /// A code such as vmprof::plan::dense_host, or its last word
    pub code: Option<String>,
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_hold_together() {
        Arguments::command().debug_assert();
    }
}
