//! What an IOThread serves: the seam between the thread, which knows when to look, sleep and submit, and a device's queue,
//! which knows what a request is. A second device model is a second implementation of [`QueueService`].

use std::fs::File;
use std::io;
use std::sync::Arc;

use vmprof_sys::ring::{Buffers, Operation, Watched};
use vmprof_sys::vring::{Position, RingError};

use super::engines::{self, Engines, Opened};
use crate::config::Engine;

/// Whose completion it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The thread's own commands.
    Commands,
    /// An engine that is not the ring has completions.
    Engine,
    Doorbell {
        slot: usize,
    },
    /// What a queue watches beside its doorbell.
    Source {
        slot: usize,
        tag: u16,
    },
    Request {
        slot: usize,
        tag: u16,
    },
}

/// The thread's engines, as one queue may use them.
#[derive(Debug)]
pub struct Io<'engines> {
    pub(super) engines: &'engines mut Engines,
    pub(super) slot: usize,
    pub(super) iothread: u32,
    /// When the completion that is being told of was found; 0 for all else, and where no times are taken.
    pub(super) found_ns: u64,
}

impl Io<'_> {
    /// The id of the thread this runs on.
    pub fn iothread(&self) -> u32 {
        self.iothread
    }

    /// When the completion was found that [`QueueService::completed`] tells of, by [`latency::now`](super::latency::now), where
    /// times are taken.
    pub fn found_ns(&self) -> u64 {
        self.found_ns
    }

    /// Makes a file known to `engine`, which carries out what is started on it. An error: this thread has no such engine.
    pub fn open(&mut self, file: Arc<File>, engine: Engine) -> io::Result<Target> {
        self.engines.open(file, engine).map(Target)
    }

    /// The same for one of io_uring's whose reads and writes are completed by looking at its drive.
    pub fn open_polled(&mut self, file: Arc<File>) -> io::Result<Target> {
        self.engines.open_polled(file).map(Target)
    }

    /// Undoes one of these, once none of its user's operations is in flight.
    pub fn close(&mut self, target: Target) {
        self.engines.close(target.0);
    }

    /// Starts an operation, whose end [`QueueService::completed`] hears of under the same `tag`.
    pub fn start(&mut self, target: Target, operation: Operation, buffers: Buffers, tag: u16) {
        self.engines.start(target.0, operation, buffers, Token::Request { slot: self.slot, tag });
    }

    /// Whether an operation of this target's is its engine's once it is started. Where not, [`QueueService::handed_over`] tells of
    /// the moment, before any of them can end.
    pub fn takes_at_once(&self, target: Target) -> bool {
        self.engines.takes_at_once(target.0)
    }

    /// Has the queue be told of `watched`, beside its doorbell: [`QueueService::ready`] hears of each edge under the same `tag`,
    /// and of what is there already. Until [`QueueService::unwatched`] has heard of the watch's end, [`QueueService::in_flight`]
    /// is to count it.
    pub fn watch(&mut self, watched: Watched, tag: u16) -> io::Result<Watch> {
        self.engines.watch(watched, Token::Source { slot: self.slot, tag }).map(Watch)
    }

    /// Begins the end of a watch, for which its owner may ask once.
    pub fn unwatch(&mut self, watch: Watch) {
        self.engines.unwatch(watch.0);
    }
}

/// What [`Io::watch`] began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watch(engines::Watch);

/// A file, as an engine of this thread knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target(Opened);

/// What a pass over a queue left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nothing that was there to take.
    All,
    /// More than the quota.
    More,
    /// Requests that wait for something no completion tells of: to be drained again soon.
    Stalled,
}

/// Makes a queue's service on the thread that will run it: what it allocates lies on that thread's node.
pub type Begin = Box<dyn FnOnce(&mut Io<'_>) -> io::Result<Box<dyn QueueService>> + Send>;

/// One queue of one device. Every method is called on the IOThread that owns it.
pub trait QueueService: std::fmt::Debug {
    /// Takes up to `quota` requests, with no notification asked for, and starts what they ask.
    fn drain(&mut self, quota: usize, io: &mut Io<'_>) -> Result<Drained, RingError>;
    /// Goes on with requests that were taken before: all there is to do for a queue that is to end.
    fn resume(&mut self, io: &mut Io<'_>) -> Drained;
    /// An operation has ended.
    fn completed(&mut self, tag: u16, result: io::Result<u32>, buffers: Buffers, io: &mut Io<'_>);
    /// What is watched under this tag has changed. Edges are told once: whoever hears of one goes on until there is no more.
    fn ready(&mut self, _tag: u16) {}
    /// A watch has ended: as asked (`None`), or because the kernel gave it up.
    fn unwatched(&mut self, _tag: u16, _error: Option<io::Error>) {}
    /// Shows the driver all requests that ended since the last time: one index, at most one interrupt.
    fn publish(&mut self);
    /// Whether a request waits to be taken.
    fn look(&mut self) -> Result<bool, RingError>;
    /// Asks for notifications; a full fence and `look` follow. `disarm` takes it back.
    fn arm(&mut self);
    fn disarm(&mut self);
    /// The doorbell was heard.
    fn kicked(&mut self);
    /// Requests taken and not ended.
    fn in_flight(&self) -> usize;
    /// Where the ring stands, for whoever goes on with it once nothing is in flight.
    fn position(&self) -> Position;
    /// The driver broke the queue: nothing but `resume`, `completed` and `end` follows.
    fn broken(&mut self, error: RingError);
    /// Whether to take the times of requests from here on.
    fn take_times(&mut self, _take: bool) {}
    /// Times are taken, and at this moment all that was started is being handed over to its engine, if it has not been
    /// ([`Io::takes_at_once`]).
    fn handed_over(&mut self, _at_ns: u64) {}
    /// After the last request ended: the queue is about to be dropped.
    fn end(&mut self, io: &mut Io<'_>);
}
