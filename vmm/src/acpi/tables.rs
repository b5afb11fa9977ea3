//! The tables that are plain structures.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;

use super::{OEM, OEM_REVISION, OEM_TABLE, bytes};
use crate::layout::{self, port};
use crate::power;

/// ACPI 6.5, 5.2.9.3: no VGA, no MSI restriction, no CMOS clock; and, by the bits that are absent, no legacy devices and no
/// keyboard controller to probe for.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// The fixed description table of a machine with reduced hardware, whose DSDT lies at `dsdt`.
pub(super) fn fadt(dsdt: u64) -> Vec<u8> {
    let register = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = register(port::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = register(port::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(port::SLEEP_STATUS);
    bytes(&fadt.finalize())
}

/// The interrupt controllers: a local APIC for each vCPU, whose id is the vCPU's, and the I/O APIC.
pub(super) fn madt(vcpus: u32) -> Vec<u8> {
    let controllers = LocalInterruptController::Address(layout::LOCAL_APIC);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, controllers);
    for id in 0..vcpus as u8 {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus as u8, layout::IO_APIC, 0));
    bytes(&madt)
}

/// Where PCI configuration space is mapped: bus 0 alone.
pub(super) fn mcfg() -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.start, 0, 0, 0);
    bytes(&mcfg)
}
