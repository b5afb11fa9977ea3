//! Kernel and initramfs. The unpacked kernel depends on its package alone and is shared by all guests that have it; the
//! initramfs on the package, the module list and the embedded first process.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BUILDER_VERSION, Builder, role};
use crate::abilities;
use crate::deb::Deb;
use crate::digest::Inputs;
use crate::error::{GuestError, Result};
use crate::lock::{Lock, LockedPackage};
use crate::modules::Modules;
use crate::recipe::Recipe;
use crate::store::{Entry, Record};
use crate::tree::Kind;
use crate::{fetch, init, initramfs, kernel};

/// What a VMM loads before the guest finds its disks.
#[derive(Debug)]
pub(crate) struct BootFiles {
    pub(crate) kernel: Entry,
    pub(crate) initramfs: Entry,
    pub(crate) release: String,
    /// In loading order.
    pub(crate) modules: Vec<String>,
    /// What the record says besides.
    pub(crate) facts: BTreeMap<String, String>,
}

/// The kernel's package, unpacked.
pub(super) struct KernelPackage {
    pub(super) elf: Vec<u8>,
    pub(super) release: String,
    pub(super) modules: Modules,
}

impl Builder<'_> {
    /// Kernel and initramfs of the guest, root image or not.
    pub(super) fn boot_files(&self, recipe: &Recipe, lock: &Lock) -> Result<BootFiles> {
        let inputs = boot_inputs(recipe, lock);
        let (record, entries) = self.once(inputs, |builder| {
            let unpacked = builder.kernel_package(&lock.kernel, &lock.asked.suite)?;
            let _stage = builder.stage(&format!("packing the initramfs of {}", recipe.name), None);
            let (initramfs, modules, mounts) = initramfs_bytes(recipe, &unpacked)?;
            let kernel = builder.store.publish_bytes("vmlinux", &unpacked.elf)?;
            let entry = builder.store.publish_bytes("initramfs", &initramfs)?;
            Ok(Record::new(format!("kernel and initramfs of {}", recipe.name))
                .with("kernel", &kernel)
                .with("initramfs", &entry)
                .fact("release", unpacked.release)
                .fact("modules", modules.join(" "))
                .fact("mounts", mounts))
        })?;
        let fact = |name: &str| record.facts.get(name).cloned().unwrap_or_default();
        let mut entries = entries.into_iter();
        let kernel = role(inputs, entries.next().into_iter().collect(), "kernel")?;
        let initramfs = role(inputs, entries.collect(), "initramfs")?;
        let modules = fact("modules").split_whitespace().map(str::to_owned).collect();
        Ok(BootFiles { kernel, initramfs, release: fact("release"), modules, facts: record.facts })
    }

    pub(super) fn kernel_package(&self, packages: &[LockedPackage], suite: &str) -> Result<KernelPackage> {
        let packages: Vec<&LockedPackage> = packages.iter().collect();
        let entries = fetch::packages(self, &packages, suite)?;
        let _stage = self.stage("unpacking the kernel", None);
        let mut image: Option<(String, Arc<[u8]>)> = None;
        let mut files = Vec::new();
        for (package, entry) in packages.iter().zip(entries) {
            let wanted = |path: &str| path.starts_with("boot/vmlinuz") || path.contains("lib/modules/");
            let deb = Deb::read_some(package.file_name(), &fetch::read(package, &entry)?, &wanted)?;
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

/// The initramfs, its modules' names in loading order, and the filesystems that can be mounted with them.
pub(super) fn initramfs_bytes(
    recipe: &Recipe,
    kernel: &KernelPackage,
) -> Result<(Vec<u8>, Vec<String>, String)> {
    let mut names: Vec<&str> = initramfs::NEEDED.to_vec();
    names.extend(abilities::filesystem_modules(recipe, &kernel.modules));
    names.extend(kernel.modules.known(&initramfs::WELCOME));
    names.extend(recipe.modules.iter().map(String::as_str));
    let modules = kernel.modules.in_order(&names)?;
    let names = modules.iter().map(|module| module.name.clone()).collect();
    let mounts = abilities::mounts(&kernel.modules, &modules);
    Ok((initramfs::pack(&modules)?, names, mounts))
}

fn boot_inputs(recipe: &Recipe, lock: &Lock) -> Inputs {
    let mut hasher = Inputs::of("kernel and initramfs");
    hasher.field("builder", BUILDER_VERSION.as_bytes());
    hasher.field("init", blake3::hash(init::PROGRAM).as_bytes());
    for filesystem in abilities::filesystem_inputs(recipe) {
        hasher.field("filesystem", filesystem.as_bytes());
    }
    for package in &lock.kernel {
        hasher.field("package", package.sha256.to_string().as_bytes());
    }
    for module in &recipe.modules {
        hasher.field("module", module.as_bytes());
    }
    hasher.finish()
}
