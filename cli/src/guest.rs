//! The verbs on guests: `lock`, `build`.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vmprof_guests::{Builder, Recipe, Store};

use crate::args::{BuildArguments, Format, LockArguments, Sources};
use crate::export::Target;
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

/// What `lock --format json` prints: one object a guest.
#[derive(Serialize)]
struct LockedGuest {
    schema: &'static str,
    guest: String,
    lock: PathBuf,
    packages: usize,
    /// Whether the file is another one now, or with --check would be.
    differs: bool,
    changes: Vec<LockChange>,
}

/// One package; the version that is not there is null.
#[derive(Serialize)]
struct LockChange {
    package: String,
    before: Option<String>,
    after: Option<String>,
}

pub fn lock(arguments: &LockArguments, report: Report) -> Result<(), Failure> {
    // The command line was refused before anything began, had this not been readable.
    let (mut guests, update) = arguments
        .read()
        .map_err(|error| Failure::os("the command line cannot be read", std::io::Error::other(error)))?;
    let (store, stages) = (open_store()?, Stages::new(report));
    let _interruptible = stages.interruptible()?;
    let everything = Sources { frozen: false, offline: false };
    let builder = builder(&store, &stages, everything);
    // `guests/*.kdl` names the lock files, too.
    let is_lock = |file: &PathBuf| first_node(file).is_ok_and(|node| node.as_deref() == Some("lock"));
    if !guests.iter().all(is_lock) {
        guests.retain(|file| !is_lock(file));
    }
    let mut told = Vec::new();
    for guest in &guests {
        let recipe = lockable(guest)?;
        let locked = match arguments.check {
            true => builder.resolve(&recipe, &update)?,
            false => builder.lock(&recipe, &update)?,
        };
        let path = recipe.lock_path;
        if let Format::Text = arguments.format {
            report.data(&locked.changes.iter().map(|change| format!("{change}\n")).collect::<String>())?;
            let packages = locked.lock.kernel.len() + locked.lock.packages.len();
            let what = match (locked.changes.len(), locked.differs, arguments.check) {
                _ if recipe.distribution.is_none() => {
                    report.notice(format_args!("{}: nothing to lock, it takes no packages", guest.display()));
                    continue;
                }
                (_, false, _) => format!("nothing changes among its {packages} packages"),
                (0, true, _) => {
                    format!("the same {packages} packages, asked for in other words or of a newer index")
                }
                (1, true, false) => format!("1 change, {packages} packages locked"),
                (n, true, false) => format!("{n} changes, {packages} packages locked"),
                (1, true, true) => "1 package would change".to_owned(),
                (n, true, true) => format!("{n} packages would change"),
            };
            report.notice(format_args!("{}: {what}", path.display()));
        }
        let version =
            |package: &Option<vmprof_guests::LockedPackage>| package.as_ref().map(|p| p.version.clone());
        let changes = locked.changes.iter().map(|change| LockChange {
            package: change.name.clone(),
            before: version(&change.before),
            after: version(&change.after),
        });
        told.push(LockedGuest {
            schema: "vmprof.lock/1",
            guest: recipe.name,
            lock: path,
            packages: locked.lock.kernel.len() + locked.lock.packages.len(),
            differs: locked.differs,
            changes: changes.collect(),
        });
    }
    if let Format::Json = arguments.format {
        report.json(&told)?;
    }
    let stale: Vec<&str> = told.iter().filter(|one| one.differs).map(|one| one.guest.as_str()).collect();
    if arguments.check && !stale.is_empty() {
        let message = format!("the lock of {} would change", stale.join(", "));
        let help = "run the same without --check";
        return Err(Failure::said(Kind::Failure, "vmprof::lock::would_change", message, help));
    }
    Ok(())
}

fn first_node(file: &Path) -> Result<Option<String>, Failure> {
    Ok(vmprof_document::first_node(&profile::text_of(file)?))
}

/// The recipe of a guest that is to be locked. A profile has no lock, its guest has.
fn lockable(file: &Path) -> Result<Recipe, Failure> {
    if profile::is_guest(file)? {
        return Ok(Recipe::read(file)?);
    }
    if first_node(file)?.as_deref() != Some("profile") {
        // Whoever reads it as a recipe says what is wrong.
        return Ok(Recipe::read(file)?);
    }
    let (path, profile) = profile::read(file)?;
    let guest = path.with_file_name(&profile.guest.value);
    let message = format!("{} is a profile, and a lock is of a guest", file.display());
    let help = format!("lock its guest: `vmprof lock {}`", guest.display());
    Err(Failure::said(Kind::Invalid, "vmprof::lock::a_profile", message, help))
}

/// What `build --format json` prints.
#[derive(Serialize)]
struct Built<'a> {
    schema: &'static str,
    guest: &'a str,
    /// The guest's pinned digest: its root image's BLAKE3, or its initramfs's where there is no other root.
    digest: &'a str,
    kernel: &'a Path,
    kernel_bytes: u64,
    kernel_release: &'a str,
    initramfs: &'a Path,
    initramfs_bytes: u64,
    modules: &'a [String],
    root: Option<&'a Path>,
    root_bytes: Option<u64>,
    root_format: Option<&'a str>,
    root_writable: Option<bool>,
    /// The file that --export wrote.
    exported: Option<&'a Path>,
}

/// The recipe that `file` is, or whose profile it is.
pub fn recipe_of(file: &Path) -> Result<Recipe, Failure> {
    match first_node(file)?.as_deref() {
        Some("guest") => Ok(Recipe::read_with_files(file)?),
        Some("lock") => {
            let message = format!("{} is a lock, and a guest is built from its recipe", file.display());
            let name = file.to_string_lossy();
            let recipe = name.strip_suffix(".lock.kdl").map(|stem| format!("{stem}.kdl"));
            let help = match recipe.filter(|recipe| Path::new(recipe).is_file()) {
                Some(recipe) => format!("name the recipe: {recipe}"),
                None => "name the recipe that it was made for: that lies beside it".to_owned(),
            };
            Err(Failure::said(Kind::Invalid, "vmprof::build::a_lock", message, help))
        }
        _ => {
            let (path, profile) = profile::read(file)?;
            let recipe = profile::recipe(&path, &profile)?;
            Ok(Recipe::read_with_files(&recipe.path)?)
        }
    }
}

pub fn build(arguments: &BuildArguments, report: Report) -> Result<(), Failure> {
    let target = arguments.export.as_deref().map(|file| Target::new(file, arguments.force)).transpose()?;
    let recipe = recipe_of(&arguments.file)?;
    let (store, stages) = (open_store()?, Stages::new(report));
    let _interruptible = stages.interruptible()?;
    let builder = builder(&store, &stages, arguments.sources);
    let image = builder.build(&recipe)?;
    if arguments.check {
        builder.check(&recipe)?;
        report.notice(format_args!("{}: built again, the same bytes", recipe.name));
    }
    if let Some(target) = target {
        target.write(&image, &stages)?;
    }
    let root = image.root.as_ref();
    match (arguments.format, &arguments.export) {
        (Format::Json, exported) => {
            let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
            report.json(&Built {
                schema: "vmprof.build/1",
                guest: &recipe.name,
                digest: &image.digest,
                kernel: &image.kernel,
                kernel_bytes: bytes(&image.kernel),
                kernel_release: &image.kernel_release,
                initramfs: &image.initramfs,
                initramfs_bytes: bytes(&image.initramfs),
                modules: &image.modules,
                root: root.map(|root| root.path.as_path()),
                root_bytes: root.map(|root| bytes(&root.path)),
                root_format: root.map(|root| root.filesystem.as_str()),
                root_writable: root.map(|root| root.writable),
                exported: exported.as_deref(),
            })
        }
        // As b3sum prints it, and checks it.
        (Format::Text, Some(file)) => report.data(&format!("{}  {}\n", image.digest, file.display())),
        // The image is its root; a guest without one is its initramfs.
        (Format::Text, None) => {
            report.data(&format!("{}\n", root.map_or(&image.initramfs, |root| &root.path).display()))
        }
    }
}

pub fn open_store() -> Result<Store, Failure> {
    Ok(Store::open(Places::from_environment()?.store)?)
}
