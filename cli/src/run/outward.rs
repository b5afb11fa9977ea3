//! The writing side of a connection to a command that an agent runs: frames by several threads, and how much input may be on its way.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vmprof_job::agent::{INPUT_WINDOW, Kind, Stream};

/// What the threads share, a frame at a time.
#[derive(Debug, Clone)]
pub struct Outward {
    stream: Arc<Mutex<Stream<UnixStream>>>,
    /// Whoever had the command has left it.
    is_left: Arc<AtomicBool>,
}

impl Outward {
    pub fn of(stream: &Stream<UnixStream>) -> io::Result<Outward> {
        let writing = Stream::new(stream.get_ref().try_clone()?);
        Ok(Outward { stream: Arc::new(Mutex::new(writing)), is_left: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Stream<UnixStream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What cannot be sent any more is missed by nobody: whoever reads the connection says that it is gone.
    pub fn say(&self, kind: Kind, payload: &[u8]) {
        let _ = self.lock().write(kind, payload);
    }

    /// To the command's process group.
    pub fn signal(&self, number: i32) {
        self.say(Kind::Signal, &(number as u32).to_le_bytes());
    }

    /// The command hears of it as of a terminal that is gone.
    pub fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
        let _ = self.lock().get_ref().shutdown(Shutdown::Both);
    }

    pub fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Acquire)
    }
}

/// How much more of the input may be on its way.
#[derive(Debug, Default)]
pub struct Window {
    on_its_way: Mutex<u32>,
    changed: Condvar,
}

impl Window {
    /// Waits until `bytes` more have room.
    pub fn take(&self, bytes: u32) {
        let taken = self.on_its_way.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |waiting: &mut u32| *waiting + bytes > INPUT_WINDOW;
        let mut taken = self.changed.wait_while(taken, full).unwrap_or_else(PoisonError::into_inner);
        *taken += bytes;
    }

    pub fn give_back(&self, bytes: u32) {
        let mut taken = self.on_its_way.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_sub(bytes);
        self.changed.notify_all();
    }
}
