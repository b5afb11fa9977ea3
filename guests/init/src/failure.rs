//! Why a boot could not be finished: what was asked and what was found, in one text that leaves through the control port
//! and the console.

use std::error::Error;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("mounting {filesystem} on {} failed", .target.display())]
    Mount { filesystem: String, target: PathBuf, source: io::Error },
    #[error("{doing}")]
    Step { doing: String, source: io::Error },
    #[error("kernel module {} could not be loaded", .path.display())]
    Module { path: PathBuf, source: io::Error },
    #[error("kernel module {} needs a symbol of a module that was not loaded before it", .path.display())]
    ModuleTooEarly { path: PathBuf },
    #[error("no virtio-serial port `{name}` within {waited_ms} ms; found: {}", listed(.found))]
    NoPort { name: &'static str, waited_ms: u128, found: Vec<String> },
    #[error("the virtio-serial port `{name}` could not be opened")]
    Port { name: &'static str, source: io::Error },
    #[error("the job {} could not be read", .path.display())]
    NoJob { path: PathBuf, source: io::Error },
    #[error("the job is of schema `{found}`; this first process reads `{asked}`")]
    JobSchema { asked: &'static str, found: String },
    #[error("the job is not one of schema `{schema}`")]
    Job { schema: &'static str, source: serde_json::Error },
    #[error("the job names no command and no service: there is nothing to run")]
    NoCommand,
    #[error("the job's command has no words")]
    EmptyCommand,
    #[error("the command's directory `{0}` is not in the guest")]
    NoDirectory(String),
    #[error("disk `{name}`: no block device with serial `{serial}` within {waited_ms} ms; found: {}", listed(.found))]
    NoDisk { name: String, serial: String, waited_ms: u128, found: Vec<String> },
    #[error("disk `{name}`: serial `{serial}` belongs to several block devices: {}", listed(.devices))]
    SerialTwice { name: String, serial: String, devices: Vec<String> },
    #[error("disk `{disk}` ({device}): asked for the scheduler `{asked}`, found `{found}`")]
    Scheduler { disk: String, device: String, asked: String, found: String, source: Option<io::Error> },
    #[error("the link {} to {} could not be made", .path.display(), .device.display())]
    Link { path: PathBuf, device: PathBuf, source: io::Error },
    #[error("`{0}` is no name of a kernel setting below /proc/sys, such as `vm.swappiness`")]
    SysctlName(String),
    #[error("sysctl {setting}: asked for `{asked}`, found `{found}`")]
    Sysctl { setting: String, asked: String, found: String, source: Option<io::Error> },
    #[error("no user `{0}` in /etc/passwd")]
    NoUser(String),
    #[error("no group `{0}` in /etc/group")]
    NoGroup(String),
    #[error("user {0} has no line in /etc/passwd: name a group with it, or give it a line")]
    NoGroupOfUser(u32),
    #[error("disk `{disk}` ({}) could not be read", .device.display())]
    DiskUnread { disk: String, device: PathBuf, source: io::Error },
    #[error("disk `{disk}` ({}) could not be written", .device.display())]
    DiskUnwritten { disk: String, device: PathBuf, source: io::Error },
    #[error(
        "disk `{disk}` holds {found}: it is left as it is; give it a disk that is empty (its first and last MiB zeroes), \
         or one with ext4 or xfs"
    )]
    NotEmpty { disk: String, found: String },
    #[error(
        "disk `{disk}` of {bytes} bytes is too small for {filesystem}, which needs {smallest_mib} MiB or more"
    )]
    DiskTooSmall { disk: String, bytes: u64, filesystem: &'static str, smallest_mib: u64 },
    #[error(
        "disk `{disk}` is empty, and no `format` says which filesystem it shall get before it is mounted"
    )]
    NoFilesystem { disk: String },
    #[error("disk `{disk}` needs {program}, which the guest cannot run")]
    NoMkfs { disk: String, program: String, source: io::Error },
    #[error("disk `{disk}`: {program} failed ({status}): {said}")]
    Mkfs { disk: String, program: String, status: String, said: String },
    #[error("disk `{disk}`: e2fsck could not repair the filesystem by itself ({status}): {said}")]
    Fsck { disk: String, status: String, said: String },
    #[error(
        "the root filesystem was repaired while it was mounted, and must be mounted anew: start the guest again"
    )]
    RootRepaired,
    #[error("{} is to be mounted from the disk with serial `{serial}`, which is none of the job's", .path.display())]
    NoSuchMount { path: PathBuf, serial: String },
    #[error("the option `{option}` of the mount on {} holds a comma or a zero byte", .path.display())]
    MountOption { path: PathBuf, option: String },
    #[error("owner and mode of {} could not be set", .path.display())]
    MountOwner { path: PathBuf, source: io::Error },
    #[error("the directory {} could not be made as it is declared", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "`{0}` is no name for a service: letters, digits, and any of - _ . @ + but a dot at the beginning"
    )]
    ServiceName(String),
    #[error("two services have the name `{0}`")]
    ServiceTwice(String),
    #[error("service `{0}` has a step that names no program")]
    ServiceWithoutProgram(String),
    #[error("service `{service}` is after `{after}`, and there is no such service")]
    NoSuchService { service: String, after: String },
    #[error("services that wait for each other: {}", .0.join(", "))]
    ServiceCircle(Vec<String>),
    #[error("service `{service}` is to be stopped with signal {number}, which has no name")]
    ServiceSignal { service: String, number: i32 },
    #[error("service `{service}` failed: {because}{}", last_words(.last))]
    Service { service: String, because: String, last: Vec<String> },
    #[error("systemd did not come up: {because}")]
    Systemd { because: String },
    #[error("the terminal {} could not become the command's own", .terminal.display())]
    Terminal { terminal: PathBuf, source: io::Error },
}

impl Failure {
    pub(crate) fn step(doing: &str) -> impl FnOnce(io::Error) -> Failure {
        let doing = doing.to_owned();
        move |source| Failure::Step { doing, source }
    }

    /// The failure and its causes in one line: the outside gets text, not a chain.
    pub(crate) fn message(&self) -> String {
        let mut message = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        message
    }
}

/// What a service wrote last, below the failure.
pub(crate) fn last_words(lines: &[String]) -> String {
    if lines.is_empty() {
        "; it wrote nothing".to_owned()
    } else {
        format!("; the last it wrote:\n  {}", lines.join("\n  "))
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_ends_with_the_cause() {
        let failure = Failure::Module {
            path: "/modules/overlay.ko".into(),
            source: io::Error::from_raw_os_error(rustix::io::Errno::NOEXEC.raw_os_error()),
        };
        assert_eq!(
            failure.message(),
            "kernel module /modules/overlay.ko could not be loaded: Exec format error (os error 8)"
        );
    }

    #[test]
    fn a_missing_port_names_those_that_are_there() {
        let mut found = Vec::new();
        let missing = |found| Failure::NoPort { name: "vmprof.control", waited_ms: 5, found }.message();
        assert!(missing(found.clone()).ends_with("found: none"));
        found.extend(["vmprof.stdin".to_owned(), "other".to_owned()]);
        assert!(missing(found).ends_with("found: vmprof.stdin, other"));
    }
}
