//! Kernel and initramfs, two stages over the kernel's unpacked packages, or over a kernel of the building machine and the
//! directory of its modules. The kernel depends on those alone and is shared by all guests that have it; the initramfs also on
//! the module list and the embedded first process.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::packages::From;
use super::{BUILDER_VERSION, Builder, role};
use crate::abilities;
use crate::digest::{Inputs, InputsHasher};
use crate::error::{GuestError, Result};
use crate::kernel::KernelError;
use crate::lock::{Lock, LockedPackage};
use crate::modules::Modules;
use crate::recipe::{Kernel, Recipe};
use crate::store::{Entry, Record};
use crate::tree::Kind;
use crate::{init, initramfs, kernel};

/// What a VMM loads before the guest finds its disks.
#[derive(Debug)]
pub(crate) struct BootFiles {
    /// Of the two records.
    pub(crate) inputs: [Inputs; 2],
    pub(crate) kernel: Entry,
    pub(crate) initramfs: Entry,
    pub(crate) release: String,
    /// In loading order.
    pub(crate) modules: Vec<String>,
    /// What the record says besides.
    pub(crate) facts: BTreeMap<String, String>,
}

/// The kernel's packages, read.
pub(super) struct KernelPackage {
    pub(super) elf: Vec<u8>,
    pub(super) release: String,
    pub(super) modules: Modules,
}

/// Where a guest's kernel comes from, with what is needed to tell one from another.
pub(super) enum Source<'r> {
    Packages(&'r Lock),
    File { path: &'r Path, bytes: Vec<u8>, modules: Option<&'r Path> },
}

impl<'r> Source<'r> {
    /// Reads the kernel's file, if it is one.
    pub(super) fn of(recipe: &'r Recipe, lock: &'r Lock) -> Result<Self> {
        match &recipe.kernel {
            Kernel::Package(_) => Ok(Self::Packages(lock)),
            Kernel::File { path, modules } => {
                Ok(Self::File { path, bytes: crate::store::read(path)?, modules: modules.as_deref() })
            }
        }
    }

    fn inputs(&self, kind: &str) -> InputsHasher {
        let mut hasher = Inputs::of(kind);
        hasher.field("builder", BUILDER_VERSION.as_bytes());
        match self {
            Self::Packages(lock) => {
                for package in &lock.kernel {
                    hasher.field("package", package.sha256.to_string().as_bytes());
                }
            }
            Self::File { bytes, .. } => {
                hasher.field("file", blake3::hash(bytes).as_bytes());
            }
        }
        hasher
    }

    fn kernel_inputs(&self) -> Inputs {
        self.inputs("kernel").finish()
    }

    /// Of a directory of modules, those count that are taken: another driver in it changes nothing.
    fn initramfs_inputs(&self, recipe: &Recipe, release: &str) -> Result<Inputs> {
        let mut hasher = self.inputs("initramfs");
        hasher.field("init", blake3::hash(init::PROGRAM).as_bytes());
        for module in initramfs::NEEDED.iter().chain(&initramfs::WELCOME) {
            hasher.field("usual module", module.as_bytes());
        }
        for filesystem in abilities::filesystem_inputs(recipe) {
            hasher.field("filesystem", filesystem.as_bytes());
        }
        for module in &recipe.modules {
            hasher.field("module", module.as_bytes());
        }
        if let Self::File { modules, .. } = self {
            let modules = directory_of_modules(*modules, release)?;
            for module in modules.in_order(&wanted_modules(recipe, &modules))? {
                hasher.field("taken", module.name.as_bytes()).field("content", &module.content);
            }
        }
        Ok(hasher.finish())
    }
}

fn directory_of_modules(directory: Option<&Path>, release: &str) -> Result<Modules> {
    directory.map_or_else(|| Ok(Modules::all_built_in(release)), |path| Modules::in_directory(release, path))
}

impl Builder<'_> {
    /// Kernel and initramfs of the guest, root image or not.
    pub(super) fn boot_files(&self, recipe: &Recipe, source: &Source<'_>) -> Result<BootFiles> {
        // Read at most once, and only where one of the two is not there yet.
        let read = OnceCell::new();
        let package = || match read.get() {
            Some(package) => Ok(package),
            None => {
                let package = self.read_kernel(source, From::Store)?;
                Ok::<_, GuestError>(read.get_or_init(|| package))
            }
        };
        let kernel_inputs = source.kernel_inputs();
        let (kernel, entries) = self.once(kernel_inputs, |builder| {
            let package = package()?;
            let entry = builder.store.publish_bytes("vmlinux", &package.elf)?;
            Ok(Record::new(format!("kernel {}", package.release))
                .with("kernel", &entry)
                .fact("release", &package.release))
        })?;
        let fact = |record: &Record, name: &str| record.facts.get(name).cloned().unwrap_or_default();
        let release = fact(&kernel, "release");
        let vmlinux = role(kernel_inputs, entries, "kernel")?;
        let inputs = source.initramfs_inputs(recipe, &release)?;
        let (initramfs, entries) = self.once(inputs, |builder| {
            let package = package()?;
            let _stage = builder.stage(&format!("packing the initramfs of {}", recipe.name), None);
            let (bytes, modules, mounts) = initramfs_bytes(recipe, package)?;
            let entry = builder.store.publish_bytes("initramfs", &bytes)?;
            Ok(Record::new(format!("initramfs of {}", recipe.name))
                .with("initramfs", &entry)
                .fact("modules", modules.join(" "))
                .fact("mounts", mounts))
        })?;
        Ok(BootFiles {
            inputs: [kernel_inputs, inputs],
            kernel: vmlinux,
            initramfs: role(inputs, entries, "initramfs")?,
            release,
            modules: fact(&initramfs, "modules").split_whitespace().map(str::to_owned).collect(),
            facts: initramfs.facts,
        })
    }

    /// Whether both are in the store.
    pub(super) fn has_boot_files(&self, recipe: &Recipe, source: &Source<'_>) -> bool {
        let Some((kernel, _)) = self.store.recall(source.kernel_inputs()) else { return false };
        let release = kernel.facts.get("release").map_or("", String::as_str);
        let inputs = source.initramfs_inputs(recipe, release);
        // What is wrong with the modules is said when they are packed.
        inputs.is_ok_and(|inputs| self.store.recall(inputs).is_some())
    }

    pub(super) fn read_kernel(&self, source: &Source<'_>, from: From) -> Result<KernelPackage> {
        match source {
            Source::Packages(lock) => self.kernel_package(lock, from),
            Source::File { path, bytes, modules } => {
                let kernel = kernel::of_file(bytes)
                    .map_err(|problem| KernelError::File { path: path.to_path_buf(), problem })?;
                let modules = directory_of_modules(*modules, &kernel.release)?;
                Ok(KernelPackage { elf: kernel.elf, release: kernel.release, modules })
            }
        }
    }

    fn kernel_package(&self, lock: &Lock, from: From) -> Result<KernelPackage> {
        let packages: Vec<&LockedPackage> = lock.kernel.iter().collect();
        let wanted = |path: &str| path.starts_with("boot/vmlinuz") || path.contains("lib/modules/");
        let _stage = self.stage("reading the kernel", None);
        let mut image: Option<(String, Arc<[u8]>)> = None;
        let mut files = Vec::new();
        for deb in self.open_packages(&packages, &lock.asked.suite, from, &wanted)? {
            for (path, node) in deb.files {
                match node.kind {
                    Kind::File(content) if path.starts_with("boot/vmlinuz") => {
                        image = Some((deb.name.clone(), content))
                    }
                    Kind::File(content) => files.push((path, content)),
                    _ => {}
                }
            }
        }
        let names = || packages.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ");
        let (package, image) = image.ok_or_else(|| KernelError::NotAKernel { package: names() })?;
        let kernel =
            kernel::unpack_vmlinuz(&image).map_err(|found| KernelError::Format { package, found })?;
        let mut modules = Modules::new(&kernel.release);
        for (path, content) in &files {
            modules.take(path, content);
        }
        Ok(KernelPackage { elf: kernel.elf, release: kernel.release, modules })
    }
}

/// The initramfs, its modules' names in loading order, and the filesystems that can be mounted with them.
pub(super) fn initramfs_bytes(
    recipe: &Recipe,
    kernel: &KernelPackage,
) -> Result<(Vec<u8>, Vec<String>, String)> {
    let modules = kernel.modules.in_order(&wanted_modules(recipe, &kernel.modules))?;
    let names = modules.iter().map(|module| module.name.clone()).collect();
    let mounts = abilities::mounts(&kernel.modules, &modules);
    Ok((initramfs::pack(&modules)?, names, mounts))
}

fn wanted_modules<'a>(recipe: &'a Recipe, modules: &Modules) -> Vec<&'a str> {
    let mut names: Vec<&str> = initramfs::NEEDED.to_vec();
    names.extend(abilities::filesystem_modules(recipe, modules));
    names.extend(modules.known(&initramfs::WELCOME));
    if modules.are_all_built_in() {
        names.clear();
    }
    names.extend(recipe.modules.iter().map(String::as_str));
    names
}
