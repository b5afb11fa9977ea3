//! Processor state at the first instruction. The boot processor starts as PVH asks: 32-bit protected mode, no paging, flat
//! segments, EBX at start_info. The others wait for their start-up interrupt as KVM makes them.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};
use vmprof_sys::memory::GuestRam;

use crate::layout;

const CR0_PE: u64 = 1;
/// The bit of EFLAGS that is always set.
const EFLAGS_RESERVED: u64 = 1 << 1;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEFAULT: u32 = 0x2ff;
/// MTRRs on, and memory write-back where none of them says otherwise.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Offsets into the local APIC's page, and what a PC's firmware leaves there.
const APIC_LVT_LINT0: usize = 0x350;
const APIC_LVT_LINT1: usize = 0x360;
const APIC_MODE_EXTINT: u32 = 7 << 8;
const APIC_MODE_NMI: u32 = 4 << 8;

#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("KVM did not take the processor's {what}")]
    Kvm { what: &'static str, source: kvm_ioctls::Error },
    #[error("the descriptor table could not be written into guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A flat segment of 4 GiB.
#[derive(Debug, Clone, Copy)]
struct Flat {
    selector: u16,
    kind: u8,
}

/// Execute and read, accessed; read and write, accessed.
const CODE: Flat = Flat { selector: 0x10, kind: 0xb };
const DATA: Flat = Flat { selector: 0x18, kind: 0x3 };

impl Flat {
    fn segment(self) -> kvm_segment {
        kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector: self.selector,
            type_: self.kind,
            present: 1,
            dpl: 0,
            db: 1,
            s: 1,
            l: 0,
            g: 1,
            avl: 0,
            unusable: 0,
            padding: 0,
        }
    }

    /// The same as an entry of the descriptor table, for a guest that loads the selector again.
    fn descriptor(self) -> u64 {
        let access = 0x90 | u64::from(self.kind);
        // Limit 0xfffff pages, 32-bit, base 0.
        0x00cf_0000_0000_ffff | access << 40
    }
}

/// What every vCPU needs whatever it boots: MSRs as firmware leaves them, and the local APIC's two lines.
pub fn firmware_state(vcpu: &VcpuFd) -> Result<(), RegisterError> {
    let refused = |what| move |source| RegisterError::Kvm { what, source };
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MSR_MTRR_DEFAULT, MTRR_WRITE_BACK)];
    let msrs = Msrs::from_entries(&entries)
        .map_err(|_| RegisterError::Kvm { what: "MSRs", source: kvm_ioctls::Error::new(E2BIG) })?;
    let taken = vcpu.set_msrs(&msrs).map_err(refused("MSRs"))?;
    if taken != entries.len() {
        return Err(RegisterError::Kvm { what: "MSRs", source: kvm_ioctls::Error::new(EINVAL) });
    }
    let mut apic = vcpu.get_lapic().map_err(refused("local APIC"))?;
    for (register, mode) in [(APIC_LVT_LINT0, APIC_MODE_EXTINT), (APIC_LVT_LINT1, APIC_MODE_NMI)] {
        for (byte, value) in apic.regs[register..register + 4].iter_mut().zip(mode.to_le_bytes()) {
            *byte = value as _;
        }
    }
    vcpu.set_lapic(&apic).map_err(refused("local APIC"))
}

const EINVAL: i32 = 22;
pub(crate) const E2BIG: i32 = 7;

/// The boot processor at PVH's `entry`.
pub fn pvh_entry(vcpu: &VcpuFd, ram: &GuestRam, entry: u64) -> Result<(), RegisterError> {
    let refused = |what| move |source| RegisterError::Kvm { what, source };
    for (index, descriptor) in [0, 0, CODE.descriptor(), DATA.descriptor()].into_iter().enumerate() {
        ram.write_obj(u64::to_le(descriptor), GuestAddress(layout::GDT + 8 * index as u64))?;
    }
    let mut sregs = vcpu.get_sregs().map_err(refused("system registers"))?;
    (sregs.gdt.base, sregs.gdt.limit) = (layout::GDT, 4 * 8 - 1);
    sregs.cs = CODE.segment();
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = DATA.segment();
    }
    // A busy 32-bit task state segment of the smallest size.
    sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, s: 0, g: 0, db: 0, selector: 0, ..DATA.segment() };
    sregs.cr0 = CR0_PE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs).map_err(refused("system registers"))?;
    let regs =
        kvm_regs { rip: entry, rbx: layout::START_INFO, rflags: EFLAGS_RESERVED, ..Default::default() };
    vcpu.set_regs(&regs).map_err(refused("registers"))
}

/// The first instruction of a bare-metal guest.
#[cfg(test)]
pub(crate) const BARE_METAL: u64 = 0x1000;

/// The boot processor in 16-bit real mode at `code`, which is put at [`BARE_METAL`].
#[cfg(test)]
pub(crate) fn real_mode(vcpu: &VcpuFd, ram: &GuestRam, code: &[u8]) -> Result<(), RegisterError> {
    let refused = |what| move |source| RegisterError::Kvm { what, source };
    ram.write_slice(code, GuestAddress(BARE_METAL))?;
    let mut sregs = vcpu.get_sregs().map_err(refused("system registers"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).map_err(refused("system registers"))?;
    let regs = kvm_regs { rip: BARE_METAL, rsp: 0x8000, rflags: EFLAGS_RESERVED, ..Default::default() };
    vcpu.set_regs(&regs).map_err(refused("registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_flat_and_of_their_kind() {
        assert_eq!(CODE.descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(DATA.descriptor(), 0x00cf_9300_0000_ffff);
    }
}
