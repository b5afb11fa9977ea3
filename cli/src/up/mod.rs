//! `vmprof up`: plan, build what is missing, boot; here, or in the lab.

mod here;
mod image;
mod inside;
pub mod promises;
mod sources;

use std::path::PathBuf;

use vmprof_guests::{Builder, Store};
use vmprof_profiles::{Plan, Profile};
use vmprof_vmm::kvm::{self, NoKvm};

use crate::args::{On, UpArguments};
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::profile::{self, Host};
use crate::progress::Stages;
use crate::report::Report;
use crate::run::supervise::Outcome;
use crate::run::verdict::{Ran, verdict};
use crate::saved::SavedPlan;

pub use image::BootImage;

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
}

pub fn up(arguments: UpArguments, report: Report) -> u8 {
    let with_command = !arguments.command.is_empty();
    match try_up(arguments, report) {
        Ok(status) => status,
        Err(failure) => {
            report.failure(&failure);
            failure.kind.status_of_up(with_command)
        }
    }
}

fn try_up(arguments: UpArguments, report: Report) -> Result<u8, Failure> {
    let places = Places::from_environment()?;
    let (path, profile) = profile::read(&arguments.profile)?;
    promises::of_profile(&profile)?;
    let name = arguments.name.clone().unwrap_or_else(|| profile.name.clone());
    let saved = arguments.plan.as_deref().map(SavedPlan::read).transpose()?;
    if let Some(saved) = &saved {
        // Before anything is built or an emulated host boots for it.
        saved.made_from(&profile)?;
    }
    let upping = Upping { arguments, profile, path, saved, name, places, report };
    match (upping.arguments.on, kvm::probe()) {
        (On::Kvm | On::Auto, Ok(kvm)) => here::up(&upping, &kvm),
        (On::Kvm, Err(found)) => Err(no_kvm(&found)),
        // The lab would hide what one command mends.
        (On::Auto, Err(found @ NoKvm::Denied { .. })) => Err(no_kvm(&found)),
        (On::Auto, Err(found)) => {
            report.notice(format_args!("{found}: using the lab, a KVM host emulated with QEMU"));
            inside::up(&upping)
        }
        (On::Lab, _) => inside::up(&upping),
    }
}

/// What was found, and what to do about it.
fn no_kvm(found: &NoKvm) -> Failure {
    let lab = "`--on lab` runs the VM in a KVM host emulated with QEMU";
    let help = match found {
        NoKvm::NoDevice { processor_can: true } => {
            format!("load the kernel's module (`modprobe kvm_intel` or `kvm_amd`); {lab}")
        }
        NoKvm::Denied { .. } => {
            "add yourself to the group that owns /dev/kvm and log in again: `sudo usermod -aG kvm $USER`"
                .to_owned()
        }
        NoKvm::Unopenable { .. } => format!("see the kernel's log for what /dev/kvm lacks; {lab}"),
        NoKvm::NoDevice { processor_can: false } | NoKvm::Pvm | NoKvm::NoVirtualisation => {
            format!("run on a machine with VT-x or AMD-V, nested virtualisation included; {lab}")
        }
        NoKvm::Version { .. } | NoKvm::Lacking { .. } => format!("run on a newer kernel; {lab}"),
    };
    Failure::said(Kind::HostCannot, "vmprof::up::no_kvm", found.to_string(), help)
}

impl Upping {
    fn with_command(&self) -> bool {
        !self.arguments.command.is_empty()
    }

    /// The plan to obey: the saved one where it still holds, or a new one.
    fn plan(&self, host: &Host) -> Result<Plan, Failure> {
        match &self.saved {
            Some(saved) => saved.for_now(&self.profile, host),
            None => host.plan(&self.profile),
        }
    }

    /// The guest's image: built where it is missing, or handed over.
    fn image(&self, store: &Store) -> Result<BootImage, Failure> {
        if let Some(path) = &self.arguments.image {
            return BootImage::read(path);
        }
        let recipe = profile::recipe(&self.path, &self.profile)?;
        let stages = Stages::new(self.report);
        BootImage::build(&self.builder(store, &stages), &recipe)
    }

    fn builder<'a>(&self, store: &'a Store, stages: &'a Stages) -> Builder<'a> {
        crate::guest::builder(store, stages, self.arguments.sources)
    }

    fn conclude(&self, ran: Ran, outcome: &Outcome) -> u8 {
        let verdict = verdict(ran, &outcome.account, &outcome.end, outcome.received);
        if let Some(notice) = &verdict.notice {
            self.report.notice(notice);
        }
        verdict.status
    }
}
