//! What the outside tells a guest's first process, and what that process answers.
//!
//! The job travels as one file, [`JOB_PATH`], in a small cpio archive appended to the initramfs, so the initramfs in the
//! store stays what it is. Everything after that travels over virtio-serial ports: CMD's three streams each on a port of
//! their own, and one control port on which both sides write one JSON message a line. The lab's emulated host runs the
//! same first process under the same protocol: there the command is vmprof itself.

pub mod agent;
mod service;

use serde::{Deserialize, Serialize};

pub use service::{
    Directory, Filesystem, Mount, Mounted, Ready, Restart, RestartWhen, Service, ServiceKind, ServiceState,
    Step, Stop,
};

/// Where the job lies in the initramfs.
pub const JOB_PATH: &str = "vmprof/job.json";
/// The `schema` of a job this crate writes and reads.
pub const JOB_SCHEMA: &str = "vmprof.job/3";

/// Names of the virtio-serial ports, as /sys/class/virtio-ports/*/name shows them.
pub mod port {
    /// Control: [`ToGuest`](crate::ToGuest) in, [`FromGuest`](crate::FromGuest) out, one JSON message a line.
    pub const CONTROL: &str = "vmprof.control";
    /// The command's standard input. End of input is the message [`ToGuest::InputEnded`](crate::ToGuest::InputEnded).
    pub const STDIN: &str = "vmprof.stdin";
    /// The command's standard output.
    pub const STDOUT: &str = "vmprof.stdout";
    /// The command's standard error.
    pub const STDERR: &str = "vmprof.stderr";
}

/// One boot of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub schema: String,
    pub hostname: String,
    /// Bring CPUs online that the kernel's command line (`maxcpus=`) left out. The emulated host boots with one: kvm patches
    /// its own code while it loads, which interrupts every CPU that is online hundreds of times.
    #[serde(default)]
    pub online_cpus: bool,
    pub root: Root,
    pub disks: Vec<Disk>,
    /// Symbolic links made before the command starts, each to the device of the disk with that serial.
    pub links: Vec<DeviceLink>,
    /// Network devices, each of which gets its address by DHCP. With [`Init::Systemd`] systemd's own network service is told.
    #[serde(default)]
    pub nets: Vec<Net>,
    /// Kernel settings, written below /proc/sys before anything starts: `vm.swappiness`, `1`.
    pub sysctl: Vec<(String, String)>,
    /// Made in this order, after the disks.
    pub mounts: Vec<Mount>,
    pub init: Init,
    /// Started before the command; with [`Init::Systemd`] none.
    pub services: Vec<Service>,
    /// From the beginning of a clean stop to SIGKILL for everything that is left.
    pub stop_within_ms: u64,
    /// The whole environment of what is run beside the guest's services, the command as well as others (`exec`), and not an addition
    /// to one. Empty is root's own.
    pub env: Vec<(Bytes, Bytes)>,
    /// Where they start.
    pub directory: String,
    /// Where CMD or what the recipe names runs once every service is ready. `None` serves until it is stopped.
    pub command: Option<Command>,
}

/// Who is process 1 once the root is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// vmprof's own first process.
    Vmprof,
    /// The distribution's systemd; vmprof's first process goes on as one of its services.
    Systemd,
}

/// Where `/` is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Root {
    /// A filesystem on the disk with this serial.
    Disk {
        serial: String,
        filesystem: String,
        /// Mounted as it is. Otherwise it is read-only, under an overlay in memory.
        writable: bool,
    },
    /// The initramfs itself: the lab's emulated host.
    Initramfs,
}

/// A disk the guest must find, and how it shall use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The plan's name of the disk.
    pub name: String,
    /// What the device answers to GET_ID, at most 20 bytes (virtio 1.3, 5.2.6).
    pub serial: String,
    /// Word for /sys/block/DEVICE/queue/scheduler; `None` leaves the kernel's choice.
    pub scheduler: Option<String>,
    /// Made on the disk where that is empty; `None` leaves it as it is.
    pub format: Option<Filesystem>,
}

/// A network device the guest finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Net {
    /// The plan's name of it: `net0`.
    pub name: String,
    /// Its hardware address, as /sys/class/net/*/address has it.
    pub mac: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLink {
    pub path: String,
    pub serial: String,
}

/// The process whose end ends the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub argv: Vec<Bytes>,
    pub streams: Streams,
}

/// Where the command's standard streams lead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Streams {
    /// The three stream ports.
    Ports,
    /// The serial console, as the command's controlling terminal.
    Console { rows: u16, columns: u16, term: String },
}

/// A string the kernel would take: any bytes. Text where it is UTF-8, else a list of numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bytes {
    Text(String),
    Raw(Vec<u8>),
}

impl Bytes {
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Bytes::Text(text) => text.as_bytes(),
            Bytes::Raw(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Bytes::Text(text.to_owned()),
            Err(_) => Bytes::Raw(bytes.to_owned()),
        }
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Bytes::Text(text.to_owned())
    }
}

/// Outside to guest, one a line on the control port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToGuest {
    /// Everything for the stdin port has been written: after `bytes` of it the command sees the end of its input.
    InputEnded { bytes: u64 },
    /// Send this signal to the command's process group. Before the command has started, one that would end it (HUP, INT,
    /// QUIT, KILL, TERM) stops the guest instead, answered with [`FromGuest::Ended`] and that signal.
    Signal { number: i32 },
    /// Clean stop, all of it within `grace_ms` or the job's `stop_within_ms`, whichever is less: SIGTERM to the command,
    /// which has half of the time where there are services; then the services in order; SIGKILL to what is left, power off.
    /// Without services SIGTERM goes to everything at once. Answered with [`FromGuest::Ended`] if the command ran, else
    /// with [`FromGuest::Stopped`]. The power button means the same, with the job's time.
    Stop { grace_ms: u64 },
    /// Run a helper beside the command, its streams captured, and answer with [`FromGuest::Ran`]. Still running when the
    /// command ends, it ends with it, unanswered.
    Run { id: u64, argv: Vec<Bytes> },
    /// Which block schedulers do your disks have now? Answered with [`FromGuest::Schedulers`] of the same number.
    Schedulers { id: u64 },
    /// Are you there? Answered with [`FromGuest::Pong`] from [`FromGuest::Hello`] on, once the disks and mounts are there.
    Ping,
    /// The answer to [`FromGuest::Ended`], [`FromGuest::Stopped`] and [`FromGuest::Failed`]: everything has arrived, the counted bytes of the
    /// streams included, so the guest may power off. What still lies in a port's queue is lost with the machine, so the
    /// guest waits for this, though not for longer than [`LINGER_MS`]: a reader of the output may be slow (a pager), and
    /// an outside that died has taken the machine with it.
    Received,
}

/// How long the guest waits for [`ToGuest::Received`] before it powers off without it.
pub const LINGER_MS: u64 = 3_600_000;
/// How much of each stream of a [`ToGuest::Run`] is kept. A helper that writes more finds its pipe closed (SIGPIPE).
pub const CAPTURE_LIMIT: usize = 4 << 20;

/// Guest to outside, one a line on the control port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromGuest {
    /// The first process runs and has found its ports.
    Hello { kernel: String, uptime_ms: u64 },
    /// A service is at something new.
    Service { name: String, state: ServiceState },
    /// Something the user should know of; the boot goes on.
    Notice { message: String },
    /// Root, disks, mounts and services are as the job asks; the command starts now, or the guest serves.
    Ready { uptime_ms: u64 },
    /// The boot could not be finished, or a service without which the guest serves nothing failed for good: what was asked,
    /// what was found; of a service its last lines.
    Failed { message: String },
    /// The command ended. `stdout` and `stderr` count the bytes it wrote to the ports: the outside has all of them only
    /// when it has received that many. Services stop after this is sent, and power off waits for them.
    Ended { status: Ended, stdout: u64, stderr: u64 },
    /// All services have ended, the command never ran: the guest was asked to stop, or nothing was left that serves. The
    /// names of those that had to be killed.
    /// Answered like [`FromGuest::Ended`].
    Stopped { killed: Vec<String> },
    /// The answer to [`ToGuest::Ping`].
    Pong,
    /// The answer to [`ToGuest::Schedulers`]: every disk that has a serial.
    Schedulers { id: u64, disks: Vec<DiskScheduler> },
    /// The answer to [`ToGuest::Run`].
    Ran { id: u64, status: Ended, stdout: Bytes, stderr: Bytes },
}

/// What a disk of the guest's has in /sys/block/DEVICE/queue/scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskScheduler {
    pub serial: String,
    /// The one in force; `None` where the kernel names none.
    pub scheduler: Option<String>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    Exited(i32),
    Signaled(i32),
    /// It could not be started: 127 where there is no such program, 126 where it may not be run (as a shell has it).
    NotStarted {
        status: i32,
        errno: i32,
    },
}

impl Ended {
    /// What a shell would give for it: the code, or 128 plus the signal.
    pub fn shell_status(self) -> u8 {
        match self {
            Ended::Exited(code) => code as u8,
            Ended::Signaled(signal) => (128 + signal) as u8,
            Ended::NotStarted { status, .. } => status as u8,
        }
    }
}

/// One message as a line, newline included.
pub fn line<T: Serialize>(message: &T) -> Vec<u8> {
    // Messages hold no map with keys that are not strings and no failing Serialize, the only ways this can fail.
    let mut bytes = serde_json::to_vec(message).expect("a message is always representable as JSON");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_line_it_travels_in() {
        let messages = [
            FromGuest::Ended { status: Ended::Exited(7), stdout: 4, stderr: 4 },
            FromGuest::Ran {
                id: 3,
                status: Ended::Signaled(9),
                stdout: (&[0xff, 0][..]).into(),
                stderr: "x".into(),
            },
            FromGuest::Failed { message: "no disk with serial `root`\nfound: data".into() },
        ];
        for message in messages {
            let line = line(&message);
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(serde_json::from_slice::<FromGuest>(&line).unwrap(), message);
        }
    }

    #[test]
    fn a_signal_reads_as_a_shell_has_it() {
        assert_eq!(Ended::Signaled(15).shell_status(), 143);
        assert_eq!(Ended::Exited(7).shell_status(), 7);
    }
}
