//! A driver's side of a packed ring (virtio 1.3, 2.8.21). It gives its buffers names from all over the 16 bits.

use std::collections::VecDeque;

use super::*;

const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;
/// Makes names of slots that are no small numbers.
const NAMES: u16 = 0xa5c3;

/// Where a side stands: an index, and the wrap counter.
#[derive(Debug, Clone, Copy)]
struct At {
    index: u16,
    wrap: bool,
}

impl At {
    const START: At = At { index: 0, wrap: true };

    fn forward(&mut self, steps: u16, size: u16) {
        self.index += steps;
        if self.index >= size {
            self.index -= size;
            self.wrap = !self.wrap;
        }
    }

    /// As the event fields have it.
    fn word(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }
}

/// A descriptor that was written for `offer` to copy.
#[derive(Debug, Clone, Copy)]
struct Staged {
    buffer: Descriptor,
    flags: u16,
    next: u16,
}

#[derive(Debug)]
pub(super) struct PackedDriver {
    memory: Memory,
    base: u64,
    size: u16,
    event_idx: bool,
    next: At,
    /// Descriptors offered since the device was last told.
    unnotified: u16,
    last_used: At,
    /// Descriptors that are ours.
    room: u16,
    free: VecDeque<u16>,
    /// The descriptors that each slot's chain has in the ring.
    chains: Vec<u16>,
    staged: Vec<Option<Staged>>,
}

impl PackedDriver {
    pub(super) fn bytes(size: u16) -> u64 {
        16 * u64::from(size) + 8
    }

    pub(super) fn new(memory: Memory, base: u64, size: u16, event_idx: bool) -> Self {
        PackedDriver {
            memory,
            base,
            size,
            event_idx,
            next: At::START,
            unnotified: 0,
            last_used: At::START,
            room: size,
            free: (0..size).collect(),
            chains: vec![0; size.into()],
            staged: vec![None; size.into()],
        }
    }

    pub(super) fn setup(&self) -> RingSetup {
        let driver = self.driver_events();
        RingSetup { size: self.size, descriptors: self.base, driver, device: driver + 4 }
    }

    fn driver_events(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    pub(super) fn next_slot(&self) -> Option<u16> {
        self.free.front().copied().filter(|_| self.room > 0)
    }

    pub(super) fn write_descriptor(&mut self, index: u16, buffer: Descriptor, flags: u16, next: u16) {
        if let Some(staged) = self.staged.get_mut(usize::from(index)) {
            *staged = Some(Staged { buffer, flags, next });
        }
    }

    /// In a table neither ids nor the order of a chain mean anything: here stands what a split one has.
    pub(super) fn write_descriptor_at(&self, at: u64, buffer: Descriptor, flags: u16, next: u16) {
        self.memory.put(at, buffer.address);
        self.memory.put(at + 8, buffer.len);
        self.memory.put(at + 12, next);
        self.memory.put(at + 14, flags);
    }

    pub(super) fn add(&mut self, buffers: &[Descriptor]) -> Option<u16> {
        let last = buffers.len() - 1;
        let more = |at| if at < last { NEXT } else { 0 };
        let chain: Vec<_> =
            buffers.iter().enumerate().map(|(at, buffer)| (*buffer, more(at) | flags_of(*buffer))).collect();
        self.add_chain(&chain)
    }

    pub(super) fn add_table(&mut self, table: u64, len: u32) -> Option<u16> {
        self.add_chain(&[(readable(table, len), INDIRECT)])
    }

    fn add_chain(&mut self, chain: &[(Descriptor, u16)]) -> Option<u16> {
        if usize::from(self.room) < chain.len() {
            return None;
        }
        let slot = self.free.pop_front()?;
        self.chains[usize::from(slot)] = chain.len() as u16;
        self.room -= chain.len() as u16;
        self.write_chain(chain, slot ^ NAMES);
        Some(slot ^ NAMES)
    }

    /// Writes a chain where the next belongs, its first descriptor's flags last.
    fn write_chain(&mut self, chain: &[(Descriptor, u16)], id: u16) {
        let mut first = None;
        for (step, (buffer, flags)) in chain.iter().enumerate() {
            let at = self.base + 16 * u64::from(self.next.index);
            let flags = flags | if self.next.wrap { AVAILABLE } else { USED };
            self.memory.put(at, buffer.address);
            self.memory.put(at + 8, buffer.len);
            // virtio 1.3, 2.8.6: only the last one's id means something.
            self.memory.put(at + 12, if step + 1 == chain.len() { id } else { !id });
            match first {
                None => first = Some((at + 14, flags)),
                Some(_) => self.memory.put(at + 14, flags),
            }
            self.next.forward(1, self.size);
            self.unnotified += 1;
        }
        if let Some((at, flags)) = first {
            self.memory.field(at, |field| field.store(flags, Ordering::Release));
        }
    }

    /// Copies the chain that was written from `head` on, as far as the ring goes. One that is not there is an empty buffer.
    pub(super) fn offer(&mut self, head: u16) {
        let empty = Staged { buffer: readable(0, 0), flags: 0, next: 0 };
        let (mut chain, mut at) = (Vec::new(), head);
        while chain.len() < self.size.into() {
            let staged = self.staged.get(usize::from(at)).copied().flatten().unwrap_or(empty);
            chain.push((staged.buffer, staged.flags));
            if staged.flags & NEXT == 0 {
                break;
            }
            at = staged.next;
        }
        self.write_chain(&chain, head ^ NAMES);
    }

    /// A chain that is one descriptor longer than the ring has room.
    pub(super) fn offer_in_flight(&mut self, head: u16) {
        let chain = vec![(readable(0, 16), NEXT); usize::from(self.room) + 1];
        self.write_chain(&chain, head);
    }

    pub(super) fn set_available(&mut self, _index: u16) {
        for _ in 0..self.size {
            let at = self.base + 16 * u64::from(self.next.index) + 14;
            let flags = if self.next.wrap { AVAILABLE } else { USED };
            self.memory.field(at, |field| field.store(flags, Ordering::Release));
            self.next.forward(1, self.size);
        }
        self.unnotified = self.size;
    }

    pub(super) fn wants_kick(&mut self) -> bool {
        let steps = std::mem::take(&mut self.unnotified);
        let word = self.memory.word(self.driver_events() + 4, |word| word.load(Ordering::Relaxed));
        match word >> 16 & 3 {
            1 => false,
            2 if self.event_idx => {
                // Whether the place was among the last `steps` that were filled.
                let (event, size) = (word as u16, self.size);
                (1..=steps).any(|back| {
                    let index = i32::from(self.next.index) - i32::from(back);
                    let (index, wrap) = if index < 0 {
                        (index + i32::from(size), !self.next.wrap)
                    } else {
                        (index, self.next.wrap)
                    };
                    At { index: index as u16, wrap }.word() == event
                })
            }
            _ => true,
        }
    }

    pub(super) fn take_used(&mut self) -> Option<(u16, u32)> {
        let at = self.base + 16 * u64::from(self.last_used.index);
        let flags = self.memory.field(at + 14, |field| field.load(Ordering::Acquire));
        let wrap = self.last_used.wrap;
        if (flags & AVAILABLE != 0, flags & USED != 0) != (wrap, wrap) {
            return None;
        }
        let (written, id): (u32, u16) = (self.memory.get(at + 8), self.memory.get(at + 12));
        assert_eq!(flags & WRITE != 0, written > 0, "a length is said to be one");
        let slot = id ^ NAMES;
        let count = std::mem::take(&mut self.chains[usize::from(slot)]);
        assert_ne!(count, 0, "buffer {id} came back twice");
        self.last_used.forward(count, self.size);
        self.room += count;
        self.free.push_back(slot);
        Some((id, written))
    }

    pub(super) fn ask_for_interrupt(&self) {
        let word = if self.event_idx { 2 << 16 | u32::from(self.last_used.word()) } else { 0 };
        self.memory.word(self.driver_events(), |events| events.store(word, Ordering::Relaxed));
    }

    /// RING_EVENT_FLAGS_DISABLE.
    pub(super) fn refuse_interrupts(&self) {
        self.memory.word(self.driver_events(), |events| events.store(1 << 16, Ordering::Relaxed));
    }
}
