//! Changes of an IOThread while it serves: where it runs, how long it polls, whether it takes times.

use std::fs;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use vmprof_sys::affinity;

use super::Worker;
use crate::iothread::poll::Windows;
use crate::iothread::{Change, IoThreadError, Place, Unmoved};
use crate::thread::{self, ThreadError};

impl Worker {
    /// The part that can fail comes first.
    pub(super) fn change(&mut self, change: Change) -> Result<Unmoved, IoThreadError> {
        let mut unmoved = Unmoved::default();
        if let Some(Place { cpus, shares_cpus }) = change.place {
            unmoved = self.move_to(&cpus)?;
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
        Ok(unmoved)
    }

    /// With all that works for it; or nothing moves.
    fn move_to(&mut self, cpus: &[u32]) -> Result<Unmoved, IoThreadError> {
        let title = format!("IO {}", self.name);
        let refused = |source| IoThreadError::Moved { name: self.name.clone(), source };
        let unread = |source| ThreadError::Pin { name: title.clone(), asked: cpus.to_owned(), source };
        let before = affinity::cpus_of_thread(0).map_err(|error| refused(unread(error)))?;
        let moved = thread::pin(&title, cpus).map_err(refused).and_then(|()| {
            self.engines.move_to(cpus)?;
            move_workers(cpus).map_err(refused)
        });
        if moved.is_err() {
            // They come from there: what is refused now as well is a host whose CPUs have gone, and the reader of the
            // error learns of the first refusal.
            let _ = thread::pin(&title, &before);
            let _ = self.engines.move_to(&before);
            let _ = move_workers(&before);
        }
        moved
    }
}

/// Moves what there is of the kernel's workers for io_uring of the calling thread: the mask of a ring is for those to come.
fn move_workers(cpus: &[u32]) -> Result<Unmoved, ThreadError> {
    let name = format!("iou-wrk-{}", rustix::thread::gettid().as_raw_nonzero());
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let is_one = |task: &fs::DirEntry| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    let mut unmoved = Unmoved::default();
    for tid in tasks.filter(is_one).filter_map(|task| task.file_name().to_str()?.parse().ok()) {
        match thread::pin_other(&name, tid, cpus) {
            Err(ThreadError::Pin { source, .. }) => match Errno::from_io_error(&source) {
                // It has ended meanwhile.
                Some(Errno::SRCH) => {}
                // The thread itself went there: this is a task that nobody may move (PF_NO_SETAFFINITY).
                Some(Errno::INVAL) => unmoved.0.push(tid),
                _ => return Err(ThreadError::Pin { name, asked: cpus.to_owned(), source }),
            },
            other => other?,
        }
    }
    Ok(unmoved)
}
