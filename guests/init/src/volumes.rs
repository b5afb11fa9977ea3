//! The filesystems that the job mounts: on disks, found by serial, and in memory.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::MountFlags;
use vmprof_job::{Filesystem, Job, Mount, Mounted};

use crate::failure::Failure;
use crate::users::Accounts;
use crate::{disks, filesystems, mounts};

/// Sees to every disk of the job (scheduler, filesystem), then mounts in the job's order.
pub(crate) fn prepare(sys: &Path, job: &Job, limit: Duration) -> Result<(), Failure> {
    let mut ready: Vec<Volume> = Vec::new();
    for disk in &job.disks {
        let device = disks::prepare(sys, disk, limit)?.node();
        let is_mounted = job.mounts.iter().any(|mount| on(mount) == Some(disk.serial.as_str()));
        if is_mounted || disk.format.is_some() {
            let found = filesystems::settle_on(&disk.name, &device, disk.format, is_mounted)?;
            ready.extend(found.map(|filesystem| Volume {
                disk: &disk.name,
                serial: &disk.serial,
                device,
                filesystem,
            }));
        }
    }
    let accounts = Accounts::read(Path::new("/"));
    job.mounts.iter().try_for_each(|mount| mount_one(&accounts, mount, &ready))
}

/// A disk with a filesystem.
struct Volume<'a> {
    disk: &'a str,
    serial: &'a str,
    device: PathBuf,
    filesystem: Filesystem,
}

fn on(mount: &Mount) -> Option<&str> {
    match &mount.what {
        Mounted::Disk { serial } => Some(serial),
        Mounted::Tmpfs { .. } => None,
    }
}

fn mount_one(accounts: &Accounts, mount: &Mount, ready: &[Volume]) -> Result<(), Failure> {
    let path = Path::new(&mount.path);
    // Looked up before: a name that is nowhere must not leave a mount behind.
    let owner = mount.owner.as_deref().map(|owner| accounts.owner(owner)).transpose()?;
    let (flags, mut data) = options(path, &mount.options)?;
    match &mount.what {
        Mounted::Tmpfs { bytes } => {
            data.insert(0, format!("size={bytes}"));
            data.insert(1, "mode=0755".to_owned());
            mounts::mount_on("tmpfs", Path::new("tmpfs"), path, flags, &joined(path, &data)?)?;
        }
        Mounted::Disk { serial } => {
            let missing = || Failure::NoSuchMount { path: path.into(), serial: serial.clone() };
            let volume = ready.iter().find(|volume| volume.serial == serial).ok_or_else(missing)?;
            if volume.filesystem == Filesystem::Ext4 && asks_for_check(volume)? {
                filesystems::check(volume.disk, &volume.device)?;
            }
            let data = joined(path, &data)?;
            mounts::mount_on(volume.filesystem.name(), &volume.device, path, flags, &data)?;
        }
    }
    set_owner(path, owner, mount.mode).map_err(|source| Failure::MountOwner { path: path.into(), source })
}

fn asks_for_check(volume: &Volume) -> Result<bool, Failure> {
    File::open(&volume.device).and_then(|device| filesystems::wants_check(&device)).map_err(|source| {
        Failure::DiskUnread { disk: volume.disk.to_owned(), device: volume.device.clone(), source }
    })
}

/// Only where it is otherwise: a filesystem that is read-only may well be as it shall be.
fn set_owner(path: &Path, owner: Option<(u32, u32)>, mode: Option<u16>) -> io::Result<()> {
    let is = fs::metadata(path)?;
    if let Some((uid, gid)) = owner
        && (is.uid(), is.gid()) != (uid, gid)
    {
        chown(path, Some(uid), Some(gid))?;
    }
    if let Some(mode) = mode.map(u32::from)
        && is.mode() & 0o7777 != mode
    {
        fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn joined(path: &Path, data: &[String]) -> Result<CString, Failure> {
    let option = data.join(",");
    CString::new(option.as_str()).map_err(|_| Failure::MountOption { path: path.into(), option })
}

/// Words of mount(8) that are flags to the kernel; the others are the filesystem's own.
fn options(path: &Path, words: &[String]) -> Result<(MountFlags, Vec<String>), Failure> {
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for word in words {
        if word.is_empty() || word.contains([',', '\0']) {
            return Err(Failure::MountOption { path: path.into(), option: word.clone() });
        }
        match flag(word) {
            Some((flag, true)) => flags |= flag,
            Some((flag, false)) => flags -= flag,
            None => data.push(word.clone()),
        }
    }
    Ok((flags, data))
}

/// The flag, and whether the word sets it.
fn flag(word: &str) -> Option<(MountFlags, bool)> {
    Some(match word {
        "defaults" => (MountFlags::empty(), true),
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "nostrictatime" => (MountFlags::STRICTATIME, false),
        "lazytime" => (MountFlags::LAZYTIME, true),
        "nolazytime" => (MountFlags::LAZYTIME, false),
        "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
        "symfollow" => (MountFlags::NOSYMFOLLOW, false),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(words: &[&str]) -> Result<(MountFlags, Vec<String>), String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        options(Path::new("/data"), &words).map_err(|failure| failure.message())
    }

    #[test]
    fn words_are_flags_or_the_filesystems_own() {
        assert_eq!(
            taken(&["noatime", "nodev", "data=ordered", "logbufs=8"]),
            Ok((MountFlags::NOATIME | MountFlags::NODEV, vec!["data=ordered".into(), "logbufs=8".into()]))
        );
        assert_eq!(taken(&["ro", "rw", "defaults"]), Ok((MountFlags::empty(), vec![])));
    }

    #[test]
    fn one_word_is_one_option() {
        for word in ["", "noatime,nodev", "a\0b"] {
            assert!(taken(&[word]).unwrap_err().contains("of the mount on /data"));
        }
    }

    #[test]
    fn what_is_as_it_shall_be_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let is = fs::metadata(directory.path()).unwrap();
        set_owner(directory.path(), Some((is.uid(), is.gid())), Some(0o750)).unwrap();
        assert_eq!(fs::metadata(directory.path()).unwrap().mode() & 0o7777, 0o750);
        assert!(set_owner(Path::new("/proc/self"), None, Some(0o555)).is_ok());
    }
}
