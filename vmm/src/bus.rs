//! From an exit to the device it means: ports and addresses, and what lies there. What nobody answers reads as all ones and
//! swallows writes, as on a PC.

use std::sync::Arc;

use crate::interrupts::Interrupts;
use crate::layout::{self, port};
use crate::pci::{FunctionError, PciBus};
use crate::power::{GuestEnd, Power};
use crate::serial::Com1;

const COM1_END: u16 = port::COM1 + 7;
const PCI_END: u16 = port::PCI_DATA + 3;
const ECAM_START: u64 = layout::ECAM.start;
const ECAM_END: u64 = layout::ECAM.start + layout::ECAM.len;

#[derive(Debug)]
pub struct Bus {
    pub pci: PciBus,
    pub com1: Com1,
    pub power: Power,
    /// KVM lets go of every irqfd and ioeventfd when the VM's descriptor closes, vCPUs or not: it stays open with the bus.
    pub interrupts: Arc<Interrupts>,
}

impl Bus {
    /// One element of a port write, of one, two or four bytes.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Result<Option<GuestEnd>, FunctionError> {
        match port {
            port::COM1..=COM1_END => {
                for (offset, byte) in lanes(port, data) {
                    if let port::COM1..=COM1_END = offset {
                        self.com1.write((offset - port::COM1) as u8, *byte);
                    }
                }
                Ok(None)
            }
            port::PCI_ADDRESS..=PCI_END => {
                // The reset control register is a single byte inside the address register's four.
                if let [value] = data
                    && let Some(end) = self.power.write(port, *value)
                {
                    return Ok(Some(end));
                }
                self.pci.port_write(usize::from(port - port::PCI_ADDRESS), data)?;
                Ok(None)
            }
            _ => Ok(lanes(port, data).find_map(|(port, value)| self.power.write(port, *value))),
        }
    }

    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        match port {
            port::COM1..=COM1_END => {
                for (index, byte) in data.iter_mut().enumerate() {
                    let offset = usize::from(port - port::COM1) + index;
                    *byte = if offset < 8 { self.com1.read(offset as u8) } else { 0xff };
                }
            }
            port::PCI_ADDRESS..=PCI_END => self.pci.port_read(usize::from(port - port::PCI_ADDRESS), data),
            _ => {
                for (index, byte) in data.iter_mut().enumerate() {
                    *byte = self.power.read(port.wrapping_add(index as u16)).unwrap_or(0xff);
                }
            }
        }
    }

    pub fn mmio_write(&self, address: u64, data: &[u8]) -> Result<(), FunctionError> {
        match address {
            ECAM_START..ECAM_END => self.pci.ecam_write(address - layout::ECAM.start, data),
            _ => self.pci.memory_write(address, data).map(|_| ()),
        }
    }

    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        match address {
            ECAM_START..ECAM_END => self.pci.ecam_read(address - layout::ECAM.start, data),
            _ if self.pci.memory_read(address, data) => {}
            _ => data.fill(0xff),
        }
    }
}

/// The bytes of a wide access to byte-wide registers: each has the next port.
fn lanes(port: u16, data: &[u8]) -> impl Iterator<Item = (u16, &u8)> {
    data.iter().enumerate().map(move |(index, byte)| (port.wrapping_add(index as u16), byte))
}
