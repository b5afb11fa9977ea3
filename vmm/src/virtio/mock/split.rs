//! A driver's side of a split ring (virtio 1.3, 2.7.13).

use std::collections::VecDeque;

use super::*;

#[derive(Debug)]
pub(super) struct SplitDriver {
    memory: Memory,
    base: u64,
    size: u16,
    event_idx: bool,
    next_available: u16,
    /// How far the device was told, by an index that it could see.
    notified: u16,
    last_used: u16,
    free: VecDeque<u16>,
    /// The descriptors of each head in flight.
    chains: Vec<Vec<u16>>,
}

impl SplitDriver {
    pub(super) fn bytes(size: u16) -> u64 {
        let entries = u64::from(size);
        16 * entries + (6 + 2 * entries).next_multiple_of(4) + 6 + 8 * entries
    }

    pub(super) fn new(memory: Memory, base: u64, size: u16, event_idx: bool) -> Self {
        SplitDriver {
            memory,
            base,
            size,
            event_idx,
            next_available: 0,
            notified: 0,
            last_used: 0,
            free: (0..size).collect(),
            chains: vec![Vec::new(); size.into()],
        }
    }

    pub(super) fn setup(&self) -> RingSetup {
        let (driver, device) = (self.available(), self.used());
        RingSetup { size: self.size, descriptors: self.base, driver, device }
    }

    fn available(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used(&self) -> u64 {
        self.available() + (6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    pub(super) fn next_slot(&self) -> Option<u16> {
        self.free.front().copied()
    }

    pub(super) fn write_descriptor(&mut self, index: u16, buffer: Descriptor, flags: u16, next: u16) {
        self.write_descriptor_at(self.base + 16 * u64::from(index), buffer, flags, next);
    }

    pub(super) fn write_descriptor_at(&self, at: u64, buffer: Descriptor, flags: u16, next: u16) {
        self.memory.put(at, buffer.address);
        self.memory.put(at + 8, buffer.len);
        self.memory.put(at + 12, flags);
        self.memory.put(at + 14, next);
    }

    pub(super) fn add(&mut self, buffers: &[Descriptor]) -> Option<u16> {
        if self.free.len() < buffers.len() {
            return None;
        }
        let chain: Vec<u16> = self.free.drain(..buffers.len()).collect();
        for (at, buffer) in buffers.iter().enumerate() {
            let next = chain.get(at + 1);
            let more = if next.is_some() { NEXT } else { 0 };
            self.write_descriptor(chain[at], *buffer, more | flags_of(*buffer), next.copied().unwrap_or(0));
        }
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        self.offer(head);
        Some(head)
    }

    pub(super) fn add_table(&mut self, table: u64, len: u32) -> Option<u16> {
        let head = self.free.pop_front()?;
        self.write_descriptor(head, readable(table, len), INDIRECT, 0);
        self.chains[usize::from(head)] = vec![head];
        self.offer(head);
        Some(head)
    }

    pub(super) fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.memory.put(self.available() + 4 + 2 * slot, head);
        self.set_available(self.next_available.wrapping_add(1));
    }

    pub(super) fn offer_in_flight(&mut self, head: u16) {
        self.offer(head);
    }

    pub(super) fn set_available(&mut self, index: u16) {
        self.next_available = index;
        self.memory.field(self.available() + 2, |field| field.store(index, Ordering::Release));
    }

    pub(super) fn wants_kick(&mut self) -> bool {
        let (old, new) = (std::mem::replace(&mut self.notified, self.next_available), self.next_available);
        if self.event_idx {
            let event_at = self.used() + 4 + 8 * u64::from(self.size);
            let event = self.memory.field(event_at, |field| field.load(Ordering::Relaxed));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.memory.field(self.used(), |field| field.load(Ordering::Relaxed)) & 1 == 0
        }
    }

    pub(super) fn take_used(&mut self) -> Option<(u16, u32)> {
        let index = self.memory.field(self.used() + 2, |field| field.load(Ordering::Acquire));
        if index == self.last_used {
            return None;
        }
        let element = self.used() + 4 + 8 * u64::from(self.last_used % self.size);
        let (head, written): (u32, u32) = (self.memory.get(element), self.memory.get(element + 4));
        self.last_used = self.last_used.wrapping_add(1);
        let chain = std::mem::take(&mut self.chains[head as usize]);
        assert!(!chain.is_empty(), "head {head} came back twice");
        self.free.extend(chain);
        Some((head as u16, written))
    }

    pub(super) fn ask_for_interrupt(&self) {
        if self.event_idx {
            let event = self.available() + 4 + 2 * u64::from(self.size);
            self.memory.field(event, |field| field.store(self.last_used, Ordering::Relaxed));
        }
    }

    /// VIRTQ_AVAIL_F_NO_INTERRUPT.
    pub(super) fn refuse_interrupts(&self) {
        self.memory.field(self.available(), |field| field.store(1, Ordering::Relaxed));
    }
}
