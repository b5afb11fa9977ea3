//! Disks: found by serial, told which scheduler to use, linked to where the job wants them.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmprof_job::{DeviceLink, Disk, DiskScheduler};

use crate::failure::Failure;
use crate::wait::until_there;

/// The kernel's name of a block device, as in /sys/block and /dev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device(String);

impl Device {
    pub(crate) fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.0)
    }
}

/// The device with this serial, waited for. `name` is what the job calls it, for the failure.
pub(crate) fn find(sys: &Path, name: &str, serial: &str, limit: Duration) -> Result<Device, Failure> {
    let block = sys.join("block");
    let all = || serials(&block).map_err(Failure::step("listing the block devices"));
    let found = until_there(limit, || {
        let mut devices: Vec<_> = all()?.into_iter().filter(|(_, found)| found == serial).collect();
        match devices.len() {
            0 => Ok(None),
            1 => Ok(devices.pop().map(|(device, _)| Device(device))),
            _ => Err(Failure::SerialTwice {
                name: name.to_owned(),
                serial: serial.to_owned(),
                devices: devices.into_iter().map(|(device, _)| device).collect(),
            }),
        }
    })?;
    match found {
        Some(device) => Ok(device),
        None => Err(Failure::NoDisk {
            name: name.to_owned(),
            serial: serial.to_owned(),
            waited_ms: limit.as_millis(),
            found: all()?.into_iter().map(|(device, serial)| format!("{device} ({serial})")).collect(),
        }),
    }
}

/// Every block device that has a serial, in order of name.
fn serials(block: &Path) -> io::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(block)? {
        let entry = entry?;
        let directory = entry.path();
        // The paths of a multipath NVMe namespace carry its serial too, but cannot be opened.
        if fs::read_to_string(directory.join("hidden")).is_ok_and(|hidden| hidden.trim() == "1") {
            continue;
        }
        // virtio-blk answers for itself, an NVMe namespace through its controller.
        let serial = fs::read_to_string(directory.join("serial"))
            .or_else(|_| fs::read_to_string(directory.join("device/serial")));
        if let Ok(serial) = serial {
            let serial = serial.trim_matches(|c: char| c.is_whitespace() || c == '\0');
            if !serial.is_empty() {
                found.push((entry.file_name().to_string_lossy().into_owned(), serial.to_owned()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Finds the job's disk and sets its scheduler, if the job names one.
pub(crate) fn prepare(sys: &Path, disk: &Disk, limit: Duration) -> Result<Device, Failure> {
    let device = find(sys, &disk.name, &disk.serial, limit)?;
    if let Some(asked) = &disk.scheduler {
        schedule(sys, &disk.name, &device, asked)?;
    }
    Ok(device)
}

/// Written, then read back: the kernel lists all schedulers with the active one in brackets.
fn schedule(sys: &Path, disk: &str, device: &Device, asked: &str) -> Result<(), Failure> {
    let file = scheduler_file(sys, &device.0);
    let written = fs::write(&file, asked);
    let found = fs::read_to_string(&file).unwrap_or_default();
    if written.is_ok() && active(&found) == Some(asked) {
        return Ok(());
    }
    Err(Failure::Scheduler {
        disk: disk.to_owned(),
        device: device.0.clone(),
        asked: asked.to_owned(),
        found: found.trim().to_owned(),
        source: written.err(),
    })
}

fn scheduler_file(sys: &Path, device: &str) -> PathBuf {
    sys.join("block").join(device).join("queue/scheduler")
}

/// What every disk with a serial has now.
pub(crate) fn schedulers(sys: &Path) -> Vec<DiskScheduler> {
    // Where the list cannot be read, whoever asked finds its disks missing from it.
    let devices = serials(&sys.join("block")).unwrap_or_default();
    let now = |(device, serial): (String, String)| {
        let found = fs::read_to_string(scheduler_file(sys, &device)).unwrap_or_default();
        DiskScheduler { serial, scheduler: active(&found).map(str::to_owned) }
    };
    devices.into_iter().map(now).collect()
}

fn active(schedulers: &str) -> Option<&str> {
    match schedulers.split_whitespace().collect::<Vec<_>>().as_slice() {
        // Without brackets where there is no choice: `none` alone.
        [only] => Some(only.trim_start_matches('[').trim_end_matches(']')),
        several => several.iter().find_map(|word| word.strip_prefix('[')?.strip_suffix(']')),
    }
}

/// Makes `link` name the device; a link that is already there gives way.
pub(crate) fn link(sys: &Path, link: &DeviceLink, limit: Duration) -> Result<(), Failure> {
    let device = find(sys, &link.path, &link.serial, limit)?.node();
    let path = Path::new(&link.path);
    let make = || {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        if path.is_symlink() {
            fs::remove_file(path)?;
        }
        symlink(&device, path)
    };
    make().map_err(|source| Failure::Link { path: path.into(), device: device.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A /sys with these block devices; the serial at `file` below each.
    fn sys(devices: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let sys = tempfile::tempdir().unwrap();
        fs::create_dir_all(sys.path().join("block/loop0/queue")).unwrap();
        for (device, file, serial) in devices {
            let path = sys.path().join("block").join(device).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, serial).unwrap();
        }
        sys
    }

    fn found(sys: &tempfile::TempDir, serial: &str) -> Result<Device, String> {
        find(sys.path(), "data", serial, Duration::ZERO).map_err(|failure| failure.message())
    }

    #[test]
    fn a_virtio_disk_and_an_nvme_drive_are_found_by_serial() {
        let sys = sys(&[
            ("vda", "serial", "root"),
            ("vdb", "serial", "data"),
            ("nvme0n1", "device/serial", "vmprof0             \n"),
        ]);
        assert_eq!(found(&sys, "data"), Ok(Device("vdb".into())));
        assert_eq!(found(&sys, "vmprof0").unwrap().node(), Path::new("/dev/nvme0n1"));
    }

    #[test]
    fn a_missing_serial_lists_those_that_are_there() {
        let sys = sys(&[("vda", "serial", "root")]);
        assert_eq!(
            found(&sys, "data"),
            Err("disk `data`: no block device with serial `data` within 0 ms; found: vda (root)".into())
        );
    }

    #[test]
    fn a_serial_that_two_disks_have_is_no_name() {
        let sys = sys(&[("vda", "serial", "x"), ("vdb", "serial", "x")]);
        assert_eq!(
            found(&sys, "x"),
            Err("disk `data`: serial `x` belongs to several block devices: vda, vdb".into())
        );
    }

    #[test]
    fn a_hidden_path_of_a_namespace_is_not_taken_for_it() {
        let sys = sys(&[
            ("nvme0n1", "device/serial", "x"),
            ("nvme0c0n1", "device/serial", "x"),
            ("nvme0c0n1", "hidden", "1\n"),
        ]);
        assert_eq!(found(&sys, "x"), Ok(Device("nvme0n1".into())));
    }

    #[test]
    fn the_scheduler_in_brackets_is_the_active_one() {
        assert_eq!(active("[none] mq-deadline\n"), Some("none"));
        assert_eq!(active("none [mq-deadline] kyber\n"), Some("mq-deadline"));
        assert_eq!(active("none\n"), Some("none"));
        assert_eq!(active("none mq-deadline"), None);
        assert_eq!(active(""), None);
    }

    #[test]
    fn each_disk_with_a_serial_is_told_with_the_scheduler_in_force() {
        let sys = sys(&[
            ("vda", "serial", "root"),
            ("vdb", "serial", "data"),
            ("vdb", "queue/scheduler", "none [mq-deadline]\n"),
        ]);
        let told = |serial: &str, scheduler: Option<&str>| DiskScheduler {
            serial: serial.into(),
            scheduler: scheduler.map(Into::into),
        };
        assert_eq!(schedulers(sys.path()), [told("root", None), told("data", Some("mq-deadline"))]);
        assert_eq!(schedulers(&sys.path().join("nowhere")), []);
    }

    #[test]
    fn a_scheduler_the_kernel_does_not_take_fails_with_asked_and_found() {
        let sys = sys(&[("vdb", "serial", "data"), ("vdb", "queue/scheduler/is-a-directory", "")]);
        let disk =
            Disk { name: "data".into(), serial: "data".into(), scheduler: Some("bfq".into()), format: None };
        let message = prepare(sys.path(), &disk, Duration::ZERO).unwrap_err().message();
        assert!(
            message.starts_with("disk `data` (vdb): asked for the scheduler `bfq`, found ``: "),
            "{message}"
        );
    }

    #[test]
    fn a_link_replaces_an_older_one() {
        let sys = sys(&[("vdb", "serial", "data")]);
        let path = sys.path().join("dev/vmprof/data").to_str().unwrap().to_owned();
        let wanted = DeviceLink { path: path.clone(), serial: "data".into() };
        link(sys.path(), &wanted, Duration::ZERO).unwrap();
        link(sys.path(), &wanted, Duration::ZERO).unwrap();
        assert_eq!(fs::read_link(path).unwrap(), Path::new("/dev/vdb"));
    }
}
