//! An IOThread: one OS thread, any set of virtqueues of any devices, and the [`engines`] of their disks: one io_uring, unless
//! none of them asks for it. [`worker`] is its loop and tells how it sleeps without missing a wakeup; this file is how
//! others reach it: commands by channel, and an eventfd that the thread waits for as it waits for doorbells.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmprof_sys::aio::AioError;
use vmprof_sys::memory::GuestRam;
use vmprof_sys::ring::{Completions, RegisterError, SetupError};
use vmprof_sys::vring::Position;

use crate::config::{self, Engine, Polling};
use crate::thread::{self, Thread, ThreadError};

pub mod counters;
mod engines;
pub mod latency;
mod poll;
mod preempting;
pub mod service;
mod worker;

use counters::{IoThreadCounters, IoThreadSnapshot};
pub use engines::probe;
use service::Begin;
use worker::Worker;

/// Why an IOThread is not there as planned.
#[derive(Debug, thiserror::Error)]
pub enum IoThreadError {
    #[error("iothread `{name}` could not be started")]
    Thread { name: String, source: ThreadError },
    #[error("iothread `{name}` has no io_uring")]
    Ring { name: String, source: SetupError },
    #[error("iothread `{name}` has no Linux AIO (aio=native)")]
    Aio { name: String, source: AioError },
    #[error("iothread `{name}` has nothing to wait in")]
    Epoll { name: String, source: io::Error },
    #[error(
        "iothread `{name}` is to have registered memory or a submission thread, and these are io_uring's; none of its disks \
         has aio=io_uring"
    )]
    NoRingToSet { name: String },
    #[error(
        "iothread `{name}` is to look at drives itself (iopoll) and to have a thread that submits for it (sqpoll); leave out one"
    )]
    IopollWithSqpoll { name: String },
    #[error("iothread `{name}` was to have the guest's memory registered with its io_uring")]
    Memory { name: String, source: RegisterError },
    #[error(
        "iothread `{name}` was to run on cpus {asked:?} alone, and the kernel refused to keep its io_uring workers there"
    )]
    Workers { name: String, asked: Vec<u32>, source: io::Error },
    #[error("iothread `{name}` cannot move, and stays where it was")]
    Moved { name: String, source: ThreadError },
    #[error("iothread `{name}` could not be given its eventfd")]
    EventFd { name: String, source: io::Error },
    #[error("iothread `{name}` ended before it was told to: {how}")]
    Ended { name: String, how: String },
}

/// Why a queue is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("iothread `{name}` has ended")]
    Gone { name: String },
    #[error("iothread `{name}` could not take the queue")]
    Begin { name: String, source: io::Error },
}

/// Groups the queues that are released together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId(u64);

impl DeviceId {
    /// An id that no other device of this process has.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        DeviceId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct QueueKey {
    device: DeviceId,
    queue: u16,
}

/// The queues that a release is about.
#[derive(Debug, Clone, Copy)]
enum Queues {
    All(DeviceId),
    One(QueueKey),
}

impl Queues {
    fn contain(self, key: QueueKey) -> bool {
        match self {
            Queues::All(device) => key.device == device,
            Queues::One(one) => key == one,
        }
    }
}

/// Queues that were released, each with where its ring stands. Broken ones are not among them.
pub type Positions = Vec<(u16, Position)>;

/// What of a running IOThread is to change; `None` leaves a part as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    pub place: Option<Place>,
    pub polling: Option<Polling>,
    /// Whether the times of its requests are taken ([`latency`]).
    pub latency: Option<bool>,
}

/// Of a thread that moved, the kernel's workers for its io_uring that the kernel lets nobody move, by their thread ids: they stay
/// where they were until they end. Those that begin from now on are where the thread is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unmoved(pub Vec<i32>);

/// Where a thread may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// At least one.
    pub cpus: Vec<u32>,
    /// Whether vCPUs may run there too, as in [`config::IoThread`].
    pub shares_cpus: bool,
}

enum Command {
    Change { change: Change, answer: mpsc::Sender<Result<Unmoved, IoThreadError>> },
    Serve { key: QueueKey, begin: Begin, doorbell: EventFd, answer: mpsc::Sender<io::Result<()>> },
    Release { which: Queues, answer: mpsc::Sender<Positions> },
    Register { ram: Arc<GuestRam>, answer: mpsc::Sender<Result<(), IoThreadError>> },
    Stop,
}

/// Starts IOThreads.
#[derive(Debug)]
pub struct IoThread;

impl IoThread {
    /// Starts `IO NAME`, pinned, with its ring; an error names what the kernel refused.
    pub fn spawn(config: &config::IoThread) -> Result<Handle, IoThreadError> {
        let name = config.name.clone();
        let eventfd = |source| IoThreadError::EventFd { name: config.name.clone(), source };
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(eventfd)?;
        let heard = bell.try_clone().map_err(eventfd)?;
        let (sender, commands) = mpsc::channel();
        let (ready, made) = mpsc::channel();
        let counters = Arc::new(IoThreadCounters::default());
        let (own, counted) = (config.clone(), Arc::clone(&counters));
        let thread = thread::spawn(&format!("IO {name}"), &config.cpus, move || {
            // The ring belongs to the thread that makes it (SINGLE_ISSUER).
            match Worker::new(&own, commands, heard, counted) {
                Ok(worker) => {
                    let _ = ready.send(Ok(worker.completions()));
                    worker.run()
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    Ok(())
                }
            }
        })
        .map_err(|source| IoThreadError::Thread { name: name.clone(), source })?;
        let tid = thread.tid;
        let completions = match made.recv() {
            Ok(Ok(completions)) => completions,
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(ended(name, thread)),
        };
        let thread = Mutex::new(Some(thread));
        let (id, settings) = (config.id, (config.engines.clone(), config.ring));
        let inner = Inner { id, name, tid, completions, settings, commands: sender, bell, counters, thread };
        Ok(Handle(Arc::new(inner)))
    }
}

fn ended(name: String, thread: Thread<io::Result<()>>) -> IoThreadError {
    let how = match thread.join() {
        Ok(Ok(())) => "without a reason".to_owned(),
        Ok(Err(error)) => format!("the kernel refused what it submitted or waited for: {error}"),
        Err(panic) => panic,
    };
    IoThreadError::Ended { name, how }
}

/// A running IOThread, for those who give it queues. When the last handle goes, the thread drains its queues and ends.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: u32,
    name: String,
    tid: i32,
    completions: Option<Completions>,
    settings: (Vec<Engine>, config::RingOptions),
    commands: mpsc::Sender<Command>,
    bell: EventFd,
    counters: Arc<IoThreadCounters>,
    /// Whoever stops the thread first joins it; the others find it gone.
    thread: Mutex<Option<Thread<io::Result<()>>>>,
}

impl Handle {
    pub fn id(&self) -> u32 {
        self.0.id
    }

    /// As the plan prints it (`iothread0`).
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The kernel's thread id, as in /proc/PID/task.
    pub fn tid(&self) -> i32 {
        self.0.tid
    }

    /// How this kernel delivers completions to the thread; `None`: it has no io_uring.
    pub fn completions(&self) -> Option<Completions> {
        self.0.completions
    }

    /// Whether the thread was started with an engine.
    pub fn has(&self, engine: Engine) -> bool {
        self.0.settings.0.contains(&engine)
    }

    /// Whether the thread was started to look at drives.
    pub fn has_iopoll(&self) -> bool {
        self.0.settings.1.iopoll
    }

    /// Gives the ring the guest's memory, if the thread was started so. Takes all of it from the host: 0.7 s for each GiB of
    /// ordinary pages that nobody touched. Waits until it is done.
    pub fn register_memory(&self, ram: &Arc<GuestRam>) -> Result<(), IoThreadError> {
        if !self.0.settings.1.registered_memory {
            return Ok(());
        }
        let (answer, answered) = mpsc::channel();
        self.0.send(Command::Register { ram: Arc::clone(ram), answer });
        let gone =
            || IoThreadError::Ended { name: self.0.name.clone(), how: "before it took the memory".into() };
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Changes the thread while it serves. It does so itself, between two rounds; the pin is read back, and where one part cannot
    /// be had, all is as it was.
    pub fn change(&self, change: Change) -> Result<Unmoved, IoThreadError> {
        let (answer, answered) = mpsc::channel();
        self.0.send(Command::Change { change, answer });
        let gone =
            || IoThreadError::Ended { name: self.0.name.clone(), how: "before it could change".into() };
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Has the thread serve queue `queue` of the device until it is released. The doorbell may have been rung already: the
    /// thread looks once before it waits.
    pub fn serve(
        &self,
        device: DeviceId,
        queue: u16,
        begin: Begin,
        doorbell: EventFd,
    ) -> Result<(), ServeError> {
        let (answer, answered) = mpsc::channel();
        self.0.send(Command::Serve { key: QueueKey { device, queue }, begin, doorbell, answer });
        match answered.recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(ServeError::Begin { name: self.0.name.clone(), source }),
            Err(_) => Err(ServeError::Gone { name: self.0.name.clone() }),
        }
    }

    /// Has the thread take no more from the device's queues, and drop them once nothing is in flight.
    #[must_use = "the queues are gone only after the wait"]
    pub fn release(&self, device: DeviceId) -> Release {
        self.release_queues(Queues::All(device))
    }

    /// The same for one of its queues.
    #[must_use = "the queue is gone only after the wait"]
    pub fn release_queue(&self, device: DeviceId, queue: u16) -> Release {
        self.release_queues(Queues::One(QueueKey { device, queue }))
    }

    fn release_queues(&self, which: Queues) -> Release {
        let (answer, answered) = mpsc::channel();
        self.0.send(Command::Release { which, answer });
        Release(answered)
    }

    /// Has the thread go over its queues once, as if one of them had something.
    pub fn wake(&self) {
        // Fails only when the counter would overflow: then the thread is being woken anyway.
        let _ = self.0.bell.write(1);
    }

    /// What wakes the thread as [`wake`](Self::wake) does and keeps nothing of it, for those that it serves itself.
    pub fn waker(&self) -> io::Result<Waker> {
        self.0.bell.try_clone().map(Waker)
    }

    /// Whether the thread has ended: before `stop`, that is a failure, which `stop` tells.
    pub fn is_finished(&self) -> bool {
        let thread = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_none_or(Thread::is_finished)
    }

    /// Drains all queues, drops them and ends the thread. An error tells how it ended before that.
    pub fn stop(&self) -> Result<(), IoThreadError> {
        self.0.stop()
    }

    pub fn snapshot(&self) -> IoThreadSnapshot {
        let counters = &self.0.counters;
        IoThreadSnapshot {
            id: self.0.id,
            name: self.0.name.clone(),
            tid: self.0.tid,
            enters: counters.enters.get(),
            wakeups: counters.wakeups.get(),
            poll_hits: counters.poll_hits.get(),
            poll_misses: counters.poll_misses.get(),
            looks: counters.looks.get(),
            batch: counters.batch.load(Ordering::Relaxed),
            latency: counters.latency.load(Ordering::Relaxed),
        }
    }
}

/// Wakes an IOThread.
#[derive(Debug)]
pub struct Waker(EventFd);

impl Waker {
    pub fn wake(&self) {
        // Fails only when the counter would overflow: then the thread is being woken anyway.
        let _ = self.0.write(1);
    }
}

/// The end of a device's queues on one IOThread.
#[derive(Debug)]
pub struct Release(mpsc::Receiver<Positions>);

impl Release {
    /// Returns when no request is in flight and the queues are dropped. A thread that is gone has dropped them as it went,
    /// after its ring had waited for the kernel: of those nothing is answered.
    pub fn wait(self) -> Positions {
        self.0.recv().unwrap_or_default()
    }
}

impl Inner {
    fn send(&self, command: Command) {
        // A thread that is gone drops the command, and with it the sender of the answer: the waiter learns it there.
        let _ = self.commands.send(command);
        // Fails only when the counter would overflow: then the thread is being woken anyway.
        let _ = self.bell.write(1);
    }

    fn stop(&self) -> Result<(), IoThreadError> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return Ok(()) };
        self.send(Command::Stop);
        match thread.join() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let how = format!("the kernel refused what it submitted or waited for: {error}");
                Err(IoThreadError::Ended { name: self.name.clone(), how })
            }
            Err(how) => Err(IoThreadError::Ended { name: self.name.clone(), how }),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

#[cfg(test)]
pub(crate) mod tested;
#[cfg(test)]
mod tests;
