//! Which blocks are given to whom: from the first free one to the last, so that each group is used from its start up to one
//! point, and a bitmap is a row of ones followed by a row of zeros.

use super::geometry::Geometry;

/// Blocks that follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) start: u64,
    pub(super) blocks: u64,
}

/// No free block is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug, Clone)]
pub(super) struct Allocation {
    geometry: Geometry,
    /// The group blocks are taken from, and how many of its blocks are used, metadata included.
    group: u32,
    used: u64,
}

impl Allocation {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self { geometry, group: 0, used: geometry.metadata_of(0) }
    }

    /// The next `blocks` free blocks; as few runs as the metadata between them allows.
    pub(super) fn take(&mut self, blocks: u64) -> Result<Vec<Run>, Full> {
        let mut runs: Vec<Run> = Vec::new();
        let mut wanted = blocks;
        while wanted > 0 {
            let free = self.geometry.blocks_of(self.group) - self.used;
            if free == 0 {
                self.group += 1;
                if self.group >= self.geometry.groups {
                    return Err(Full);
                }
                self.used = self.geometry.metadata_of(self.group);
                continue;
            }
            let start = self.geometry.first_block(self.group) + self.used;
            let taken = wanted.min(free);
            match runs.last_mut() {
                Some(last) if last.start + last.blocks == start => last.blocks += taken,
                _ => runs.push(Run { start, blocks: taken }),
            }
            self.used += taken;
            wanted -= taken;
        }
        Ok(runs)
    }

    pub(super) fn take_one(&mut self) -> Result<u64, Full> {
        self.take(1)?.first().map(|run| run.start).ok_or(Full)
    }

    /// How many blocks of a group are used: those before this many.
    pub(super) fn used_of(&self, group: u32) -> u64 {
        match group.cmp(&self.group) {
            std::cmp::Ordering::Less => self.geometry.blocks_of(group),
            std::cmp::Ordering::Equal => self.used,
            std::cmp::Ordering::Greater => self.geometry.metadata_of(group),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_free_block_is_given_away_once(mib in 8u64..600, asked in proptest::collection::vec(1u64..40_000, 1..40)) {
            let Some(geometry) = Geometry::new(mib << 20, 0) else { return Ok(()) };
            let metadata: u64 = (0..geometry.groups).map(|group| geometry.metadata_of(group)).sum();
            let mut allocation = Allocation::new(geometry);
            let mut next = 0;
            let mut given = 0;
            for blocks in asked {
                let Ok(runs) = allocation.take(blocks) else {
                    prop_assert!(given + blocks > geometry.blocks - metadata);
                    return Ok(());
                };
                prop_assert_eq!(runs.iter().map(|run| run.blocks).sum::<u64>(), blocks);
                for run in runs {
                    prop_assert!(run.start >= next);
                    next = run.start + run.blocks;
                }
                given += blocks;
                let used: u64 = (0..geometry.groups).map(|group| allocation.used_of(group)).sum();
                prop_assert_eq!(used, metadata + given);
            }
        }
    }
}
