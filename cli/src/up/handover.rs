//! `vmprof up` plans, builds and takes what a run needs, and then goes on as a program that does nothing but run it: this
//! same binary, begun anew in this same process. What one leaves to the other is here. Planning has touched most of a binary
//! of many megabytes and its own share of heap; none of that is the machine's (docs/decisions/0018).

use std::convert::Infallible;
use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGUSR2;
use vmprof_sys::{inherited, signals};
use vmprof_vmm::config::VmConfig;

use super::lease::Lease;
use super::nets::Carrier;
use super::{Patience, Telling};
use crate::run::artifacts::Artifacts;
use crate::run::detached::Passed;
use crate::run::reboots::Policy;
use crate::run::record::Keeper;
use crate::verify::PlannedThread;

/// Names the file with the handover by its number, in the environment: the arguments stay what the user wrote.
const VARIABLE: &str = "VMPROF_HANDOVER";

/// How Rust is told what stack a thread has that says nothing itself. The usual 2 MiB may be one huge page, which the kernel
/// then fills at the first touch: seen as 2 MiB of a machine's memory for one of its threads.
const STACK_VARIABLE: &str = "RUST_MIN_STACK";
const STACK_BYTES: usize = 512 << 10;

/// How glibc is told that all threads share one arena. Each would have its own otherwise, hundreds of KiB for a machine whose
/// threads hardly allocate once they run.
const ALLOCATOR_VARIABLE: &str = "GLIBC_TUNABLES";
const ONE_ARENA: &str = "glibc.malloc.arena_max=1";

/// What a machine is run by.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handover {
    pub telling: Telling,
    pub with_command: bool,
    pub timeout: Option<Duration>,
    pub patience: Patience,
    pub config: VmConfig,
    /// The plan in force, as JSON: whoever asks for it gets it as it is.
    pub plan: String,
    /// What `verify` reads back.
    pub threads: Vec<PlannedThread>,
    pub keeper: Keeper,
    /// Where the record is.
    pub record: PathBuf,
    /// Where the run is on its own.
    pub detached: Option<Passed>,
    pub artifacts: Artifacts,
    /// In the order in which they end.
    pub leases: Vec<Lease>,
    /// Of the network devices that are no tap, in the plan's order.
    pub carriers: Vec<Carrier>,
    /// After what the guest is started anew.
    pub reboots: Policy,
    /// The job as an archive that follows the initramfs; it travels behind all this.
    #[serde(skip)]
    pub job: Vec<u8>,
}

impl Handover {
    /// Goes on as the machine's program, and returns only where that cannot be.
    pub fn go_on(&self) -> io::Result<Infallible> {
        let file = rustix::fs::memfd_create("vmprof handover", MemfdFlags::CLOEXEC)?;
        let mut file = File::from(file);
        file.write_all(&self.to_bytes()?)?;
        file.rewind()?;
        let number = inherited::leave_open(file.as_fd())?;
        // From here to its handler, the vmprof outside may tell that a reader is gone.
        signals::ignore(SIGUSR2)?;
        let mut arguments = env::args_os();
        let mut command = Command::new("/proc/self/exe");
        command.arg0(arguments.next().unwrap_or_default()).args(arguments).env(VARIABLE, number.to_string());
        for (variable, value) in
            [(STACK_VARIABLE, &*STACK_BYTES.to_string()), (ALLOCATOR_VARIABLE, ONE_ARENA)]
        {
            if env::var_os(variable).is_none() {
                command.env(variable, value);
            }
        }
        Err(command.exec())
    }

    fn to_bytes(&self) -> io::Result<Vec<u8>> {
        // One line: in JSON's strings a line's end is escaped.
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.job);
        Ok(bytes)
    }

    /// Reads what was left; to be called before anything else is opened.
    pub fn take(file: OwnedFd) -> io::Result<Handover> {
        let mut bytes = Vec::new();
        File::from(file).read_to_end(&mut bytes)?;
        Handover::from_bytes(&bytes)
    }

    fn from_bytes(bytes: &[u8]) -> io::Result<Handover> {
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let (text, job) = bytes.split_at(end);
        let handover: Handover = serde_json::from_slice(text)?;
        Ok(Handover { job: job.get(1..).unwrap_or_default().to_vec(), ..handover })
    }
}

/// The file that a vmprof which planned has left for this one, where it has.
pub fn left_behind() -> Option<io::Result<OwnedFd>> {
    env::var_os(VARIABLE).map(|number| open(&number))
}

fn open(number: &OsStr) -> io::Result<OwnedFd> {
    let number = number.to_str().and_then(|number| number.parse().ok());
    inherited::take(number.ok_or(io::ErrorKind::InvalidInput)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vmprof_vmm::config;

    use super::*;
    use crate::run::record::Run;
    use crate::run::verdict::Ran;

    fn handover(job: &[u8]) -> Handover {
        let telling = Telling {
            name: "db".into(),
            ran: Ran::Inside { with_command: true },
            serves: true,
            console: false,
            stop_within: Duration::from_millis(1500),
            is_inside: true,
            relay: Some("/tmp/relay".into()),
            events: Some("/tmp/events".into()),
        };
        let config = VmConfig {
            name: "db".into(),
            boot: config::Boot { kernel: "k".into(), initramfs: "i".into(), cmdline: "quiet\n".into() },
            memory: config::Memory {
                bytes: 1 << 30,
                nodes: vec![1],
                mode: config::MemoryMode::Interleave,
                hugepage_bytes: None,
            },
            vcpus: vec![config::Vcpu { id: 0, cpus: vec![2, 3] }],
            threads_per_core: 2,
            emulator_cpus: vec![0],
            iothreads: vec![config::IoThread::named(0, "iothread0")],
            disks: vec![],
            nets: vec![],
        };
        Handover {
            telling,
            with_command: true,
            timeout: Some(Duration::from_secs(90)),
            patience: Patience::without_guest(),
            config,
            plan: "{\n  \"schema\": \"vmprof.plan/1\"\n}\n".into(),
            threads: vec![PlannedThread { name: "CPU 0/KVM".into(), cpus: "2-3".into() }],
            keeper: Keeper::new(
                "/run/db".into(),
                Run::new("db", Path::new("p.kdl"), "kvm", String::new(), vec![]),
            ),
            record: "/run/db".into(),
            detached: None,
            artifacts: Artifacts::default(),
            leases: vec![],
            carriers: vec![Carrier::Outside { device: "net0".into() }],
            reboots: Policy::of(false, Some("panic=10")),
            job: job.to_vec(),
        }
    }

    #[test]
    fn everything_that_is_left_is_found_again_the_jobs_bytes_as_they_are() {
        for job in [&b"070701\n\0{}\n\xff"[..], b"", b"\n"] {
            let (left, found) =
                (handover(job), Handover::from_bytes(&handover(job).to_bytes().unwrap()).unwrap());
            assert_eq!(format!("{found:?}"), format!("{left:?}"));
        }
    }

    #[test]
    fn a_number_that_nobody_left_is_an_error() {
        for number in ["", "x", "1", "1048576"] {
            open(OsStr::new(number)).unwrap_err();
        }
        assert!(Handover::from_bytes(b"{}\n").is_err());
    }
}
