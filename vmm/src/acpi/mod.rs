//! The ACPI tables: what the guest's kernel learns about its machine. Built once, laid out one after another from
//! [`layout::ACPI`] on, with the RSDP first.

mod dsdt;
mod tables;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};
use vmprof_sys::memory::{GuestRam, Range};

use crate::layout;

const OEM: [u8; 6] = *b"VMPROF";
const OEM_TABLE: [u8; 8] = *b"VMPROF  ";
const OEM_REVISION: u32 = 1;

/// What the tables depend on.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    pub vcpus: u32,
    /// The window for BARs above memory, where there is one.
    pub pci_window_64: Option<Range>,
}

/// The tables as they lie in memory from [`layout::ACPI`] on.
#[derive(Debug)]
pub struct Tables {
    pub bytes: Vec<u8>,
    /// Guest-physical address of the RSDP.
    pub rsdp: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the ACPI tables take {found} bytes, and {} are set aside for them", layout::ACPI.len)]
pub struct TooLarge {
    pub found: usize,
}

pub fn build(machine: &Machine) -> Result<Tables, TooLarge> {
    let mut area = Area { bytes: vec![0; Rsdp::len()] };
    let dsdt = area.add(&dsdt::build(machine));
    let tables = [tables::fadt(dsdt), tables::madt(machine.vcpus), tables::mcfg()];
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for table in &tables {
        xsdt.add_entry(area.add(table));
    }
    let xsdt = area.add(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    if area.bytes.len() as u64 > layout::ACPI.len {
        return Err(TooLarge { found: area.bytes.len() });
    }
    Ok(Tables { bytes: area.bytes, rsdp: layout::ACPI.start })
}

/// Puts the tables where they say they are.
pub fn write(ram: &GuestRam, tables: &Tables) -> Result<(), vm_memory::GuestMemoryError> {
    ram.write_slice(&tables.bytes, GuestAddress(layout::ACPI.start))
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and says where it will be in guest memory.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let at = layout::ACPI.start + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        at
    }
}

#[cfg(test)]
mod tests;
