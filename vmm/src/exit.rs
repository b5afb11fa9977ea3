//! How a run ended.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::pci::FunctionError;
use crate::power::GuestEnd;

/// The end of a machine.
#[derive(Debug)]
pub enum Exit {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset: it rebooted.
    Reset,
    /// The guest's kernel panicked and said so (pvpanic).
    Panicked,
    /// The guest's processor could not go on, which is how a PC resets by accident.
    TripleFault { vcpu: u32, registers: Registers },
    /// The outside stopped it.
    Killed,
    /// The machine could not go on.
    Failed(VmmError),
}

impl From<GuestEnd> for Exit {
    fn from(end: GuestEnd) -> Exit {
        match end {
            GuestEnd::PowerOff => Exit::PowerOff,
            GuestEnd::Reset => Exit::Reset,
            GuestEnd::Panicked => Exit::Panicked,
        }
    }
}

/// Why a machine could not go on: always the host's or our fault, never a guest's doing alone.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error("vCPU {vcpu}: KVM could not go on ({}) at {registers}", suberror_text(*.suberror, .data))]
    InternalError { vcpu: u32, suberror: u32, data: Vec<u64>, registers: Registers },
    #[error(
        "vCPU {vcpu}: the processor refused the guest's state (reason {reason:#x}, host cpu {cpu}) at {registers}"
    )]
    EntryFailed { vcpu: u32, reason: u64, cpu: u32, registers: Registers },
    #[error("vCPU {vcpu}: KVM_RUN failed at {registers}")]
    Run { vcpu: u32, registers: Registers, source: kvm_ioctls::Error },
    #[error("vCPU {vcpu}: an exit that this machine does not expect ({exit}) at {registers}")]
    Unexpected { vcpu: u32, exit: String, registers: Registers },
    #[error("vCPU {vcpu} stopped")]
    Device { vcpu: u32, source: FunctionError },
    #[error("thread `{thread}` broke down: {panic}")]
    Broken { thread: String, panic: String },
}

impl VmmError {
    /// A thread of ours broke down: the first to notice knows only that.
    pub(crate) fn is_breakdown(&self) -> bool {
        matches!(self, VmmError::Broken { .. })
    }
}

/// The registers that matter when a guest cannot go on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registers {
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub cs: u16,
}

impl Registers {
    pub fn new(regs: &kvm_regs, sregs: &kvm_sregs) -> Registers {
        Registers {
            rip: regs.rip,
            rsp: regs.rsp,
            rflags: regs.rflags,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            cs: sregs.cs.selector,
        }
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registers { rip, rsp, rflags, cr0, cr2, cr3, cr4, efer, cs } = self;
        write!(
            out,
            "rip={cs:#x}:{rip:#x} rsp={rsp:#x} rflags={rflags:#x} cr0={cr0:#x} cr2={cr2:#x} cr3={cr3:#x} cr4={cr4:#x} \
             efer={efer:#x}"
        )
    }
}

fn suberror_text(suberror: u32, data: &[u64]) -> String {
    let what = match suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "it met an instruction that it cannot emulate",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
        kvm_bindings::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit that it does not know",
        _ => "an internal error",
    };
    format!("{what}, suberror {suberror}, data {data:x?}")
}
