//! How long to look for work before sleeping. A window that grows while work comes soon after it closed, and closes when
//! work stays away: busy CPUs are only worth it where sleeping and waking cost more than the wait.

use std::time::Duration;

/// The first window, and how fast it opens: as QEMU's IOThreads have it.
const FIRST: Duration = Duration::from_nanos(4_000);
const GROWTH: u32 = 2;

#[derive(Debug)]
pub(super) struct PollWindow {
    now: Duration,
    most: Duration,
}

impl PollWindow {
    /// Starts closed; `most_ns` of 0 keeps it so.
    pub(super) fn new(most_ns: u64) -> Self {
        PollWindow { now: Duration::ZERO, most: Duration::from_nanos(most_ns) }
    }

    /// Whether waits need to be measured at all.
    pub(super) fn adapts(&self) -> bool {
        !self.most.is_zero()
    }

    /// How long to look before sleeping this time.
    pub(super) fn length(&self) -> Duration {
        self.now
    }

    /// Learns from a wait, looking and sleeping together.
    pub(super) fn waited(&mut self, wait: Duration) {
        if wait <= self.now {
            // Work came while we looked: the window is right.
        } else if wait > self.most {
            // No window we may have would have met it.
            self.now = Duration::ZERO;
        } else if self.now < self.most {
            self.now = (self.now * GROWTH).max(FIRST).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_nanos(10_000);

    #[test]
    fn a_window_grows_until_it_meets_the_work() {
        let mut window = PollWindow::new(32_768);
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(window.length().as_nanos());
            window.waited(SHORT);
        }
        assert_eq!(seen, [0, 4_000, 8_000, 16_000]);
        assert_eq!(window.length().as_nanos(), 16_000, "wide enough: it stays");
    }

    #[test]
    fn a_long_wait_closes_it_and_its_limit_holds() {
        let mut window = PollWindow::new(5_000);
        for _ in 0..5 {
            window.waited(Duration::from_nanos(4_900));
        }
        assert_eq!(window.length().as_nanos(), 5_000);
        window.waited(Duration::from_millis(1));
        assert!(window.length().is_zero());
    }

    #[test]
    fn a_limit_of_zero_never_polls() {
        let mut window = PollWindow::new(0);
        window.waited(Duration::ZERO);
        window.waited(SHORT);
        assert!(window.length().is_zero() && !window.adapts());
    }
}
