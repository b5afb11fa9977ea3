//! `vmprof up`: plan, build what is missing, boot; here, or in the lab.

mod answers;
mod engines;
mod filesystems;
mod handover;
mod here;
mod image;
mod in_lab;
mod lease;
mod machine;
mod nets;
mod patience;
pub mod promises;
mod root;
mod sources;
mod telling;
mod tuned;
mod work;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vmprof_guests::{Builder, Hold, Store};
use vmprof_profiles::{Plan, Profile};
use vmprof_vmm::kvm::{self, NoKvm};

use crate::args::{On, UpArguments};
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::profile::{self, Host};
use crate::progress::Stages;
use crate::report::Report;
use crate::run::artifacts::{Artifact, Artifacts};
use crate::run::detached::{self, Detached, Left, Word};
use crate::run::events::{Events, Happening};
use crate::run::record;
use crate::run::verdict::Ran;
use crate::saved::SavedPlan;

pub use engines::{Engines, engine};
pub use filesystems::Filesystems;
pub use handover::left_behind;
pub use image::BootImage;
pub use machine::{POLL_QUEUES, run as run_machine};
pub use patience::Patience;
use telling::Telling;
pub use work::Work;

/// What both ways of running start from.
#[derive(Debug)]
struct Upping {
    arguments: UpArguments,
    profile: Profile,
    /// The profile's file, absolute.
    path: PathBuf,
    /// The plan to run, where one is given.
    saved: Option<SavedPlan>,
    name: String,
    places: Places,
    report: Report,
    /// Where this vmprof is on its own, or will be once the machine runs.
    detached: Option<Detached>,
    events: Option<Events>,
}

/// A guest that fits its profile.
#[derive(Debug)]
struct Guest {
    image: BootImage,
    filesystems: Filesystems,
    work: Work,
    /// Keeps its image in the store for as long as the run lasts.
    held: Hold,
}

pub fn up(arguments: UpArguments, report: Report) -> u8 {
    let with_command = !arguments.command.is_empty();
    // To the end of all that is said.
    let (mut detached, mut events) = (None, None);
    let (detach, path) = (arguments.detach, arguments.events.clone());
    match try_up(arguments, report, &mut detached, &mut events) {
        // Whoever goes on alone says how it ended.
        Ok(status) if detach && detached.is_none() => status,
        Ok(status) => {
            say_ended(events, &Happening::end(status, None), report);
            status
        }
        Err(failure) => {
            report.failure(&failure);
            let status = failure.kind.status_of_up(with_command);
            // Before it was known what the VM is called, there was nothing to tell but this.
            let events = events.or_else(|| path.and_then(|path| Events::create(&path, "").ok()));
            say_ended(events, &Happening::end(status, Some(&failure)), report);
            status
        }
    }
}

/// The last event.
fn say_ended(events: Option<Events>, ended: &Happening, report: Report) {
    if events.is_some_and(|events| events.write(ended).is_err()) {
        report.notice("the last event cannot be written");
    }
}

fn try_up(
    arguments: UpArguments,
    report: Report,
    detached: &mut Option<Detached>,
    events: &mut Option<Events>,
) -> Result<u8, Failure> {
    let places = Places::from_environment()?;
    let (path, profile) = profile::read(&arguments.profile)?;
    promises::of_profile(&profile)?;
    let name = arguments.name.clone().unwrap_or_else(|| profile.name.clone());
    let saved = arguments.plan.as_deref().map(SavedPlan::read).transpose()?;
    if let Some(saved) = &saved {
        // Before anything is built or an emulated host boots for it.
        saved.made_from(&profile)?;
    }
    if arguments.image.is_none() && !arguments.dry_run {
        // In milliseconds, before packages are fetched for a guest that does not fit.
        let recipe = profile::recipe(&path, &profile)?;
        Filesystems::agreed(&profile, &recipe.conduct, &recipe.path.display().to_string())?;
    }
    let mut report = report;
    if arguments.detach {
        let here = Detached::here(places.log_of(&name));
        *detached = here.map_err(|error| Failure::os("vmprof cannot go on on its own", error))?;
        if detached.is_none() {
            return leave(&name, arguments.wait, report);
        }
        report = Report::without_colour();
    }
    if let Some(path) = &arguments.events {
        let unmade =
            |error| Failure::os(format!("the events cannot be written to {}", path.display()), error);
        *events = Some(Events::create(path, &name).map_err(unmade)?);
    }
    record::sweep(&places);
    record::outlast_the_killed(&places, |run| {
        report
            .notice(format_args!("waiting until `{}` is gone, which was killed (pid {})", run.name, run.pid));
    });
    let (detached, events) = (detached.clone(), events.clone());
    let upping = Upping { arguments, profile, path, saved, name, places, report, detached, events };
    match (upping.arguments.on, kvm::probe()) {
        (On::Kvm | On::Auto, Ok(_)) => here::up(&upping),
        (On::Kvm, Err(found)) => Err(no_kvm(&found)),
        // The lab would hide what one command mends.
        (On::Auto, Err(found @ NoKvm::Denied { .. })) => Err(no_kvm(&found)),
        (On::Auto, Err(found)) => {
            report.notice(format_args!("{found}: using the lab, a KVM host emulated with QEMU"));
            in_lab::up(&upping)
        }
        (On::Lab, _) => in_lab::up(&upping),
    }
}

/// Leaves the run to another vmprof, once all that can be seen at once is right.
fn leave(name: &str, wait: bool, report: Report) -> Result<u8, Failure> {
    let word = if wait { Word::Ready } else { Word::Started };
    let left =
        detached::leave(word).map_err(|error| Failure::os("the run cannot be left on its own", error))?;
    match left {
        Left::Running { pid } => {
            let is = if wait { "ready" } else { "running" };
            report.notice(format_args!(
                "{name} is {is} (pid {pid}): `vmprof logs {name}` shows what it says, `vmprof stop {name}` ends it"
            ));
            Ok(0)
        }
        // It has said why.
        Left::Ended { status, after: None } => Ok(status),
        Left::Ended { status, after: Some(_) } => {
            report.notice(format_args!(
                "{name} has ended before it was ready: `vmprof logs {name}` shows what it said"
            ));
            Ok(status)
        }
    }
}

/// What was found, and what to do about it.
fn no_kvm(found: &NoKvm) -> Failure {
    Failure::said(Kind::HostCannot, "vmprof::up::no_kvm", found.to_string(), help_without_kvm(found))
}

pub fn help_without_kvm(found: &NoKvm) -> String {
    let lab = "`--on lab` runs the VM in a KVM host emulated with QEMU";
    match found {
        NoKvm::NoDevice { processor_can: true } => {
            format!("load the kernel's module (`modprobe kvm_intel` or `kvm_amd`); {lab}")
        }
        NoKvm::Denied { .. } => {
            format!(
                "add yourself to the group that owns /dev/kvm and log in again: `sudo usermod -aG kvm $USER`; {lab}"
            )
        }
        NoKvm::Unopenable { .. } => format!("see the kernel's log for what /dev/kvm lacks; {lab}"),
        NoKvm::NoDevice { processor_can: false } | NoKvm::Pvm | NoKvm::NoVirtualisation => {
            format!("run on a machine with VT-x or AMD-V, nested virtualisation included; {lab}")
        }
        NoKvm::Version { .. } | NoKvm::Lacking { .. } => format!("run on a newer kernel; {lab}"),
    }
}

impl Upping {
    fn with_command(&self) -> bool {
        !self.arguments.command.is_empty()
    }

    /// What is to be copied out of the guest, wherever this process goes.
    fn artifacts(&self) -> Result<Artifacts, Failure> {
        let absolute = |artifact: &Artifact| {
            let into = std::path::absolute(&artifact.into)?;
            Ok(Artifact { into, ..artifact.clone() })
        };
        let wanted: io::Result<_> = self.arguments.artifact.iter().map(absolute).collect();
        let wanted =
            wanted.map_err(|error| Failure::os("the artifacts' directories cannot be told", error))?;
        Ok(Artifacts { wanted, are_unpacked: false })
    }

    /// The plan to obey: the saved one where it still holds, or a new one.
    fn plan(&self, host: &Host) -> Result<Plan, Failure> {
        match &self.saved {
            Some(saved) => saved.for_now(&self.profile, host),
            None => host.plan(&self.profile),
        }
    }

    /// The guest: built where it is missing, or handed over; and what it is booted for.
    fn guest(&self, store: &Store) -> Result<Guest, Failure> {
        // Between what the build finds and what the hold keeps, nothing is collected.
        let using = store.using()?;
        let (image, recipe) = match &self.arguments.image {
            Some(path) => {
                let image = BootImage::read(path)?;
                let recipe = format!("the recipe of `{}`", image.guest);
                (image, recipe)
            }
            None => {
                let recipe = profile::recipe(&self.path, &self.profile)?;
                let stages = Stages::new(self.report);
                let image = BootImage::build(&self.builder(store, &stages), &recipe)?;
                (image, recipe.path.display().to_string())
            }
        };
        let filesystems = Filesystems::agreed(&self.profile, &image.conduct, &recipe)?;
        filesystems.possible(&self.profile, &image.abilities, &recipe)?;
        let work = Work::of(&image, &self.arguments.command, self.arguments.console)?;
        let held = using.hold(&self.name, image.entries())?;
        Ok(Guest { image, filesystems, work, held })
    }

    fn builder<'a>(&self, store: &'a Store, stages: &'a Stages) -> Builder<'a> {
        crate::guest::builder(store, stages, self.arguments.sources)
    }

    /// `image` as the guest's is known.
    fn telling(&self, ran: Ran, image: Option<&BootImage>) -> Telling {
        Telling {
            name: self.name.clone(),
            ran,
            serves: image.is_some_and(|image| work::serves(&image.conduct)),
            console: self.arguments.console,
            stop_within: image.map_or(Duration::ZERO, |image| Patience::with(&image.conduct).guest),
            // With an image at hand this is the vmprof inside.
            is_inside: self.arguments.image.is_some(),
            relay: self.arguments.relay.clone(),
            events: self.events.as_ref().map(|events| events.path().to_owned()),
        }
    }
}
