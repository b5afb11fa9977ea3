//! How a ring comes to be on this kernel, and why it may not.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};

use io_uring::{IoUring, Probe, opcode};

/// Operations that wait to be submitted; the rest waits in a list of ours.
const SUBMISSION_ENTRIES: u32 = 256;
/// Completions that wait to be taken. The kernel keeps more than these for us (IORING_FEAT_NODROP), at a cost.
const COMPLETION_ENTRIES: u32 = 4_096;

const DISABLED_BY_SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// What a ring is given beyond the usual.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// A thread of the kernel's that takes submissions by looking (SQPOLL): no system call starts an operation.
    pub submission_thread: Option<SubmissionThread>,
    /// Operations are completed by looking at their device (IOPOLL), which each [`enter`](super::Ring::enter) does: nothing
    /// tells of them. Such a ring takes reads and writes of files with direct I/O on devices that have queues for it, and
    /// answers EOPNOTSUPP for others; it takes no watches.
    pub iopoll: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubmissionThread {
    /// The one CPU that it runs on, all of it while there is work.
    pub cpu: u32,
    /// How long it looks in vain before it sleeps, in milliseconds.
    pub idle_ms: u32,
}

/// Why there is no ring. No other engine takes its place: who asked for io_uring gets it or is told.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("this kernel has no io_uring; Linux 5.13 or newer, built with CONFIG_IO_URING, is needed")]
    Absent { source: io::Error },
    #[error(
        "io_uring is switched off here: kernel.io_uring_disabled is {value}; `sysctl kernel.io_uring_disabled=0` allows it"
    )]
    SwitchedOff { value: u8 },
    #[error(
        "io_uring_setup is forbidden to this process, as seccomp filters of containers do; allow io_uring there"
    )]
    Forbidden { source: io::Error },
    #[error("this kernel's io_uring lacks {feature}; Linux 5.13 or newer is needed")]
    TooOld { feature: &'static str },
    #[error("io_uring's submission thread (sqpoll) cannot run on cpu {cpu}")]
    SubmissionThread { cpu: u32, source: io::Error },
    #[error("io_uring could not be set up")]
    Other { source: io::Error },
}

/// How completions reach us; what the kernel is new enough for, seen in the IOThread's statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completions {
    /// SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1): in our own calls, when we ask for them.
    Deferred,
    /// COOP_TASKRUN (Linux 5.19): at our next system call, without an interrupt to this thread.
    Cooperative,
    /// Older kernels, or submission by a thread of the kernel's: this thread is interrupted for them.
    Interrupting,
}

/// Makes the ring with the best the kernel has: each step down is told by the kernel itself with EINVAL.
pub(super) fn ring(options: &Options) -> Result<(IoUring, Completions), SetupError> {
    let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
    // The submission thread does what the first two leave to us.
    let ways = [Completions::Deferred, Completions::Cooperative, Completions::Interrupting];
    let ways = if options.submission_thread.is_some() { &ways[2..] } else { &ways[..] };
    for completions in ways {
        // Linux 6.6 takes entries in order, without an array of their places.
        for in_order in [true, false] {
            match builder(options, *completions, in_order).build(SUBMISSION_ENTRIES) {
                Ok(uring) => return checked(uring).map(|uring| (uring, *completions)),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
                Err(error) => return Err(explain(error, sysctl())),
            }
        }
    }
    match options.submission_thread {
        Some(thread) => Err(SetupError::SubmissionThread { cpu: thread.cpu, source: refused }),
        None => Err(SetupError::Other { source: refused }),
    }
}

fn builder(options: &Options, completions: Completions, in_order: bool) -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_cqsize(COMPLETION_ENTRIES);
    if let Some(thread) = options.submission_thread {
        builder.setup_sqpoll(thread.idle_ms).setup_sqpoll_cpu(thread.cpu);
    }
    if options.iopoll {
        builder.setup_iopoll();
    }
    match completions {
        Completions::Deferred => {
            builder.setup_submit_all().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag()
        }
        Completions::Cooperative => builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag(),
        Completions::Interrupting => &mut builder,
    };
    if in_order {
        builder.setup_no_sqarray();
    }
    builder
}

fn checked(uring: IoUring) -> Result<IoUring, SetupError> {
    let params = uring.params();
    let features = [
        (params.is_feature_nodrop(), "completions that are never dropped"),
        (params.is_feature_ext_arg(), "waiting with a timeout"),
        // The same release brought polls that fire more than once, which have no feature bit.
        (params.is_feature_resource_tagging(), "polls that fire more than once"),
    ];
    if let Some((_, feature)) = features.into_iter().find(|(there, _)| !there) {
        return Err(SetupError::TooOld { feature });
    }
    // A kernel may be new enough and yet lack one: each that is used is asked for.
    let mut probe = Probe::new();
    uring.submitter().register_probe(&mut probe).map_err(|source| SetupError::Other { source })?;
    let operations = [
        (opcode::Read::CODE, "reads"),
        (opcode::Readv::CODE, "reads into several pieces"),
        (opcode::Write::CODE, "writes"),
        (opcode::Writev::CODE, "writes from several pieces"),
        (opcode::Fsync::CODE, "fdatasync"),
        (opcode::Fallocate::CODE, "fallocate"),
        (opcode::PollAdd::CODE, "polls"),
        (opcode::AsyncCancel::CODE, "cancellations"),
    ];
    match operations.into_iter().find(|(code, _)| !probe.is_supported(*code)) {
        Some((_, feature)) => Err(SetupError::TooOld { feature }),
        None => Ok(uring),
    }
}

/// Confines the kernel's own worker threads of this task (`iou-wrk-TID`), which flushes and buffered writes run on, to
/// `cpus`: left alone they run anywhere on the node, the vCPUs' CPUs included. Linux 5.14.
pub(super) fn confine_workers(uring: &IoUring, cpus: &[u32]) -> io::Result<()> {
    const REGISTER_IOWQ_AFF: libc::c_uint = 17;
    let fd: RawFd = uring.as_raw_fd();
    let mask = crate::affinity::mask(cpus);
    let bytes = size_of_val(&mask[..]) as libc::c_uint;
    // SAFETY: the kernel reads `bytes` bytes of `mask`, which is as long; the descriptor is the ring's, open in `uring`.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_register, fd, REGISTER_IOWQ_AFF, mask.as_ptr(), bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The most worker threads that one ring's operations may wait in. Work that may wait is carried out by workers: flushes,
/// operations on remote files, and what a drive has no tag left for. The kernel's own bound, four for a CPU, is soon used up by
/// one drive that hangs; the flushes of all others would then wait for it. Workers come when all others wait, and go when
/// they have nothing to do.
const WORKERS: u32 = 1_024;

/// Linux 5.15; before that, the kernel's bound stays.
pub(super) fn allow_workers(uring: &IoUring) {
    // What the kernel answers is the old bound, and EINVAL where it knows no such request.
    let _ = uring.submitter().register_iowq_max_workers(&mut [WORKERS; 2]);
}

fn sysctl() -> Option<u8> {
    std::fs::read_to_string(DISABLED_BY_SYSCTL).ok()?.trim().parse().ok()
}

/// What the kernel's answer means to whoever can change it.
fn explain(source: io::Error, disabled: Option<u8>) -> SetupError {
    match (source.raw_os_error(), disabled) {
        (Some(libc::ENOSYS), _) => SetupError::Absent { source },
        (Some(libc::EPERM), Some(value @ 1..)) => SetupError::SwitchedOff { value },
        (Some(libc::EPERM | libc::EACCES), _) => SetupError::Forbidden { source },
        _ => SetupError::Other { source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_names_its_reason() {
        let explained = |errno, sysctl| explain(io::Error::from_raw_os_error(errno), sysctl);
        assert!(matches!(explained(libc::ENOSYS, None), SetupError::Absent { .. }));
        assert!(matches!(explained(libc::EPERM, Some(2)), SetupError::SwitchedOff { value: 2 }));
        assert!(matches!(explained(libc::EPERM, Some(0)), SetupError::Forbidden { .. }));
        assert!(matches!(explained(libc::EPERM, None), SetupError::Forbidden { .. }));
        assert!(matches!(explained(libc::ENOMEM, Some(0)), SetupError::Other { .. }));
    }
}
