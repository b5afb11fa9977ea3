//! One connection: a stream socket outside, a port in the guest, and between them no more bytes than either has room for
//! (virtio 1.3, 5.10.6.3). What the outside does not take waits here, up to the room that the guest was told of; what
//! the guest has no room for waits in the socket.

use std::io;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};
use vmprof_sys::segments::GuestBuffers;

use super::packet::{HOST_CID, Header, Operation, RECEIVES_NO_MORE, SENDS_NO_MORE, STREAM};

/// How much of the guest's data a connection keeps for an outside that does not take it.
pub(super) const BUFFER_BYTES: u32 = 256 * 1024;
/// What is read from the outside at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// `CONNECT`, a port, the end of the line.
pub(super) const GREETING_BYTES: usize = 32;

#[derive(Debug)]
enum Stage {
    /// The outside has not said yet which port it wants.
    Greeting(Vec<u8>),
    /// The guest was asked, or is to be.
    Requested {
        said: bool,
    },
    Open,
}

/// What follows from a step for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    /// Nobody needs to hear of its end.
    Over,
    /// It is over, and the guest is to hear of it.
    Reset,
}

/// What the guest can still take.
#[derive(Debug, Default)]
struct Credit {
    buffer_bytes: u32,
    /// What the guest has passed on, and what it was sent, both modulo 2³².
    forwarded: u32,
    sent: u32,
    /// It was asked for more, and has not given any since.
    asked: bool,
}

impl Credit {
    /// A guest that says nonsense gets nothing.
    fn left(&self) -> u32 {
        self.buffer_bytes.saturating_sub(self.sent.wrapping_sub(self.forwarded))
    }
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    host_port: u32,
    guest_port: u32,
    stage: Stage,
    /// Whether the muxer has it among those that may have something to say.
    pub(super) is_listed: bool,

    /// What is known of the socket since it last had to be waited for.
    may_read: bool,
    may_write: bool,

    credit: Credit,
    /// Read from the outside; from the second field on not delivered yet.
    outgoing: Vec<u8>,
    delivered: usize,
    outside_ended: bool,
    /// The outside takes no more, either.
    outside_gone: bool,
    /// The flags of the last shutdown that the guest was told.
    said_shutdown: u32,

    /// From the guest, to be taken by the outside from the second field on.
    incoming: Vec<u8>,
    taken: usize,
    /// Bytes of our own at the beginning of these, which no count has.
    own_words: usize,
    forwarded: u32,
    /// The last value of `forwarded` that the guest was told.
    told_forwarded: u32,
    must_tell_credit: bool,
    guest_ended: bool,
    outside_knows_end: bool,
    guest_deaf: bool,
    /// The guest knows it no more: what it had sent before still goes out.
    guest_gone: bool,
}

impl Connection {
    /// `stream` is not blocking.
    pub(super) fn new(stream: UnixStream, host_port: u32) -> Connection {
        Connection {
            stream,
            host_port,
            guest_port: 0,
            stage: Stage::Greeting(Vec::new()),
            is_listed: false,
            may_read: true,
            may_write: true,
            credit: Credit::default(),
            outgoing: Vec::new(),
            delivered: 0,
            outside_ended: false,
            outside_gone: false,
            said_shutdown: 0,
            incoming: Vec::new(),
            taken: 0,
            own_words: 0,
            forwarded: 0,
            told_forwarded: 0,
            must_tell_credit: false,
            guest_ended: false,
            outside_knows_end: false,
            guest_deaf: false,
            guest_gone: false,
        }
    }

    /// Whether the guest knows of it, or is about to.
    pub(super) fn concerns_guest(&self) -> bool {
        !matches!(self.stage, Stage::Greeting(_))
    }

    pub(super) fn is_known_to_guest(&self) -> bool {
        matches!(self.stage, Stage::Requested { said: true } | Stage::Open)
    }

    pub(super) fn waits_for_outside(&self) -> bool {
        self.taken < self.incoming.len()
    }

    /// The socket has changed.
    pub(super) fn outside_changed(&mut self, hung_up: bool) {
        (self.may_read, self.may_write) = (true, true);
        self.outside_gone |= hung_up;
    }

    /// Does with the socket what can be done now. `is_live`: there is a driver to ask.
    pub(super) fn step(&mut self, is_live: bool) -> Fate {
        if let Stage::Greeting(line) = &mut self.stage {
            match read_greeting(&self.stream, line) {
                Ok(None) => return Fate::Lives,
                Ok(Some(port)) if is_live => {
                    self.guest_port = port;
                    self.stage = Stage::Requested { said: false };
                }
                Ok(Some(_)) | Err(_) => return Fate::Over,
            }
        }
        if self.flush().is_err() {
            return if self.guest_gone { Fate::Over } else { Fate::Reset };
        }
        if self.waits_for_outside() {
            return Fate::Lives;
        }
        if self.guest_gone {
            return Fate::Over;
        }
        if self.guest_ended && self.guest_deaf {
            return Fate::Reset;
        }
        if matches!(self.stage, Stage::Requested { .. }) && self.outside_gone {
            return Fate::Reset;
        }
        Fate::Lives
    }

    /// A packet of the guest's, with what follows its header.
    pub(super) fn hear(&mut self, header: &Header, payload: &mut GuestBuffers) -> Fate {
        if self.guest_gone {
            return Fate::Lives;
        }
        if header.source_port != self.guest_port {
            return Fate::Reset;
        }
        if self.credit.forwarded != header.forwarded || self.credit.buffer_bytes != header.buffer_bytes {
            (self.credit.forwarded, self.credit.buffer_bytes) = (header.forwarded, header.buffer_bytes);
            self.credit.asked = false;
        }
        match (header.operation, &self.stage) {
            (Operation::Reset, Stage::Requested { .. }) => return Fate::Over,
            (Operation::Reset, _) => self.guest_gone = true,
            (Operation::Response, Stage::Requested { said: true }) => {
                self.stage = Stage::Open;
                self.incoming = format!("OK {}\n", self.host_port).into_bytes();
                self.own_words = self.incoming.len();
            }
            (Operation::Data, Stage::Open) if !self.guest_ended => {
                let waits = self.incoming.len() - self.taken;
                let bytes = header.bytes as usize;
                if bytes as u64 > payload.bytes() || waits + bytes > BUFFER_BYTES as usize + GREETING_BYTES {
                    return Fate::Reset;
                }
                self.incoming.drain(..self.taken);
                self.taken = 0;
                self.incoming.resize(waits + bytes, 0);
                payload.take_front(&mut self.incoming[waits..]);
            }
            (Operation::CreditUpdate, Stage::Open) => {}
            (Operation::CreditRequest, Stage::Open) => self.must_tell_credit = true,
            (Operation::Shutdown, Stage::Open) => {
                self.guest_ended |= header.flags & SENDS_NO_MORE != 0;
                if header.flags & RECEIVES_NO_MORE != 0 && !std::mem::replace(&mut self.guest_deaf, true) {
                    (self.outgoing, self.delivered) = (Vec::new(), 0);
                    // Who goes on writing hears of it.
                    let _ = rustix::net::shutdown(&self.stream, Shutdown::Read);
                }
            }
            _ => return Fate::Reset,
        }
        self.step(true)
    }

    /// Whether there is something to tell the guest now.
    pub(super) fn has_word(&mut self) -> bool {
        if self.guest_gone {
            return false;
        }
        match self.stage {
            Stage::Greeting(_) => false,
            Stage::Requested { said } => !said,
            Stage::Open => {
                self.owes_credit() || self.has_data() || self.owes_shutdown() != 0 || self.owes_question()
            }
        }
    }

    /// The next packet where there is one to send ([`Self::has_word`]): a header, and in it how much of [`Self::payload`]
    /// goes with it, at most `room` bytes.
    pub(super) fn word(&mut self, guest_cid: u64, room: usize) -> Header {
        let (mut bytes, mut flags) = (0, 0);
        let operation = if let Stage::Requested { said } = &mut self.stage {
            *said = true;
            Operation::Request
        } else if room > 0 && self.has_data() {
            let waits = self.outgoing.len() - self.delivered;
            bytes = waits.min(room).min(self.credit.left() as usize) as u32;
            self.credit.sent = self.credit.sent.wrapping_add(bytes);
            Operation::Data
        } else if self.owes_shutdown() != 0 {
            flags = self.owes_shutdown();
            self.said_shutdown |= flags;
            Operation::Shutdown
        } else if self.owes_question() {
            self.credit.asked = true;
            Operation::CreditRequest
        } else {
            Operation::CreditUpdate
        };
        // Every packet says how things stand.
        (self.must_tell_credit, self.told_forwarded) = (false, self.forwarded);
        Header { bytes, flags, ..self.header(guest_cid, operation) }
    }

    /// What goes with the header that [`Self::word`] answered last.
    pub(super) fn payload(&mut self, bytes: u32) -> &[u8] {
        let from = self.delivered;
        self.delivered += bytes as usize;
        self.outgoing.get(from..self.delivered).unwrap_or_default()
    }

    /// What tells the guest that it is over.
    pub(super) fn reset(&self, guest_cid: u64) -> Header {
        self.header(guest_cid, Operation::Reset)
    }

    fn header(&self, guest_cid: u64, operation: Operation) -> Header {
        Header {
            source_cid: HOST_CID,
            target_cid: guest_cid,
            source_port: self.host_port,
            target_port: self.guest_port,
            bytes: 0,
            kind: STREAM,
            operation,
            flags: 0,
            buffer_bytes: BUFFER_BYTES,
            forwarded: self.forwarded,
        }
    }

    /// What it holds is bounded.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self) {
        assert!(self.taken <= self.incoming.len() && self.delivered <= self.outgoing.len());
        assert!(self.incoming.len() - self.taken <= BUFFER_BYTES as usize + GREETING_BYTES);
        assert!(self.incoming.capacity() <= 4 * BUFFER_BYTES as usize && self.outgoing.len() <= CHUNK_BYTES);
    }

    fn owes_credit(&self) -> bool {
        self.must_tell_credit || self.forwarded.wrapping_sub(self.told_forwarded) >= BUFFER_BYTES / 2
    }

    /// The guest has no room, and something waits for it.
    fn owes_question(&mut self) -> bool {
        !self.credit.asked && self.credit.left() == 0 && self.fetch()
    }

    fn has_data(&mut self) -> bool {
        self.credit.left() > 0 && self.fetch()
    }

    /// The flags of a shutdown that the guest has not heard of, and that nothing else goes before.
    fn owes_shutdown(&mut self) -> u32 {
        if self.fetch() || !self.outside_ended {
            return 0;
        }
        let both = if self.outside_gone { SENDS_NO_MORE | RECEIVES_NO_MORE } else { SENDS_NO_MORE };
        both & !self.said_shutdown
    }

    /// `true`: there are bytes for the guest.
    fn fetch(&mut self) -> bool {
        if self.delivered < self.outgoing.len() {
            return true;
        }
        if !self.may_read || self.outside_ended || self.guest_deaf {
            return false;
        }
        self.outgoing.resize(CHUNK_BYTES, 0);
        self.delivered = 0;
        let outcome = loop {
            match rustix::net::recv(&self.stream, self.outgoing.as_mut_slice(), RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                outcome => break outcome,
            }
        };
        self.outgoing.truncate(outcome.as_ref().map_or(0, |(_, count)| *count));
        match outcome {
            Ok((_, count)) if count > 0 => return true,
            Err(Errno::AGAIN) => self.may_read = false,
            // Its end, or one that was reset: nothing comes any more.
            _ => self.outside_ended = true,
        }
        // An idle connection holds no memory.
        self.outgoing = Vec::new();
        false
    }

    /// Gives the outside what it takes. An error: it takes no more.
    fn flush(&mut self) -> io::Result<()> {
        while self.may_write && self.waits_for_outside() {
            let rest = &self.incoming[self.taken..];
            match rustix::net::send(&self.stream, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => {
                    self.taken += count;
                    let own = count.min(self.own_words);
                    self.own_words -= own;
                    self.forwarded = self.forwarded.wrapping_add((count - own) as u32);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.may_write = false,
                Err(errno) => return Err(errno.into()),
            }
        }
        if !self.waits_for_outside() {
            (self.incoming, self.taken) = (Vec::new(), 0);
            // Once: the socket changes by it, which is news of its own.
            if self.guest_ended && !std::mem::replace(&mut self.outside_knows_end, true) {
                // One that is gone needs no telling.
                let _ = rustix::net::shutdown(&self.stream, Shutdown::Write);
            }
        }
        Ok(())
    }
}

/// Reads `CONNECT port` and no byte more: what follows the line is for the guest. `None`: it is not whole yet.
fn read_greeting(stream: &UnixStream, line: &mut Vec<u8>) -> io::Result<Option<u32>> {
    loop {
        let mut byte = [0];
        match rustix::net::recv(stream, &mut byte, RecvFlags::DONTWAIT) {
            Ok((_, 1)) if byte == *b"\n" => break,
            Ok((_, 1)) if line.len() < GREETING_BYTES => line.push(byte[0]),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
    let port = std::str::from_utf8(line).ok().and_then(|line| line.strip_prefix("CONNECT ")?.parse().ok());
    port.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
