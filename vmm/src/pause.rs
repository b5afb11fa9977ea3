//! Pausing a machine: its vCPUs leave the guest and wait, whoever asked for it, and go on when it is resumed. Devices go on
//! with what they have; a request that stopped the machine is kept by its queue, and tried again after each resume.
//!
//! Time goes on for a guest that is paused: it finds its clocks as late as the world's, and is told that it was away, so that
//! its watchdogs take no offence.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vmprof_sys::kick;

const GO: u8 = 0;
const PAUSE: u8 = 1;
const END: u8 = 2;

/// Failures that are remembered of one pause; the rest is counted.
const MOST_FAILURES: usize = 64;

/// A request that stopped the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub disk: String,
    pub vq: u16,
    pub head: u16,
    /// `read`, `write`, `flush`, `discard`, `write zeroes`.
    pub kind: String,
    /// Where it begins; flushes have no place.
    pub sector: Option<u64>,
    pub errno: i32,
    /// The same in words.
    pub error: String,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Failure { disk, vq, head, kind, sector, error, .. } = self;
        write!(out, "disk `{disk}`, virtqueue {vq}, head {head}: {kind}")?;
        if let Some(sector) = sector {
            write!(out, " of sector {sector}")?;
        }
        write!(out, " failed: {error}")
    }
}

/// A pause, as the outside sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseSnapshot {
    pub since_ms: u64,
    /// Whether somebody asked for it.
    pub asked: bool,
    /// The requests that stopped the machine, in their order.
    pub failures: Vec<Failure>,
    /// Those beyond the ones listed.
    pub more_failures: u64,
}

/// What is told to whoever supervises the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PauseNews {
    /// `None`: somebody asked for it.
    Paused(Option<Failure>),
    Resumed,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PauseError {
    #[error("it is not paused")]
    NotPaused,
    #[error("it is paused already")]
    PausedAlready,
    #[error("it is ending")]
    Ending,
}

/// What a vCPU thread is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Go,
    Pause,
    End,
}

#[derive(Debug)]
struct Paused {
    since: Instant,
    asked: bool,
    failures: Vec<Failure>,
    more_failures: u64,
}

#[derive(Debug, Default)]
struct State {
    paused: Option<Paused>,
    resumes: u64,
}

type Tell = Box<dyn Fn(PauseNews) + Send + Sync>;

/// One of a machine.
#[derive(Default)]
pub struct Pause {
    /// What [`State`] comes to, for the one look that a vCPU thread takes before each entry into the guest.
    order: AtomicU8,
    /// IOThreads that stop the machine, vCPU threads that wait, and who controls it meet here; nobody waits with it held.
    state: Mutex<State>,
    changed: Condvar,
    vcpus: OnceLock<Vec<i32>>,
    tell: OnceLock<Tell>,
}

impl std::fmt::Debug for Pause {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Pause").field("order", &self.order).finish_non_exhaustive()
    }
}

impl Pause {
    /// The kernel's ids of the vCPU threads, said once before any of them runs its guest.
    pub(crate) fn threads(&self, tids: Vec<i32>) {
        // Said once, by the one who starts the machine.
        let _ = self.vcpus.set(tids);
    }

    /// Who hears of pauses, said once, and of one that is there already at once. Called on IOThreads among others: it must
    /// not wait for anything.
    pub fn on_news(&self, tell: impl Fn(PauseNews) + Send + Sync + 'static) {
        let state = self.lock();
        let missed = state.paused.as_ref().map(|paused| paused.failures.first().cloned());
        let _ = self.tell.set(Box::new(tell));
        let tell = self.tell.get();
        drop(state);
        if let (Some(tell), Some(failure)) = (tell, missed) {
            tell(PauseNews::Paused(failure));
        }
    }

    /// The one look of a vCPU thread.
    pub(crate) fn order(&self) -> Order {
        match self.order.load(Ordering::Acquire) {
            GO => Order::Go,
            PAUSE => Order::Pause,
            _ => Order::End,
        }
    }

    /// Waits, on a vCPU thread, until the machine goes on or ends.
    pub(crate) fn wait(&self) -> Order {
        let mut state = self.lock();
        loop {
            match self.order() {
                Order::Pause => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                order => return order,
            }
        }
    }

    /// Pauses the machine because a request failed. Answers how often it was resumed so far: the request is to be tried
    /// again once it was resumed more often.
    pub fn stop_for(&self, failure: Failure) -> u64 {
        let mut state = self.lock();
        let resumes = state.resumes;
        let first = match &mut state.paused {
            Some(paused) => {
                let first = paused.asked && paused.failures.is_empty();
                if paused.failures.len() < MOST_FAILURES {
                    paused.failures.push(failure.clone());
                } else {
                    paused.more_failures += 1;
                }
                first
            }
            none => {
                let failures = vec![failure.clone()];
                *none = Some(Paused { since: Instant::now(), asked: false, failures, more_failures: 0 });
                true
            }
        };
        self.halt();
        let tell = self.tell.get();
        drop(state);
        if let (Some(tell), true) = (tell, first) {
            tell(PauseNews::Paused(Some(failure)));
        }
        resumes
    }

    /// Pauses the machine because somebody asks.
    pub fn pause(&self) -> Result<(), PauseError> {
        let mut state = self.lock();
        if self.order() == Order::End {
            return Err(PauseError::Ending);
        }
        if state.paused.is_some() {
            return Err(PauseError::PausedAlready);
        }
        let since = Instant::now();
        state.paused = Some(Paused { since, asked: true, failures: Vec::new(), more_failures: 0 });
        self.halt();
        let tell = self.tell.get();
        drop(state);
        tell.into_iter().for_each(|tell| tell(PauseNews::Paused(None)));
        Ok(())
    }

    /// Lets the vCPUs go on. The IOThreads are to be woken after it, so that they try again what they kept.
    pub fn resume(&self) -> Result<(), PauseError> {
        let mut state = self.lock();
        if self.order() == Order::End {
            return Err(PauseError::Ending);
        }
        if state.paused.take().is_none() {
            return Err(PauseError::NotPaused);
        }
        state.resumes += 1;
        self.order.store(GO, Ordering::Release);
        self.changed.notify_all();
        let tell = self.tell.get();
        drop(state);
        tell.into_iter().for_each(|tell| tell(PauseNews::Resumed));
        Ok(())
    }

    /// How often the machine was resumed.
    pub fn resumes(&self) -> u64 {
        self.lock().resumes
    }

    /// The machine ends: nobody waits any more. Threads in the guest are to be kicked after it.
    pub(crate) fn end(&self) {
        let _state = self.lock();
        self.order.store(END, Ordering::Release);
        self.changed.notify_all();
    }

    pub fn snapshot(&self) -> Option<PauseSnapshot> {
        self.lock().paused.as_ref().map(|paused| PauseSnapshot {
            since_ms: u64::try_from(paused.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            asked: paused.asked,
            failures: paused.failures.clone(),
            more_failures: paused.more_failures,
        })
    }

    /// Gets every vCPU out of its guest; `self.state` is locked.
    fn halt(&self) {
        // Those that have not begun see the order before they do, and a machine that ends stays at that.
        if self.order.compare_exchange(GO, PAUSE, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            for tid in self.vcpus.get().into_iter().flatten() {
                // A thread that has ended needs no kick.
                let _ = kick::kick(*tid);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    fn failure(head: u16) -> Failure {
        let (disk, kind, error) = ("data".to_owned(), "write".to_owned(), "no space".to_owned());
        Failure { disk, vq: 1, head, kind, sector: Some(8), errno: 28, error }
    }

    #[test]
    fn a_pause_is_told_once_and_remembers_every_failure_up_to_a_limit() {
        let (pause, (tell, told)) = (Pause::default(), mpsc::channel());
        assert_eq!(pause.stop_for(failure(0)), 0);
        pause.on_news(move |news| tell.send(news).unwrap());
        for head in 1..100 {
            assert_eq!(pause.stop_for(failure(head)), 0);
        }
        let snapshot = pause.snapshot().unwrap();
        assert_eq!((snapshot.failures.len(), snapshot.more_failures, snapshot.asked), (64, 36, false));
        assert_eq!(snapshot.failures[63].head, 63);
        assert_eq!(pause.pause(), Err(PauseError::PausedAlready));
        pause.resume().unwrap();
        assert_eq!(pause.resume(), Err(PauseError::NotPaused));
        assert_eq!((pause.snapshot(), pause.resumes(), pause.stop_for(failure(1))), (None, 1, 1));
        let told: Vec<_> = told.try_iter().collect();
        let first = PauseNews::Paused(Some(failure(0)));
        assert_eq!(told, [first, PauseNews::Resumed, PauseNews::Paused(Some(failure(1)))]);
        assert_eq!(
            failure(3).to_string(),
            "disk `data`, virtqueue 1, head 3: write of sector 8 failed: no space"
        );
    }

    #[test]
    fn a_machine_that_ends_neither_waits_nor_pauses_again() {
        let pause = Arc::new(Pause::default());
        pause.pause().unwrap();
        let waiter = std::thread::spawn({
            let pause = Arc::clone(&pause);
            move || pause.wait()
        });
        pause.end();
        assert_eq!(waiter.join().unwrap(), Order::End);
        pause.stop_for(failure(0));
        assert_eq!((pause.order(), pause.resume()), (Order::End, Err(PauseError::Ending)));
    }

    #[test]
    fn those_who_wait_go_on_when_it_is_resumed() {
        let pause = Arc::new(Pause::default());
        assert_eq!(pause.order(), Order::Go);
        pause.stop_for(failure(0));
        assert_eq!(pause.order(), Order::Pause);
        let waiter = std::thread::spawn({
            let pause = Arc::clone(&pause);
            move || pause.wait()
        });
        pause.resume().unwrap();
        assert_eq!(waiter.join().unwrap(), Order::Go);
    }
}
