//! How an IOThread's operations reach the kernel, and where it waits: its io_uring, which is both, or Linux AIO and a pool
//! of threads, which ring an eventfd as doorbells do. A thread whose disks ask for no io_uring has none and waits in epoll.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vmprof_sys::aio::Aio;
use vmprof_sys::memory::GuestRam;
use vmprof_sys::ring::{
    Buffers, Completion, Completions, FileId, Operation, Options, Ring, SubmissionThread, Wait, WatchId,
    Watched,
};
use vmprof_sys::scheduling::{self, Policy};

use self::bells::Bells;
use self::pool::Pool;
use super::IoThreadError;
use super::service::Token;
use crate::config::{self, Engine};
use crate::thread;

mod bells;
mod pool;

/// Something that an IOThread is told of, to end it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watch {
    Ring(WatchId),
    Epoll(usize),
}

/// A file, as an engine of this thread knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    Ring(FileId),
    /// Reads and writes go to the ring that looks at the drive, and whatever it does not take to the other.
    Iopoll {
        polled: FileId,
        other: FileId,
    },
    /// Indices of `files`.
    Native(usize),
    Threads(usize),
}

/// Each waits for the kernel when it is dropped.
#[derive(Debug)]
pub(super) struct Engines {
    native: Option<Aio<Token>>,
    pool: Option<Pool>,
    /// Nothing tells of what ends there: while it has operations, each [`enter`](Engines::enter) looks.
    iopoll: Option<Box<Ring<Token>>>,
    place: Place,
    /// Of engines that have no table of their own.
    files: Vec<Option<Arc<File>>>,
    /// Ended without having begun.
    refused: Vec<Completion<Token>>,
    in_flight: usize,
    /// Of those, what the last [`enter`](Engines::enter) did not hand over.
    started: usize,
    name: String,
    cpus: Vec<u32>,
    /// What the IOThread began under.
    policy: Option<Policy>,
    has_threads: bool,
}

/// Where the thread sleeps.
#[derive(Debug)]
enum Place {
    Ring(Box<Ring<Token>>),
    Epoll(Bells),
}

impl Engines {
    /// All that `config` names, each tried; for the calling thread.
    pub(super) fn new(config: &config::IoThread) -> Result<Self, IoThreadError> {
        let name = || config.name.clone();
        let place = if config.engines.contains(&Engine::IoUring) {
            Place::Ring(Box::new(ring(config, false)?))
        } else if config.ring != config::RingOptions::default() {
            return Err(IoThreadError::NoRingToSet { name: name() });
        } else {
            Place::Epoll(Bells::new().map_err(|source| IoThreadError::Epoll { name: name(), source })?)
        };
        if config.ring.iopoll && config.ring.sqpoll.is_some() {
            return Err(IoThreadError::IopollWithSqpoll { name: name() });
        }
        let iopoll = config.ring.iopoll.then(|| ring(config, true)).transpose()?;
        let mut engines = Engines {
            native: None,
            pool: None,
            iopoll: iopoll.map(Box::new),
            place,
            files: Vec::new(),
            refused: Vec::new(),
            in_flight: 0,
            started: 0,
            name: name(),
            cpus: config.cpus.clone(),
            policy: scheduling::policy().unwrap_or_default(),
            has_threads: config.engines.contains(&Engine::Threads),
        };
        let eventfd = |source| IoThreadError::EventFd { name: name(), source };
        if config.engines.contains(&Engine::Native) {
            let aio =
                Aio::new(Token::Engine).map_err(|source| IoThreadError::Aio { name: name(), source })?;
            let bell = aio.bell().try_clone().map_err(eventfd)?;
            engines.watch(bell, Token::Engine).map_err(eventfd)?;
            engines.native = Some(aio);
        }
        if engines.has_threads {
            let pool = engines.pool().map_err(eventfd)?;
            // One thread now shows that there may be threads.
            pool.grow().map_err(|source| IoThreadError::Thread { name: name(), source })?;
        }
        Ok(engines)
    }

    /// `None`: no ring.
    pub(super) fn completions(&self) -> Option<Completions> {
        match &self.place {
            Place::Ring(ring) => Some(ring.completions()),
            Place::Epoll(_) => None,
        }
    }

    /// Has the ring know the guest's memory.
    pub(super) fn register_memory(&mut self, ram: &Arc<GuestRam>) -> Result<(), IoThreadError> {
        let Place::Ring(ring) = &mut self.place else {
            return Err(IoThreadError::NoRingToSet { name: self.name.clone() });
        };
        let refused = |source| IoThreadError::Memory { name: self.name.clone(), source };
        ring.register_memory(ram).map_err(refused)?;
        self.iopoll.as_mut().map_or(Ok(()), |polled| polled.register_memory(ram)).map_err(refused)
    }

    /// Has whatever works for the thread run on other CPUs; the thread that a ring has for its submissions (sqpoll) stays where
    /// it is. After an error some of it has moved.
    pub(super) fn move_to(&mut self, cpus: &[u32]) -> Result<(), IoThreadError> {
        let name = || self.name.clone();
        let own = match &self.place {
            Place::Ring(ring) => Some(&**ring),
            Place::Epoll(_) => None,
        };
        for ring in own.into_iter().chain(self.iopoll.as_deref()) {
            let refused = |source| IoThreadError::Workers { name: name(), asked: cpus.to_owned(), source };
            ring.confine_workers(cpus).map_err(refused)?;
        }
        self.cpus = cpus.to_owned();
        let Some(pool) = &mut self.pool else { return Ok(()) };
        pool.move_to(cpus).map_err(|source| IoThreadError::Moved { name: self.name.clone(), source })
    }

    pub(super) fn watch(&mut self, watched: impl Into<Watched>, token: Token) -> io::Result<Watch> {
        match &mut self.place {
            Place::Ring(ring) => Ok(Watch::Ring(ring.watch(watched, token))),
            Place::Epoll(bells) => bells.watch(watched.into(), token).map(Watch::Epoll),
        }
    }

    pub(super) fn unwatch(&mut self, watch: Watch) {
        match (&mut self.place, watch) {
            (Place::Ring(ring), Watch::Ring(id)) => ring.unwatch(id),
            (Place::Epoll(bells), Watch::Epoll(index)) => bells.unwatch(index),
            // Each place gives its own.
            (Place::Ring(_), Watch::Epoll(_)) | (Place::Epoll(_), Watch::Ring(_)) => {}
        }
    }

    pub(super) fn open(&mut self, file: Arc<File>, engine: Engine) -> io::Result<Opened> {
        let missing = || io::Error::new(io::ErrorKind::Unsupported, format!("it has no engine {engine}"));
        match (engine, &mut self.place) {
            (Engine::IoUring, Place::Ring(ring)) => ring.add_file(file).map(Opened::Ring),
            (Engine::Native, _) if self.native.is_some() => Ok(Opened::Native(self.keep(file))),
            (Engine::Threads, _) if self.has_threads => Ok(Opened::Threads(self.keep(file))),
            (Engine::IoUring | Engine::Native | Engine::Threads, _) => Err(missing()),
        }
    }

    /// The same for a file of io_uring's whose drive is to be looked at.
    pub(super) fn open_polled(&mut self, file: Arc<File>) -> io::Result<Opened> {
        let (Place::Ring(ring), Some(polled)) = (&mut self.place, &mut self.iopoll) else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it has no ring that looks at drives"));
        };
        let other = ring.add_file(Arc::clone(&file))?;
        match polled.add_file(file) {
            Ok(polled) => Ok(Opened::Iopoll { polled, other }),
            Err(error) => {
                ring.remove_file(other);
                Err(error)
            }
        }
    }

    fn keep(&mut self, file: Arc<File>) -> usize {
        let index = self.files.iter().position(Option::is_none).unwrap_or(self.files.len());
        if index == self.files.len() {
            self.files.push(None);
        }
        self.files[index] = Some(file);
        index
    }

    pub(super) fn close(&mut self, opened: Opened) {
        match (opened, &mut self.place) {
            (Opened::Ring(id), Place::Ring(ring)) => ring.remove_file(id),
            (Opened::Iopoll { polled, other }, Place::Ring(ring)) => {
                ring.remove_file(other);
                if let Some(ring) = &mut self.iopoll {
                    ring.remove_file(polled);
                }
            }
            (Opened::Ring(_) | Opened::Iopoll { .. }, Place::Epoll(_)) => {}
            (Opened::Native(index) | Opened::Threads(index), _) => {
                if let Some(file) = self.files.get_mut(index) {
                    *file = None;
                }
            }
        }
    }

    /// Operations that were started and not taken back.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Operations that the next [`enter`](Self::enter) hands over.
    pub(super) fn started(&self) -> usize {
        self.started
    }

    /// Whether what is started on this file may end before the next [`enter`](Self::enter).
    pub(super) fn takes_at_once(&self, opened: Opened) -> bool {
        matches!((opened, &self.place), (Opened::Ring(_), Place::Ring(ring)) if ring.takes_at_once())
    }

    pub(super) fn start(&mut self, opened: Opened, operation: Operation, buffers: Buffers, token: Token) {
        self.in_flight += 1;
        self.started += 1;
        match (opened, &mut self.place) {
            (Opened::Ring(id), Place::Ring(ring)) => ring.start(id, operation, buffers, token),
            (Opened::Iopoll { polled, other }, Place::Ring(ring)) => match &mut self.iopoll {
                Some(iopoll) if is_polled(operation) => iopoll.start(polled, operation, buffers, token),
                _ => ring.start(other, operation, buffers, token),
            },
            (Opened::Native(index) | Opened::Threads(index), _) => {
                let file = self.files.get(index).and_then(Option::as_ref);
                let native = matches!(opened, Opened::Native(_)) && Aio::<Token>::knows(operation);
                match (file, &mut self.native) {
                    (Some(file), Some(aio)) if native => aio.start(file, operation, buffers, token),
                    (Some(file), _) => {
                        let file = Arc::clone(file);
                        match self.pool() {
                            Ok(pool) => pool.start(file, operation, buffers, token),
                            Err(error) => self.refuse(error, buffers, token),
                        }
                    }
                    (None, _) => self.refuse(io::ErrorKind::NotFound.into(), buffers, token),
                }
            }
            (Opened::Ring(_) | Opened::Iopoll { .. }, Place::Epoll(_)) => {
                self.refuse(io::ErrorKind::Unsupported.into(), buffers, token);
            }
        }
    }

    fn refuse(&mut self, error: io::Error, buffers: Buffers, token: Token) {
        self.refused.push(Completion::Done { token, result: Err(error), buffers });
    }

    /// The pool, made when it is first needed: Linux AIO leaves to it what it cannot do.
    fn pool(&mut self) -> io::Result<&mut Pool> {
        if self.pool.is_none() {
            let pool = Pool::new(&self.name, &self.cpus, self.policy)?;
            let bell = pool.bell().try_clone()?;
            self.watch(bell, Token::Engine)?;
            self.pool = Some(pool);
        }
        self.pool.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether operations are in flight that end only by looking: [`enter`](Self::enter) does, and does not wait.
    pub(super) fn must_look(&self) -> bool {
        self.iopoll.as_ref().is_some_and(|polled| polled.busy() > 0)
    }

    /// Whether a call of [`enter`](Self::enter) has something to hand over or to bring out, or could hear a bell that is
    /// told of in no other way.
    pub(super) fn wants_enter(&mut self) -> bool {
        let engines = self.must_look()
            || self.native.as_ref().is_some_and(Aio::has_submissions)
            || self.pool.as_ref().is_some_and(Pool::has_submissions);
        match &mut self.place {
            Place::Ring(ring) => engines || ring.has_submissions() || ring.holds_back(),
            Place::Epoll(_) => true,
        }
    }

    /// Hears bells that [`has_completions`](Self::has_completions) would not see: a ring shows all of them in its memory.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        match &mut self.place {
            Place::Ring(_) => Ok(()),
            Place::Epoll(bells) => bells.wait(Wait::Never),
        }
    }

    /// Whether something completed, as far as can be seen without a system call.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.refused.is_empty()
            || self.native.as_ref().is_some_and(Aio::has_completions)
            || self.pool.as_ref().is_some_and(Pool::has_completions)
            || match &mut self.place {
                Place::Ring(ring) => ring.has_completions(),
                Place::Epoll(bells) => bells.has_heard(),
            }
    }

    /// Hands over what was started, and waits for a completion or a bell as long as it may. How many system calls it took.
    pub(super) fn enter(&mut self, wait: Wait) -> io::Result<u64> {
        self.started = 0;
        let mut calls = self.look_at_drives()?;
        if let Some(aio) = &mut self.native {
            calls += u64::from(aio.submit()?);
        }
        if let Some(pool) = &mut self.pool {
            pool.submit();
        }
        // What ends from here on rings, and a ring from before the wait ends it.
        let ended = self.must_look()
            || !self.refused.is_empty()
            || self.native.as_ref().is_some_and(Aio::has_completions)
            || self.pool.as_ref().is_some_and(Pool::has_completions);
        let wait = if ended { Wait::Never } else { wait };
        match &mut self.place {
            Place::Ring(ring) => {
                if wait != Wait::Never || ring.has_submissions() || ring.holds_back() {
                    calls += u64::from(ring.enter(wait)?);
                }
            }
            Place::Epoll(bells) => {
                bells.wait(wait)?;
                calls += 1;
            }
        }
        Ok(calls)
    }

    /// Hands over what was started in the ring that is looked for, and looks once. How many system calls it took.
    fn look_at_drives(&mut self) -> io::Result<u64> {
        match &mut self.iopoll {
            Some(polled) if polled.busy() > 0 => polled.enter(Wait::Never).map(u64::from),
            _ => Ok(0),
        }
    }

    /// Takes every completion that is there.
    pub(super) fn reap(&mut self, into: &mut Vec<Completion<Token>>) {
        let before = into.len();
        into.append(&mut self.refused);
        match &mut self.place {
            Place::Ring(ring) => ring.reap(into),
            Place::Epoll(bells) => bells.reap(into),
        }
        if let Some(polled) = &mut self.iopoll {
            polled.reap(into);
        }
        if let Some(aio) = &mut self.native {
            aio.reap(into);
        }
        if let Some(pool) = &mut self.pool {
            pool.reap(into);
        }
        let ended = into[before..].iter().filter(|completion| matches!(completion, Completion::Done { .. }));
        self.in_flight -= ended.count();
    }
}

/// What a ring that looks at drives is given. Whatever makes sure of data does so by commands of its own behind the write,
/// whose end nobody would look for.
fn is_polled(operation: Operation) -> bool {
    matches!(operation, Operation::Read { .. } | Operation::Write { durable: false, .. })
}

fn ring(config: &config::IoThread, iopoll: bool) -> Result<Ring<Token>, IoThreadError> {
    let name = || config.name.clone();
    let thread =
        config.ring.sqpoll.map(|sqpoll| SubmissionThread { cpu: sqpoll.cpu, idle_ms: sqpoll.idle_ms });
    let options = Options { submission_thread: thread, iopoll };
    let ring = Ring::with(&options).map_err(|source| IoThreadError::Ring { name: name(), source })?;
    // The kernel does a part of the work on threads of its own: they belong where this one is.
    ring.confine_workers(&config.cpus).map_err(|source| {
        let (name, asked) = (name(), config.cpus.clone());
        IoThreadError::Workers { name, asked, source }
    })?;
    Ok(ring)
}

/// Whether this host has an engine, tried on a thread of its own: what [`IoThread::spawn`](super::IoThread::spawn) would say.
pub fn probe(engine: Engine) -> Result<(), IoThreadError> {
    let config = config::IoThread { engines: vec![engine], ..config::IoThread::named(0, "probe") };
    let name = config.name.clone();
    let tried = thread::spawn(&name, &[], move || Engines::new(&config).map(drop));
    let tried = tried.map_err(|source| IoThreadError::Thread { name: name.clone(), source })?;
    tried.join().unwrap_or_else(|how| Err(IoThreadError::Ended { name, how }))
}
