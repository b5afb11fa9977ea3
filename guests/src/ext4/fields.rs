//! Little-endian numbers at the places of a structure: written into our own buffers, read out of anybody's.

use super::BLOCK;

/// A structure that is being written; a place outside of it is a mistake of ours.
pub(super) trait Put {
    fn put(&mut self, at: usize, bytes: &[u8]);

    fn put_u8(&mut self, at: usize, value: u8) {
        self.put(at, &[value]);
    }

    fn put_u16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn put_u32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    /// A number that the structure keeps in two halves at two places.
    fn put_halves_u32(&mut self, low: usize, high: usize, value: u32) {
        self.put_u16(low, value as u16);
        self.put_u16(high, (value >> 16) as u16);
    }

    fn put_halves_u64(&mut self, low: usize, high: usize, value: u64) {
        self.put_u32(low, value as u32);
        self.put_u32(high, (value >> 32) as u32);
    }
}

impl Put for [u8] {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A structure that is being read; `None` where it ends too early.
pub(super) trait Get {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    fn u8(&self, at: usize) -> Option<u8> {
        self.array(at).map(u8::from_le_bytes)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn halves_u32(&self, low: usize, high: usize) -> Option<u32> {
        Some(u32::from(self.u16(low)?) | u32::from(self.u16(high)?) << 16)
    }

    fn halves_u64(&self, low: usize, high: usize) -> Option<u64> {
        Some(u64::from(self.u32(low)?) | u64::from(self.u32(high)?) << 32)
    }
}

impl Get for [u8] {
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.get(at..)?.first_chunk().copied()
    }
}

/// One block of zeros, on the heap.
pub(super) fn block() -> Vec<u8> {
    vec![0; BLOCK]
}
