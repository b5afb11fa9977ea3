//! How two sides of a ring that look at each other's memory go to sleep without missing each other: what each says to be
//! told, how the other decides whether to tell, and the order of both one's steps. One side writes what there is, fences and
//! reads who wants to be told; the other writes that it wants to be told, fences and reads what there is.
//!
//! Both directions are the same protocol: a driver that sleeps until it is interrupted does as an IOThread does that sleeps
//! until it is notified. All of it is written over a [`Memory`], so that `model` tries every interleaving of these very
//! lines, and shows that it would find one to be missing.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// A word that both sides use at once.
pub trait Word<T> {
    fn load(&self, order: Ordering) -> T;
    fn store(&self, value: T, order: Ordering);
}

/// What the protocol runs on: the machine's memory, or a model of it.
pub trait Memory {
    type Word16: Word<u16>;
    type Word32: Word<u32>;
    /// Keeps a store before it from being passed by a load behind it.
    fn full_fence();
}

/// Memory as it is.
#[derive(Debug, Clone, Copy)]
pub struct Machine;

impl Memory for Machine {
    type Word16 = AtomicU16;
    type Word32 = AtomicU32;
    #[inline]
    fn full_fence() {
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl Word<u16> for AtomicU16 {
    #[inline]
    fn load(&self, order: Ordering) -> u16 {
        AtomicU16::load(self, order)
    }
    #[inline]
    fn store(&self, value: u16, order: Ordering) {
        AtomicU16::store(self, value, order);
    }
}

impl Word<u32> for AtomicU32 {
    #[inline]
    fn load(&self, order: Ordering) -> u32 {
        AtomicU32::load(self, order)
    }
    #[inline]
    fn store(&self, value: u32, order: Ordering) {
        AtomicU32::store(self, value, order);
    }
}

/// Before sleeping: asks to be told, for everything `sleeper` sleeps on, and then looks once more. What `look` answers
/// decides: whoever finds nothing may sleep, and will be told.
#[inline]
pub fn ask_then_look<M: Memory, S, T>(
    sleeper: &mut S,
    ask: impl FnOnce(&mut S),
    look: impl FnOnce(&mut S) -> T,
) -> T {
    ask(sleeper);
    // virtio 1.3, 2.7.7.2 and 2.8.21.3: what we ask must be seen before we look, or the other side sees that nobody asks,
    // we see nothing, and both wait. Store before load takes a full fence; Acquire does not do it.
    M::full_fence();
    look(sleeper)
}

/// Shows the other side something and says whether it wants to be told.
#[inline]
pub fn show_then_ask<M: Memory>(show: impl FnOnce(), wanted: impl FnOnce() -> bool) -> bool {
    show();
    // virtio 1.3, 2.7.10 and 2.8.21.3.1: the mirror image of the above, and just as needed.
    M::full_fence();
    wanted()
}

/// virtio 1.3, 2.7.6 and 2.7.8: in the flags of either ring, that whoever writes them does not want to be told.
const NOT_WANTED: u16 = 1;

/// Where one side of a split ring says when it wants to be told: the driver in the available ring, the device in the used.
#[derive(Debug)]
pub struct SplitEvents<'ring, M: Memory> {
    pub flags: &'ring M::Word16,
    pub event: &'ring M::Word16,
    pub event_idx: bool,
}

impl<M: Memory> SplitEvents<'_, M> {
    /// Asks to be told of the entry `next`.
    #[inline]
    pub fn ask(&self, next: u16) {
        if self.event_idx {
            self.event.store(next.to_le(), Ordering::Relaxed);
        } else {
            self.flags.store(0, Ordering::Relaxed);
        }
    }

    /// Lets the other side stop telling, when `next` is the entry to come.
    #[inline]
    pub fn refuse(&self, next: u16) {
        if self.event_idx {
            // Half the indices away: none of the next entries passes it. Left where it was asked for, the next one would.
            self.event.store(next.wrapping_add(1 << 15).to_le(), Ordering::Relaxed);
        } else {
            self.flags.store(NOT_WANTED.to_le(), Ordering::Relaxed);
        }
    }

    /// Whether this side wants to be told that the other went from entry `old` to `new`.
    #[inline]
    pub fn wanted(&self, old: u16, new: u16) -> bool {
        if self.event_idx {
            crossed(u16::from_le(self.event.load(Ordering::Relaxed)), new, old)
        } else {
            u16::from_le(self.flags.load(Ordering::Relaxed)) & NOT_WANTED == 0
        }
    }
}

/// A place in a packed ring as virtio 1.3, 2.8.10 has it: the descriptor's index, and in bit 15 the wrap counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub u16);

impl Place {
    const WRAP: u16 = 1 << 15;

    /// Where every packed ring begins.
    pub const START: Place = Place(Self::WRAP);

    #[inline]
    pub fn index(self) -> u16 {
        self.0 & !Self::WRAP
    }

    #[inline]
    pub fn wrap(self) -> bool {
        self.0 & Self::WRAP != 0
    }

    /// The place `steps` on in a ring of `size`, at most one lap.
    #[inline]
    #[must_use]
    pub fn advance(self, steps: u16, size: u16) -> Place {
        // Both are at most 32,768 and the index is below: their sum fits.
        let index = self.index() + steps;
        if index >= size {
            Place((index - size) | (!self.0 & Self::WRAP))
        } else {
            Place(index | (self.0 & Self::WRAP))
        }
    }
}

/// Where one side of a packed ring says when it wants to be told (virtio 1.3, 2.8.10): a place below, flags above.
#[derive(Debug)]
pub struct PackedEvents<'ring, M: Memory> {
    pub word: &'ring M::Word32,
    pub event_idx: bool,
}

impl<M: Memory> PackedEvents<'_, M> {
    const ALWAYS: u32 = 0;
    const NEVER: u32 = 1;
    const AT_PLACE: u32 = 2;

    /// Asks to be told of the descriptor at `next`.
    #[inline]
    pub fn ask(&self, next: Place) {
        // One store of both halves: the other side never sees a new flag beside an old place.
        let word = if self.event_idx { Self::AT_PLACE << 16 | u32::from(next.0) } else { Self::ALWAYS << 16 };
        self.word.store(word.to_le(), Ordering::Relaxed);
    }

    /// Lets the other side stop telling.
    #[inline]
    pub fn refuse(&self) {
        self.word.store((Self::NEVER << 16).to_le(), Ordering::Relaxed);
    }

    /// Whether this side wants to be told that the other came to `new`, by `steps` descriptors in a ring of `size`.
    #[inline]
    pub fn wanted(&self, new: Place, steps: u16, size: u16) -> bool {
        let word = u32::from_le(self.word.load(Ordering::Relaxed));
        let event = Place(word as u16);
        match word >> 16 & 3 {
            Self::NEVER => false,
            Self::AT_PLACE if self.event_idx => {
                // Counted from the beginning of the lap that `new` is in; an event of the other lap is of the one before.
                let lap = if event.wrap() == new.wrap() { 0 } else { size };
                let (event, new) = (event.index().wrapping_sub(lap), new.index());
                crossed(event, new, new.wrapping_sub(steps))
            }
            // ALWAYS; and what is not to be, since telling too often does no harm.
            _ => true,
        }
    }
}

/// virtio 1.3, 2.7.7.1 and 2.7.10: whether going from `old` to `new` passed `event`, modulo 2^16.
#[inline]
fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
#[path = "handshake_model.rs"]
mod model;
#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
