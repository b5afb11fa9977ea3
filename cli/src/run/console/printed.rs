//! The last of what a guest has printed, by its place in all that it ever printed: those who read along each have a place of
//! their own, and whoever comes anew begins a bounded part before the end, at a line.

use std::collections::VecDeque;

/// What is kept for whoever comes.
pub const KEPT: u64 = 64 << 10;
/// How far one who reads along may be behind. It is kept for as long as somebody is.
pub const BEHIND: u64 = 1 << 20;

#[derive(Debug, Default)]
pub struct Printed {
    /// The last of it.
    bytes: VecDeque<u8>,
    /// How many there were in all.
    end: u64,
}

impl Printed {
    /// `slowest` is the place of the one who is the furthest behind.
    pub fn add(&mut self, bytes: &[u8], slowest: Option<u64>) {
        self.bytes.extend(bytes);
        self.end += bytes.len() as u64;
        let for_whoever_comes = self.end.saturating_sub(KEPT);
        let wanted = slowest.map_or(for_whoever_comes, |slowest| slowest.min(for_whoever_comes));
        let from = wanted.max(self.end.saturating_sub(BEHIND));
        let surplus = usize::try_from(from.saturating_sub(self.start())).unwrap_or(usize::MAX);
        self.bytes.drain(..surplus.min(self.bytes.len()));
        if self.bytes.len() as u64 <= KEPT && self.bytes.capacity() as u64 > 4 * KEPT {
            self.bytes.shrink_to(KEPT as usize);
        }
    }

    /// Where whoever comes now begins.
    pub fn first_line(&self) -> u64 {
        let from = self.end.saturating_sub(KEPT).max(self.start());
        if from == 0 {
            return 0;
        }
        let before = from - self.start();
        // The byte before, where it is still there, may end a line.
        let skip = usize::try_from(before.saturating_sub(1)).unwrap_or(usize::MAX);
        let line_end = self.bytes.iter().skip(skip).position(|byte| *byte == b'\n');
        line_end.map_or(from, |at| self.start() + skip as u64 + at as u64 + 1)
    }

    /// Appends what comes from the place `at` on, `most` bytes of it at most, and says how many these are. `None`: some of it
    /// is no longer there.
    pub fn take_from(&self, at: u64, most: usize, into: &mut Vec<u8>) -> Option<u64> {
        let skip = usize::try_from(at.checked_sub(self.start())?).ok()?;
        let before = into.len();
        into.extend(self.bytes.iter().skip(skip).take(most));
        Some((into.len() - before) as u64)
    }

    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(printed: &Printed, at: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        printed.take_from(at, usize::MAX, &mut bytes).map(|_| bytes)
    }

    #[test]
    fn whoever_comes_begins_at_a_line_of_the_kept_part() {
        let mut printed = Printed::default();
        printed.add(b"first\nsecond\nlog", None);
        assert_eq!(from(&printed, printed.first_line()).unwrap(), b"first\nsecond\nlog");
        // Lines of 100 bytes; the kept part begins within one.
        let line = [&[b'x'; 99][..], b"\n"].concat();
        for _ in 0..2_000 {
            printed.add(&line, None);
        }
        let kept = from(&printed, printed.first_line()).unwrap();
        assert!(kept.len().is_multiple_of(100) && kept.len() as u64 + 100 > KEPT, "{}", kept.len());
        assert!(kept.len() as u64 <= KEPT && kept.starts_with(b"x"));
        // A line that is longer than all that is kept is shown in part.
        printed.add(&vec![b'y'; 2 * KEPT as usize], None);
        assert_eq!(from(&printed, printed.first_line()).unwrap().len() as u64, KEPT);
    }

    #[test]
    fn a_line_that_begins_where_the_kept_part_does_is_whole() {
        let mut printed = Printed::default();
        printed.add(b"an older line\n", Some(0));
        printed.add(&vec![b'z'; KEPT as usize], Some(0));
        assert_eq!(from(&printed, printed.first_line()).unwrap().len() as u64, KEPT);
    }

    #[test]
    fn one_who_reads_along_misses_nothing_until_it_is_too_far_behind() {
        let mut printed = Printed::default();
        let mut all: Vec<u8> = Vec::new();
        for number in 0..BEHIND / 16 {
            let line = format!("{number:>15}\n");
            printed.add(line.as_bytes(), Some(0));
            all.extend(line.as_bytes());
        }
        assert!(from(&printed, 0).unwrap() == all);
        printed.add(b"x", Some(0));
        assert_eq!(from(&printed, 0), None);
        assert!(from(&printed, 1).unwrap().ends_with(b"x"));
        // Nobody is behind any more.
        printed.add(b"y", None);
        assert_eq!(printed.bytes.len() as u64, KEPT);
        assert!(printed.bytes.capacity() as u64 <= 4 * KEPT);
        assert_eq!(from(&printed, printed.end).unwrap(), b"");
    }
}
