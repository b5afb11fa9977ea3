//! How a server is ended from outside the thread that runs it.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmprof_sys::eventfd;

/// Ends a server. The first call is enough.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    asked: AtomicBool,
    bell: EventFd,
    /// The client's connection. Whoever stops and the server's thread meet here, each for a moment.
    client: Mutex<Option<UnixStream>>,
}

impl Stopper {
    pub(super) fn new() -> io::Result<Stopper> {
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Stopper(Arc::new(Inner { asked: AtomicBool::new(false), bell, client: Mutex::new(None) })))
    }

    /// The server takes no message more, ends what its client has begun, and returns from its run.
    pub fn stop(&self) {
        self.0.asked.store(true, Ordering::Release);
        let _ = self.0.bell.write(1);
        if let Some(client) = &*self.client() {
            end_of_messages(client);
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        self.0.asked.load(Ordering::Acquire)
    }

    /// From now on a stop ends a wait for the rest of a message from this client.
    pub(super) fn unblocks(&self, client: UnixStream) {
        let mut current = self.client();
        if self.is_asked() {
            end_of_messages(&client);
        }
        *current = Some(client);
    }

    pub(super) fn unblocks_nobody(&self) {
        *self.client() = None;
    }

    fn client(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.0.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reading ends; the client sees nothing of it until its requests are done and the connection is closed.
fn end_of_messages(client: &UnixStream) {
    // One that is gone already has no messages either.
    let _ = client.shutdown(Shutdown::Read);
}

impl AsFd for Stopper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        eventfd::borrowed(&self.0.bell)
    }
}
