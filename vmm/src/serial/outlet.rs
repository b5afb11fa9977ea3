//! What the guest writes on its serial console, on its way out, with a thread of its own: whoever reads it may stop (a
//! terminal under Ctrl-S, a pipe that nobody empties), and then the guest waits, and nothing else does.

use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmprof_sys::kick;

use crate::config::Cpus;
use crate::exit::Exit;
use crate::thread::{self, Thread, ThreadError};
use crate::vcpu::PanicReport;

pub const THREAD_NAME: &str = "vmprof serial";
/// A guest that writes faster than the outside reads waits when this much is gathered.
const MOST_GATHERED: usize = 64 * 1024;
/// How long the thread leaves an outside alone that says it is full and cannot say when it has room.
const FULL: Duration = Duration::from_millis(5);
/// How often the machine's end asks whether to wait on.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Kicks, one each time the end looks, before a write that hears no signal is left behind.
const MOST_KICKS: u32 = 100;

/// What the guest wrote and the thread has not taken. vCPU threads fill it, the thread empties it.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    outgoing: Mutex<Outgoing>,
    /// For vCPUs: there is room again. For the thread: there is something to write, or no more will come.
    room: Condvar,
    something: Condvar,
}

#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    /// The machine ends: nobody waits for room any more.
    unbounded: bool,
    /// No more will come.
    closed: bool,
    /// What is left is not wanted any more.
    abandoned: bool,
}

impl Gathered {
    pub(super) fn wait_for_room(&self) {
        let full = |outgoing: &mut Outgoing| outgoing.bytes.len() >= MOST_GATHERED && !outgoing.unbounded;
        drop(self.room.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn stop_waiting(&self) {
        self.lock().unbounded = true;
        self.room.notify_all();
    }

    fn put(&self, bytes: &[u8]) {
        let mut outgoing = self.lock();
        let first = outgoing.bytes.is_empty();
        outgoing.bytes.extend_from_slice(bytes);
        drop(outgoing);
        if first {
            self.something.notify_one();
        }
    }

    /// Fills `batch`, which is empty, with all that was gathered, and waits for it. `false`: nothing comes any more.
    fn take(&self, batch: &mut Vec<u8>) -> bool {
        let nothing = |outgoing: &mut Outgoing| outgoing.bytes.is_empty() && !outgoing.closed;
        let waited = self.something.wait_while(self.lock(), nothing);
        let mut outgoing = waited.unwrap_or_else(PoisonError::into_inner);
        if outgoing.bytes.is_empty() || outgoing.abandoned {
            return false;
        }
        std::mem::swap(&mut outgoing.bytes, batch);
        drop(outgoing);
        self.room.notify_all();
        true
    }

    fn close(&self) {
        self.lock().closed = true;
        self.something.notify_one();
    }

    fn is_abandoned(&self) -> bool {
        self.lock().abandoned
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The UART's end.
pub(super) struct Outbox(pub(super) Arc<Gathered>);

impl Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The outside's end, before its thread runs.
pub struct Outlet {
    pub(super) gathered: Arc<Gathered>,
    pub(super) out: Box<dyn Write + Send>,
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Outlet")
    }
}

impl Outlet {
    /// Starts the thread; should it break down, `ends` hears of it.
    pub fn start(self, cpus: &Cpus, ends: mpsc::Sender<Exit>) -> Result<Flowing, ThreadError> {
        let gathered = self.gathered.clone();
        let (alive, ended) = mpsc::channel();
        let thread = thread::spawn(THREAD_NAME, cpus, move || {
            // Dropped last, which is what the end waits for.
            let _alive = alive;
            let _report = PanicReport { thread: THREAD_NAME.to_owned(), ends };
            self.flow();
        })?;
        Ok(Flowing { gathered, ended, thread: Some(thread) })
    }

    fn flow(mut self) {
        let mut batch = Vec::new();
        let mut heard = true;
        while self.gathered.take(&mut batch) {
            // After an error nobody is there any more, and bytes are lost as on a line with nobody at its end.
            heard = heard && self.write(&batch).is_ok();
            batch.clear();
        }
    }

    fn write(&mut self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() && !self.gathered.is_abandoned() {
            match self.out.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) => pass(error)?,
            }
        }
        while let Err(error) = self.out.flush() {
            pass(error)?;
            if self.gathered.is_abandoned() {
                break;
            }
        }
        Ok(())
    }
}

/// Errors that pass: a kick, and a description that somebody else made non-blocking, as happens to a shared stderr.
fn pass(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => {
            std::thread::sleep(FULL);
            Ok(())
        }
        _ => Err(error),
    }
}

/// The running thread.
#[derive(Debug)]
pub struct Flowing {
    gathered: Arc<Gathered>,
    /// Disconnected when the thread has ended.
    ended: mpsc::Receiver<()>,
    /// `None` once it has been ended.
    thread: Option<Thread<()>>,
}

impl Flowing {
    pub fn thread(&self) -> Option<(String, i32)> {
        self.thread.as_ref().map(|thread| (thread.name.clone(), thread.tid))
    }

    /// The guest writes no more. Ends the thread when all is written, however long the outside takes, or when `give_up`
    /// says that it has had long enough: then the rest is lost. An error is the text of a panic.
    pub fn end(&mut self, mut give_up: impl FnMut() -> bool) -> Result<(), String> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.gathered.close();
        let mut kicks = 0;
        while let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(LOOK_EVERY) {
            if kicks == MOST_KICKS {
                // In a write that no signal ends (a network filesystem that is gone): it goes with the process.
                return Ok(());
            }
            if kicks > 0 || give_up() {
                kicks += 1;
                self.gathered.lock().abandoned = true;
                // Gets it out of a write that waits. A thread that has ended needs none.
                let _ = kick::kick(thread.tid);
            }
        }
        thread.join()
    }
}

impl Drop for Flowing {
    fn drop(&mut self) {
        // Whoever did not end it does not want the rest.
        let _ = self.end(|| true);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn flowing(out: impl Write + Send + 'static) -> (Outbox, Flowing) {
        let gathered = Arc::<Gathered>::default();
        let outlet = Outlet { gathered: gathered.clone(), out: Box::new(out) };
        (Outbox(gathered), outlet.start(&vec![], mpsc::channel().0).unwrap())
    }

    fn pipe() -> (File, File) {
        let (reader, writer) = io::pipe().unwrap();
        (File::from(std::os::fd::OwnedFd::from(reader)), File::from(std::os::fd::OwnedFd::from(writer)))
    }

    #[test]
    fn an_outside_that_takes_its_time_gets_everything() {
        let (mut reader, writer) = pipe();
        let (mut outbox, mut flowing) = flowing(writer);
        let text: Vec<u8> = (0..300_000u32).map(|index| index as u8).collect();
        outbox.write_all(&text).unwrap();
        let reading = std::thread::spawn(move || {
            let mut found = Vec::new();
            reader.read_to_end(&mut found).unwrap();
            found
        });
        flowing.end(|| false).unwrap();
        assert!(reading.join().unwrap() == text);
    }

    #[test]
    fn an_outside_that_takes_nothing_is_given_up_when_asked() {
        let (_reader, writer) = pipe();
        let (mut outbox, mut flowing) = flowing(writer);
        outbox.write_all(&[0; 300_000]).unwrap();
        let (_, tid) = flowing.thread().unwrap();
        flowing.end(|| true).unwrap();
        assert!(!std::path::Path::new(&format!("/proc/self/task/{tid}")).exists());
    }

    /// Refuses every other write as a full non-blocking description does.
    struct Moody(Arc<Mutex<Vec<u8>>>, AtomicBool);

    impl Write for Moody {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.1.fetch_xor(true, Ordering::Relaxed) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let some = bytes.len().min(3);
            self.0.lock().unwrap().extend_from_slice(&bytes[..some]);
            Ok(some)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_outside_that_is_full_for_a_moment_loses_nothing() {
        let found = Arc::<Mutex<Vec<u8>>>::default();
        let (mut outbox, mut flowing) = flowing(Moody(found.clone(), true.into()));
        outbox.write_all(b"panic: not syncing").unwrap();
        flowing.end(|| false).unwrap();
        assert_eq!(*found.lock().unwrap(), b"panic: not syncing");
    }
}
