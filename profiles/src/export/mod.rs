//! A plan in the words of other tools: QEMU's command line and libvirt's domain XML. Whatever the other tool cannot be told
//! is a warning that says what to do beside it; nothing of a plan is left out without a word.
//!
//! The functions here only write text. They look at no file: what lies where is told to them.

mod bus;
mod element;
mod libvirt;
mod object;
mod qemu;
mod remarks;
pub(crate) mod shell;

use std::path::{Path, PathBuf};

pub use libvirt::libvirt;
pub use qemu::qemu;

use crate::plan::{Diagnostic, DiskPlan, Plan};
use crate::profile::DiskSource;
use crate::topology::CpuSet;

/// The serial of the disk that holds the guest's root; no disk of a profile can have it.
const ROOT_SERIAL: &str = "vmprof-root";

/// What an export needs to know besides the plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootFiles {
    /// The guest's kernel, once it is built.
    pub kernel: Option<PathBuf>,
    /// Its initramfs, once it is built.
    pub initramfs: Option<PathBuf>,
    /// Its root image, once it is built and where it has one.
    pub root: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
    /// Where a relative `source file=` lies; `None` where that is not known, as on a captured host.
    pub disks_dir: Option<PathBuf>,
}

/// A plan in another tool's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The command or the document, with a newline at its end.
    pub text: String,
    /// What the other tool could not be told, and what to do about it.
    pub warnings: Vec<Diagnostic>,
}

/// The boot files as text: JSON and XML carry nothing else.
#[derive(Debug, Clone, Copy)]
struct Boot<'a> {
    kernel: &'a str,
    initramfs: Option<&'a str>,
    root: Option<&'a str>,
    cmdline: Option<&'a str>,
}

impl BootFiles {
    /// What to boot, when a kernel is built and every path is text.
    fn boot(&self) -> Option<Boot<'_>> {
        let text = |path: &'_ Option<PathBuf>| path.as_deref().is_none_or(|path| path.to_str().is_some());
        if ![&self.kernel, &self.initramfs, &self.root].into_iter().all(text) {
            return None;
        }
        Some(Boot {
            kernel: self.kernel.as_deref()?.to_str()?,
            initramfs: self.initramfs.as_deref().and_then(Path::to_str),
            root: self.root.as_deref().and_then(Path::to_str),
            cmdline: self.cmdline.as_deref(),
        })
    }

    /// The path of a disk's bytes; `None` where it is relative to nobody knows what.
    fn path_of(&self, source: &DiskSource) -> Option<String> {
        match source {
            DiskSource::Device { path } => Some(path.clone()),
            DiskSource::File { path, .. } if Path::new(path).is_absolute() => Some(path.clone()),
            DiskSource::File { path, .. } => Some(self.disks_dir.as_deref()?.join(path).to_str()?.to_owned()),
        }
    }
}

/// The IOThreads of a disk, in their order, each with the virtqueues it serves.
fn served(disk: &DiskPlan) -> Vec<(u32, Vec<u32>)> {
    let mut by_thread = std::collections::BTreeMap::<u32, Vec<u32>>::new();
    for virtqueue in &disk.virtqueues {
        by_thread.entry(virtqueue.iothread).or_default().push(virtqueue.vq);
    }
    by_thread.into_iter().collect()
}

/// Whether a thread's CPUs hold it anywhere: a set of all the host's is what every thread has unasked.
fn is_pin(plan: &Plan, cpus: &CpuSet) -> bool {
    cpus.len() < plan.host.cpus
}

/// How the guest's CPUs are put together: one socket, whole cores. A number of vCPUs that does not come out even with the
/// siblings per core is shown without siblings.
fn cores_and_threads(plan: &Plan) -> (usize, usize) {
    let vcpus = plan.vcpus.len();
    let threads = plan.guest.threads_per_core as usize;
    match threads {
        2.. if vcpus.is_multiple_of(threads) => (vcpus / threads, threads),
        _ => (vcpus, 1),
    }
}
