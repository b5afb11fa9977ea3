//! Profiles: read from their file, and planned for a host.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use vmprof_guests::Recipe;
use vmprof_profiles::view::{Backdrop, TextStyle, plan_svg, plan_text_on};
use vmprof_profiles::{
    CpuSet, Held, Ledger, Plan, PlanFault, Profile, Source, Storage, Topology, Written, host_digest,
    read_profile_with,
};

use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::run::record::{self, Run};

/// Reads the profile at `path`; its warnings go to the terminal with the plan. Gives the absolute path with it.
pub fn read(path: &Path) -> Result<(PathBuf, Profile), Failure> {
    let text = text_of(path)?;
    // A file that it extends is named relative to its own directory.
    let beside = |name: &str| {
        let bytes = bytes_of(fs::File::open(path.with_file_name(name))?)?;
        String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    let (profile, _) = read_profile_with(&path.to_string_lossy(), &text, &beside)
        .map_err(|problems| Failure::new(Kind::Invalid, problems))?;
    let path = std::path::absolute(path)
        .map_err(|error| Failure::os(format!("{} has no absolute path", path.display()), error))?;
    Ok((path, profile))
}

/// More than any KDL file may have: past it nothing is read, so that /dev/zero is refused and not gathered.
const MOST_BYTES_READ: u64 = 1 << 20;

/// All that a KDL file has, or an error where that is far more than one can have.
pub fn bytes_of(file: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MOST_BYTES_READ + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MOST_BYTES_READ {
        true => Err(io::Error::other("it has more than 1 MiB, and a KDL file is a few kilobytes long")),
        false => Ok(bytes),
    }
}

/// The text of the profile at `path`. One that cannot be read is no valid profile: exit 3, like one that says nothing sensible.
pub fn text_of(path: &Path) -> Result<String, Failure> {
    let invalid = |message: String, help: &str| {
        Failure::said(Kind::Invalid, "vmprof::profile::unreadable", message, help)
    };
    let bytes = fs::File::open(path).and_then(bytes_of).map_err(|error| {
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
        let file = line.file.as_deref().map_or(file.display().to_string(), str::to_owned);
        let message = format!(
            "line {} of {file} names the guest \"{value}\", and {} does not exist",
            line.number,
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
    /// What the profile leaves of it.
    cpuset: Option<CpuSet>,
}

impl Host {
    /// The host that `source` describes: this machine less what running VMs hold, or another as its file has it.
    pub fn described_by(source: &Source, profile: &Profile) -> Host {
        // Without any place (no HOME) a relative source's device is unknown, and nothing can be running.
        match Places::from_environment().ok().filter(|_| source.is_live()) {
            Some(places) => Host::live(profile, &places.disks_of(&profile.name), &record::running(&places)),
            None => Host::of(source, profile, None, Ledger::read(source)),
        }
    }

    /// The host that `source` describes. `disks` is where a relative source lies, on this machine.
    pub fn of(source: &Source, profile: &Profile, disks: Option<&Path>, ledger: Ledger) -> Host {
        let topology = Topology::read(source);
        let storage = Storage::read(source, profile, &topology, disks);
        let cpuset = profile.host.cpuset.as_ref().map(|written| written.value.clone());
        Host { topology, storage, ledger, cpuset }
    }

    /// This machine, less what running VMs hold.
    pub fn live(profile: &Profile, disks: &Path, runs: &[Run]) -> Host {
        let own = |run: &Run| {
            Some(Held { holder: run.name.clone(), cpus: run.cpus.parse().ok()?, pid: Some(run.pid) })
        };
        let own = Ledger { held: runs.iter().filter_map(own).filter(|held| !held.cpus.is_empty()).collect() };
        // Other users' VMs show in /proc alone.
        Host::of(&Source::Live, profile, Some(disks), own.and_others(Ledger::read(&Source::Live)))
    }

    pub fn plan(&self, profile: &Profile) -> Result<Plan, Failure> {
        vmprof_profiles::plan(profile, &self.topology, &self.storage, &self.ledger)
            .map_err(|problems| Failure::new(Kind::HostCannot, problems))
    }

    /// The host's digest, as a plan made for it has it.
    pub fn digest(&self) -> String {
        host_digest(&self.topology, &self.storage)
    }

    /// What keeps a plan from being obeyed on this host now.
    pub fn check(&self, plan: &Plan) -> Result<(), Vec<PlanFault>> {
        plan.check(&self.topology, &self.ledger)
    }

    fn backdrop(&self) -> Backdrop<'_> {
        Backdrop { topology: &self.topology, ledger: &self.ledger, cpuset: self.cpuset.as_ref() }
    }

    pub fn text(&self, plan: &Plan, colour: bool) -> String {
        self.text_in(plan, TextStyle { colour, ..TextStyle::default() })
    }

    pub fn text_in(&self, plan: &Plan, style: TextStyle) -> String {
        plan_text_on(plan, self.backdrop(), style)
    }

    pub fn svg(&self, plan: &Plan) -> String {
        plan_svg(plan, self.backdrop())
    }

    /// The CPUs that the plan's threads have to themselves, as a kernel list: one that floats holds none.
    pub fn pinned(&self, plan: &Plan) -> String {
        let alone = plan.threads().into_iter().map(|(_, cpus)| cpus).filter(|cpus| cpus.len() == 1);
        alone.fold(CpuSet::new(), |all, cpus| all.or(&cpus)).to_string()
    }
}
