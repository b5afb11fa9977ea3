//! What an IOThread and its queues have done, counted by the thread itself and read by anyone, without a lock. Each counter
//! has one writer; a snapshot may tear between counters, never within one.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};

use super::latency::{Latency, LatencySnapshot};

/// A number that one thread raises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, more: u64) {
        // One writer, so no read-modify-write is needed.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub struct IoThreadCounters {
    pub enters: Counter,
    pub wakeups: Counter,
    pub poll_hits: Counter,
    pub poll_misses: Counter,
    pub looks: Counter,
    /// Whether it is under SCHED_BATCH now.
    pub batch: AtomicBool,
    /// Whether it takes the times of requests.
    pub latency: AtomicBool,
}

/// See the fields of [`IoThreadCounters`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoThreadSnapshot {
    pub id: u32,
    pub name: String,
    /// The kernel's thread id.
    pub tid: i32,
    /// System calls that submit or wait, and how many times the thread could sleep in one.
    pub enters: u64,
    pub wakeups: u64,
    /// Waits that looking ended, and waits that had to sleep after looking.
    pub poll_hits: u64,
    pub poll_misses: u64,
    /// Rounds in which it looked at drives (iopoll) where it would else have slept.
    #[serde(default)]
    pub looks: u64,
    /// Whether it is under SCHED_BATCH, and so leaves the CPUs that it shares to the vCPUs until these sleep.
    #[serde(default)]
    pub batch: bool,
    /// Whether it takes the times of its requests now.
    #[serde(default)]
    pub latency: bool,
}

/// What one thread did for one virtqueue. The thread that serves the queue writes its own id here, so that the counts say
/// who did the work and not who was meant to.
#[derive(Debug)]
pub struct QueueCounters {
    served_by: AtomicI64,
    pub reads: Counter,
    pub writes: Counter,
    pub flushes: Counter,
    pub others: Counter,
    pub discards: Counter,
    pub write_zeroes: Counter,
    pub read_bytes: Counter,
    pub written_bytes: Counter,
    pub discarded_bytes: Counter,
    pub zeroed_bytes: Counter,
    pub errors: Counter,
    pub failed_reads: Counter,
    pub failed_writes: Counter,
    pub failed_flushes: Counter,
    pub failed_discards: Counter,
    pub failed_write_zeroes: Counter,
    pub kicks: Counter,
    pub interrupts: Counter,
    /// Made when times are taken for the first time.
    pub latency: OnceLock<Arc<Latency>>,
}

const NOBODY: i64 = -1;

impl Default for QueueCounters {
    fn default() -> Self {
        let zero = Counter::default;
        QueueCounters {
            served_by: AtomicI64::new(NOBODY),
            reads: zero(),
            writes: zero(),
            flushes: zero(),
            others: zero(),
            discards: zero(),
            write_zeroes: zero(),
            read_bytes: zero(),
            written_bytes: zero(),
            discarded_bytes: zero(),
            zeroed_bytes: zero(),
            errors: zero(),
            failed_reads: zero(),
            failed_writes: zero(),
            failed_flushes: zero(),
            failed_discards: zero(),
            failed_write_zeroes: zero(),
            kicks: zero(),
            interrupts: zero(),
            latency: OnceLock::new(),
        }
    }
}

impl QueueCounters {
    /// Said by the IOThread on itself before it serves the queue.
    pub fn serve_as(&self, iothread: u32) {
        self.served_by.store(i64::from(iothread), Ordering::Relaxed);
    }

    pub fn snapshot(&self, queue: u16) -> QueueSnapshot {
        QueueSnapshot {
            vq: queue,
            iothread: u32::try_from(self.served_by.load(Ordering::Relaxed)).ok(),
            reads: self.reads.get(),
            writes: self.writes.get(),
            flushes: self.flushes.get(),
            others: self.others.get(),
            discards: self.discards.get(),
            write_zeroes: self.write_zeroes.get(),
            read_bytes: self.read_bytes.get(),
            written_bytes: self.written_bytes.get(),
            discarded_bytes: self.discarded_bytes.get(),
            zeroed_bytes: self.zeroed_bytes.get(),
            errors: self.errors.get(),
            failed: FailedSnapshot {
                reads: self.failed_reads.get(),
                writes: self.failed_writes.get(),
                flushes: self.failed_flushes.get(),
                discards: self.failed_discards.get(),
                write_zeroes: self.failed_write_zeroes.get(),
            },
            kicks: self.kicks.get(),
            interrupts: self.interrupts.get(),
            in_flight: 0,
            oldest: None,
            latency: self.latency.get().map(|latency| latency.snapshot()),
        }
    }
}

/// One virtqueue of a disk at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSnapshot {
    /// The virtqueue's index, as the plan has it.
    pub vq: u16,
    /// The IOThread that serves it, in its own words; `None` before the driver enabled the queue.
    pub iothread: Option<u32>,
    /// Requests that ended, whether well or not.
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    /// GET_ID and what is not supported.
    pub others: u64,
    #[serde(default)]
    pub discards: u64,
    #[serde(default)]
    pub write_zeroes: u64,
    /// Bytes of reads and writes that ended well.
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Bytes of the ranges of discards and of write zeroes that ended well.
    #[serde(default)]
    pub discarded_bytes: u64,
    #[serde(default)]
    pub zeroed_bytes: u64,
    /// Requests that failed, whatever the driver was told of it, or were not supported.
    pub errors: u64,
    /// Of these, those that the driver was told of, by kind; they are among the requests that ended, too.
    #[serde(default)]
    pub failed: FailedSnapshot,
    /// Doorbells heard, and interrupts sent.
    pub kicks: u64,
    pub interrupts: u64,
    /// Requests taken and not ended; those that wait for the machine to go on are among them.
    #[serde(default)]
    pub in_flight: u64,
    #[serde(default)]
    pub oldest: Option<Oldest>,
    /// Where requests spent their time, of all since times were taken for the first time; `None` before that.
    #[serde(default)]
    pub latency: Option<LatencySnapshot>,
}

impl QueueSnapshot {
    /// All that ended.
    pub fn requests(&self) -> u64 {
        self.reads + self.writes + self.flushes + self.others + self.discards + self.write_zeroes
    }
}

/// Requests that ended with another status than OK.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedSnapshot {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub write_zeroes: u64,
}

/// The request that has been in flight for longest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Oldest {
    pub head: u16,
    pub kind: String,
    /// Where it begins, for reads and writes.
    pub sector: u64,
    pub age_ms: u64,
}
