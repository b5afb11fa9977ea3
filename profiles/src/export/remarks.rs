//! What neither target can be told, said once for both: where the disks lie and who makes them, schedulers, filesystems,
//! engines to fall back to, boot files, network devices' IOThreads.

use vmprof_document::format_size;

use super::BootFiles;
use crate::plan::{Diagnostic, DiskPlan, IoThreadPlan, NetPlan, Plan, Severity};
use crate::profile::{Aio, DiskSource};

/// Gathers the warnings of one export.
#[derive(Debug)]
pub(super) struct Remarks {
    /// The other tool's name in sentences.
    pub(super) target: &'static str,
    warnings: Vec<Diagnostic>,
}

impl Remarks {
    pub(super) fn new(target: &'static str) -> Self {
        Remarks { target, warnings: Vec::new() }
    }

    /// Adds one. `code` is its last word.
    pub(super) fn warn(&mut self, code: &str, message: impl Into<String>, help: impl Into<String>) {
        self.warnings.push(Diagnostic {
            severity: Severity::Warning,
            code: format!("vmprof::export::{code}"),
            message: message.into(),
            help: help.into(),
        });
    }

    pub(super) fn finish(self) -> Vec<Diagnostic> {
        self.warnings
    }

    /// The boot files: that they are missing, or that their first process waits for vmprof.
    pub(super) fn boot(&mut self, files: &BootFiles) {
        let target = self.target;
        match files.boot() {
            Some(boot) if boot.initramfs.is_some() => self.warn(
                "first_process",
                "the guest's first process waits for the job that `vmprof up` gives it, and powers off without one",
                format!("this shows the layout to {target}; to run the guest's own command, use `vmprof up`"),
            ),
            Some(_) => {}
            None if files.kernel.is_none() && files.disks_dir.is_none() => self.warn(
                "not_built",
                "what is built here is not on the host of the plan: kernel, initramfs and root are left out",
                "run `vmprof build PROFILE` there and export there, or name a kernel or a bootable disk yourself",
            ),
            None if files.kernel.is_none() => self.warn(
                "not_built",
                "the guest is not built: its kernel, initramfs and root are left out",
                "run `vmprof build PROFILE` and export again, or name a kernel or a bootable disk yourself",
            ),
            None => self.warn(
                "path_not_text",
                "a path of the boot files is not UTF-8: kernel, initramfs and root are left out",
                "move the store to a path that is, and export again",
            ),
        }
    }

    /// What no target gives an IOThread.
    pub(super) fn iothreads(&mut self, plan: &Plan) {
        let wanted = |iothread: &&IoThreadPlan| iothread.registered_memory || iothread.sqpoll.is_some();
        if let Some(iothread) = plan.iothreads.iter().find(wanted) {
            let target = self.target;
            self.warn(
                "ring_settings",
                format!(
                    "{}: {target} has no registered memory and no sqpoll to give its io_uring",
                    iothread.name
                ),
                "run it with `vmprof up`, or `vmprof vhost-user-blk`, where these matter",
            );
        }
    }

    /// How the guest's CPUs are shown, where that differs from the plan.
    pub(super) fn topology(&mut self, plan: &Plan) {
        let threads = plan.guest.threads_per_core;
        if threads < 2 {
            return;
        }
        let target = self.target;
        if !plan.vcpus.len().is_multiple_of(threads as usize) {
            self.warn(
                "odd_siblings",
                format!("{} vCPUs do not make whole cores of {threads} siblings: {target} shows the guest no siblings", plan.vcpus.len()),
                format!("write a multiple of {threads}: `vcpu {}`", plan.vcpus.len().next_multiple_of(threads as usize)),
            );
        }
    }

    /// What is left to do by hand about a disk.
    pub(super) fn disk(&mut self, disk: &DiskPlan, path: &str) {
        let (name, target) = (&disk.name, self.target);
        if let DiskSource::File { bytes: Some(bytes), .. } = disk.source {
            self.warn(
                "file_not_made",
                format!(
                    "disk `{name}`: vmprof makes its file of {} when it is missing; {target} does not",
                    format_size(bytes)
                ),
                format!("make it first: `truncate -s {bytes} {}`", super::shell::quoted(path)),
            );
        }
        if let (DiskSource::Device { path }, None, None) =
            (&disk.source, disk.logical_block_bytes, disk.physical_block_bytes)
        {
            self.warn(
                "block_sizes",
                format!(
                    "disk `{name}`: {target} shows the guest sectors of 512 bytes unless told otherwise, vmprof those of {path}"
                ),
                "where that device has others (`blockdev --getss --getpbsz`), write them in the profile",
            );
        }
        if let Some(fallback) = disk.aio_fallback {
            self.warn(
                "no_fallback",
                format!(
                    "disk `{name}`: {target} has one engine, {}, and does not start where the host lacks it",
                    engine(disk.aio)
                ),
                format!("there, write `aio={}` in the profile and export again", engine(fallback)),
            );
        }
        if disk.iopoll {
            self.warn(
                "no_iopoll",
                format!("disk `{name}`: {target} has no iopoll, and waits for the drive's interrupts"),
                "run it with `vmprof up`, or `vmprof vhost-user-blk --iopoll`, where this matters",
            );
        }
        if let Some(scheduler) = &disk.scheduler.host {
            let device = disk.device.as_deref().unwrap_or("DEVICE");
            self.warn(
                "host_scheduler",
                format!("disk `{name}`: {target} does not look whether the host's scheduler is {scheduler}"),
                format!("`cat /sys/block/{device}/queue/scheduler` shows it in brackets"),
            );
        }
        if let Some(scheduler) = &disk.scheduler.guest {
            self.warn(
                "guest_scheduler",
                format!("disk `{name}`: {target} does not set the guest's scheduler to {scheduler}"),
                format!("in the guest: write {scheduler} to the `queue/scheduler` of the disk whose serial is {name}"),
            );
        }
        if let Some(format) = &disk.format {
            let mount = match &format.mount {
                Some(mount) => format!(" and mount it at {mount}"),
                None => String::new(),
            };
            self.warn(
                "format",
                format!("disk `{name}`: {target} makes no {} on it when it is empty", format.filesystem),
                format!(
                    "in the guest: `mkfs.{}` on the disk whose serial is {name}{mount}",
                    format.filesystem
                ),
            );
        }
    }

    /// What no target does with a network device.
    pub(super) fn net(&mut self, net: &NetPlan) {
        let (name, target) = (&net.name, self.target);
        if !net.virtqueues.is_empty() {
            let mut threads: Vec<u32> = net.virtqueues.iter().map(|v| v.iothread).collect();
            threads.sort_unstable();
            threads.dedup();
            let threads: Vec<String> = threads.iter().map(|id| format!("iothread{id}")).collect();
            self.warn(
                "net_iothread",
                format!(
                    "{name}: {target} runs a network device's virtqueues in the emulator thread, not in {}",
                    threads.join(", ")
                ),
                "give the emulator a CPU of its own, or run it with `vmprof up`",
            );
        }
        if net.mac.is_none() {
            self.warn(
                "mac",
                format!("{name}: vmprof makes the hardware address from the VM's name; {target} has an address of its own choice"),
                format!("write `mac=\"52:54:00:…\"` at {name} in the profile where it matters"),
            );
        }
    }
}

/// The engine's word.
pub(super) fn engine(aio: Aio) -> &'static str {
    match aio {
        Aio::IoUring => "io_uring",
        Aio::Native => "native",
        Aio::Threads => "threads",
    }
}
