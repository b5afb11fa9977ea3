//! Writes that share a block of the backing, kept apart. Where direct I/O writes in blocks larger than a sector, a finer
//! write reads the block, changes its part and writes the whole: two of them at once, or one beside a whole write, would
//! lose what the other wrote. Disks whose blocks are sectors never come here.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The byte ranges being written. The lock is where the IOThreads that serve one disk meet.
#[derive(Debug, Default)]
pub struct Gate {
    held: Mutex<Vec<Range<u64>>>,
}

impl Gate {
    /// Takes `range` when no one holds a part of it. Who does not get it asks again later.
    pub fn enter(&self, range: &Range<u64>) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let free = held.iter().all(|other| other.end <= range.start || range.end <= other.start);
        if free {
            held.push(range.clone());
        }
        free
    }

    /// Gives back what `enter` gave.
    pub fn leave(&self, range: &Range<u64>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.iter().position(|other| other == range) {
            held.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_may_be_held_and_ranges_that_overlap_not() {
        let gate = Gate::default();
        assert!(gate.enter(&(0..4096)));
        assert!(gate.enter(&(4096..8192)));
        assert!(!gate.enter(&(4095..4097)));
        gate.leave(&(0..4096));
        assert!(!gate.enter(&(0..4097)));
        gate.leave(&(4096..8192));
        assert!(gate.enter(&(0..8192)));
    }
}
