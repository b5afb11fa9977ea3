//! The connections of one guest, and the Unix socket at which they begin. The outside connects, says `CONNECT port` and a
//! line's end, and reads `OK` and the number of its own port once the guest has accepted; from there on the stream is the
//! guest's. One that the guest does not accept is closed without a word. Firecracker and Cloud Hypervisor do the same.
//!
//! Only the outside begins connections: a guest that asks for one is refused, since nobody listens on the host's side.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use rustix::event::{Timespec, epoll};
use vmprof_sys::segments::GuestBuffers;

use super::connection::{Connection, Fate};
use super::packet::{HEADER_BYTES, HOST_CID, Header, STREAM};
use crate::virtio::queue::{Broken, Queue};

/// Connections at once; one more is closed as it comes.
const MOST_CONNECTIONS: usize = 1024;
/// Answers to packets of no connection that may wait for room before the guest's next packet is looked at.
const MOST_REFUSALS: usize = 256;
/// Packets of one direction, or news of sockets, in one turn, so that no guest keeps the thread to itself.
const SHARE: usize = 64;
/// Linux gives ports below this to programs by name, and takes those from here on for its own connections.
pub(super) const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = u32::MAX >> 1;
const LISTENER: u64 = u64::MAX;

pub(super) struct Muxer {
    guest_cid: u64,
    listener: UnixListener,
    epoll: OwnedFd,
    /// By the port of the host's side.
    connections: BTreeMap<u32, Connection>,
    next_port: u32,
    /// Those that may have something to tell the guest, in the order of their turns.
    speakers: VecDeque<u32>,
    /// For the guest, beside what connections say.
    refusals: VecDeque<Header>,
}

impl std::fmt::Debug for Muxer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Muxer").field("connections", &self.connections.len()).finish_non_exhaustive()
    }
}

impl Muxer {
    pub(super) fn new(guest_cid: u64, listener: UnixListener) -> io::Result<Muxer> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), flags)?;
        Ok(Muxer {
            guest_cid,
            listener,
            epoll,
            connections: BTreeMap::new(),
            next_port: FIRST_PORT,
            speakers: VecDeque::new(),
            refusals: VecDeque::new(),
        })
    }

    /// Becomes readable when [`Self::look_outside`] has something to see.
    pub(super) fn events(&self) -> &OwnedFd {
        &self.epoll
    }

    /// The driver is gone, and with it everything that it knew.
    pub(super) fn forget_guest(&mut self) {
        self.connections.retain(|_, connection| !connection.concerns_guest());
        self.speakers.clear();
        self.refusals.clear();
        self.connections.values_mut().for_each(|connection| connection.is_listed = false);
    }

    /// Takes in what happened at the sockets. `is_live`: there is a driver. `true`: its share is used up.
    pub(super) fn look_outside(&mut self, is_live: bool) -> bool {
        let mut events = Vec::with_capacity(SHARE);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // It is our own descriptor, and there is no waiting that could be interrupted.
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now));
        for event in &events {
            match event.data.u64() {
                LISTENER => self.accept(is_live),
                port => {
                    let (port, flags) = (port as u32, event.flags);
                    let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
                    if let Some(connection) = self.connections.get_mut(&port) {
                        connection.outside_changed(hung_up);
                        let fate = connection.step(is_live);
                        self.settle(port, fate);
                    }
                }
            }
        }
        events.len() == SHARE
    }

    fn accept(&mut self, is_live: bool) {
        // What else accept can say (a connection that is gone, no descriptor left) has the next one try again.
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= MOST_CONNECTIONS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let port = self.free_port();
            let flags = epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET;
            if epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(port.into()), flags).is_ok() {
                let mut connection = Connection::new(stream, port);
                let fate = connection.step(is_live);
                self.connections.insert(port, connection);
                self.settle(port, fate);
            }
        }
    }

    /// There are far more ports than connections.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port == LAST_PORT { FIRST_PORT } else { port + 1 };
            if !self.connections.contains_key(&port) {
                return port;
            }
        }
    }

    fn settle(&mut self, port: u32, fate: Fate) {
        match fate {
            Fate::Lives => self.list(port),
            Fate::Over => drop(self.remove(port)),
            Fate::Reset => {
                // A guest that takes nothing is not owed an answer for each caller that came and went.
                if let Some(connection) = self.remove(port)
                    && connection.is_known_to_guest()
                {
                    self.refusals.push_back(connection.reset(self.guest_cid));
                }
            }
        }
    }

    /// With its turn, which might never come for a guest that takes nothing.
    fn remove(&mut self, port: u32) -> Option<Connection> {
        let connection = self.connections.remove(&port)?;
        if connection.is_listed {
            self.speakers.retain(|speaker| *speaker != port);
        }
        Some(connection)
    }

    fn list(&mut self, port: u32) {
        if let Some(connection) = self.connections.get_mut(&port)
            && !std::mem::replace(&mut connection.is_listed, true)
        {
            self.speakers.push_back(port);
        }
    }

    /// Takes packets of the guest's. `true`: its share is used up, or there is no room for an answer.
    pub(super) fn hear(&mut self, queue: &mut Queue) -> Result<bool, Broken> {
        for _ in 0..SHARE {
            if self.is_full() {
                return Ok(false);
            }
            let Some(mut taken) = queue.take(false)? else { return Ok(false) };
            let mut bytes = [0; HEADER_BYTES];
            if taken.buffers.take_front(&mut bytes) == HEADER_BYTES {
                self.hear_packet(&Header::parse(&bytes), &mut taken.buffers);
            }
            queue.give_back(taken.head, 0);
        }
        Ok(true)
    }

    fn hear_packet(&mut self, header: &Header, payload: &mut GuestBuffers) {
        // Linux drops what comes from elsewhere or goes elsewhere, too (5.10.6.4.1).
        if header.source_cid != self.guest_cid || header.target_cid != HOST_CID {
            return;
        }
        match self.connections.get_mut(&header.target_port) {
            Some(connection) if header.kind == STREAM && connection.concerns_guest() => {
                let fate = connection.hear(header, payload);
                self.settle(header.target_port, fate);
            }
            _ => self.refusals.extend(header.refusal()),
        }
    }

    /// Tells the guest what there is to tell, one buffer a packet. `true`: its share is used up, and there is more.
    pub(super) fn speak(&mut self, queue: &mut Queue) -> Result<bool, Broken> {
        for _ in 0..SHARE {
            if let Some(header) = self.refusals.front() {
                let Some(mut taken) = queue.take(true)? else { return Ok(false) };
                let count = taken.buffers.fill_front(&header.write());
                queue.give_back(taken.head, count as u32);
                self.refusals.pop_front();
                continue;
            }
            let Some(port) = self.next_speaker() else { return Ok(false) };
            let Some(mut taken) = queue.take(true)? else { return Ok(false) };
            let room = (taken.buffers.bytes() as usize).saturating_sub(HEADER_BYTES);
            let mut count = 0;
            if let Some(connection) = self.connections.get_mut(&port) {
                let header = connection.word(self.guest_cid, room);
                count = taken.buffers.fill_front(&header.write());
                count += taken.buffers.fill_front(connection.payload(header.bytes));
            }
            queue.give_back(taken.head, count as u32);
            self.speakers.rotate_left(1);
        }
        Ok(true)
    }

    /// So many answers wait that the guest has to take some before it is heard again.
    pub(super) fn is_full(&self) -> bool {
        self.refusals.len() >= MOST_REFUSALS
    }

    /// Whether there is something to tell the guest.
    pub(super) fn has_word(&mut self) -> bool {
        !self.refusals.is_empty() || self.next_speaker().is_some()
    }

    /// The next in turn that has something to say; it stays at the front.
    fn next_speaker(&mut self) -> Option<u32> {
        while let Some(&port) = self.speakers.front() {
            if let Some(connection) = self.connections.get_mut(&port) {
                if connection.has_word() {
                    return Some(port);
                }
                connection.is_listed = false;
            }
            self.speakers.pop_front();
        }
        None
    }

    /// What must be true between two turns, whatever was said on either side.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self) {
        assert!(self.connections.len() <= MOST_CONNECTIONS);
        assert!(self.speakers.len() <= self.connections.len(), "turns of connections that are over are kept");
        assert!(
            self.refusals.len() <= MOST_REFUSALS + MOST_CONNECTIONS,
            "{} resets wait",
            self.refusals.len()
        );
        self.connections.values().for_each(Connection::check);
    }

    /// The sockets that have not taken yet what the guest sent.
    pub(super) fn waiting_for_outside(&self) -> impl Iterator<Item = &Connection> {
        self.connections.values().filter(|connection| connection.waits_for_outside())
    }
}
