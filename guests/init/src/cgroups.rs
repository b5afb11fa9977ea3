//! A cgroup for each service, so that whatever it started ends with it, under any process group or session. Only for
//! ending and telling apart: no limits are set.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

use crate::kmsg;

const MOUNT: &str = "/sys/fs/cgroup";
const OURS: &str = "vmprof";

/// Where the cgroups are; nowhere with a kernel that has none.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    base: Option<PathBuf>,
}

impl Cgroups {
    /// Mounts the hierarchy. A kernel without it is no failure: services then end by their process groups.
    pub(crate) fn mount() -> Self {
        let still = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let base = Path::new(MOUNT).join(OURS);
        let made = mount("cgroup2", MOUNT, "cgroup2", still, c"").map_err(io::Error::from);
        match made.and_then(|()| fs::create_dir(&base)) {
            Ok(()) => Cgroups { base: Some(base) },
            Err(error) => {
                kmsg::error(format_args!("no cgroups, services end by their process groups: {error}"));
                Cgroups::default()
            }
        }
    }

    /// The cgroup of the service with this name, made if it is not there.
    pub(crate) fn of(&self, service: &str) -> io::Result<Option<PathBuf>> {
        let Some(base) = &self.base else { return Ok(None) };
        let path = base.join(service);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Some(path)),
        }
    }
}

/// SIGKILL to all that is in it. Says whether the kernel did it (from Linux 5.14 on).
pub(crate) fn kill(cgroup: &Path) -> bool {
    // Neither making nor truncating: outside of the real hierarchy there is no such file to be written.
    let killed = fs::OpenOptions::new().write(true).open(cgroup.join("cgroup.kill"));
    killed.and_then(|mut file| io::Write::write_all(&mut file, b"1")).is_ok()
}

/// Whether the process is in this cgroup; `None` where it is gone.
pub(crate) fn holds(cgroup: &Path, pid: i32) -> Option<bool> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = cgroup.strip_prefix(MOUNT).ok()?;
    let inside = text.lines().filter_map(|line| line.strip_prefix("0::/"));
    Some(inside.map(Path::new).any(|path| path.starts_with(own)))
}
