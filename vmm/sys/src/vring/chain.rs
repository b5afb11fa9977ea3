//! One request's descriptors (virtio 1.3, 2.7.5): the walk through a table and at most one indirect table, bounded whatever
//! the guest writes. It says where buffers are said to be; whether guest memory is there is asked when they are resolved.

// UNSAFETY: descriptors are shared with the guest.
#![allow(unsafe_code, reason = "volatile reads of descriptors in guest memory")]

use std::ptr::NonNull;

use super::{DESCRIPTOR_BYTES, RingError};
use crate::memory::GuestRam;

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

/// Descriptors in a row in one piece of guest memory, which whoever has the table keeps mapped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) base: NonNull<u8>,
    pub(super) entries: u32,
}

/// Reads the chain at `head` of a split ring's table into `chain`, which it empties first.
pub(super) fn collect(
    ram: &GuestRam,
    ring: Table,
    head: u16,
    chain: &mut Vec<Descriptor>,
) -> Result<(), RingError> {
    chain.clear();
    let (mut table, mut most) = (ring, ring.entries);
    let (mut next, mut left, mut indirect) = (head, most, false);
    loop {
        if u32::from(next) >= table.entries {
            return Err(RingError::Next { next, entries: table.entries });
        }
        // Chains in a circle end here.
        if left == 0 {
            return Err(RingError::ChainTooLong { head, most });
        }
        left -= 1;
        let entry = read(table, next);
        if entry.flags & INDIRECT != 0 {
            if indirect {
                return Err(RingError::Indirect { head, rule: "a table within a table" });
            }
            table = enter(ram, head, &entry)?;
            most = table.entries.min(MOST_INDIRECT.max(ring.entries));
            (next, left, indirect) = (0, most, true);
            continue;
        }
        chain.push(entry.descriptor());
        if entry.flags & NEXT == 0 {
            return Ok(());
        }
        next = entry.next;
    }
}

/// virtio 1.3, 2.7.5.3: an indirect table is whole descriptors, and the chain's last.
fn enter(ram: &GuestRam, head: u16, entry: &Entry) -> Result<Table, RingError> {
    let broken = |rule| RingError::Indirect { head, rule };
    if entry.flags & NEXT != 0 {
        return Err(broken("a descriptor after the table"));
    }
    let bytes = entry.len as usize;
    if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR_BYTES) {
        return Err(broken("its length is not that of whole descriptors"));
    }
    let base = super::host(ram, entry.address, bytes)
        .ok_or_else(|| broken("it does not lie within one region of guest memory"))?;
    Ok(Table { base, entries: entry.len / DESCRIPTOR_BYTES as u32 })
}

/// One copy of one descriptor: the guest may change it later, to no effect.
#[derive(Debug, Clone, Copy)]
struct Entry {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Entry {
    fn descriptor(&self) -> Descriptor {
        Descriptor { address: self.address, len: self.len, writable: self.flags & WRITE != 0 }
    }
}

/// `index` is below the table's entries.
fn read(table: Table, index: u16) -> Entry {
    debug_assert!(u32::from(index) < table.entries);
    // SAFETY: `collect` checked `index` against the table's entries, which were resolved as one piece of guest memory.
    let entry = unsafe { table.base.as_ptr().add(DESCRIPTOR_BYTES * usize::from(index)) };
    let [address, rest] = if entry.cast::<[u64; 2]>().is_aligned() {
        // SAFETY: as above, and aligned; the ring that the table belongs to keeps the memory mapped.
        unsafe { entry.cast::<[u64; 2]>().read_volatile() }
    } else {
        // An indirect table may lie anywhere.
        // SAFETY: as above; a byte array has no alignment to keep.
        let bytes = unsafe { entry.cast::<[[u8; 8]; 2]>().read_volatile() };
        bytes.map(u64::from_ne_bytes)
    };
    let rest = u64::from_le(rest);
    Entry {
        address: u64::from_le(address),
        len: rest as u32,
        flags: (rest >> 32) as u16,
        next: (rest >> 48) as u16,
    }
}
