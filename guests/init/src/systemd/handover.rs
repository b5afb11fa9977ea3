//! What the first process leaves below /run, and its last step.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal};
use vmprof_job::{Job, Net};

use super::role;
use crate::control::Control;
use crate::failure::Failure;

/// In Debian's merged /usr; `/lib/systemd/systemd` is the same file.
const SYSTEMD: &str = "/usr/lib/systemd/systemd";
const DIRECTORY: &str = "/run/vmprof";
const PROGRAM: &str = "/run/vmprof/init";
pub(super) const JOB: &str = "/run/vmprof/job.json";
const HOLDER: &str = "/run/vmprof/holder";
/// Units made for one boot: over those of packages, below those of /etc.
const UNITS: &str = "/run/systemd/system";
const UNIT: &str = "vmprof.service";
/// Every way to boot passes it but the emergency shell.
const WANTED_BY: &str = "sysinit.target";
/// Read after all others, whose names begin with numbers: what the job says of the kernel stays so.
const SYSCTL: &str = "/run/sysctl.d/zz-vmprof.conf";
/// Read after all others, as above: a device that a file of the image's is for is that file's. systemd-networkd reads them where
/// the image has it started.
const NETWORKS: &str = "/run/systemd/network";
/// Who would ask for a login on the console, which is vmprof's.
const LOGINS: [&str; 2] = ["serial-getty@ttyS0.service", "console-getty.service"];

/// First argument of the copy that holds the port.
pub(crate) const HOLD_WORD: &str = "hold-port";
/// Its port is its standard input.
const HELD: i32 = 0;

/// Becomes systemd, with the words and the environment that the kernel gave the first process. Returns only where that
/// failed; the control port is then still the caller's alone.
pub(crate) fn become_systemd(job: &Job, control: &Control) -> Failure {
    let failed = |doing: String| move |source: io::Error| Failure::Step { doing, source };
    let left = leave(Path::new("/"), job).map_err(failed(format!("writing what {UNIT} needs below /run")));
    let held = left.and_then(|()| {
        let holder = control.descriptor().try_clone_to_owned().and_then(start_holder);
        holder.map_err(failed("starting the process that holds the control port".to_owned()))
    });
    let mut holder = match held {
        Ok(holder) => holder,
        Err(failure) => return failure,
    };
    let mut systemd = Command::new(SYSTEMD);
    let source = systemd.args(std::env::args_os().skip(1)).exec();
    // Nobody is in its way any more, and it is not to be in ours.
    let _ = holder.kill().and_then(|()| holder.wait());
    Failure::Step { doing: format!("becoming {SYSTEMD}"), source }
}

/// Writes everything below `root`.
fn leave(root: &Path, job: &Job) -> io::Result<()> {
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    let make = |path: &str, text: &[u8]| {
        let path = at(path);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, text)
    };
    fs::create_dir_all(at(DIRECTORY))?;
    // CMD's environment may hold what is nobody else's business.
    fs::set_permissions(at(DIRECTORY), Permissions::from_mode(0o700))?;
    fs::copy("/proc/self/exe", at(PROGRAM))?;
    fs::set_permissions(at(PROGRAM), Permissions::from_mode(0o700))?;
    make(JOB, &vmprof_job::line(job))?;
    fs::set_permissions(at(JOB), Permissions::from_mode(0o600))?;
    make(&format!("{UNITS}/{UNIT}"), unit().as_bytes())?;
    let wants = at(&format!("{UNITS}/{WANTED_BY}.wants"));
    fs::create_dir_all(&wants)?;
    symlink(format!("../{UNIT}"), wants.join(UNIT))?;
    // On a console of the command's a login would take half of what is typed, and on any other nobody could log in.
    for login in LOGINS {
        symlink("/dev/null", at(&format!("{UNITS}/{login}")))?;
    }
    for net in &job.nets {
        make(&format!("{NETWORKS}/zz-vmprof-{}.network", net.name), network(net).as_bytes())?;
    }
    if !job.sysctl.is_empty() {
        make(SYSCTL, sysctl(&job.sysctl).as_bytes())?;
    }
    Ok(())
}

/// The role's unit. It starts with the first units and is there until everything else has stopped, so it has none of the
/// dependencies that units have by themselves.
fn unit() -> String {
    format!(
        "[Unit]\n\
         Description=vmprof: the guest's command, and word of the guest to the outside\n\
         DefaultDependencies=no\n\
         IgnoreOnIsolate=yes\n\
         RefuseManualStop=yes\n\
         # Without it nobody outside would hear of the guest again.\n\
         FailureAction=poweroff\n\
         [Service]\n\
         ExecStart={PROGRAM} {}\n\
         StandardInput=null\n\
         # The command's processes are in its cgroup, and what becomes of one of them is not what becomes of it.\n\
         KillMode=process\n\
         OOMPolicy=continue\n\
         TasksMax=infinity\n\
         TimeoutStopSec=infinity\n",
        role::WORD,
    )
}

/// Lines of sysctl.d(5).
fn sysctl(settings: &[(String, String)]) -> String {
    settings.iter().map(|(name, value)| format!("{name} = {value}\n")).collect()
}

/// As the first process would see to it where there is no systemd.
fn network(net: &Net) -> String {
    format!("[Match]\nMACAddress={}\n[Network]\nDHCP=ipv4\n[DHCPv4]\nUseMTU=yes\n", net.mac)
}

fn start_holder(port: OwnedFd) -> io::Result<Child> {
    let mut command = Command::new(PROGRAM);
    command.arg(HOLD_WORD).env_clear().current_dir("/").process_group(0);
    let holder = command.stdin(port).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    fs::write(HOLDER, holder.id().to_string())?;
    Ok(holder)
}

/// The role of the holder: it is there until it is killed.
pub(crate) fn hold() -> ! {
    loop {
        thread::park();
    }
}

/// The port out of the holder's hands. `None` where it has none: the port is then to be opened anew. `device` is the port's.
pub(super) fn take_port(device: &Path) -> Option<OwnedFd> {
    let pid: i32 = fs::read_to_string(HOLDER).ok()?.parse().ok()?;
    let holder = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let port = pidfd_getfd(&holder, HELD, PidfdGetfdFlags::empty()).ok()?;
    // The number may be another process's by now.
    let is = rustix::fs::fstat(&port).ok()?.st_rdev;
    if is != rustix::fs::stat(device).ok()?.st_rdev {
        return None;
    }
    let _ = pidfd_send_signal(&holder, Signal::KILL);
    Some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_the_unit_starts_with_is_below_run_and_for_root_alone() {
        let root = tempfile::tempdir().unwrap();
        let mut job = crate::job::tests::job(&["true"]);
        job.sysctl =
            vec![("vm.swappiness".into(), "1".into()), ("kernel.core_pattern".into(), "core %p".into())];
        job.nets = vec![Net { name: "net0".into(), mac: "52:54:00:12:34:56".into() }];
        leave(root.path(), &job).unwrap();
        let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode("run/vmprof"), mode("run/vmprof/init"), mode("run/vmprof/job.json")),
            (0o700, 0o700, 0o600)
        );
        assert_eq!(crate::job::read(&root.path().join("run/vmprof/job.json")).unwrap(), job);
        let units = root.path().join("run/systemd/system");
        let unit = fs::read_to_string(units.join("sysinit.target.wants/vmprof.service")).unwrap();
        assert!(unit.contains("\nExecStart=/run/vmprof/init under-systemd\n"), "{unit}");
        assert!(unit.lines().all(|line| line.starts_with(['[', '#']) || line.contains('=')), "{unit}");
        assert_eq!(fs::read_link(units.join("serial-getty@ttyS0.service")).unwrap(), Path::new("/dev/null"));
        let network =
            fs::read_to_string(root.path().join("run/systemd/network/zz-vmprof-net0.network")).unwrap();
        assert!(
            network.starts_with("[Match]\nMACAddress=52:54:00:12:34:56\n[Network]\nDHCP=ipv4\n"),
            "{network}"
        );
        let settings = fs::read_to_string(root.path().join("run/sysctl.d/zz-vmprof.conf")).unwrap();
        assert_eq!(settings, "vm.swappiness = 1\nkernel.core_pattern = core %p\n");
    }
}
