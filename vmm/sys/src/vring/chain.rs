//! One request's descriptors (virtio 1.3, 2.7.5): the walk through the table and at most one indirect table, bounded
//! whatever the guest writes. It says where buffers are said to be; whether guest memory is there is asked when they are
//! resolved.

use std::ptr::NonNull;

use super::{DESCRIPTOR_BYTES, RingError, SplitRing};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Drivers put longer requests than the queue has entries into an indirect table (Linux does, when its queue came out
/// smaller than the device offered), so the bound there is this one, which is also what iovec arrays end at.
const MOST_INDIRECT: u32 = 1_024;

/// A buffer of the driver's: guest-physical address, length in bytes, and which side writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    /// The device writes the buffer; otherwise it reads it.
    pub writable: bool,
}

#[derive(Debug, Clone, Copy)]
struct Table {
    base: NonNull<u8>,
    entries: u32,
}

/// An iterator over a chain's buffers that ends after the first error.
#[derive(Debug)]
pub struct Chain<'ring> {
    ring: &'ring SplitRing,
    head: u16,
    table: Table,
    next: Option<u16>,
    /// How many more descriptors may follow in this table; loops end here.
    left: u32,
    most: u32,
    indirect: bool,
}

impl<'ring> Chain<'ring> {
    pub(super) fn new(ring: &'ring SplitRing, head: u16) -> Self {
        let entries = u32::from(ring.size);
        let table = Table { base: ring.descriptors, entries };
        Chain { ring, head, table, next: Some(head), left: entries, most: entries, indirect: false }
    }

    pub fn head(&self) -> u16 {
        self.head
    }

    fn advance(&mut self) -> Result<Option<Descriptor>, RingError> {
        loop {
            let Some(index) = self.next.take() else { return Ok(None) };
            if u32::from(index) >= self.table.entries {
                return Err(RingError::Next { next: index, entries: self.table.entries });
            }
            if self.left == 0 {
                return Err(RingError::ChainTooLong { head: self.head, most: self.most });
            }
            self.left -= 1;
            let raw = read(self.table, index);
            let address = u64::from_le_bytes(raw[..8].try_into().expect("8 of 16 bytes"));
            let len = u32::from_le_bytes(raw[8..12].try_into().expect("4 of 16 bytes"));
            let flags = u16::from_le_bytes([raw[12], raw[13]]);
            if flags & INDIRECT != 0 {
                self.enter(address, len, flags)?;
                continue;
            }
            if flags & NEXT != 0 {
                self.next = Some(u16::from_le_bytes([raw[14], raw[15]]));
            }
            return Ok(Some(Descriptor { address, len, writable: flags & WRITE != 0 }));
        }
    }

    /// virtio 1.3, 2.7.5.3: the table is whole descriptors, is the chain's last, and holds no other table.
    fn enter(&mut self, address: u64, len: u32, flags: u16) -> Result<(), RingError> {
        let broken = |rule| Err(RingError::Indirect { head: self.head, rule });
        if self.indirect {
            return broken("a table within a table");
        }
        if flags & NEXT != 0 {
            return broken("a descriptor after the table");
        }
        if len == 0 || !(len as usize).is_multiple_of(DESCRIPTOR_BYTES) {
            return broken("its length is not that of whole descriptors");
        }
        let Some(base) = super::host(&self.ring.ram, address, len as usize) else {
            return broken("it does not lie within one region of guest memory");
        };
        let entries = len / DESCRIPTOR_BYTES as u32;
        self.table = Table { base, entries };
        self.most = entries.min(MOST_INDIRECT.max(u32::from(self.ring.size)));
        (self.left, self.next, self.indirect) = (self.most, Some(0), true);
        Ok(())
    }
}

impl Iterator for Chain<'_> {
    type Item = Result<Descriptor, RingError>;

    fn next(&mut self) -> Option<Self::Item> {
        // `advance` takes `next`, so that an error is the last thing it says.
        self.advance().transpose()
    }
}

/// One copy of one descriptor: the guest may change it later, to no effect.
fn read(table: Table, index: u16) -> [u8; DESCRIPTOR_BYTES] {
    // SAFETY: `advance` checked `index` against the table's entries, which were resolved as one piece of guest memory.
    let entry = unsafe { table.base.as_ptr().add(DESCRIPTOR_BYTES * usize::from(index)) };
    if entry.cast::<[u64; 2]>().is_aligned() {
        // SAFETY: as above, and aligned; the ring that the chain borrows keeps the memory mapped.
        let words = unsafe { entry.cast::<[u64; 2]>().read_volatile() };
        let mut bytes = [0; DESCRIPTOR_BYTES];
        bytes[..8].copy_from_slice(&words[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&words[1].to_ne_bytes());
        return bytes;
    }
    // An indirect table may lie anywhere.
    // SAFETY: as above; a byte array has no alignment to keep.
    unsafe { entry.cast::<[u8; DESCRIPTOR_BYTES]>().read_volatile() }
}
