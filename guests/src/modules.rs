//! Which kernel modules go into an initramfs, and in which order they load: each after those it names in its own
//! `.modinfo`. Debian's packages carry no modules.dep; depmod makes that on the installed machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object::{Object as _, ObjectSection as _};

use crate::error::{GuestError, Result};
use crate::kernel::KernelError;
use crate::packed::unpack;

/// The modules of one kernel.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    release: String,
    /// Normal name → file name and content as in the package.
    files: BTreeMap<String, (String, Packed)>,
    built_in: BTreeSet<String>,
    /// There are no files of modules, and no list of what is built in.
    all_built_in: bool,
}

/// A module's file, perhaps compressed.
#[derive(Debug)]
enum Packed {
    Here(Arc<[u8]>),
    /// To be read where it is taken: a distribution's kernel has thousands.
    At(PathBuf),
}

/// One module to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    /// Unpacked.
    pub(crate) content: Arc<[u8]>,
}

/// Module names treat `-` and `_` alike; the kernel itself writes `_`.
pub(crate) fn normal_name(name: &str) -> String {
    name.replace('-', "_")
}

/// The normal name of a module's file, packed or not.
fn name_of_file(file: &str) -> Option<String> {
    let stem = file.strip_suffix(".ko").or_else(|| file.split_once(".ko.").map(|(stem, _)| stem))?;
    Some(normal_name(stem))
}

impl Modules {
    pub(crate) fn new(release: &str) -> Self {
        Self { release: release.to_owned(), ..Self::default() }
    }

    /// Of a kernel that has everything in itself.
    pub(crate) fn all_built_in(release: &str) -> Self {
        Self { all_built_in: true, ..Self::new(release) }
    }

    pub(crate) fn are_all_built_in(&self) -> bool {
        self.all_built_in
    }

    /// The modules below a directory `…/lib/modules/RELEASE`, in the order of their names: of two with one name the later
    /// counts, so that `updates` goes before `kernel`. Links to directories, such as `build`, are not followed.
    pub(crate) fn in_directory(release: &str, directory: &Path) -> Result<Self> {
        let mut modules = Self::new(release);
        modules.take_directory(directory)?;
        let built_in = directory.join("modules.builtin");
        if modules.files.is_empty() && !built_in.exists() {
            return Err(GuestError::BadArchive {
                what: directory.display().to_string(),
                problem: "it holds neither modules nor a list of those that are built in".to_owned(),
            });
        }
        Ok(modules)
    }

    fn take_directory(&mut self, directory: &Path) -> Result<()> {
        let failed = |error| crate::error::failed("list", directory)(error);
        let mut entries: Vec<_> =
            std::fs::read_dir(directory).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            if entry.file_type().map_err(failed)?.is_dir() {
                self.take_directory(&path)?;
                continue;
            }
            let name = entry.file_name();
            let Some(file) = name.to_str() else { continue };
            if file == "modules.builtin" {
                self.take(file, &crate::store::read(&path)?.into());
            } else if let Some(name) = name_of_file(file)
                && path.is_file()
            {
                self.files.insert(name, (file.to_owned(), Packed::At(path)));
            }
        }
        Ok(())
    }

    /// Takes a file of the kernel's package, if it has to do with modules.
    pub(crate) fn take(&mut self, path: &str, content: &Arc<[u8]>) {
        let file = path.rsplit('/').next().unwrap_or(path);
        if file == "modules.builtin" {
            let text = String::from_utf8_lossy(content);
            self.built_in.extend(text.lines().filter_map(|line| name_of_file(line.rsplit('/').next()?)));
        } else if let Some(name) = name_of_file(file) {
            self.files.insert(name, (file.to_owned(), Packed::Here(Arc::clone(content))));
        }
    }

    /// The named modules and all they depend on, in an order in which each can load.
    pub(crate) fn in_order(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = Vec::new();
        let mut done = BTreeSet::new();
        for name in names {
            self.add(&normal_name(name), None, &mut order, &mut done)?;
        }
        Ok(order)
    }

    /// Of `names`, those this kernel knows: for modules that not every kernel has.
    pub(crate) fn known<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        let known = |name: &str| {
            let name = normal_name(name);
            self.files.contains_key(&name) || self.built_in.contains(&name)
        };
        names.iter().copied().filter(|name| known(name)).collect()
    }

    fn add(
        &self,
        name: &str,
        needed_by: Option<&str>,
        order: &mut Vec<Module>,
        done: &mut BTreeSet<String>,
    ) -> Result<()> {
        // Marked before its dependencies, so that a circle ends; the kernel has none.
        if self.built_in.contains(name) || !done.insert(name.to_owned()) {
            return Ok(());
        }
        let Some((file, packed)) = self.files.get(name) else {
            return Err(KernelError::NoModule {
                name: name.to_owned(),
                release: self.release.clone(),
                needed_by: needed_by.map(str::to_owned),
            }
            .into());
        };
        let bad = |problem: String| GuestError::BadArchive { what: format!("kernel module {file}"), problem };
        let packed: Arc<[u8]> = match packed {
            Packed::Here(content) => Arc::clone(content),
            Packed::At(path) => crate::store::read(path)?.into(),
        };
        let content: Arc<[u8]> = match file.split_once(".ko.") {
            None => packed,
            Some((_, form)) => unpack(&format!(".{form}"), &packed).map_err(&bad)?.into(),
        };
        let info = Info::read(&content).map_err(bad)?;
        // The kernel would refuse it at boot, when nobody can do anything about it.
        if let Some(found) = info.release.filter(|found| *found != self.release) {
            return Err(KernelError::ForeignModule {
                name: name.to_owned(),
                found,
                release: self.release.clone(),
            }
            .into());
        }
        for dependency in info.depends {
            self.add(&normal_name(&dependency), Some(name), order, done)?;
        }
        order.push(Module { name: name.to_owned(), content });
        Ok(())
    }
}

/// What a module's `.modinfo` says.
struct Info {
    /// `depends=a,b`.
    depends: Vec<String>,
    /// The first word of `vermagic=6.1.0 SMP …`: the kernel it is built for.
    release: Option<String>,
}

impl Info {
    fn read(module: &[u8]) -> Result<Self, String> {
        let file = object::File::parse(module).map_err(|error| error.to_string())?;
        let section = file.section_by_name(".modinfo").ok_or("it has no .modinfo")?;
        let info = section.data().map_err(|error| error.to_string())?;
        let values = |key: &str| {
            let fields = info.split(|byte| *byte == 0);
            fields.filter_map(|field| std::str::from_utf8(field.strip_prefix(key.as_bytes())?).ok()).collect()
        };
        let depends: Vec<&str> = values("depends=");
        let names = depends.into_iter().flat_map(|names| names.split(','));
        let magic: Vec<&str> = values("vermagic=");
        Ok(Self {
            depends: names.filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            release: magic.first().and_then(|magic| magic.split(' ').next()).map(str::to_owned),
        })
    }
}

/// Modules made up on the spot.
#[cfg(any(test, feature = "testing"))]
pub(crate) mod made {
    use super::*;

    /// The smallest ELF file with that `.modinfo`.
    pub(crate) fn module(depends: &str) -> Arc<[u8]> {
        let info = format!("license=GPL\0depends={depends}\0name=x\0");
        let names = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0_u8; 64];
        elf[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &1_u16.to_le_bytes()); // relocatable
        put(18, &62_u16.to_le_bytes()); // x86-64
        put(20, &1_u32.to_le_bytes());
        put(52, &64_u16.to_le_bytes());
        put(58, &64_u16.to_le_bytes());
        put(60, &3_u16.to_le_bytes());
        put(62, &2_u16.to_le_bytes());
        let table = (64 + info.len() + names.len()) as u64;
        put(40, &table.to_le_bytes());
        elf.extend_from_slice(info.as_bytes());
        elf.extend_from_slice(names);
        let mut section = |name: u32, kind: u32, offset: usize, size: usize| {
            let mut header = [0_u8; 64];
            header[0..4].copy_from_slice(&name.to_le_bytes());
            header[4..8].copy_from_slice(&kind.to_le_bytes());
            header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
            header[48] = 1;
            elf.extend_from_slice(&header);
        };
        section(0, 0, 0, 0);
        section(1, 1, 64, info.len());
        section(10, 3, 64 + info.len(), names.len());
        elf.into()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) use made::module;

    fn modules() -> Modules {
        let mut modules = Modules::new("6.1-test");
        for (file, depends) in [
            ("virtio_pci.ko", "virtio,virtio-ring"),
            ("virtio.ko", ""),
            ("virtio_ring.ko", "virtio"),
            ("kvm-amd.ko", "kvm,ext4"),
            ("kvm.ko", "irqbypass"),
            ("broken.ko", "absent"),
        ] {
            modules.take(&format!("lib/modules/6.1-test/kernel/x/{file}"), &module(depends));
        }
        modules.take(
            "lib/modules/6.1-test/modules.builtin",
            &Arc::from(*b"kernel/fs/ext4/ext4.ko\nkernel/virt/irqbypass.ko\n"),
        );
        modules
    }

    fn names(order: &[Module]) -> Vec<&str> {
        order.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn a_module_comes_after_what_it_depends_on_and_only_once() {
        let order = modules().in_order(&["virtio_pci", "kvm_amd", "virtio"]).unwrap();
        assert_eq!(names(&order), ["virtio", "virtio_ring", "virtio_pci", "kvm", "kvm_amd"]);
    }

    #[test]
    fn a_built_in_module_is_skipped() {
        assert!(modules().in_order(&["ext4", "irqbypass"]).unwrap().is_empty());
    }

    #[test]
    fn a_module_that_is_nowhere_is_an_error_that_says_who_needs_it() {
        let error = modules().in_order(&["broken"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel 6.1-test has no module `absent`, neither as a file nor built in (needed by `broken`)"
        );
    }

    #[test]
    fn a_directory_of_modules_reads_what_is_taken_and_later_names_count() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str, content: &[u8]| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        put("kernel/net/virtio-net.ko", &module("failover"));
        put("kernel/net/failover.ko", b"old");
        put("updates/failover.ko", &module(""));
        put("kernel/other.ko", b"never read");
        put("modules.builtin", b"kernel/fs/ext4/ext4.ko\n");
        std::os::unix::fs::symlink(dir.path(), dir.path().join("build")).unwrap();
        let modules = Modules::in_directory("6.1-test", dir.path()).unwrap();
        assert_eq!(names(&modules.in_order(&["virtio_net", "ext4"]).unwrap()), ["failover", "virtio_net"]);
        let error = Modules::in_directory("6.1-test", &dir.path().join("kernel/net/absent")).unwrap_err();
        assert!(matches!(error, GuestError::Io { .. }), "{error}");
        let empty = dir.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        assert!(Modules::in_directory("6.1-test", &empty).is_err());
    }

    #[test]
    fn a_module_of_another_kernel_is_refused() {
        let foreign = module("\0vermagic=6.2-other SMP mod_unload");
        let mut modules = Modules::new("6.1-test");
        modules.take("kernel/x.ko", &foreign);
        let error = modules.in_order(&["x"]).unwrap_err();
        assert_eq!(error.to_string(), "module `x` is built for 6.2-other, and the kernel is 6.1-test");
    }

    #[test]
    fn packed_modules_are_unpacked() {
        let mut packed = Vec::new();
        std::io::Read::read_to_end(&mut liblzma::read::XzEncoder::new(&module("")[..], 1), &mut packed)
            .unwrap();
        let mut modules = Modules::new("6.12-test");
        modules.take("usr/lib/modules/6.12-test/kernel/x/button.ko.xz", &packed.into());
        assert_eq!(modules.in_order(&["button"]).unwrap()[0].content, module(""));
    }
}
