//! What is measured: a workload at a depth over a number of virtqueues.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// 4 KiB random reads
    #[value(name = "randread")]
    RandRead,
    /// 4 KiB random writes
    #[value(name = "randwrite")]
    RandWrite,
    /// 64 KiB sequential reads
    #[value(name = "read")]
    Read,
}

impl Workload {
    pub const ALL: [Workload; 3] = [Workload::RandRead, Workload::RandWrite, Workload::Read];

    /// Bytes of one request.
    pub fn bytes(self) -> u32 {
        match self {
            Workload::RandRead | Workload::RandWrite => 4 << 10,
            Workload::Read => 64 << 10,
        }
    }

    pub fn is_write(self) -> bool {
        self == Workload::RandWrite
    }

    pub fn is_random(self) -> bool {
        self != Workload::Read
    }

    /// fio's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Workload::RandRead => "randread",
            Workload::RandWrite => "randwrite",
            Workload::Read => "read",
        }
    }
}

/// `depth` requests are in flight over all `queues`: slot k belongs to queue k modulo `queues`. At depth 1 the second queue
/// is idle, and what it costs to have it is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Point {
    pub workload: Workload,
    pub queues: u16,
    pub depth: u32,
}

impl fmt::Display for Point {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.workload {
            Workload::RandRead => "4 KiB random reads",
            Workload::RandWrite => "4 KiB random writes",
            Workload::Read => "64 KiB sequential reads",
        };
        let queues = if self.queues == 1 { "1 queue".to_owned() } else { format!("{} queues", self.queues) };
        write!(out, "{kind}, depth {}, {queues}", self.depth)
    }
}

/// xorshift64*: places to read, the same for every subject of a round.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        // The high half of the product: no division, and as even as it needs to be.
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// Where the next request of a workload goes, in bytes.
#[derive(Debug)]
pub struct Places {
    random: Option<Random>,
    block: u64,
    blocks: u64,
    next: u64,
}

impl Places {
    pub fn new(workload: Workload, area_bytes: u64, seed: u64) -> Places {
        let block = u64::from(workload.bytes());
        let random = workload.is_random().then(|| Random::new(seed));
        Places { random, block, blocks: (area_bytes / block).max(1), next: 0 }
    }

    pub fn next(&mut self) -> u64 {
        let block = match &mut self.random {
            Some(random) => random.below(self.blocks),
            None => {
                let block = self.next;
                self.next = if block + 1 < self.blocks { block + 1 } else { 0 };
                block
            }
        };
        block * self.block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_places_are_blocks_within_the_area_and_sequential_ones_come_in_order() {
        let mut places = Places::new(Workload::RandRead, 64 << 10, 7);
        let mut seen = [false; 16];
        for _ in 0..1000 {
            let place = places.next();
            assert!(place.is_multiple_of(4096) && place < 64 << 10, "{place}");
            seen[(place / 4096) as usize] = true;
        }
        assert_eq!(seen, [true; 16]);
        let mut places = Places::new(Workload::Read, 128 << 10, 7);
        assert_eq!([places.next(), places.next(), places.next()], [0, 64 << 10, 0]);
    }

    #[test]
    fn the_same_seed_gives_the_same_order_and_another_one_does_not() {
        let order = |seed| {
            let mut items: Vec<u32> = (0..20).collect();
            Random::new(seed).shuffle(&mut items);
            items
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        let mut sorted = order(3);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
    }
}
