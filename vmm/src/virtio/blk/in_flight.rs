//! The requests of a queue that are in flight, for whoever looks from outside: how many, and of the oldest what it is and how
//! old. The IOThread notes them with two plain stores each; a reader needs no lock and gets an answer from a thread that is
//! stuck in the kernel, too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::request::Kind;
use crate::iothread::counters::Oldest;

/// A moment of CLOCK_MONOTONIC_COARSE, in nanoseconds and never 0. The clock stands still for a tick, some milliseconds, and
/// is read without asking the hardware: once for all requests that are taken in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(u64);

impl Moment {
    pub(super) fn now() -> Moment {
        let now = clock_gettime(ClockId::MonotonicCoarse);
        let nanos = (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64);
        Moment(nanos.max(1))
    }

    pub(super) fn nanos(self) -> u64 {
        self.0
    }

    /// One that was read off the clock that does not stand still.
    pub(super) fn exactly(nanos: u64) -> Moment {
        Moment(nanos.max(1))
    }
}

#[derive(Debug, Default)]
struct Entry {
    /// The moment at which the request was taken; 0 while the driver has the head.
    since: AtomicU64,
    /// Its kind in the low bits, its sector above.
    what: AtomicU64,
}

const KIND_BITS: u32 = 3;
const KINDS: [&str; 8] =
    ["read", "write", "flush", "get id", "discard", "write zeroes", "refused", "unknown"];

/// Indexed by head. One IOThread writes.
#[derive(Debug)]
pub(super) struct InFlight(Box<[Entry]>);

impl InFlight {
    pub(super) fn new(size: u16) -> Self {
        InFlight(std::iter::repeat_with(Entry::default).take(size.into()).collect())
    }

    pub(super) fn begin(&self, head: u16, kind: Kind, since: Moment) {
        if let Some(entry) = self.0.get(usize::from(head)) {
            entry.what.store(packed(kind), Ordering::Relaxed);
            // Whoever sees the moment sees what began then.
            entry.since.store(since.0, Ordering::Release);
        }
    }

    pub(super) fn end(&self, head: u16) {
        if let Some(entry) = self.0.get(usize::from(head)) {
            entry.since.store(0, Ordering::Relaxed);
        }
    }

    /// The queue is served anew.
    pub(super) fn clear(&self) {
        self.0.iter().for_each(|entry| entry.since.store(0, Ordering::Relaxed));
    }

    /// How many there are, and the oldest.
    pub(super) fn look(&self) -> (u64, Option<Oldest>) {
        let now = Moment::now().0;
        let (mut count, mut oldest) = (0, None::<(u64, u16, u64)>);
        for (head, entry) in (0_u16..).zip(&self.0) {
            let since = entry.since.load(Ordering::Acquire);
            if since == 0 {
                continue;
            }
            count += 1;
            if oldest.is_none_or(|(earlier, ..)| since < earlier) {
                oldest = Some((since, head, entry.what.load(Ordering::Relaxed)));
            }
        }
        let describe = |(since, head, what): (u64, u16, u64)| {
            let age = Duration::from_nanos(now.saturating_sub(since));
            Oldest {
                head,
                kind: KINDS[(what & ((1 << KIND_BITS) - 1)) as usize].to_owned(),
                sector: what >> KIND_BITS,
                age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            }
        };
        (count, oldest.map(describe))
    }
}

/// Offsets are whole sectors below 2^63 bytes: what is left of them has room for the kind.
fn packed(kind: Kind) -> u64 {
    let (number, offset) = match kind {
        Kind::Read { offset } => (0, offset),
        Kind::Write { offset } => (1, offset),
        Kind::Flush => (2, 0),
        Kind::GetId => (3, 0),
        Kind::Discard => (4, 0),
        Kind::WriteZeroes => (5, 0),
        Kind::Refused(_) => (6, 0),
    };
    offset >> 9 << KIND_BITS | number
}

/// The word for a kind of request.
pub(super) fn word(kind: Kind) -> &'static str {
    KINDS[(packed(kind) & ((1 << KIND_BITS) - 1)) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_found_whatever_its_head() {
        let in_flight = InFlight::new(8);
        assert_eq!(in_flight.look(), (0, None));
        let now = Moment::now().0;
        let at = |ms: u64| Moment(now.saturating_sub(ms * 1_000_000).max(1));
        in_flight.begin(2, Kind::Flush, at(10));
        in_flight.begin(7, Kind::Write { offset: (1 << 60) + 512 }, at(5_000));
        in_flight.begin(1, Kind::Read { offset: 0 }, at(20));
        let (count, oldest) = in_flight.look();
        let oldest = oldest.unwrap();
        assert_eq!((count, oldest.head, oldest.kind.as_str()), (3, 7, "write"));
        assert_eq!(oldest.sector, (1 << 51) + 1);
        assert!(oldest.age_ms >= 5_000);
        in_flight.end(7);
        assert_eq!(in_flight.look().1.map(|oldest| (oldest.head, oldest.kind)), Some((1, "read".into())));
        in_flight.clear();
        in_flight.begin(8, Kind::Flush, at(1));
        assert_eq!(in_flight.look(), (0, None), "no such head");
    }
}
