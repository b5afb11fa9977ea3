//! One request's descriptors (virtio 1.3, 2.7.5 and 2.8.6): the walk through a table and at most one indirect table, bounded
//! whatever the guest writes. It says where buffers are said to be; whether guest memory is there is asked when they are
//! resolved.

// UNSAFETY: descriptors are shared with the guest.
#![allow(unsafe_code, reason = "volatile reads of descriptors in guest memory")]

use std::ptr::NonNull;

use super::{DESCRIPTOR_BYTES, RingError};
use crate::regions::Regions;

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

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
    regions: &Regions,
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
        let entry = SplitEntry::of(read(table, next));
        if entry.flags & INDIRECT != 0 {
            if indirect {
                return Err(RingError::Indirect { head, rule: "a table within a table" });
            }
            if entry.flags & NEXT != 0 {
                return Err(RingError::Indirect { head, rule: "a descriptor after the table" });
            }
            table = enter(regions, head, entry.address, entry.len)?;
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

/// Reads the indirect table of a packed ring of `size` entries into `chain`: all of its descriptors in a row, of whose flags
/// only one means something (virtio 1.3, 2.8.7).
pub(super) fn collect_packed_table(
    regions: &Regions,
    size: u16,
    head: u16,
    entry: &PackedEntry,
    chain: &mut Vec<Descriptor>,
) -> Result<(), RingError> {
    let table = enter(regions, head, entry.address, entry.len)?;
    let most = MOST_INDIRECT.max(size.into());
    if table.entries > most {
        return Err(RingError::ChainTooLong { head, most });
    }
    // Not more than 32,768 by now.
    chain.extend((0..table.entries as u16).map(|index| PackedEntry::of(read(table, index)).descriptor()));
    Ok(())
}

/// virtio 1.3, 2.7.5.3 and 2.8.7: an indirect table is whole descriptors.
fn enter(regions: &Regions, head: u16, address: u64, len: u32) -> Result<Table, RingError> {
    let broken = |rule| RingError::Indirect { head, rule };
    let bytes = len as usize;
    if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR_BYTES) {
        return Err(broken("its length is not that of whole descriptors"));
    }
    let base = regions
        .one_piece(address, bytes)
        .ok_or_else(|| broken("it does not lie within one region of guest memory"))?;
    Ok(Table { base, entries: len / DESCRIPTOR_BYTES as u32 })
}

/// One copy of one descriptor of a split ring: the guest may change it later, to no effect.
#[derive(Debug, Clone, Copy)]
struct SplitEntry {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl SplitEntry {
    fn of([address, rest]: [u64; 2]) -> SplitEntry {
        SplitEntry { address, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    fn descriptor(&self) -> Descriptor {
        Descriptor { address: self.address, len: self.len, writable: self.flags & WRITE != 0 }
    }
}

/// The same of a packed ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedEntry {
    pub(super) address: u64,
    pub(super) len: u32,
    pub(super) id: u16,
    pub(super) flags: u16,
}

impl PackedEntry {
    pub(super) fn of([address, rest]: [u64; 2]) -> PackedEntry {
        PackedEntry { address, len: rest as u32, id: (rest >> 32) as u16, flags: (rest >> 48) as u16 }
    }

    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor { address: self.address, len: self.len, writable: self.flags & WRITE != 0 }
    }
}

/// The two words of the descriptor at `index`, which is below the table's entries.
#[inline]
pub(super) fn read(table: Table, index: u16) -> [u64; 2] {
    debug_assert!(u32::from(index) < table.entries);
    // SAFETY: the callers checked `index` against the table's entries, which were resolved as one piece of guest memory.
    let entry = unsafe { table.base.as_ptr().add(DESCRIPTOR_BYTES * usize::from(index)) };
    let [address, rest] = if entry.cast::<[u64; 2]>().is_aligned() {
        // SAFETY: as above, and aligned; the ring that the table belongs to keeps the memory mapped.
        unsafe { entry.cast::<[u64; 2]>().read_volatile() }
    } else {
        // An indirect table may lie anywhere.
        // SAFETY: as above; a byte array has no alignment to keep.
        let [address, rest] = unsafe { entry.cast::<[[u8; 8]; 2]>().read_volatile() };
        [u64::from_ne_bytes(address), u64::from_ne_bytes(rest)]
    };
    [u64::from_le(address), u64::from_le(rest)]
}
