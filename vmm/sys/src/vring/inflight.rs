//! Which heads of a split ring are in flight, written down in memory that outlives this process (vhost-user, inflight I/O
//! tracking): whoever serves the ring after it was killed goes on with them, in the order in which they were taken.
//!
//! A head is written down before anything is done for it, and struck out after the driver was shown that it ended. What lies
//! between showing and striking out is told by the used index that stands in the region: heads that were given back since are
//! a list, the last one first.

// UNSAFETY: the region is shared with another process, and resolved once.
#![allow(unsafe_code, reason = "volatile access to memory that another process shares")]

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{ByteValued, GuestAddress, GuestMemoryBackend as _};

use crate::memory::GuestRam;

const HEADER_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
/// Regions of several queues lie one behind the other, each from such a multiple on.
const MULTIPLE: usize = 64;
const VERSION: u16 = 1;

// `QueueRegionSplit` and `DescStateSplit` of the vhost-user specification.
const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;
const LAST_AT: usize = 12;
const USED_AT: usize = 14;
const IN_FLIGHT_AT: usize = 0;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// The region of one ring. It keeps its memory mapped.
#[derive(Debug)]
pub struct QueueRegion {
    _ram: Arc<GuestRam>,
    base: NonNull<u8>,
    entries: u16,
    /// What the next head is numbered by.
    counter: u64,
    /// Heads that were given back and not shown yet.
    given_back: Vec<u16>,
    /// Heads that another took and did not end, in their order.
    again: VecDeque<u16>,
}

// SAFETY: the pointer lies in the mapping that `_ram` keeps alive wherever the region goes, and every access is volatile.
unsafe impl Send for QueueRegion {}

impl QueueRegion {
    /// Bytes from one queue's region to the next.
    pub const fn bytes(entries: u16) -> usize {
        (HEADER_BYTES + ENTRY_BYTES * entries as usize).next_multiple_of(MULTIPLE)
    }

    /// The region of a ring of `entries` at `address`; `None` where there is no room for it.
    pub fn at(ram: &Arc<GuestRam>, address: u64, entries: u16) -> Option<QueueRegion> {
        let slice = ram.get_slice(GuestAddress(address), QueueRegion::bytes(entries)).ok()?;
        let base = NonNull::new(slice.ptr_guard_mut().as_ptr())?;
        let whole = (base.as_ptr() as usize).is_multiple_of(ENTRY_BYTES);
        let (given_back, again) = (Vec::with_capacity(entries.into()), VecDeque::new());
        whole.then(|| QueueRegion { _ram: Arc::clone(ram), base, entries, counter: 0, given_back, again })
    }

    /// Reads what another left behind in a ring whose used index is `used`; how many heads are to be taken again. `None`: the
    /// region is new.
    pub(super) fn recover(&mut self, used: u16) -> Option<u16> {
        if self.word(VERSION_AT) == 0 {
            self.set_word(ENTRIES_AT, self.entries);
            self.set_word(USED_AT, used);
            self.set_word(VERSION_AT, VERSION);
            return None;
        }
        // Shown, and perhaps not struck out.
        let mut head = self.word(LAST_AT);
        for _ in 0..used.wrapping_sub(self.word(USED_AT)).min(self.entries) {
            let Some(entry) = self.entry(head) else { break };
            self.set_in_flight(head, false);
            head = self.word(entry + NEXT_AT);
        }
        self.set_word(USED_AT, used);
        let in_flight = (0..self.entries).filter(|head| self.is_in_flight(*head));
        let mut heads: Vec<(u64, u16)> = in_flight.map(|head| (self.number(head), head)).collect();
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(number, _)| number.wrapping_add(1));
        self.again = heads.iter().map(|(_, head)| *head).collect();
        // Not more than the ring's entries.
        Some(self.again.len() as u16)
    }

    /// A head that another took.
    pub(super) fn again(&mut self) -> Option<u16> {
        self.again.pop_front()
    }

    pub(super) fn has_again(&self) -> bool {
        !self.again.is_empty()
    }

    /// `head` was taken, and nothing was done for it.
    pub(super) fn begin(&mut self, head: u16) {
        let Some(entry) = self.entry(head) else { return };
        self.write(entry + COUNTER_AT, self.counter.to_le());
        self.counter = self.counter.wrapping_add(1);
        self.set_in_flight(head, true);
    }

    /// `head` is given back, and not shown yet.
    pub(super) fn end(&mut self, head: u16) {
        let Some(entry) = self.entry(head) else { return };
        self.set_word(entry + NEXT_AT, self.word(LAST_AT));
        self.set_word(LAST_AT, head);
        if self.given_back.len() < self.given_back.capacity() {
            self.given_back.push(head);
        }
    }

    /// All that was given back is shown, up to `used`.
    pub(super) fn shown(&mut self, used: u16) {
        fence(Ordering::Release);
        while let Some(head) = self.given_back.pop() {
            self.set_in_flight(head, false);
        }
        fence(Ordering::Release);
        self.set_word(USED_AT, used);
    }

    /// Where the entry of a head is, which another process may have written.
    fn entry(&self, head: u16) -> Option<usize> {
        (head < self.entries).then(|| HEADER_BYTES + ENTRY_BYTES * usize::from(head))
    }

    fn is_in_flight(&self, head: u16) -> bool {
        self.entry(head).is_some_and(|entry| self.read::<u8>(entry + IN_FLIGHT_AT) != 0)
    }

    fn set_in_flight(&self, head: u16, is: bool) {
        if let Some(entry) = self.entry(head) {
            // What the entry says otherwise is there first.
            fence(Ordering::Release);
            self.write(entry + IN_FLIGHT_AT, u8::from(is));
        }
    }

    fn number(&self, head: u16) -> u64 {
        self.entry(head).map_or(0, |entry| u64::from_le(self.read(entry + COUNTER_AT)))
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le(self.read(at))
    }

    fn set_word(&self, at: usize, value: u16) {
        self.write(at, value.to_le());
    }

    fn read<T: ByteValued>(&self, at: usize) -> T {
        let field = self.field::<T>(at);
        // SAFETY: a field of the header or of an entry below `entries`, which `at` resolved as one piece of memory that `_ram`
        // keeps mapped, aligned as the base is; a `ByteValued` is valid whatever stands there.
        unsafe { field.read_volatile() }
    }

    fn write<T: ByteValued>(&self, at: usize, value: T) {
        let field = self.field::<T>(at);
        // SAFETY: as in `read`.
        unsafe { field.write_volatile(value) };
    }

    fn field<T>(&self, at: usize) -> *mut T {
        debug_assert!(
            at + size_of::<T>() <= QueueRegion::bytes(self.entries) && at.is_multiple_of(size_of::<T>())
        );
        self.base.as_ptr().wrapping_add(at).cast()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENTRIES: u16 = 8;

    fn ram() -> Arc<GuestRam> {
        Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap())
    }

    fn region(ram: &Arc<GuestRam>) -> QueueRegion {
        QueueRegion::at(ram, 0, ENTRIES).unwrap()
    }

    #[test]
    fn a_new_region_has_nothing_to_go_on_with() {
        let ram = ram();
        assert_eq!(region(&ram).recover(7), None);
        assert_eq!(region(&ram).recover(7), Some(0));
        assert!(QueueRegion::at(&ram, 0x1000 - 64, ENTRIES).is_none(), "no room");
    }

    #[test]
    fn whatever_another_process_writes_heads_stay_within_the_ring() {
        let ram = ram();
        for byte in [0x01, 0x7f, 0xff] {
            ram.get_slice(GuestAddress(0), 0x1000).unwrap().copy_from(&[byte; 0x1000]);
            let mut region = region(&ram);
            assert!(region.recover(3).is_some_and(|heads| heads <= ENTRIES));
            while let Some(head) = region.again() {
                assert!(head < ENTRIES);
                region.begin(head);
                region.end(head);
            }
            region.end(ENTRIES);
            region.begin(u16::MAX);
            region.shown(4);
        }
    }

    proptest! {
        /// A server that dies between any two steps leaves exactly what the driver was not shown, in the order of taking.
        #[test]
        fn who_comes_after_a_killed_server_goes_on_with_what_was_not_shown(
            steps in prop::collection::vec((0..4u8, 0..ENTRIES), 0..60),
            struck_out in 0..4usize,
        ) {
            let ram = ram();
            let mut region = region(&ram);
            let mut used = 65_530_u16;
            region.recover(used);
            // Heads that are in flight, in their order, and those of them that are given back.
            let (mut taken, mut given): (Vec<u16>, Vec<u16>) = (Vec::new(), Vec::new());
            for (step, head) in steps {
                match step {
                    0 | 1 if !taken.contains(&head) => { region.begin(head); taken.push(head); }
                    2 if taken.contains(&head) && !given.contains(&head) => { region.end(head); given.push(head); }
                    3 => {
                        used = used.wrapping_add(given.len() as u16);
                        region.shown(used);
                        taken.retain(|head| !given.contains(head));
                        given.clear();
                    }
                    _ => {}
                }
            }
            if struck_out < 3 && !given.is_empty() {
                // Killed after the ring's index was stored, with some of the batch struck out.
                used = used.wrapping_add(given.len() as u16);
                for head in given.iter().rev().take(struck_out) {
                    region.set_in_flight(*head, false);
                }
                taken.retain(|head| !given.contains(head));
            }
            drop(region);
            let mut next = QueueRegion::at(&ram, 0, ENTRIES).unwrap();
            prop_assert_eq!(next.recover(used), Some(taken.len() as u16));
            let again: Vec<u16> = std::iter::from_fn(|| next.again()).collect();
            prop_assert_eq!(again, taken);
        }
    }
}
