//! `aio=threads`: threads of an IOThread's own that do one operation after the other and block in it. They are as many as
//! there ever were operations at once, up to a bound for each file, so that one which hangs leaves the others theirs; and they
//! stay until the IOThread ends. This is the one engine with a lock: the IOThread and its threads meet in it twice per batch,
//! not per request.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmprof_sys::blocking;
use vmprof_sys::ring::{Buffers, Completion, Operation};
use vmprof_sys::scheduling::{Policy, set_policy};

use crate::iothread::service::Token;
use crate::thread::{self, Thread, ThreadError};

/// At once in operations on one file; as QEMU's pool has them.
const MOST_THREADS: usize = 64;

struct Job {
    file: Arc<File>,
    operation: Operation,
    buffers: Buffers,
    token: Token,
}

/// What is to be done on one file.
struct Lane {
    /// The file's address, to know it again: it is not held by a lane, but by its jobs.
    file: usize,
    jobs: VecDeque<Job>,
    /// Jobs that threads have taken.
    busy: usize,
}

impl Lane {
    /// Jobs that a thread may take now.
    fn ready(&self) -> usize {
        self.jobs.len().min(MOST_THREADS.saturating_sub(self.busy))
    }
}

#[derive(Default)]
struct Work {
    /// One for each file that ever had jobs at the same time as the others.
    lanes: Vec<Lane>,
    /// The lane that is asked first: they take turns.
    turn: usize,
    /// Threads that wait for a job.
    idle: usize,
    ending: bool,
}

impl Work {
    fn add(&mut self, job: Job) {
        let file = Arc::as_ptr(&job.file).addr();
        let own = self.lanes.iter().position(|lane| lane.file == file);
        let unused = || self.lanes.iter().position(|lane| lane.busy == 0 && lane.jobs.is_empty());
        let at = own.or_else(unused).unwrap_or(self.lanes.len());
        if at == self.lanes.len() {
            self.lanes.push(Lane { file, jobs: VecDeque::new(), busy: 0 });
        }
        self.lanes[at].file = file;
        self.lanes[at].jobs.push_back(job);
    }

    /// The next job, with its lane.
    fn take(&mut self) -> Option<(usize, Job)> {
        let count = self.lanes.len();
        let at = (0..count).map(|n| (self.turn + n) % count).find(|at| self.lanes[*at].ready() > 0)?;
        self.turn = at + 1;
        self.lanes[at].busy += 1;
        self.lanes[at].jobs.pop_front().map(|job| (at, job))
    }

    fn ready(&self) -> usize {
        self.lanes.iter().map(Lane::ready).sum()
    }
}

/// Where the IOThread and its threads meet.
struct Shared {
    work: Mutex<Work>,
    wake: Condvar,
    done: Mutex<Vec<Completion<Token>>>,
    /// Whether `done` holds something, to be seen without its lock.
    any_done: AtomicBool,
    bell: EventFd,
}

pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<Thread<()>>,
    name: String,
    cpus: Vec<u32>,
    /// What its threads are under, whatever the IOThread is when it starts them.
    policy: Option<Policy>,
    /// Started, and not handed over yet.
    staged: Vec<Job>,
    in_flight: usize,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "pool of {} threads with {} operations", self.threads.len(), self.in_flight)
    }
}

fn lock<V>(mutex: &Mutex<V>) -> MutexGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool for the IOThread `iothread`, on its CPUs and under the policy that it began with, without a thread as yet.
    pub(super) fn new(iothread: &str, cpus: &[u32], policy: Option<Policy>) -> io::Result<Self> {
        let shared = Shared {
            work: Mutex::default(),
            wake: Condvar::new(),
            done: Mutex::default(),
            any_done: AtomicBool::new(false),
            bell: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        };
        let (name, cpus) = (format!("aio {iothread}"), cpus.to_owned());
        Ok(Pool {
            shared: Arc::new(shared),
            threads: Vec::new(),
            name,
            cpus,
            policy,
            staged: Vec::new(),
            in_flight: 0,
        })
    }

    /// One more thread.
    pub(super) fn grow(&mut self) -> Result<(), ThreadError> {
        let (shared, policy) = (Arc::clone(&self.shared), self.policy);
        let body = move || {
            // A thread begins under its starter's policy, which an IOThread tries and takes back. That it cannot leave what
            // it could take has no promise in it.
            policy.map(set_policy);
            shared.work();
        };
        self.threads.push(thread::spawn(&self.name, &self.cpus, body)?);
        Ok(())
    }

    /// Has its threads, and those that are still to come, run on other CPUs.
    pub(super) fn move_to(&mut self, cpus: &[u32]) -> Result<(), ThreadError> {
        self.cpus = cpus.to_owned();
        self.threads.iter().try_for_each(|thread| thread::pin_other(&self.name, thread.tid, cpus))
    }

    /// Rings when an operation has ended.
    pub(super) fn bell(&self) -> &EventFd {
        &self.shared.bell
    }

    pub(super) fn start(&mut self, file: Arc<File>, operation: Operation, buffers: Buffers, token: Token) {
        self.staged.push(Job { file, operation, buffers, token });
    }

    /// Hands over what was started. Without any thread to do it, it ends with why there is none.
    pub(super) fn submit(&mut self) {
        if self.staged.is_empty() {
            return;
        }
        self.in_flight += self.staged.len();
        let shared = Arc::clone(&self.shared);
        let mut work = lock(&shared.work);
        self.staged.drain(..).for_each(|job| work.add(job));
        let (ready, most) = (work.ready(), MOST_THREADS * work.lanes.len());
        let lacking = ready.saturating_sub(work.idle).min(most.saturating_sub(self.threads.len()));
        (0..ready.min(work.idle)).for_each(|_| shared.wake.notify_one());
        drop(work);
        for _ in 0..lacking {
            let Err(error) = self.grow() else { continue };
            if self.threads.is_empty() {
                self.refuse(&error);
            }
            // With some there, they do it all, later.
            return;
        }
    }

    fn refuse(&mut self, error: &ThreadError) {
        let mut done = lock(&self.shared.done);
        for job in lock(&self.shared.work).lanes.iter_mut().flat_map(|lane| lane.jobs.drain(..)) {
            let result = Err(io::Error::other(error.to_string()));
            done.push(Completion::Done { token: job.token, result, buffers: job.buffers });
        }
        self.shared.any_done.store(true, Ordering::Release);
    }

    pub(super) fn has_submissions(&self) -> bool {
        !self.staged.is_empty()
    }

    pub(super) fn has_completions(&self) -> bool {
        self.shared.any_done.load(Ordering::Acquire)
    }

    /// Takes every completion that is there.
    pub(super) fn reap(&mut self, into: &mut Vec<Completion<Token>>) {
        if self.has_completions() {
            let mut done = lock(&self.shared.done);
            self.shared.any_done.store(false, Ordering::Relaxed);
            self.in_flight -= done.len();
            into.append(&mut done);
        }
    }
}

impl Drop for Pool {
    /// Waits until every operation was carried out: what they move, moves to and from memory that others free after this.
    fn drop(&mut self) {
        self.submit();
        lock(&self.shared.work).ending = true;
        self.shared.wake.notify_all();
        // A thread that panicked has dropped its operation with its buffers.
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

impl Shared {
    /// What a thread of the pool does until the pool ends and nothing is left.
    fn work(&self) {
        let mut left = None;
        loop {
            let mut work = lock(&self.work);
            if let Some(lane) = left.and_then(|lane: usize| work.lanes.get_mut(lane)) {
                lane.busy -= 1;
            }
            let (lane, job) = loop {
                match work.take() {
                    Some(taken) => break taken,
                    // Jobs that may not be taken yet are left to the threads that fill their lane.
                    None if work.ending => return,
                    None => {
                        work.idle += 1;
                        work = self.wake.wait(work).unwrap_or_else(PoisonError::into_inner);
                        work.idle -= 1;
                    }
                }
            };
            drop(work);
            left = Some(lane);
            let Job { file, operation, mut buffers, token } = job;
            let result = blocking::perform(&file, operation, &mut buffers);
            // The file first: who hears of the end may count on being its last user.
            drop(file);
            let mut done = lock(&self.done);
            done.push(Completion::Done { token, result, buffers });
            let first = !self.any_done.swap(true, Ordering::AcqRel);
            drop(done);
            if first {
                // Fails only when the counter would overflow: then it rings anyway.
                let _ = self.bell.write(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt as _;

    use vmprof_sys::affinity::cpus_of_thread;
    use vmprof_sys::aligned::AlignedBuffer;

    use super::*;

    fn bounce() -> Buffers {
        Buffers::Bounce { buffer: AlignedBuffer::new(512, 512), bytes: 512 }
    }

    fn wait_for(pool: &mut Pool, count: usize) -> Vec<Completion<Token>> {
        let mut found = Vec::new();
        while found.len() < count {
            pool.submit();
            pool.reap(&mut found);
            std::thread::yield_now();
        }
        found
    }

    /// The most operations at once that a pool carries out on a file, with `count` of them that block until a pipe is filled.
    #[test]
    fn operations_that_block_get_a_thread_each_up_to_the_bound_and_hold_up_those_of_their_file_alone() {
        let cpu = cpus_of_thread(0).unwrap()[0];
        let mut pool = Pool::new("iothread7", &[cpu], None).unwrap();
        let (empty, mut filler) = io::pipe().unwrap();
        let pipe = Arc::new(File::from(OwnedFd::from(empty)));
        let count = MOST_THREADS + 6;
        for tag in 0..count as u16 {
            // A pipe has no offsets: preadv2 takes -1 for where it stands.
            let read = Operation::Read { offset: u64::MAX };
            pool.start(Arc::clone(&pipe), read, bounce(), Token::Request { slot: 0, tag });
        }
        pool.submit();
        assert_eq!(pool.threads.len(), MOST_THREADS);
        for thread in &pool.threads {
            let name = std::fs::read_to_string(format!("/proc/self/task/{}/comm", thread.tid)).unwrap();
            assert_eq!((name.trim(), cpus_of_thread(thread.tid).unwrap()), ("aio iothread7", vec![cpu]));
        }
        assert!(!pool.has_completions());
        let other = Arc::new(tempfile::tempfile().unwrap());
        pool.start(other, Operation::Sync, Buffers::None, Token::Request { slot: 1, tag: 7 });
        let done = wait_for(&mut pool, 1);
        assert!(matches!(done[..], [Completion::Done { token: Token::Request { slot: 1, tag: 7 }, .. }]));
        filler.write_all(&vec![1; 512 * count]).unwrap();
        let done = wait_for(&mut pool, count);
        assert!(done.iter().all(|done| matches!(done, Completion::Done { result: Ok(512), .. })), "{done:?}");
        assert_eq!((pool.in_flight, Arc::strong_count(&pipe)), (0, 1));
    }

    #[test]
    fn threads_that_there_are_and_those_to_come_move() {
        let here = cpus_of_thread(0).unwrap();
        let (first, last) = (here[0], *here.last().unwrap());
        let mut pool = Pool::new("iothread7", &[first], None).unwrap();
        pool.grow().unwrap();
        pool.move_to(&[last]).unwrap();
        pool.grow().unwrap();
        for thread in &pool.threads {
            assert_eq!(cpus_of_thread(thread.tid).unwrap(), [last]);
        }
        pool.move_to(&[60_000]).unwrap_err();
        assert_eq!(cpus_of_thread(pool.threads[0].tid).unwrap(), [last]);
    }

    /// As /proc/PID/stat has them (linux/sched.h).
    const SCHED_OTHER: &str = "0";
    const SCHED_BATCH: &str = "3";

    fn policy_of(tid: i32) -> String {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
        // Field 41; the name before the third is in parentheses.
        let after_name = &stat[stat.rfind(')').unwrap() + 2..];
        after_name.split_whitespace().nth(41 - 3).unwrap().to_owned()
    }

    #[test]
    fn threads_are_under_the_policy_that_the_iothread_began_with() {
        let policies = std::thread::spawn(|| {
            set_policy(Policy::Batch).unwrap();
            [Some(Policy::Other), None].map(|policy| {
                let mut pool = Pool::new("iothread7", &[], policy).unwrap();
                let file = Arc::new(tempfile::tempfile().unwrap());
                pool.start(file, Operation::Sync, Buffers::None, Token::Request { slot: 0, tag: 1 });
                wait_for(&mut pool, 1);
                policy_of(pool.threads[0].tid)
            })
        });
        assert_eq!(policies.join().unwrap(), [SCHED_OTHER, SCHED_BATCH]);
    }

    #[test]
    fn a_dropped_pool_has_done_what_was_started() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let mut pool = Pool::new("iothread7", &[], None).unwrap();
        for tag in 0..9_u16 {
            let write = Operation::Write { offset: 512 * u64::from(tag), durable: false };
            pool.start(Arc::clone(&file), write, bounce(), Token::Request { slot: 0, tag });
        }
        drop(pool);
        assert_eq!((file.metadata().unwrap().len(), Arc::strong_count(&file)), (9 * 512, 1));
        file.read_exact_at(&mut [0], 9 * 512 - 1).unwrap();
    }

    #[test]
    fn without_a_thread_operations_end_with_the_reason() {
        let mut pool = Pool::new("iothread7", &[60_000], None).unwrap();
        let file = Arc::new(tempfile::tempfile().unwrap());
        pool.start(file, Operation::Sync, Buffers::None, Token::Request { slot: 0, tag: 1 });
        let done = wait_for(&mut pool, 1);
        let [Completion::Done { result: Err(error), .. }] = &done[..] else { panic!("{done:?}") };
        assert!(error.to_string().contains("`aio iothread7`"), "{error}");
    }
}
