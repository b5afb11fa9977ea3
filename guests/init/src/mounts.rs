//! What is mounted where: the kernel's filesystems before anything else, the root disk under an overlay, and the end of
//! it all before power off.

use std::ffi::{CStr, OsString};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_move, mount_remount, unmount};

use vmprof_job::Filesystem;

use crate::failure::Failure;
use crate::filesystems;

/// Of the initramfs; the root disk, its writable layer in memory, and both together.
const LOWER: &str = "/vmprof/lower";
const UPPER: &str = "/vmprof/upper";
const NEW_ROOT: &str = "/newroot";

/// The kernel's own filesystems, and what user space expects of /dev beyond its device nodes.
pub(crate) fn kernel_filesystems() -> Result<(), Failure> {
    let still = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mounted("proc", "/proc", still, c"")?;
    mounted("sysfs", "/sys", still, c"")?;
    mounted("devtmpfs", "/dev", MountFlags::NOSUID, c"mode=0755")?;
    mounted("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, c"gid=5,mode=620,ptmxmode=666")?;
    mounted("tmpfs", "/dev/shm", MountFlags::NOSUID | MountFlags::NODEV, c"mode=1777")?;
    mounted("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, c"mode=0755")?;
    for (path, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Failure::Link { path: path.into(), device: target.into(), source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

fn mounted(filesystem: &str, target: &str, flags: MountFlags, data: &CStr) -> Result<(), Failure> {
    mount_on(filesystem, Path::new(filesystem), Path::new(target), flags, data)
}

pub(crate) fn mount_on(
    filesystem: &str,
    source: &Path,
    target: &Path,
    flags: MountFlags,
    data: &CStr,
) -> Result<(), Failure> {
    fs::create_dir_all(target)
        .and_then(|()| Ok(mount(source, target, filesystem, flags, data)?))
        .map_err(|source| Failure::Mount { filesystem: filesystem.to_owned(), target: target.into(), source })
}

/// Makes the filesystem on `device` the root of everything, the kernel's filesystems move along. `/` of the initramfs stays
/// underneath, out of reach: what it need not keep is freed.
pub(crate) fn switch_root(device: &Path, filesystem: &str, writable: bool) -> Result<(), Failure> {
    let unread = |source| Failure::DiskUnread { disk: "root".to_owned(), device: device.into(), source };
    let ext4 = filesystem == Filesystem::Ext4.name();
    let check = writable
        && ext4
        && fs::File::open(device).and_then(|disk| filesystems::wants_check(&disk)).map_err(unread)?;
    match writable {
        false => overlay(device, filesystem)?,
        // What looks it through lies on it.
        true if check => mount_on(filesystem, device, Path::new(NEW_ROOT), MountFlags::RDONLY, c"")?,
        true => mount_on(filesystem, device, Path::new(NEW_ROOT), MountFlags::empty(), c"")?,
    }
    // Only loading needed the modules: a few megabytes of memory back. A boot does not fail over it.
    let _ = fs::remove_dir_all(crate::modules::DIRECTORY);
    for directory in ["dev", "proc", "sys", "run"] {
        let target = Path::new(NEW_ROOT).join(directory);
        let made = if target.is_dir() { Ok(()) } else { fs::create_dir_all(&target) };
        made.and_then(|()| Ok(mount_move(Path::new("/").join(directory), &target)?))
            .map_err(|source| Failure::Mount { filesystem: directory.to_owned(), target, source })?;
    }
    enter(NEW_ROOT).map_err(Failure::step("making the root disk `/`"))?;
    if check {
        if filesystems::check("root", device)?.must_be_mounted_anew() {
            return Err(Failure::RootRepaired);
        }
        mount_remount("/", MountFlags::empty(), c"")
            .map_err(|error| Failure::step("making the root disk writable")(error.into()))?;
    }
    Ok(())
}

/// Read-only, with a writable layer in memory over it.
fn overlay(device: &Path, filesystem: &str) -> Result<(), Failure> {
    mount_on(filesystem, device, Path::new(LOWER), MountFlags::RDONLY, c"")?;
    mount_on("tmpfs", Path::new("tmpfs"), Path::new(UPPER), MountFlags::empty(), c"mode=0755")?;
    for layer in ["data", "work"] {
        let path = Path::new(UPPER).join(layer);
        // The overlay takes the mode of its root from the upper layer.
        fs::create_dir(&path)
            .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)))
            .map_err(Failure::step("making the layers of the root overlay"))?;
    }
    mount_on(
        "overlay",
        Path::new("overlay"),
        Path::new(NEW_ROOT),
        MountFlags::empty(),
        c"lowerdir=/vmprof/lower,upperdir=/vmprof/upper/data,workdir=/vmprof/upper/work",
    )
}

fn enter(root: &str) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    mount_move(".", "/")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

/// Leaves every filesystem on a disk clean, as far as it lets itself: unmounted, or else read-only. Last before power
/// off; what fails here has nobody left to tell.
pub(crate) fn settle() {
    rustix::fs::sync();
    let mounts = fs::read("/proc/self/mounts").unwrap_or_default();
    for target in on_disks(&mounts).into_iter().rev() {
        if unmount(&target, UnmountFlags::empty()).is_err() {
            let _ = mount_remount(&target, MountFlags::RDONLY, c"");
        }
    }
    rustix::fs::sync();
}

/// Where block devices are mounted, in the order of mounting, as /proc/self/mounts lists them.
fn on_disks(mounts: &[u8]) -> Vec<PathBuf> {
    let lines = mounts.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ');
            let source = fields.next()?;
            let target = fields.next()?;
            source.starts_with(b"/dev/").then(|| OsString::from_vec(unescaped(target)).into())
        })
        .collect()
}

/// The kernel writes blanks and backslashes of a path as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(*first);
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) = (first, tail) {
            bytes.pop();
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_on_a_disk_is_settled() {
        let mounts =
            b"overlay / overlay rw 0 0\nproc /proc proc rw 0 0\n/dev/vdb /data\\040one ext4 rw 0 0\n\
            /dev/vdc /data\\040one/inner ext4 rw 0 0\n";
        assert_eq!(on_disks(mounts), [Path::new("/data one"), Path::new("/data one/inner")]);
    }

    #[test]
    fn a_backslash_that_starts_no_octal_stays() {
        assert_eq!(unescaped(b"a\\134b\\9\\"), b"a\\b\\9\\");
    }
}
