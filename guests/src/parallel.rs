//! Work spread over the processor's cores, largest piece first: a long one begun last would leave the other cores idle.
//! The results come in the order of the pieces, whatever the number of threads.

use std::collections::BinaryHeap;
use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::error::{GuestError, Result};

/// More would only hold more unpacked packages in memory at once.
const MOST_THREADS: usize = 32;

/// As many threads as this process may run on CPUs.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS)
}

/// The results of `work` on every piece, in the order of `pieces`. `size` says how long a piece takes, in any unit. After a
/// failure nothing more is begun; of several failures, the first piece's is returned.
pub(crate) fn each<P: Sync, T: Send>(
    pieces: &[P],
    size: impl Fn(&P) -> u64,
    work: impl Fn(&P) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let feed = Feed::default();
    for (index, piece) in pieces.iter().enumerate() {
        feed.put(size(piece), index);
    }
    feed.close();
    // The workers meet here, each with a piece's result.
    let done = Mutex::new(Vec::with_capacity(pieces.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads().min(pieces.len()) {
            scope.spawn(|| {
                feed.work(|index| {
                    let Some(piece) = pieces.get(index) else { return Ok(()) };
                    let result = work(piece)?;
                    done.lock().unwrap_or_else(|broken| broken.into_inner()).push((index, result));
                    Ok(())
                });
            });
        }
    });
    feed.finish()?;
    let mut done = done.into_inner().unwrap_or_else(|broken| broken.into_inner());
    done.sort_unstable_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// Pieces that workers take, the largest that is there first, while others may still arrive.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Size and number of what waits.
    waiting: BinaryHeap<(u64, usize)>,
    /// No more will arrive.
    closed: bool,
    /// The failures, by piece. One stops everything.
    failed: Vec<(usize, GuestError)>,
}

impl Feed {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|broken| broken.into_inner())
    }

    /// Adds a piece. `false`: something failed, and nobody will take it.
    pub(crate) fn put(&self, size: u64, piece: usize) -> bool {
        let mut state = self.state();
        state.waiting.push((size, piece));
        self.changed.notify_one();
        state.failed.is_empty()
    }

    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Takes pieces until none will come any more. Call it on as many threads as shall work.
    pub(crate) fn work(&self, work: impl Fn(usize) -> Result<()>) {
        loop {
            let mut state = self.state();
            let piece = loop {
                if !state.failed.is_empty() {
                    return;
                }
                match state.waiting.pop() {
                    Some((_, piece)) => break piece,
                    None if state.closed => return,
                    None => state = self.changed.wait(state).unwrap_or_else(|broken| broken.into_inner()),
                }
            };
            drop(state);
            if let Err(error) = work(piece) {
                self.state().failed.push((piece, error));
                self.changed.notify_all();
            }
        }
    }

    /// After all workers have ended: the first piece's failure, if there was one.
    pub(crate) fn finish(self) -> Result<()> {
        let mut failed = self.state.into_inner().unwrap_or_else(|broken| broken.into_inner()).failed;
        failed.sort_by_key(|(piece, _)| *piece);
        failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_pieces() {
        let pieces: Vec<u64> = (0..100).collect();
        let doubled = each(&pieces, |piece| *piece % 7, |piece| Ok(piece * 2)).unwrap();
        assert_eq!(doubled, pieces.iter().map(|piece| piece * 2).collect::<Vec<_>>());
    }

    #[test]
    fn the_largest_piece_that_is_there_is_begun_first() {
        let feed = Feed::default();
        for (piece, size) in [3, 9, 5].into_iter().enumerate() {
            assert!(feed.put(size, piece));
        }
        feed.close();
        let begun = Mutex::new(Vec::new());
        feed.work(|piece| {
            begun.lock().unwrap().push(piece);
            Ok(())
        });
        assert_eq!(begun.into_inner().unwrap(), [1, 2, 0]);
    }

    #[test]
    fn after_a_failure_nothing_more_is_begun_and_whoever_brings_more_is_told() {
        let feed = Feed::default();
        feed.put(1, 0);
        feed.put(9, 1);
        feed.work(|piece| match piece {
            1 => Err(GuestError::NotBuilt),
            _ => panic!("begun after a failure"),
        });
        assert!(!feed.put(1, 2));
        assert!(matches!(feed.finish(), Err(GuestError::NotBuilt)));
    }
}
