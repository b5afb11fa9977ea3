//! The verbs on guests and the store: `lock`, `build`, `store`.

use serde::Serialize;
use vmprof_guests::{Builder, Recipe, Store};

use crate::args::{BuildArguments, Format, LockArguments, Sources, StoreVerb};
use crate::failure::{Failure, Kind};
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
    kernel: &'a std::path::Path,
    initramfs: &'a std::path::Path,
    root: Option<&'a std::path::Path>,
}

pub fn build(arguments: &BuildArguments, report: Report) -> Result<(), Failure> {
    let recipe = match profile::is_guest(&arguments.file)? {
        true => Recipe::read(&arguments.file)?,
        false => {
            let (path, profile) = profile::read(&arguments.file)?;
            profile::recipe(&path, &profile)?
        }
    };
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

/// What `store ls --format json` prints of an entry.
#[derive(Serialize)]
struct Listed {
    name: String,
    path: std::path::PathBuf,
    bytes: u64,
}

pub fn store(verb: &StoreVerb, report: Report) -> Result<(), Failure> {
    let store = open_store()?;
    match verb {
        StoreVerb::Path => report.data(&format!("{}\n", store.root().display())),
        StoreVerb::Ls { format } => {
            let mut entries = Vec::new();
            for entry in store.entries()? {
                let bytes = store.size_of(&entry)?;
                entries.push(Listed { name: entry.name.clone(), path: entry.path.clone(), bytes });
            }
            match format {
                Format::Json => report.json(&entries),
                Format::Text => {
                    let line = |entry: &Listed| format!("{:>12}  {}\n", entry.bytes, entry.name);
                    report.data(&entries.iter().map(line).collect::<String>())
                }
            }
        }
        StoreVerb::Verify => {
            let mut bad = Vec::new();
            for entry in store.entries()? {
                if let Err(error) = store.verify(&entry) {
                    report.diagnostic(&error);
                    bad.push(entry.name);
                }
            }
            if bad.is_empty() {
                return Ok(());
            }
            let message = format!("{} of the store's entries are not what their names say", bad.len());
            Err(Failure::said(
                Kind::HashMismatch,
                "vmprof::store::damaged",
                message,
                "remove them: the next build makes them anew",
            ))
        }
    }
}

fn open_store() -> Result<Store, Failure> {
    Ok(Store::open(Places::from_environment()?.store)?)
}
