//! How long requests take, and where: from the ring to an engine, in the engine, and from there back to the driver. Each
//! virtqueue has a histogram for each, counted by its IOThread with plain stores and read by anyone. Times are taken only while
//! somebody wants them: a clock is read once for each batch that is taken, handed over, found and shown, and not for each request.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::counters::Counter;

/// CLOCK_MONOTONIC in nanoseconds, never 0.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64).max(1)
}

/// Buckets for each doubling: a value is known to an eighth of itself.
const PER_OCTAVE_BITS: u32 = 3;
const PER_OCTAVE: usize = 1 << PER_OCTAVE_BITS;
/// The last bucket has what takes longer than this: 2^37 ns, 137 s.
const OCTAVES: u32 = 37;
const BUCKETS: usize = ((OCTAVES - PER_OCTAVE_BITS) as usize + 1) * PER_OCTAVE;

/// The bucket of a duration: those up to 16 ns have one each, and then there are eight for each doubling. A power of two is the
/// longest of its bucket, so that bounds which are powers of two cut no bucket in two.
fn bucket_of(nanos: u64) -> usize {
    let value = nanos.saturating_sub(1);
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(PER_OCTAVE_BITS + 1);
    let bucket = shift as usize * PER_OCTAVE + (value >> shift) as usize;
    bucket.min(BUCKETS - 1)
}

/// The longest duration of a bucket, in nanoseconds. The last bucket has no end; it is taken for one like the others.
fn longest_of(bucket: usize) -> u64 {
    let shift = (bucket / PER_OCTAVE).saturating_sub(1);
    let mantissa = bucket - shift * PER_OCTAVE;
    (mantissa as u64 + 1) << shift
}

/// One thread counts.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[Counter]>,
    sum_ns: Counter,
    max_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        let buckets = std::iter::repeat_with(Counter::default).take(BUCKETS).collect();
        Histogram { buckets, sum_ns: Counter::default(), max_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// `times` requests took that long.
    pub fn record(&self, nanos: u64, times: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(nanos)) {
            bucket.add(times);
        }
        self.sum_ns.add(nanos.wrapping_mul(times));
        if nanos > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.store(nanos, Ordering::Relaxed);
        }
    }

    fn snapshot(&self) -> HistogramSnapshot {
        let counts = self.buckets.iter().map(Counter::get).enumerate().filter(|(_, count)| *count > 0);
        let buckets: Vec<(u64, u64)> = counts.map(|(bucket, count)| (longest_of(bucket), count)).collect();
        HistogramSnapshot { sum_ns: self.sum_ns.get(), max_ns: self.max_ns.load(Ordering::Relaxed), buckets }
    }
}

/// Of one virtqueue.
#[derive(Debug, Default)]
pub struct Latency {
    pub queue: Histogram,
    pub device: Histogram,
    pub completion: Histogram,
}

impl Latency {
    pub(crate) fn snapshot(&self) -> LatencySnapshot {
        LatencySnapshot {
            queue: self.queue.snapshot(),
            device: self.device.snapshot(),
            completion: self.completion.snapshot(),
        }
    }
}

/// Of requests that an engine had a part in; what is answered at once, such as GET_ID, is not among them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencySnapshot {
    /// From when the IOThread found the request in the ring until its first operation was handed over to an engine.
    pub queue: HistogramSnapshot,
    /// From there until the end of its last operation was found: all that the host and the drive had of it.
    pub device: HistogramSnapshot,
    /// From there until the driver was shown it: the used index, and the interrupt where one was due.
    pub completion: HistogramSnapshot,
}

impl LatencySnapshot {
    /// Each with its name.
    pub fn stages(&self) -> [(&'static str, &HistogramSnapshot); 3] {
        [("queue", &self.queue), ("device", &self.device), ("completion", &self.completion)]
    }
}

/// A histogram at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistogramSnapshot {
    pub sum_ns: u64,
    /// The longest of all.
    pub max_ns: u64,
    /// Of each bucket that has any: its longest duration in nanoseconds, and how many it has. Ascending.
    pub buckets: Vec<(u64, u64)>,
}

impl HistogramSnapshot {
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// The duration that `per_mille` of a thousand did not exceed, to an eighth of itself; `None` of nothing.
    pub fn quantile_ns(&self, per_mille: u64) -> Option<u64> {
        let due = u128::from(self.count()) * u128::from(per_mille.min(1_000));
        let mut below = 0_u128;
        self.buckets
            .iter()
            .find(|(_, count)| {
                below += u128::from(*count) * 1_000;
                below >= due && below > 0
            })
            // Of the last bucket the longest is known.
            .map(|(longest, _)| (*longest).min(self.max_ns.max(1)))
    }

    /// What came since an earlier snapshot of the same. The longest is only known where it is a new one; else that of its bucket
    /// stands for it.
    pub fn since(&self, before: &HistogramSnapshot) -> HistogramSnapshot {
        let earlier = |longest: u64| {
            before.buckets.iter().find(|(other, _)| *other == longest).map_or(0, |(_, count)| *count)
        };
        let more =
            self.buckets.iter().map(|(longest, count)| (*longest, count.saturating_sub(earlier(*longest))));
        let buckets: Vec<(u64, u64)> = more.filter(|(_, count)| *count > 0).collect();
        let longest = buckets.last().map_or(0, |(longest, _)| *longest);
        let max_ns = if self.max_ns > before.max_ns { self.max_ns } else { longest.min(self.max_ns) };
        HistogramSnapshot { sum_ns: self.sum_ns.saturating_sub(before.sum_ns), max_ns, buckets }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap_and_end_at_powers_of_two() {
        let mut longest = 0;
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(longest + 1), bucket, "{longest}");
            longest = longest_of(bucket);
            assert_eq!(bucket_of(longest), bucket);
        }
        for power in 0..OCTAVES {
            assert_eq!(longest_of(bucket_of(1 << power)), 1 << power);
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS - 1));
    }

    proptest! {
        #[test]
        fn a_duration_is_known_to_an_eighth(nanos in 1_u64..1 << 36) {
            let longest = longest_of(bucket_of(nanos));
            prop_assert!(nanos <= longest && longest - nanos <= nanos / 8 + 1);
        }
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot().quantile_ns(500), None);
        histogram.record(1_024, 90);
        histogram.record(4_096, 9);
        histogram.record(1_000_000, 1);
        let snapshot = histogram.snapshot();
        assert_eq!((snapshot.count(), snapshot.max_ns), (100, 1_000_000));
        assert_eq!(snapshot.sum_ns, 90 * 1_024 + 9 * 4_096 + 1_000_000);
        let quantiles =
            [0, 500, 900, 990, 999, 1_000].map(|per_mille| snapshot.quantile_ns(per_mille).unwrap());
        assert_eq!(quantiles, [1_024, 1_024, 1_024, 4_096, 1_000_000, 1_000_000]);
    }

    #[test]
    fn what_came_since_is_told_from_what_was_there() {
        let histogram = Histogram::default();
        histogram.record(1_000_000, 5);
        let before = histogram.snapshot();
        assert_eq!(before.since(&before), HistogramSnapshot { max_ns: 0, ..HistogramSnapshot::default() });
        histogram.record(2_048, 3);
        let since = histogram.snapshot().since(&before);
        assert_eq!((since.count(), since.quantile_ns(999), since.sum_ns), (3, Some(2_048), 3 * 2_048));
        histogram.record(3_000_000, 1);
        assert_eq!(histogram.snapshot().since(&before).max_ns, 3_000_000);
    }
}
