//! How much a guest gets in a while: the emulator thread serves other devices, too, and its CPU may be shared.

use std::time::{Duration, Instant};

/// What is given in one period: 1.6 MB and 6,400 requests a second, some hundred times what a kernel asks for, and a small
/// part of a CPU.
pub(super) const PERIOD: Duration = Duration::from_millis(10);
pub(super) const CHAINS: u32 = 64;
pub(super) const BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Budget {
    /// When the period began.
    began: Instant,
    chains: u32,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(now: Instant) -> Budget {
        Budget { began: now, chains: CHAINS, bytes: BYTES }
    }

    /// How many bytes the next chain may have; `None`: nothing before the next period.
    pub(super) fn next(&mut self, now: Instant) -> Option<usize> {
        if now.saturating_duration_since(self.began) >= PERIOD {
            *self = Budget::new(now);
        }
        (self.chains > 0 && self.bytes > 0).then_some(self.bytes)
    }

    /// A chain was given this many bytes.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.chains = self.chains.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_gives_so_many_chains_and_so_many_bytes_and_the_next_one_again() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        for _ in 0..CHAINS {
            assert_eq!(budget.next(begin), Some(BYTES), "a chain without bytes counts as one");
            budget.spend(0);
        }
        assert_eq!(budget.next(begin + PERIOD - Duration::from_nanos(1)), None);
        assert_eq!(budget.next(begin + PERIOD), Some(BYTES));
        budget.spend(BYTES - 1);
        assert_eq!(budget.next(begin + PERIOD), Some(1));
        budget.spend(1);
        assert_eq!(budget.next(begin + PERIOD), None);
        assert_eq!(budget.next(begin + 2 * PERIOD), Some(BYTES));
    }
}
