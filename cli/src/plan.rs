//! The verb `plan`: a profile on a host, as text, JSON, a picture or another tool's words, or compared with something else.

use std::fs;
use std::path::Path;

use vmprof_guests::{Builder, Silent, Store};
use vmprof_profiles::export::{self, BootFiles, Exported};
use vmprof_profiles::view::{TextStyle, diff};
use vmprof_profiles::{Plan, Problem, Profile, Source};

use crate::args::{PlanArguments, PlanFormat};
use crate::failure::Failure;
use crate::host;
use crate::lower::cmdline;
use crate::places::Places;
use crate::profile::{self, Host};
use crate::report::Report;
use crate::saved;

/// Columns where stdout is no terminal, and the fewest and the most that are of use where it is one.
const COLUMNS: usize = 100;
const FEWEST: usize = 60;
const MOST: usize = 160;

pub fn plan(arguments: &PlanArguments, report: Report) -> Result<(), Failure> {
    let (path, profile) = profile::read(&arguments.profile)?;
    let source = host::source(arguments.on.host.as_deref(), arguments.on.sysroot.as_deref())?;
    let host = Host::described_by(&source, &profile);
    let plan = host.plan(&profile)?;
    let style = TextStyle {
        width: report.stdout_columns().unwrap_or(COLUMNS).clamp(FEWEST, MOST),
        colour: report.colour_on_stdout(),
        explain: arguments.explain,
    };
    if let Some(other) = &arguments.diff {
        let (from, to) = (other.display().to_string(), label(arguments));
        let other = other_plan(other, &profile, &source)?;
        let diff = diff((&other, &from), (&plan, &to));
        return match arguments.format {
            PlanFormat::Json => report.data(&diff.to_json()),
            _ => report.data(&diff.text(style)),
        };
    }
    match arguments.format {
        PlanFormat::Json => report.data(&plan.to_json()),
        PlanFormat::Svg => report.data(&host.svg(&plan)),
        PlanFormat::Text => report.data(&host.text_in(&plan, style)),
        PlanFormat::Qemu => exported(export::qemu(&plan, &boot_files(&path, &profile, &source)?), report),
        PlanFormat::Libvirt => {
            exported(export::libvirt(&plan, &boot_files(&path, &profile, &source)?), report)
        }
    }
}

/// The text is data; what it could not say goes to stderr.
fn exported(exported: Exported, report: Report) -> Result<(), Failure> {
    for warning in exported.warnings {
        report.diagnostic(&Problem::warning(warning.code, warning.message).help(warning.help));
    }
    report.data(&exported.text)
}

/// What of the guest lies in the store already: `plan` builds nothing. Paths of this machine say nothing on another host.
fn boot_files(path: &Path, profile: &Profile, source: &Source) -> Result<BootFiles, Failure> {
    let Some(places) = Places::from_environment().ok().filter(|_| source.is_live()) else {
        return Ok(BootFiles::default());
    };
    let disks_dir = Some(places.disks_of(&profile.name));
    // A recipe that is missing or wrong is for `build` to refuse: the plan holds without it.
    let (true, Ok(recipe)) = (places.store.is_dir(), profile::recipe(path, profile)) else {
        return Ok(BootFiles { disks_dir, ..BootFiles::default() });
    };
    let store = Store::open(&places.store)?;
    let image = Builder::new(&store, &Silent).built(&recipe)?;
    Ok(image.map_or(BootFiles { disks_dir: disks_dir.clone(), ..BootFiles::default() }, |image| BootFiles {
        kernel: Some(image.kernel),
        initramfs: Some(image.initramfs),
        root: image.root.map(|root| root.path),
        // As `up` boots it: without its console the guest would say nothing.
        cmdline: Some(cmdline(image.cmdline.as_deref())),
        disks_dir,
    }))
}

/// What the plan that is asked for is called beside another.
fn label(arguments: &PlanArguments) -> String {
    let profile = arguments.profile.display();
    match (&arguments.on.host, &arguments.on.sysroot) {
        (Some(place), _) | (None, Some(place)) => format!("{profile} on {}", place.display()),
        (None, None) => profile.to_string(),
    }
}

/// The plan to compare with. What `path` is shows in what it holds: JSON is a saved plan or a capture, XML another host, and
/// anything else a profile, which is planned for the same host.
fn other_plan(path: &Path, profile: &Profile, source: &Source) -> Result<Plan, Failure> {
    let text = fs::read_to_string(path)
        .map_err(|error| Failure::os(format!("{} cannot be read", path.display()), error))?;
    match text.trim_start().chars().next() {
        Some('{') if saved::is_plan(&text) => saved::parse(path, &text),
        Some('{' | '<') => {
            let other = host::from_text(path, &text)?;
            Host::described_by(&other, profile).plan(profile)
        }
        _ => {
            let (_, other) = profile::read(path)?;
            Host::described_by(source, &other).plan(&other)
        }
    }
}
