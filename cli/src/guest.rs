//! The verbs on guests: `lock`, `build`.

use std::path::Path;

use serde::Serialize;
use vmprof_guests::{Builder, Recipe, Store};

use crate::args::{BuildArguments, Format, LockArguments, Sources};
use crate::failure::Failure;
use crate::places::Places;
use crate::profile;
use crate::progress::Stages;
use crate::report::Report;

/// A builder on `store`; its children never outlive this thread.
pub fn builder<'a>(store: &'a Store, stages: &'a Stages, sources: Sources) -> Builder<'a> {
    Builder::new(store, stages)
        .frozen(sources.frozen)
        .offline(sources.offline)
        .children(vmprof_sys::child::dies_with_this_thread)
}

pub fn lock(arguments: &LockArguments, report: Report) -> Result<(), Failure> {
    let recipe = Recipe::read(&arguments.guest)?;
    let (store, stages) = (open_store()?, Stages::new(report));
    let everything = Sources { frozen: false, offline: false };
    let lock = builder(&store, &stages, everything).lock(&recipe)?;
    report.notice(format_args!("{}: {} packages locked", recipe.lock_path.display(), lock.packages.len()));
    Ok(())
}

/// What `build --format json` prints.
#[derive(Serialize)]
struct Built<'a> {
    schema: &'static str,
    guest: &'a str,
    digest: &'a str,
    kernel: &'a Path,
    initramfs: &'a Path,
    root: Option<&'a Path>,
}

/// The recipe that `file` is, or whose profile it is.
pub fn recipe_of(file: &Path) -> Result<Recipe, Failure> {
    match profile::is_guest(file)? {
        true => Ok(Recipe::read(file)?),
        false => {
            let (path, profile) = profile::read(file)?;
            profile::recipe(&path, &profile)
        }
    }
}

pub fn build(arguments: &BuildArguments, report: Report) -> Result<(), Failure> {
    let recipe = recipe_of(&arguments.file)?;
    let (store, stages) = (open_store()?, Stages::new(report));
    let builder = builder(&store, &stages, arguments.sources);
    let image = builder.build(&recipe)?;
    if arguments.check {
        builder.check(&recipe)?;
        report.notice(format_args!("{}: built again, the same bytes", recipe.name));
    }
    match arguments.format {
        Format::Json => report.json(&Built {
            schema: "vmprof.build/1",
            guest: &recipe.name,
            digest: &image.digest,
            kernel: &image.kernel,
            initramfs: &image.initramfs,
            root: image.root.as_ref().map(|root| root.path.as_path()),
        }),
        // The image is its root; a guest without one is its initramfs.
        Format::Text => report.data(&format!(
            "{}\n",
            image.root.as_ref().map_or(&image.initramfs, |root| &root.path).display()
        )),
    }
}

pub fn open_store() -> Result<Store, Failure> {
    Ok(Store::open(Places::from_environment()?.store)?)
}
