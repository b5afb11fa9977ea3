//! vhost-user-blk: a disk served to another VMM over a socket, by the same IOThreads and the same virtio-blk as to our own
//! guests. The client sets the device up by messages; its rings, buffers and eventfds are then the IOThreads', which wait for
//! its kicks themselves.
//!
//! | file | knows |
//! |---|---|
//! | [`socket`] | the path: whose it is, and when it goes |
//! | [`protocol`] | messages, as the `vhost` crate reads them |
//! | [`device`] | what a client has set up; starting, stopping, going on |
//! | [`queue`], [`memory`] | one virtqueue of that, and the client's memory |
//! | [`vsock`] | the same for virtio-vsock, for one client that is there from the start |
//!
//! One client at a time: the device has one state. The thread that calls [`Server::run`] reads its messages.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost::vhost_user::{BackendReqHandler, Error};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmprof_sys::eventfd;

use crate::config;
use crate::iothread::counters::IoThreadSnapshot;
use crate::iothread::{Handle, IoThread, IoThreadError};
use crate::virtio::blk::{Blk, DiskSnapshot, DiskStats};
use crate::virtio::device::VirtioDevice as _;

mod device;
mod error;
mod inflight;
mod memory;
mod protocol;
mod queue;
mod socket;
mod stop;
mod vsock;

use device::Device;
pub use error::{Refusal, ServerError, SocketError};
use socket::Socket;
pub use stop::Stopper;
pub use vsock::VsockServer;

/// A message names its virtqueue by a byte.
pub const MOST_QUEUES: usize = 256;
/// How often the server looks whether its IOThreads are there.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// What is served, where, by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    pub socket: PathBuf,
    pub disk: config::Disk,
    pub iothreads: Vec<config::IoThread>,
}

/// What happens to the server, for whoever tells its user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client has said its first word.
    Connected,
    /// Another came while one was there: the disk has one at a time.
    TurnedAway,
    /// The client's driver broke a ring; the device needs a reset.
    Broke {
        fault: String,
    },
    Left {
        how: Left,
    },
}

/// How a client went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// It closed the connection.
    ByItself,
    /// It was sent away, for this reason.
    Refused(String),
    /// The server ends.
    Stopped,
}

/// A disk that is served: its threads run, and clients can connect.
#[derive(Debug)]
pub struct Server {
    /// Declared first: nobody connects to a server that goes.
    socket: Socket,
    /// Messages come one by one, from one client: the lock is the `vhost` crate's wish, and nobody waits for it.
    device: Arc<Mutex<Device>>,
    stats: DiskStats,
    iothreads: Vec<Handle>,
    /// Rung by an IOThread when a driver broke its ring.
    alarm: EventFd,
    stop: Stopper,
}

impl Server {
    /// Starts the threads where they belong, opens and locks the disk, and then listens.
    pub fn start(config: &ServerConfig) -> Result<Server, ServerError> {
        let asked = config.disk.virtqueues.len();
        if !(1..=MOST_QUEUES).contains(&asked) {
            return Err(ServerError::Queues { asked });
        }
        let iothreads = config.iothreads.iter().map(IoThread::spawn).collect::<Result<Vec<_>, _>>()?;
        let blk = Blk::new(&config.disk, &iothreads)?;
        let eventfds = |source| ServerError::EventFd { source };
        let alarm = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(eventfds)?;
        if let Some(distress) = blk.distress() {
            let alarm = alarm.try_clone().map_err(eventfds)?;
            distress.on_raise(move || drop(alarm.write(1)));
        }
        let stats = blk.stats();
        let device = Arc::new(Mutex::new(Device::new(Box::new(blk)).map_err(eventfds)?));
        let stop = Stopper::new().map_err(eventfds)?;
        let socket = Socket::bind(&config.socket)?;
        Ok(Server { socket, device, stats, iothreads, alarm, stop })
    }

    /// Ends [`run`](Self::run), from any thread.
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// What the disk has done so far, for all clients.
    pub fn disk(&self) -> DiskSnapshot {
        self.stats.snapshot()
    }

    pub fn iothreads(&self) -> Vec<IoThreadSnapshot> {
        self.iothreads.iter().map(Handle::snapshot).collect()
    }

    /// Serves one client after the other until it is stopped, or an IOThread ends. What clients had begun is done then, and
    /// the socket gone once `self` is dropped.
    pub fn run(&self, mut tell: impl FnMut(Event)) -> Result<(), ServerError> {
        while !self.stop.is_asked() {
            let [stopped, newcomer] = ready([self.stop.as_fd(), self.socket.as_fd()])?;
            self.look_after_iothreads()?;
            if newcomer
                && !stopped
                && let Some(stream) = self.socket.accept()
            {
                self.serve(stream, &mut tell)?;
            }
        }
        Ok(())
    }

    /// One client, from its first message to its last request.
    fn serve(&self, stream: UnixStream, tell: &mut impl FnMut(Event)) -> Result<(), ServerError> {
        let wait = |source| ServerError::Wait { source };
        let heard = stream.try_clone().map_err(wait)?;
        self.stop.unblocks(stream.try_clone().map_err(wait)?);
        let mut messages = BackendReqHandler::from_stream(stream, Arc::clone(&self.device));
        let mut known = false;
        let served = loop {
            if self.stop.is_asked() {
                break Ok(Left::Stopped);
            }
            let [message, alarm, newcomer, _] = match self.wait_with(&heard) {
                Ok(ready) => ready,
                Err(error) => break Err(error),
            };
            if alarm {
                self.tell_of_break(tell);
            }
            if message {
                match messages.handle_request() {
                    Ok(()) => {}
                    Err(Error::InvalidOperation(protocol::HARMLESS)) => {}
                    Err(Error::Disconnected | Error::SocketBroken(_)) if self.stop.is_asked() => continue,
                    Err(Error::Disconnected | Error::SocketBroken(_)) => break Ok(Left::ByItself),
                    Err(Error::ReqHandlerError(refusal)) => break Ok(Left::Refused(refusal.to_string())),
                    Err(error) => break Ok(Left::Refused(error.to_string())),
                }
                if !std::mem::replace(&mut known, true) {
                    tell(Event::Connected);
                }
            } else if newcomer && self.socket.accept().is_some() {
                tell(Event::TurnedAway);
            }
        };
        // Before the connection is closed: who sees it closed may take its requests elsewhere.
        let gone = !matches!(served, Ok(Left::Stopped));
        let forgotten = self.device().forget(gone);
        self.stop.unblocks_nobody();
        drop(messages);
        forgotten.map_err(|source| ServerError::EventFd { source })?;
        let how = served?;
        // One that asked nothing only looked whether somebody is here.
        if known || matches!(how, Left::Refused(_)) {
            tell(Event::Left { how });
        }
        Ok(())
    }

    /// Waits for the client, a driver's mistake, another client, or the end.
    fn wait_with(&self, client: &UnixStream) -> Result<[bool; 4], ServerError> {
        let found =
            ready([client.as_fd(), eventfd::borrowed(&self.alarm), self.socket.as_fd(), self.stop.as_fd()])?;
        self.look_after_iothreads()?;
        Ok(found)
    }

    fn tell_of_break(&self, tell: &mut impl FnMut(Event)) {
        let _ = self.alarm.read();
        self.device().signal_errors();
        if let Some(fault) = self.stats.snapshot().fault {
            tell(Event::Broke { fault });
        }
    }

    /// A thread that ended leaves its queues to nobody.
    fn look_after_iothreads(&self) -> Result<(), ServerError> {
        let Some(ended) = self.iothreads.iter().find(|iothread| iothread.is_finished()) else {
            return Ok(());
        };
        ended.stop()?;
        let (name, how) = (ended.name().to_owned(), "without a reason".to_owned());
        Err(IoThreadError::Ended { name, how }.into())
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of these can be read, or have ended; none of them after a while.
fn ready<const COUNT: usize>(
    descriptors: [std::os::fd::BorrowedFd<'_>; COUNT],
) -> Result<[bool; COUNT], ServerError> {
    let mut waits = descriptors.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    match poll(&mut waits, Some(&LOOK)) {
        Ok(_) => Ok(waits.map(|wait| !wait.revents().is_empty())),
        Err(rustix::io::Errno::INTR) => Ok([false; COUNT]),
        Err(errno) => Err(ServerError::Wait { source: errno.into() }),
    }
}

#[cfg(test)]
mod tests;
