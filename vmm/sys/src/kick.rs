//! Getting a vCPU thread out of KVM_RUN: a signal whose handler also sets `immediate_exit`, so that a kick between the
//! thread's last look at its orders and its entry into the guest is not lost.

// UNSAFETY: a signal handler, and the one field of `kvm_run` that it writes, are beyond safe code.
#![allow(unsafe_code, reason = "sigaction, tgkill, and a write to kvm_run from the signal handler")]

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::OnceLock;

use kvm_bindings::kvm_run;

thread_local! {
    /// This thread's vCPU, while it has one. Const-initialised and without a destructor, so that the handler may touch it.
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// The calling thread drives the vCPU whose `kvm_run` this is, until the guard drops.
#[derive(Debug)]
pub(crate) struct Kickable(());

impl Kickable {
    /// # Safety
    /// `run` stays mapped until the guard has been dropped, and the guard stays on the calling thread.
    pub(crate) unsafe fn enter(run: *mut kvm_run) -> io::Result<Kickable> {
        install_handler()?;
        RUN.set(run);
        Ok(Kickable(()))
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
    }
}

/// Makes the thread `tid` of this process leave KVM_RUN, or not enter it: its next [`crate::kvm::Driven::run`] reports
/// [`crate::kvm::Exit::Kicked`]. A thread that drives no vCPU only sees an interrupted system call.
pub fn kick(tid: i32) -> io::Result<()> {
    // A thread that is kicked before it first drives its vCPU must not die of the signal.
    install_handler()?;
    let process = std::process::id();
    // SAFETY: tgkill takes three integers; a thread that has ended is ESRCH.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, process, tid, libc::SIGRTMIN()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_kick(_signal: libc::c_int) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: `Kickable` keeps the pointer valid while it is set, and the handler runs on the thread that set it.
        let immediate_exit = unsafe { &raw mut (*run).immediate_exit };
        // SAFETY: as above; the field is one byte that the kernel reads, and whoever else writes it is this very thread,
        // which is in this handler.
        unsafe { immediate_exit.write_volatile(1) };
    }
}

fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let outcome = INSTALLED.get_or_init(|| {
        // SAFETY: all bytes zero is a valid sigaction: no flags, an empty mask, the default handler.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // No SA_RESTART: KVM_RUN shall come back with EINTR.
        action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as usize;
        // SAFETY: `action` is initialised, and `on_kick` does nothing but read a thread-local and write a byte, both of which
        // are safe to do between any two instructions.
        let result = unsafe { libc::sigaction(libc::SIGRTMIN(), &action, ptr::null_mut()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) }
    });
    outcome.map_err(io::Error::from_raw_os_error)
}
