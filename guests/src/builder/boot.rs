//! Kernel and initramfs, two stages over the kernel's unpacked packages. The kernel depends on those alone and is shared by
//! all guests that have it; the initramfs also on the module list and the embedded first process.

use std::cell::OnceCell;
use std::sync::Arc;

use super::packages::From;
use super::{BUILDER_VERSION, Builder, role};
use crate::digest::{Inputs, InputsHasher};
use crate::error::{GuestError, Result};
use crate::lock::{Lock, LockedPackage};
use crate::modules::Modules;
use crate::recipe::{Image, Recipe};
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
}

/// The kernel's packages, read.
pub(super) struct KernelPackage {
    pub(super) elf: Vec<u8>,
    pub(super) release: String,
    pub(super) modules: Modules,
}

impl Builder<'_> {
    /// Kernel and initramfs of the guest, root image or not.
    pub(super) fn boot_files(&self, recipe: &Recipe, lock: &Lock) -> Result<BootFiles> {
        // Read at most once, and only where one of the two is not there yet.
        let read = OnceCell::new();
        let package = || match read.get() {
            Some(package) => Ok(package),
            None => {
                let package = self.kernel_package(lock, From::Store)?;
                Ok::<_, GuestError>(read.get_or_init(|| package))
            }
        };
        let kernel_inputs = kernel_inputs(lock);
        let (kernel, entries) = self.once(kernel_inputs, |builder| {
            let package = package()?;
            let entry = builder.store.publish_bytes("vmlinux", &package.elf)?;
            Ok(Record::new(format!("kernel {}", package.release))
                .with("kernel", &entry)
                .fact("release", &package.release))
        })?;
        let vmlinux = role(kernel_inputs, entries, "kernel")?;
        let inputs = initramfs_inputs(recipe, lock);
        let (initramfs, entries) = self.once(inputs, |builder| {
            let package = package()?;
            let _stage = builder.stage(&format!("packing the initramfs of {}", recipe.name), None);
            let (bytes, modules) = initramfs_bytes(recipe, package)?;
            let entry = builder.store.publish_bytes("initramfs", &bytes)?;
            Ok(Record::new(format!("initramfs of {}", recipe.name))
                .with("initramfs", &entry)
                .fact("modules", modules.join(" ")))
        })?;
        let fact = |record: &Record, name: &str| record.facts.get(name).cloned().unwrap_or_default();
        Ok(BootFiles {
            inputs: [kernel_inputs, inputs],
            kernel: vmlinux,
            initramfs: role(inputs, entries, "initramfs")?,
            release: fact(&kernel, "release"),
            modules: fact(&initramfs, "modules").split_whitespace().map(str::to_owned).collect(),
        })
    }

    /// Whether both are in the store.
    pub(super) fn has_boot_files(&self, recipe: &Recipe, lock: &Lock) -> bool {
        [kernel_inputs(lock), initramfs_inputs(recipe, lock)]
            .into_iter()
            .all(|inputs| self.store.recall(inputs).is_some())
    }

    pub(super) fn kernel_package(&self, lock: &Lock, from: From) -> Result<KernelPackage> {
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
        let (package, image) = image.ok_or_else(|| GuestError::NotAKernel { package: names() })?;
        let kernel =
            kernel::unpack_vmlinuz(&image).map_err(|found| GuestError::KernelFormat { package, found })?;
        let mut modules = Modules::new(&kernel.release);
        for (path, content) in &files {
            modules.take(path, content);
        }
        Ok(KernelPackage { elf: kernel.elf, release: kernel.release, modules })
    }
}

/// The initramfs and its modules' names in loading order.
pub(super) fn initramfs_bytes(recipe: &Recipe, kernel: &KernelPackage) -> Result<(Vec<u8>, Vec<String>)> {
    let mut names: Vec<&str> = initramfs::NEEDED.to_vec();
    if recipe.image != Image::None {
        names.extend(initramfs::FOR_ROOT);
    }
    names.extend(kernel.modules.known(&initramfs::WELCOME));
    names.extend(recipe.modules.iter().map(String::as_str));
    let modules = kernel.modules.in_order(&names)?;
    let names = modules.iter().map(|module| module.name.clone()).collect();
    Ok((initramfs::pack(&modules)?, names))
}

fn of_packages(kind: &str, lock: &Lock) -> InputsHasher {
    let mut hasher = Inputs::of(kind);
    hasher.field("builder", BUILDER_VERSION.as_bytes());
    for package in &lock.kernel {
        hasher.field("package", package.sha256.to_string().as_bytes());
    }
    hasher
}

fn kernel_inputs(lock: &Lock) -> Inputs {
    of_packages("kernel", lock).finish()
}

fn initramfs_inputs(recipe: &Recipe, lock: &Lock) -> Inputs {
    let mut hasher = of_packages("initramfs", lock);
    hasher.field("init", blake3::hash(init::PROGRAM).as_bytes());
    hasher.field("root", if recipe.image == Image::None { b"no" } else { b"yes" });
    for module in &recipe.modules {
        hasher.field("module", module.as_bytes());
    }
    hasher.finish()
}
