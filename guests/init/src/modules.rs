//! Kernel modules, loaded in the order the image builder wrote down.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::failure::Failure;
use crate::kmsg;

/// Where the modules and the file [`ORDER`] lie in the initramfs.
pub(crate) const DIRECTORY: &str = "/modules";
const ORDER: &str = "order";

/// Loads all of them. A kernel with everything built in has no such directory, and nothing is to be done.
pub(crate) fn load(directory: &Path) -> Result<(), Failure> {
    let order = match fs::read_to_string(directory.join(ORDER)) {
        Ok(order) => order,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !directory.exists() => return Ok(()),
        Err(source) => return Err(Failure::Module { path: directory.join(ORDER), source }),
    };
    for path in in_order(directory, &order) {
        let file = File::open(&path).map_err(|source| Failure::Module { path: path.clone(), source })?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) if hardware_is_missing(errno) => kmsg::note(format_args!(
                "{}: this machine has nothing for it ({errno})",
                path.file_name().unwrap_or_default().display()
            )),
            // The file was there to open, so the name that was not found is that of a symbol.
            Err(Errno::NOENT) => return Err(Failure::ModuleTooEarly { path }),
            Err(errno) => return Err(Failure::Module { path, source: errno.into() }),
        }
    }
    Ok(())
}

/// One path a line, absolute or below `directory`.
fn in_order(directory: &Path, order: &str) -> Vec<PathBuf> {
    order.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| directory.join(line)).collect()
}

/// A driver says so when the machine lacks what it drives: kvm_intel on an AMD host, for one. Where a disk or a port is
/// missing because of it, that is refused later, by its name.
fn hardware_is_missing(errno: Errno) -> bool {
    matches!(errno, Errno::NODEV | Errno::OPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_lines() {
        let paths = in_order(Path::new("/modules"), "virtio.ko\n\n /modules/virtio_ring.ko \n");
        assert_eq!(paths, [Path::new("/modules/virtio.ko"), Path::new("/modules/virtio_ring.ko")]);
    }

    #[test]
    fn a_kernel_without_modules_has_nothing_to_load() {
        let initramfs = tempfile::tempdir().unwrap();
        assert!(load(&initramfs.path().join("modules")).is_ok());
    }

    #[test]
    fn a_module_that_is_not_there_fails_by_its_path() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(ORDER), "absent.ko\n").unwrap();
        let message = load(directory.path()).unwrap_err().message();
        assert!(message.contains("absent.ko could not be loaded: No such file"), "{message}");
    }

    #[test]
    fn modules_without_an_order_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(load(directory.path()).unwrap_err().message().contains("order"));
    }

    #[test]
    fn kvm_of_the_other_vendor_does_not_stop_a_boot() {
        assert!(hardware_is_missing(Errno::OPNOTSUPP));
        assert!(hardware_is_missing(Errno::NODEV));
        assert!(!hardware_is_missing(Errno::NOEXEC));
    }
}
