//! The log that QEMU's `blklogwrites` keeps of a drive (the format is that of Linux's dm-log-writes), and the states that a power
//! cut may leave the drive in: what was flushed, or written with FUA, is there; of everything behind the last flush any part.
//!
//! An entry is logged when the drive has done it. A write that ends while a flush is under way stands before that flush, so
//! that the log may take it for flushed where a drive need not have done so: what is lost by that alone is not seen here.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

pub const SECTOR: usize = 512;

// Flags of an entry.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

#[derive(Debug, Clone, Copy)]
struct Entry {
    sector: u64,
    sectors: u64,
    flags: u64,
    /// Where its data lie in the log, and where the next entry begins.
    data: u64,
    end: u64,
}

impl Entry {
    fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }
}

#[derive(Debug)]
pub struct WriteLog {
    file: File,
    entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads a log that is complete: every byte of it is accounted for.
    pub fn read(path: &Path) -> io::Result<WriteLog> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let broken = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let mut entries = Vec::new();
        // The first sector is the log's own.
        let mut at = SECTOR as u64;
        while at + 32 <= bytes {
            let mut fields = [0; 32];
            file.read_exact_at(&mut fields, at)?;
            let field = |n: usize| {
                fields[8 * n..8 * n + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
            };
            let (sector, sectors, flags) = (field(0), field(1), field(2));
            if flags & !(FLUSH | FUA | DISCARD) != 0 || (sectors == 0) != (flags & FLUSH != 0) {
                return Err(broken(format!(
                    "no entry at byte {at} of {bytes}: flags {flags}, {sectors} sectors"
                )));
            }
            let data = at + SECTOR as u64;
            let end = data + if flags & DISCARD != 0 { 0 } else { sectors * SECTOR as u64 };
            if end > bytes {
                return Err(broken(format!("the entry at byte {at} ends at {end} of {bytes}")));
            }
            entries.push(Entry { sector, sectors, flags, data, end });
            at = end;
        }
        Ok(WriteLog { file, entries })
    }

    /// Entries, and how many of them are flushes.
    pub fn count(&self) -> (usize, usize) {
        (self.entries.len(), self.entries.iter().filter(|entry| entry.is_flush()).count())
    }

    /// How many entries the first `bytes` of the log hold.
    pub fn entries_within(&self, bytes: u64) -> usize {
        self.entries.partition_point(|entry| entry.end <= bytes)
    }

    /// The bytes that the first `entries` take.
    pub fn bytes_of(&self, entries: usize) -> u64 {
        entries.checked_sub(1).map_or(SECTOR as u64, |last| self.entries[last].end)
    }

    /// Moments to cut the power at: before and behind every flush, and one between each two, from `first` on; when that is
    /// more than `most`, as many of them, evenly spread. Each is a number of entries that were done.
    pub fn moments(&self, first: usize, most: usize) -> Vec<usize> {
        let flushes = (0..self.entries.len()).filter(|&index| self.entries[index].is_flush());
        let mut moments: Vec<usize> = Vec::new();
        let mut before = 0;
        for flush in flushes {
            moments.extend([usize::midpoint(before, flush), flush, flush + 1]);
            before = flush + 1;
        }
        moments.push(self.entries.len());
        moments.retain(|moment| *moment >= first);
        moments.dedup();
        let all = moments.len();
        if all > most {
            moments = (0..most).map(|n| moments[n * (all - 1) / (most - 1).max(1)]).collect();
            moments.dedup();
        }
        moments
    }

    fn apply(&self, entry: &Entry, image: &mut [u8], chosen: impl Fn(u64) -> bool) -> io::Result<()> {
        let mut sector = [0; SECTOR];
        for n in (0..entry.sectors).filter(|n| chosen(*n)) {
            let to = (entry.sector + n) as usize * SECTOR;
            let to = image.get_mut(to..to + SECTOR).ok_or(io::ErrorKind::InvalidData)?;
            if entry.flags & DISCARD == 0 {
                self.file.read_exact_at(&mut sector, entry.data + n * SECTOR as u64)?;
            }
            to.copy_from_slice(&sector);
        }
        Ok(())
    }
}

/// Which part of what was not flushed reached the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unflushed {
    Lost,
    Kept,
    /// Any of the writes, and any sectors of some of them.
    Some(u64),
}

/// A drive, cut off at one moment after the other.
#[derive(Debug)]
pub struct Replay<'a> {
    log: &'a WriteLog,
    /// As it was at the last flush.
    flushed: Vec<u8>,
    /// Entries that `flushed` holds.
    done: usize,
}

impl<'a> Replay<'a> {
    /// A drive of zeros.
    pub fn new(log: &'a WriteLog, bytes: usize) -> Replay<'a> {
        Replay { log, flushed: vec![0; bytes], done: 0 }
    }

    /// The drive when `moment` entries were done; moments never go back.
    pub fn cut(&mut self, moment: usize, unflushed: Unflushed) -> io::Result<Vec<u8>> {
        let entries = &self.log.entries[..moment];
        if let Some(flush) = entries.iter().rposition(Entry::is_flush) {
            for entry in &entries[self.done.min(flush)..flush] {
                self.log.apply(entry, &mut self.flushed, |_| true)?;
            }
            self.done = self.done.max(flush);
        }
        let mut image = self.flushed.clone();
        for (index, entry) in entries.iter().enumerate().skip(self.done) {
            // Each write has its own fate, the same whenever it is asked for.
            let fate = |part: u64| match unflushed {
                _ if entry.flags & FUA != 0 => true,
                Unflushed::Lost => false,
                Unflushed::Kept => true,
                Unflushed::Some(seed) => {
                    let write = mixed(seed ^ mixed(index as u64));
                    match write % 4 {
                        0 => false,
                        1 => mixed(write ^ part).is_multiple_of(2),
                        _ => true,
                    }
                }
            };
            self.log.apply(entry, &mut image, fate)?;
        }
        Ok(image)
    }
}

/// Any number, the same for the same one (the finalizer of SplitMix64).
pub fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of these entries: sector, content of its one sector, flags.
    fn log(entries: &[(u64, u8, u64)]) -> (tempfile::TempDir, WriteLog) {
        let mut bytes = vec![0; SECTOR];
        for (sector, content, flags) in entries {
            let sectors = u64::from(flags & FLUSH == 0);
            let mut entry: Vec<u8> =
                [*sector, sectors, *flags, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
            entry.resize(SECTOR, 0);
            bytes.extend(entry);
            bytes.extend(std::iter::repeat_n(*content, SECTOR * sectors as usize));
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, bytes).unwrap();
        let log = WriteLog::read(&path).unwrap();
        (directory, log)
    }

    #[test]
    fn what_was_flushed_stays_and_the_rest_is_any_part() {
        let (_kept, log) = log(&[(0, 1, 0), (1, 1, 0), (0, 0, FLUSH), (0, 2, 0), (1, 3, FUA), (0, 4, 0)]);
        assert_eq!(log.count(), (6, 1));
        assert_eq!((log.bytes_of(3), log.entries_within(log.bytes_of(3))), (6 * 512, 3));
        let state = |moment, unflushed| {
            let image = Replay::new(&log, 2 * SECTOR).cut(moment, unflushed).unwrap();
            (image[0], image[SECTOR])
        };
        assert_eq!(state(2, Unflushed::Lost), (0, 0));
        assert_eq!(state(3, Unflushed::Lost), (1, 1));
        assert_eq!(state(6, Unflushed::Lost), (1, 3), "a write with FUA needs no flush");
        assert_eq!(state(6, Unflushed::Kept), (4, 3));
        let some: std::collections::BTreeSet<_> =
            (0..200).map(|seed| state(6, Unflushed::Some(seed))).collect();
        assert_eq!(some, [(1, 3), (2, 3), (4, 3)].into(), "of two writes to a sector the later one stays");
    }

    #[test]
    fn moments_are_at_flushes_and_between_them() {
        let (_kept, log) = log(&[(0, 1, 0), (1, 1, 0), (0, 0, FLUSH), (0, 2, 0), (0, 0, FLUSH), (1, 1, 0)]);
        assert_eq!(log.moments(0, 100), [1, 2, 3, 4, 5, 6]);
        assert_eq!(log.moments(4, 100), [4, 5, 6]);
        assert_eq!(log.moments(0, 3), [1, 3, 6]);
    }

    #[test]
    fn a_log_that_was_cut_off_is_none() {
        let (kept, _log) = log(&[(0, 1, 0)]);
        let path = kept.path().join("log");
        File::options().write(true).open(&path).unwrap().set_len(3 * 512 - 1).unwrap();
        assert!(WriteLog::read(&path).is_err());
    }
}
