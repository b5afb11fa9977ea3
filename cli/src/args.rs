//! What may stand on the command line. Types only: nothing here looks at the machine.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use vmprof_document::{DurationError, parse_duration};

use vmprof_guests::Update;

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
            Verb::Lock(lock) => lock.read().map(|_| ()).map(|()| arguments),
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
    /// Have the guest of a running VM stand still; its disks end what they have begun
    Pause(StopArguments),
    /// Let a paused VM go on: requests that had paused it (rerror, werror) are tried again
    Resume(StopArguments),
    /// Read back where every thread of a running VM really is
    Verify(NamedArguments),
    /// Counters of a running VM: per vCPU, per IOThread, per virtqueue, with what is in flight and why it is paused
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

#[derive(Debug, Args)]
#[command(override_usage = "vmprof lock [OPTIONS] GUEST")]
#[command(after_help = "Examples:\n  \
    vmprof lock guests/fio.kdl                what the recipe's change needs; every other version stays\n  \
    vmprof lock --update guests/fio.kdl       everything as the archive has it now\n  \
    vmprof lock --update fio guests/fio.kdl   fio, and what its new version needs\n  \
    vmprof lock --check guests/*.kdl          for a CI job: changes nothing, and ends with 1 where it would")]
pub struct LockArguments {
    /// The guests' recipes, KDL files
    #[arg(value_name = "GUEST")]
    guests: Vec<PathBuf>,
    /// Take the archive's present version of PACKAGE and what that needs, several times for several packages; without
    /// PACKAGE, of everything
    #[arg(long, value_name = "PACKAGE", num_args = 0..=1, default_missing_value = "")]
    update: Vec<String>,
    /// Change nothing: say what would change, and end with status 1 where anything would
    #[arg(long)]
    pub check: bool,
    /// json: vmprof.lock/1 on stdout, every change as an object
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `vmprof lock` with its own usage line.
fn lock_command() -> clap::Command {
    let mut all = Arguments::command();
    all.build();
    all.find_subcommand("lock").cloned().unwrap_or(all)
}

impl LockArguments {
    /// The recipes, and what to update. A word behind `--update` that looks like a file is a recipe: `--update` then stands
    /// alone. No package's name has a slash or ends with `.kdl`.
    pub fn read(&self) -> Result<(Vec<PathBuf>, Update), clap::Error> {
        let is_file = |word: &str| word.contains('/') || word.ends_with(".kdl");
        let mut guests: Vec<PathBuf> =
            self.update.iter().filter(|word| is_file(word)).map(PathBuf::from).collect();
        guests.extend(self.guests.iter().cloned());
        let packages = self.update.iter().filter(|word| !is_file(word) && !word.is_empty());
        let packages: Vec<String> = packages.cloned().collect();
        let usage =
            |message: &str| lock_command().error(clap::error::ErrorKind::MissingRequiredArgument, message);
        if guests.is_empty() {
            return Err(usage(
                "the guest's recipe is missing: `vmprof lock guests/fio.kdl`, or `./NAME` for a file whose name does not end with .kdl",
            ));
        }
        let update = match (self.update.is_empty(), packages.is_empty()) {
            (true, _) => Update::Nothing,
            (false, true) => Update::All,
            (false, false) if packages.len() < self.update.len() => {
                let message = "--update stands once without a package, for everything, or each time with one";
                return Err(lock_command().error(clap::error::ErrorKind::ArgumentConflict, message));
            }
            (false, false) => Update::Packages(packages),
        };
        Ok((guests, update))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof build profiles/db.kdl                      what is not in the store yet\n  \
    vmprof build --check guests/postgres.kdl          built once more from the packages, and compared\n  \
    vmprof build --export db.img guests/postgres.kdl  the root disk as a file of its own")]
pub struct BuildArguments {
    /// A profile or a guest's recipe, a KDL file
    pub file: PathBuf,
    /// Build again and compare with what the store holds
    #[arg(long)]
    pub check: bool,
    /// Write the root disk to FILE too, and print its BLAKE3 digest; a FILE that exists is left alone
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// Let --export replace a FILE that exists
    #[arg(long, requires = "export")]
    pub force: bool,
    #[command(flatten)]
    pub sources: Sources,
    /// json: vmprof.build/1 on stdout: paths, sizes, formats
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
    /// List the entries: what each is, its size, and how many keep it
    #[command(
        after_help = "DISK is what an entry takes of the disk, SIZE what can be read out of it: holes make the difference. \
        KEPT BY counts the recipes, toolsets and running VMs that keep it; `vmprof store why` names them.\n\n\
        Examples:\n  \
        vmprof store ls\n  \
        vmprof store ls --format json  vmprof.store/1, for programs"
    )]
    Ls {
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Print the store's own path, or where a built guest's image is
    #[command(after_help = "Examples:\n  \
        vmprof store path                   the store\n  \
        vmprof store path guests/fio.kdl    the guest's root image; status 1 where it is not built\n  \
        vmprof store path profiles/db.kdl   the same of a profile's guest")]
    Path {
        /// A profile or a guest's recipe, a KDL file
        file: Option<PathBuf>,
    },
    /// Read everything again and compare it with its name; status 102 where something is wrong
    #[command(after_help = "Examples:\n  \
        vmprof store verify            list every problem\n  \
        vmprof store verify --repair   and move what is damaged to STORE/damaged: the next build makes it anew")]
    Verify {
        /// Move what is damaged out of the way, so that the next build makes it anew; the status stays 102
        #[arg(long)]
        repair: bool,
    },
    /// Remove what nobody keeps: no recipe that exists, no toolset, no running VM
    #[command(
        after_help = "A recipe keeps what its last build made, and the packages its lock named, as long as its file exists. \
        A running VM keeps what it was started with. Builds may run meanwhile; gc waits for those that are under way.\n\n\
        Examples:\n  \
        vmprof store gc --dry-run    what would go, and how much that is\n  \
        vmprof store gc              remove it\n  \
        vmprof store gc --packages   packages too: images stay, and the next change of a recipe fetches again\n  \
        vmprof store gc --all        everything but what running VMs use"
    )]
    Gc {
        /// Change nothing: tell what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Remove packages too, whichever lock names them
        #[arg(long)]
        packages: bool,
        /// Remove everything that no running VM uses: what recipes and toolsets keep as well
        #[arg(long)]
        all: bool,
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Say who keeps an entry, and through what
    #[command(after_help = "Examples:\n  \
        vmprof store why fio         entries of that name: a package, an image\n  \
        vmprof store why 07feb369    the beginning of a digest\n  \
        vmprof store why \"$(vmprof store path guests/fio.kdl)\"")]
    Why {
        /// A path, an entry's name, the name of a package or an image, or the beginning of one digest
        entry: String,
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
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

    fn lock(words: &[&str]) -> Result<(Vec<PathBuf>, Update), clap::Error> {
        let words = ["vmprof", "lock"].iter().chain(words);
        match Arguments::try_parse_from(words)?.verb {
            Verb::Lock(lock) => lock.read(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn update_reads_the_same_wherever_it_stands() {
        let guest = || vec![PathBuf::from("g/a.kdl")];
        let fio = || Update::Packages(vec!["fio".to_owned()]);
        assert_eq!(lock(&["g/a.kdl"]).unwrap(), (guest(), Update::Nothing));
        assert_eq!(lock(&["--update", "g/a.kdl"]).unwrap(), (guest(), Update::All));
        assert_eq!(lock(&["g/a.kdl", "--update"]).unwrap(), (guest(), Update::All));
        for words in [["--update", "fio", "g/a.kdl"], ["g/a.kdl", "--update", "fio"]] {
            assert_eq!(lock(&words).unwrap(), (guest(), fio()));
        }
        assert_eq!(lock(&["--update=fio", "g/a.kdl"]).unwrap(), (guest(), fio()));
        let both = Update::Packages(vec!["fio".to_owned(), "libc6".to_owned()]);
        assert_eq!(lock(&["--update=fio", "--update=libc6", "g/a.kdl"]).unwrap(), (guest(), both));
    }

    #[test]
    fn a_lock_without_a_recipe_or_with_two_meanings_of_update_is_refused() {
        assert!(lock(&["--update", "fio"]).is_err());
        assert!(lock(&[]).is_err());
        assert!(lock(&["--update=fio", "--update", "g/a.kdl"]).is_err());
    }
}
