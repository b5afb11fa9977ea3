//! Whether the reads and writes of a disk can be completed by looking at its drive (IOPOLL). The drive's queues are the
//! kernel's to make, when its driver starts, and most hosts have none. Found out when the disk is opened: a file that cannot be
//! looked for would fail with its first read, or on older kernels be completed by interrupts while someone looks in vain.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;

use vmprof_sys::aligned::AlignedBuffer;
use vmprof_sys::ring::{Buffers, Completion, Operation, Options, Ring, Wait};

use super::{Alignment, DiskError, SECTOR_BYTES, device};
use crate::config::{self, Engine};

const DEVICES: &str = "/sys/dev/block";

/// What the profile itself promises wrongly.
pub(super) fn agreed(disk: &config::Disk) -> Result<(), DiskError> {
    let name = || disk.name.clone();
    if disk.engine != Engine::IoUring {
        return Err(DiskError::IopollNeedsIoUring { disk: name(), engine: disk.engine });
    }
    if !disk.cache.is_direct() {
        return Err(DiskError::IopollNeedsDirect { disk: name(), cache: disk.cache });
    }
    Ok(())
}

/// `file` is the disk's, open with O_DIRECT.
pub(super) fn probe(disk: &config::Disk, file: &File, alignment: Alignment) -> Result<(), DiskError> {
    has_queues(disk, file, DEVICES.as_ref())?;
    let (name, path) = (disk.name.clone(), disk.path.clone());
    match try_read(file, alignment) {
        Ok(_) => Ok(()),
        Err(Failed::Setup(source)) => Err(DiskError::IopollRing { disk: name, source }),
        Err(Failed::Read(source)) => Err(DiskError::Iopoll { disk: name, path, source }),
    }
}

/// Looks in `devices`, which is [`DEVICES`].
fn has_queues(disk: &config::Disk, file: &File, devices: &Path) -> Result<(), DiskError> {
    let metadata = file.metadata().map_err(|source| DiskError::unreadable(disk, source))?;
    let number = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let below = devices.join(format!("{major}:{minor}"));
    let (name, path) = (disk.name.clone(), disk.path.clone());
    // Where it is, its name is the last of its path. Filesystems of no device, or of several, have a number of their own.
    let Ok(known) = fs::canonicalize(&below) else {
        return Err(DiskError::NoDriveBelow { disk: name, path });
    };
    let said = fs::read_to_string(device::queue(&below).join("io_poll")).unwrap_or_default();
    if said.trim() != "1" {
        let device = known.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(DiskError::NoPollQueues { disk: name, path, device });
    }
    Ok(())
}

#[derive(Debug)]
enum Failed {
    Setup(vmprof_sys::ring::SetupError),
    Read(io::Error),
}

/// The first block, as the disk's reads will go.
fn try_read(file: &File, alignment: Alignment) -> Result<u32, Failed> {
    let mut ring =
        Ring::<()>::with(&Options { iopoll: true, ..Options::default() }).map_err(Failed::Setup)?;
    let file = ring.add_file(Arc::new(file.try_clone().map_err(Failed::Read)?)).map_err(Failed::Read)?;
    let bytes = alignment.offset.max(SECTOR_BYTES) as usize;
    let buffer = AlignedBuffer::new(bytes, alignment.memory.max(alignment.offset as usize));
    ring.start(file, Operation::Read { offset: 0 }, Buffers::Bounce { buffer, bytes }, ());
    let mut ended = Vec::new();
    while ring.busy() > 0 {
        ring.enter(Wait::Forever).map_err(Failed::Read)?;
        ring.reap(&mut ended);
    }
    match ended.pop() {
        Some(Completion::Done { result, .. }) => result.map_err(Failed::Read),
        _ => Err(Failed::Read(io::ErrorKind::UnexpectedEof.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::io::Errno;
    use tempfile::TempDir;

    use super::super::Backing;
    use super::super::tests::disk;
    use super::*;
    use crate::config::CacheMode;

    fn asked(path: &Path) -> config::Disk {
        config::Disk { iopoll: true, ..disk(path, CacheMode::None) }
    }

    /// Block devices as sysfs shows them: `vdz`, with what its queue says of polling, and its partition `vdz1`, of which one
    /// has the number of the device below `file`.
    fn devices(root: &Path, file: &File, name: &str, io_poll: Option<&str>) {
        let drive = root.join("devices/vdz");
        fs::create_dir_all(drive.join("vdz1")).unwrap();
        fs::create_dir_all(drive.join("queue")).unwrap();
        if let Some(io_poll) = io_poll {
            fs::write(drive.join("queue/io_poll"), io_poll).unwrap();
        }
        let number = file.metadata().unwrap().dev();
        let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
        let place = if name == "vdz" { drive } else { drive.join(name) };
        symlink(place, root.join(number)).unwrap();
    }

    #[test]
    fn the_device_below_a_file_must_have_queues_to_look_at_and_a_partition_has_those_of_its_drive() {
        let found = |name: &str, io_poll| {
            let (root, file) = (TempDir::new().unwrap(), tempfile::tempfile().unwrap());
            devices(root.path(), &file, name, io_poll);
            has_queues(&asked(Path::new("some/file")), &file, root.path())
        };
        for name in ["vdz", "vdz1"] {
            found(name, Some("1\n")).unwrap();
            for io_poll in [Some("0\n"), Some("yes\n"), Some(""), None] {
                let error = found(name, io_poll).unwrap_err();
                assert!(
                    matches!(&error, DiskError::NoPollQueues { device, .. } if device == name),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_file_without_one_device_below_it_is_refused() {
        let (root, file) = (TempDir::new().unwrap(), tempfile::tempfile().unwrap());
        let error = has_queues(&asked(Path::new("some/file")), &file, root.path()).unwrap_err();
        assert!(matches!(error, DiskError::NoDriveBelow { .. }), "{error}");
        // Its number is no block device's on any host.
        let text = File::open("/proc/self/comm").unwrap();
        let error = has_queues(&asked(Path::new("/proc/self/comm")), &text, DEVICES.as_ref()).unwrap_err();
        assert!(matches!(error, DiskError::NoDriveBelow { .. }), "{error}");
    }

    #[test]
    fn a_trial_read_of_what_cannot_be_looked_for_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8_192).unwrap();
        match try_read(&file, Alignment::NONE) {
            Err(Failed::Read(error)) => {
                assert_eq!(Errno::from_io_error(&error), Some(Errno::OPNOTSUPP), "through the page cache");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn other_engines_and_the_page_cache_are_refused_before_the_drive_is_asked() {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("disk");
        File::create(&path).unwrap().set_len(8_192).unwrap();
        let opened = |disk: &config::Disk| Backing::open(disk).unwrap_err();
        let error = opened(&config::Disk { engine: Engine::Native, ..asked(&path) });
        assert!(matches!(error, DiskError::IopollNeedsIoUring { engine: Engine::Native, .. }), "{error}");
        for cache in [CacheMode::Writeback, CacheMode::Writethrough, CacheMode::Unsafe] {
            let error = opened(&config::Disk { iopoll: true, ..disk(&path, cache) });
            assert!(matches!(error, DiskError::IopollNeedsDirect { .. }), "{error}");
        }
    }
}
