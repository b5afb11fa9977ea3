//! How long to look for work before sleeping. A window that grows while work comes soon after it closed, and closes when
//! work stays away: busy CPUs are only worth it where sleeping and waking cost more than the wait.
//!
//! There are two: one for waits with operations in flight, which a device ends, and one for those without, which only a
//! driver ends. They differ by orders of magnitude and take turns at depth 1: with one window for both, the slow device
//! would close it each time before the quick driver could use it.

use std::time::Duration;

use crate::config::Polling;

/// The first window, and how fast it opens where nobody says: as QEMU's IOThreads had it up to 11.0.
const FIRST: Duration = Duration::from_nanos(4_000);
const GROWTH: u32 = 2;

#[derive(Debug)]
pub(super) struct Windows {
    device: PollWindow,
    driver: PollWindow,
}

impl Windows {
    pub(super) fn new(polling: Polling) -> Self {
        Windows { device: PollWindow::new(polling), driver: PollWindow::new(polling) }
    }

    /// The one for a wait of a kind; `None` where waits need not be measured at all.
    pub(super) fn of(&mut self, awaits_device: bool) -> Option<&mut PollWindow> {
        let window = if awaits_device { &mut self.device } else { &mut self.driver };
        window.adapts().then_some(window)
    }
}

#[derive(Debug)]
pub(super) struct PollWindow {
    now: Duration,
    most: Duration,
    grow: u32,
    /// What a window in vain is divided by; 0 closes it.
    shrink: u32,
}

impl PollWindow {
    /// Starts closed; a most of 0 keeps it so.
    pub(super) fn new(polling: Polling) -> Self {
        PollWindow {
            now: Duration::ZERO,
            most: Duration::from_nanos(polling.max_ns),
            grow: if polling.grow == 0 { GROWTH } else { polling.grow },
            shrink: polling.shrink,
        }
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
            self.now = self.now.checked_div(self.shrink).unwrap_or(Duration::ZERO);
        } else if self.now < self.most {
            self.now = self.now.saturating_mul(self.grow).max(FIRST).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upto(max_ns: u64) -> PollWindow {
        PollWindow::new(Polling { max_ns, ..Polling::default() })
    }

    #[test]
    fn a_slow_device_does_not_close_the_window_of_a_quick_driver() {
        let mut windows = Windows::new(Polling { max_ns: 32_768, ..Polling::default() });
        for _ in 0..3 {
            windows.of(true).unwrap().waited(Duration::from_micros(90));
            windows.of(false).unwrap().waited(Duration::from_micros(3));
        }
        assert!(windows.of(true).unwrap().length().is_zero());
        assert_eq!(windows.of(false).unwrap().length(), FIRST);
        assert!(Windows::new(Polling::default()).of(true).is_none());
    }

    const SHORT: Duration = Duration::from_nanos(10_000);

    #[test]
    fn a_window_grows_until_it_meets_the_work() {
        let mut window = upto(32_768);
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
        let mut window = upto(5_000);
        for _ in 0..5 {
            window.waited(Duration::from_nanos(4_900));
        }
        assert_eq!(window.length().as_nanos(), 5_000);
        window.waited(Duration::from_millis(1));
        assert!(window.length().is_zero());
    }

    #[test]
    fn a_limit_of_zero_never_polls() {
        let mut window = upto(0);
        window.waited(Duration::ZERO);
        window.waited(SHORT);
        assert!(window.length().is_zero() && !window.adapts());
    }

    #[test]
    fn growth_and_shrinking_are_as_asked() {
        let mut window = PollWindow::new(Polling { max_ns: 40_000, grow: 3, shrink: 2 });
        let mut seen = Vec::new();
        for _ in 0..4 {
            window.waited(Duration::from_nanos(39_999));
            seen.push(window.length().as_nanos());
        }
        assert_eq!(seen, [4_000, 12_000, 36_000, 40_000]);
        window.waited(Duration::from_millis(1));
        assert_eq!(window.length().as_nanos(), 20_000);
        // Factors beyond any sense end at the limits.
        let mut window = PollWindow::new(Polling { max_ns: u64::MAX, grow: u32::MAX, shrink: u32::MAX });
        (0..9).for_each(|_| window.waited(Duration::from_secs(1 << 33)));
        assert_eq!(window.length(), Duration::from_nanos(u64::MAX));
    }
}
