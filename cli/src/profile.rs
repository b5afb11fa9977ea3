//! Profiles: read from their file, and planned for a host. The verbs `plan` and `check`.

use std::fs;
use std::path::{Path, PathBuf};

use vmprof_guests::Recipe;
use vmprof_profiles::view::plan_text;
use vmprof_profiles::{
    CpuSet, Held, Ledger, Plan, Profile, Source, Storage, Topology, Written, read_profile,
};

use crate::args::{CheckArguments, Format, PlanArguments};
use crate::failure::{Failure, Kind};
use crate::host;
use crate::places::Places;
use crate::report::Report;
use crate::run::record::{self, Run};

/// Reads the profile at `path`; its warnings go to the terminal with the plan. Gives the absolute path with it.
pub fn read(path: &Path) -> Result<(PathBuf, Profile), Failure> {
    let text = text_of(path)?;
    let (profile, _) = read_profile(&path.to_string_lossy(), &text)
        .map_err(|problems| Failure::new(Kind::Invalid, problems))?;
    let path = std::path::absolute(path)
        .map_err(|error| Failure::os(format!("{} has no absolute path", path.display()), error))?;
    Ok((path, profile))
}

/// A profile that cannot be read is no valid profile: exit 3, like one that says nothing sensible.
fn text_of(path: &Path) -> Result<String, Failure> {
    let invalid = |message: String, help: &str| {
        Failure::said(Kind::Invalid, "vmprof::profile::unreadable", message, help)
    };
    let bytes = fs::read(path).map_err(|error| {
        invalid(
            format!("{} cannot be read: {error}", path.display()),
            "the first argument is the path of a KDL file",
        )
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        invalid(format!("{} is not UTF-8 text: byte {at} is none", path.display()), "KDL files are UTF-8")
    })
}

/// The guest's recipe, as the profile in `file` names it: relative to the profile's own directory.
pub fn recipe(file: &Path, profile: &Profile) -> Result<Recipe, Failure> {
    let path = file.parent().unwrap_or(Path::new("/")).join(&profile.guest.value);
    if !path.exists() {
        let Written { value, line, .. } = &profile.guest;
        let message = format!(
            "line {line} of {} names the guest \"{value}\", and {} does not exist",
            file.display(),
            path.display()
        );
        let help = "a guest is the path of a recipe, relative to the profile's own directory";
        return Err(Failure::said(Kind::Invalid, "vmprof::profile::no_guest", message, help));
    }
    Ok(Recipe::read(&path)?)
}

/// Whether the file's first node is a guest's: anything else is read as a profile, whose reader says what is wrong.
pub fn is_guest(path: &Path) -> Result<bool, Failure> {
    Ok(vmprof_document::first_node(&text_of(path)?).as_deref() == Some("guest"))
}

/// A host as the planner sees it for one profile.
#[derive(Debug)]
pub struct Host {
    topology: Topology,
    storage: Storage,
    ledger: Ledger,
}

impl Host {
    /// The host that `source` describes. `disks` is where a relative source lies, on this machine.
    pub fn of(source: &Source, profile: &Profile, disks: Option<&Path>, ledger: Ledger) -> Host {
        let topology = Topology::read(source);
        let storage = Storage::read(source, profile, &topology, disks);
        Host { topology, storage, ledger }
    }

    /// This machine, less what running VMs hold.
    pub fn live(profile: &Profile, disks: &Path, runs: &[Run]) -> Host {
        let held =
            |run: &Run| Some(Held { holder: run.name.clone(), cpus: run.cpus.parse().ok()?, pid: None });
        let ledger =
            Ledger { held: runs.iter().filter_map(held).filter(|held| !held.cpus.is_empty()).collect() };
        Host::of(&Source::Live, profile, Some(disks), ledger)
    }

    pub fn plan(&self, profile: &Profile) -> Result<Plan, Failure> {
        vmprof_profiles::plan(profile, &self.topology, &self.storage, &self.ledger)
            .map_err(|problems| Failure::new(Kind::HostCannot, problems))
    }

    pub fn text(&self, plan: &Plan, colour: bool) -> String {
        plan_text(plan, &self.topology, colour)
    }

    /// The CPUs that the plan's threads have to themselves, as a kernel list: one that floats holds none.
    pub fn pinned(&self, plan: &Plan) -> String {
        let alone = plan.threads().into_iter().map(|(_, cpus)| cpus).filter(|cpus| cpus.len() == 1);
        alone.fold(CpuSet::new(), |all, cpus| all.or(&cpus)).to_string()
    }
}

pub fn plan(arguments: &PlanArguments, report: Report) -> Result<(), Failure> {
    let (_, profile) = read(&arguments.profile)?;
    let source = host::source(arguments.on.host.as_deref(), arguments.on.sysroot.as_deref())?;
    // Without any place (no HOME) a relative source's device is unknown, and nothing can be running.
    let places = Places::from_environment().ok().filter(|_| source.is_live());
    let host = match &places {
        Some(places) => Host::live(&profile, &places.disks_of(&profile.name), &record::running(places)),
        None => Host::of(&source, &profile, None, Ledger::default()),
    };
    let plan = host.plan(&profile)?;
    match arguments.format {
        Format::Json => report.data(&plan.to_json()),
        Format::Text => report.data(&host.text(&plan, report.colour_on_stdout())),
    }
}

/// Every profile's problems, all of them, before the verb ends.
pub fn check(arguments: &CheckArguments, report: Report) -> Result<(), Failure> {
    let mut invalid = 0;
    for path in &arguments.profiles {
        match read(path) {
            Ok((_, profile)) => {
                for warning in &profile.warnings {
                    report.diagnostic(warning);
                }
                report.notice(format_args!("{}: valid", path.display()));
            }
            Err(failure) => {
                report.diagnostic(&*failure.problem);
                invalid += 1;
            }
        }
    }
    match (invalid, arguments.profiles.len()) {
        (0, _) => Ok(()),
        (invalid, all) => {
            let message =
                format!("{invalid} of {all} profiles {} invalid", if invalid == 1 { "is" } else { "are" });
            Err(Failure::said(
                Kind::Invalid,
                "vmprof::profile::invalid",
                message,
                "each problem is shown above",
            ))
        }
    }
}
