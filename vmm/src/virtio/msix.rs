//! The MSI-X table of one function: what the guest writes there decides which vector leads where and which are masked.
//! Masking disconnects the vector's irqfd, so that a signal waits in the eventfd: that is the pending bit.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::interrupts::{InterruptError, Interrupts, Vector};

/// PCI 3.0, 6.8.2: address, address above 4 GiB, data, control.
pub const ENTRY_BYTES: usize = 16;
/// PCI 3.0, 6.8.2.3: the size field has eleven bits.
pub const MOST_VECTORS: u16 = 2048;
const CONTROL_MASKED: u32 = 1;
/// virtio 1.3, 4.1.4.3: what a driver writes for "no vector".
pub const NO_VECTOR: u16 = 0xffff;

#[derive(Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    /// PCI 3.0, 6.8.2.3: the two bits of message control that the guest sets.
    enabled: bool,
    all_masked: bool,
}

#[derive(Debug)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
    vector: Vector,
}

impl Msix {
    pub fn new(vectors: Vec<Vector>) -> Msix {
        let entry = |vector| Entry { address: 0, data: 0, masked: true, vector };
        Msix { entries: vectors.into_iter().map(entry).collect(), enabled: false, all_masked: false }
    }

    /// The eventfd of a vector, if there is such a vector.
    pub fn event(&self, vector: u16) -> Option<Arc<EventFd>> {
        self.entries.get(usize::from(vector)).map(|entry| entry.vector.event().clone())
    }

    /// The guest wrote message control.
    pub fn set_control(
        &mut self,
        interrupts: &Interrupts,
        enabled: bool,
        all_masked: bool,
    ) -> Result<(), InterruptError> {
        if (self.enabled, self.all_masked) == (enabled, all_masked) {
            return Ok(());
        }
        (self.enabled, self.all_masked) = (enabled, all_masked);
        (0..self.entries.len()).try_for_each(|index| self.apply(interrupts, index))
    }

    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        let Some(entry) = self.entries.get(offset / ENTRY_BYTES) else { return data.fill(0) };
        let mut bytes = [0; ENTRY_BYTES];
        bytes[..8].copy_from_slice(&entry.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.data.to_le_bytes());
        bytes[12..].copy_from_slice(&u32::from(entry.masked).to_le_bytes());
        let at = offset % ENTRY_BYTES;
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(at + index).copied().unwrap_or(0);
        }
    }

    /// PCI 3.0, 6.8.2: accesses are aligned words of four or eight bytes; anything else is ignored.
    pub fn write_table(
        &mut self,
        interrupts: &Interrupts,
        offset: usize,
        data: &[u8],
    ) -> Result<(), InterruptError> {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len()) {
            return Ok(());
        }
        let index = offset / ENTRY_BYTES;
        let Some(entry) = self.entries.get_mut(index) else { return Ok(()) };
        for (position, word) in data.chunks_exact(4).enumerate() {
            let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            match offset % ENTRY_BYTES + 4 * position {
                0 => entry.address = entry.address & !0xffff_ffff | u64::from(word),
                4 => entry.address = entry.address & 0xffff_ffff | u64::from(word) << 32,
                8 => entry.data = word,
                _ => entry.masked = word & CONTROL_MASKED != 0,
            }
        }
        self.apply(interrupts, index)
    }

    /// The pending bits: one bit a vector, in words of 64.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let first = (offset + index) * 8;
            let bit = |bit: usize| {
                let entry = self.entries.get(first + bit);
                u8::from(entry.is_some_and(|entry| entry.vector.is_pending())) << bit
            };
            *byte = (0..8).map(bit).sum();
        }
    }

    /// Forgets signals that wait: the device behind them was reset.
    pub fn clear_pending(&self) {
        self.entries.iter().filter(|entry| self.is_masked(entry)).for_each(|entry| entry.vector.clear());
    }

    fn is_masked(&self, entry: &Entry) -> bool {
        !self.enabled || self.all_masked || entry.masked
    }

    fn apply(&mut self, interrupts: &Interrupts, index: usize) -> Result<(), InterruptError> {
        let masked = self.entries.get(index).is_none_or(|entry| self.is_masked(entry));
        let Some(entry) = self.entries.get_mut(index) else { return Ok(()) };
        if masked {
            entry.vector.mask(interrupts)
        } else {
            entry.vector.unmask(interrupts, entry.address, entry.data)
        }
    }
}
