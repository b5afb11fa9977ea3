//! Changes of an IOThread while it serves: where it runs, how long it polls, whether it takes times.

use std::sync::atomic::Ordering;

use vmprof_sys::affinity;

use super::Worker;
use crate::iothread::poll::Windows;
use crate::iothread::{Change, IoThreadError, Place};
use crate::thread::{self, ThreadError};

impl Worker {
    /// The part that can fail comes first.
    pub(super) fn change(&mut self, change: Change) -> Result<(), IoThreadError> {
        if let Some(Place { cpus, shares_cpus }) = change.place {
            self.move_to(&cpus)?;
            self.preempting.moved(shares_cpus);
        }
        if let Some(polling) = change.polling {
            self.windows = Windows::new(polling);
        }
        if let Some(take) = change.latency {
            self.takes_times = take;
            self.counters.latency.store(take, Ordering::Relaxed);
            self.queues.iter_mut().flatten().for_each(|served| served.service.take_times(take));
        }
        Ok(())
    }

    /// With all that works for it; or nothing moves.
    fn move_to(&mut self, cpus: &[u32]) -> Result<(), IoThreadError> {
        let title = format!("IO {}", self.name);
        let refused = |source| IoThreadError::Moved { name: self.name.clone(), source };
        let unread = |source| ThreadError::Pin { name: title.clone(), asked: cpus.to_owned(), source };
        let before = affinity::cpus_of_thread(0).map_err(|error| refused(unread(error)))?;
        let moved = thread::pin(&title, cpus).map_err(refused).and_then(|()| self.engines.move_to(cpus));
        if moved.is_err() {
            // They come from there: what is refused now as well is a host whose CPUs have gone, and the reader of the
            // error learns of the first refusal.
            let _ = thread::pin(&title, &before);
            let _ = self.engines.move_to(&before);
        }
        moved
    }
}
