//! The PCI bus: a host bridge and up to 248 functions on bus 0, reached through ECAM, through ports 0xcf8 and 0xcfc, and
//! through the BARs that the guest has enabled.

pub mod config;

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use crate::layout;
use config::{ConfigSpace, Identity};

/// A function of the bus. vCPU threads call it, one at a time.
pub trait Function: Send + std::fmt::Debug {
    fn config_read(&mut self, offset: usize, data: &mut [u8]);
    fn config_write(&mut self, offset: usize, data: &[u8]) -> Result<(), FunctionError>;
    fn set_multifunction(&mut self);
    /// Where BAR 0 is now, if it is decoded.
    fn bar(&self) -> Option<u64>;
    fn bar_read(&mut self, offset: u64, data: &mut [u8]);
    fn bar_write(&mut self, offset: u64, data: &[u8]) -> Result<(), FunctionError>;
    /// The machine ends: nothing writes guest memory on the function's behalf after this.
    fn shut_down(&mut self);
}

/// The host refused what a function needs to go on; nothing a guest writes is one of these.
#[derive(Debug, thiserror::Error)]
#[error("device `{device}` lost its hold on KVM")]
pub struct FunctionError {
    pub device: String,
    #[source]
    pub source: crate::interrupts::InterruptError,
}

/// Every function has one BAR of this size.
pub const BAR_BYTES: u64 = 0x1_0000;

const SLOTS: usize = 32;
const FUNCTIONS: usize = 8;
/// Slot 0 is the host bridge's.
pub const MOST_FUNCTIONS: usize = (SLOTS - 1) * FUNCTIONS;

#[derive(Debug)]
pub struct PciBus {
    host_bridge: ConfigSpace,
    /// By device and function number; none is left after the machine's end.
    functions: Vec<Mutex<Option<Box<dyn Function>>>>,
    /// BARs that are decoded: start and device-function number, ascending. vCPU threads meet here; each write to a
    /// function's BAR or command register replaces that function's entry.
    decoded: RwLock<Vec<(u64, usize)>>,
    /// The register that port 0xcfc shows. vCPU threads meet here.
    address: Mutex<u32>,
}

#[derive(Debug, thiserror::Error)]
#[error("the machine has {asked} PCI devices, and the bus has room for {MOST_FUNCTIONS}")]
pub struct BusFull {
    pub asked: usize,
}

/// The device-function number of the device at `position`: all slots get their function 0 before any gets a second one.
fn devfn(position: usize) -> usize {
    let (slot, function) = (1 + position % (SLOTS - 1), position / (SLOTS - 1));
    slot * FUNCTIONS + function
}

/// Where the BAR of the device at `position` starts out.
pub fn first_bar(position: usize) -> u64 {
    layout::PCI_WINDOW.start + devfn(position) as u64 * BAR_BYTES
}

impl PciBus {
    /// Functions in the order in which the guest finds them.
    pub fn new(functions: Vec<Box<dyn Function>>) -> Result<PciBus, BusFull> {
        if functions.len() > MOST_FUNCTIONS {
            return Err(BusFull { asked: functions.len() });
        }
        let several = functions.len() > SLOTS - 1;
        let mut places: Vec<Mutex<Option<Box<dyn Function>>>> =
            (0..SLOTS * FUNCTIONS).map(|_| Mutex::new(None)).collect();
        let mut decoded = Vec::new();
        for (position, mut function) in functions.into_iter().enumerate() {
            let devfn = devfn(position);
            if several {
                function.set_multifunction();
            }
            decoded.extend(function.bar().map(|start| (start, devfn)));
            places[devfn] = Mutex::new(Some(function));
        }
        decoded.sort_unstable();
        let host_bridge = ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: [6, 0, 0],
            subsystem_vendor: 0,
            subsystem: 0,
        });
        Ok(PciBus { host_bridge, functions: places, decoded: RwLock::new(decoded), address: Mutex::new(0) })
    }

    /// `offset` into ECAM: bus, slot, function and register.
    pub fn ecam_read(&self, offset: u64, data: &mut [u8]) {
        self.config_read((offset >> 12) as usize, (offset & 0xfff) as usize, data);
    }

    pub fn ecam_write(&self, offset: u64, data: &[u8]) -> Result<(), FunctionError> {
        self.config_write((offset >> 12) as usize, (offset & 0xfff) as usize, data)
    }

    /// Ports 0xcf8 to 0xcff. `offset` is from the first of them.
    pub fn port_read(&self, offset: usize, data: &mut [u8]) {
        let address = *self.lock_address();
        if offset < 4 {
            let bytes = address.to_le_bytes();
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = bytes.get(offset + index).copied().unwrap_or(0xff);
            }
        } else if let Some((devfn, register)) = selected(address, offset) {
            self.config_read(devfn, register, data);
        } else {
            data.fill(0xff);
        }
    }

    pub fn port_write(&self, offset: usize, data: &[u8]) -> Result<(), FunctionError> {
        if offset == 0 {
            // Only a whole double word sets the address.
            if let Ok(bytes) = data.try_into() {
                *self.lock_address() = u32::from_le_bytes(bytes);
            }
            return Ok(());
        }
        let address = *self.lock_address();
        match selected(address, offset) {
            Some((devfn, register)) => self.config_write(devfn, register, data),
            None => Ok(()),
        }
    }

    /// Reads the BAR that `address` lies in; `false` if it lies in none.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((devfn, offset)) = self.find(address, data.len()) else { return false };
        self.with(devfn, |function| function.bar_read(offset, data)).is_some()
    }

    pub fn memory_write(&self, address: u64, data: &[u8]) -> Result<bool, FunctionError> {
        let Some((devfn, offset)) = self.find(address, data.len()) else { return Ok(false) };
        self.with(devfn, |function| function.bar_write(offset, data)).transpose().map(|done| done.is_some())
    }

    /// The machine ends: each function lets go of the guest and then of what it has of the host.
    pub fn shut_down(&self) {
        for place in &self.functions {
            let function = place.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mut function) = function {
                function.shut_down();
            }
        }
    }

    fn config_read(&self, devfn: usize, register: usize, data: &mut [u8]) {
        if devfn == 0 {
            return self.host_bridge.read(register, data);
        }
        if self.with(devfn, |function| function.config_read(register, data)).is_none() {
            data.fill(0xff);
        }
    }

    fn config_write(&self, devfn: usize, register: usize, data: &[u8]) -> Result<(), FunctionError> {
        let outcome = self.with(devfn, |function| {
            let before = function.bar();
            let outcome = function.config_write(register, data);
            let after = function.bar();
            if before != after {
                // Under the function's lock, so that two writers leave the entry of the later one.
                self.decode(devfn, after);
            }
            outcome
        });
        outcome.unwrap_or(Ok(()))
    }

    fn decode(&self, devfn: usize, bar: Option<u64>) {
        let mut decoded = self.decoded.write().unwrap_or_else(PoisonError::into_inner);
        decoded.retain(|(_, other)| *other != devfn);
        decoded.extend(bar.map(|start| (start, devfn)));
        decoded.sort_unstable();
    }

    fn find(&self, address: u64, len: usize) -> Option<(usize, u64)> {
        let decoded = self.decoded.read().unwrap_or_else(PoisonError::into_inner);
        let after = decoded.partition_point(|(start, _)| *start <= address);
        let (start, devfn) = *decoded.get(after.checked_sub(1)?)?;
        let offset = address - start;
        (offset.checked_add(len as u64)? <= BAR_BYTES).then_some((devfn, offset))
    }

    fn with<T>(&self, devfn: usize, act: impl FnOnce(&mut dyn Function) -> T) -> Option<T> {
        let place = self.functions.get(devfn)?;
        // A panic in a function ends the machine; until then the others see it as it was left.
        let mut function = place.lock().unwrap_or_else(PoisonError::into_inner);
        Some(act(function.as_mut()?.as_mut()))
    }

    fn lock_address(&self) -> MutexGuard<'_, u32> {
        self.address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The register that an access to the data port at `offset` means, if the address port enables it: bus 0 alone.
fn selected(address: u32, offset: usize) -> Option<(usize, usize)> {
    let enabled = address & 0x8000_0000 != 0 && (address >> 16) & 0xff == 0;
    let lane = offset.checked_sub(4)?;
    enabled.then_some(((address >> 8 & 0xff) as usize, (address & 0xfc) as usize + lane))
}

#[cfg(test)]
mod tests;
