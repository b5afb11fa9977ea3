//! Sparse lines for the kernel log. Silent until [`open`] was called, so that nothing but PID 1 ever writes there.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

static LOG: OnceLock<File> = OnceLock::new();

/// Call once /dev and /proc are mounted. Without a kernel log there is nowhere to say so: the lines are then dropped.
pub(crate) fn open() {
    // The kernel drops lines written faster than its limit for user space; ours are few and explain failures.
    let _ = fs::write("/proc/sys/kernel/printk_devkmsg", "on");
    if let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg") {
        let _ = LOG.set(file);
    }
}

/// For the record: level 6, not shown on a console booted with `quiet`.
pub(crate) fn note(text: impl Display) {
    write(6, text);
}

/// Something is wrong: level 3, shown on a quiet console too. Before there is a kernel log, straight to the console.
pub(crate) fn error(text: impl Display) {
    if LOG.get().is_none() {
        // Not eprintln, which panics where the console fails.
        let _ = writeln!(std::io::stderr(), "vmprof-init: {text}");
    }
    write(3, text);
}

fn write(level: u8, text: impl Display) {
    if let Some(mut log) = LOG.get() {
        // One write is one record.
        let _ = log.write_all(format!("<{level}>vmprof-init: {text}\n").as_bytes());
    }
}
