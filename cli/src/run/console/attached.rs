//! One who is attached to a console, as the server sees them.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use super::protocol::{self, Answer, Asked, Because, FRAME_BYTES, Granted, REQUEST_BYTES, VERSION};
use super::server::{Keyboard, Shared, State};

/// What is read at once.
const CHUNK_BYTES: usize = 1024;

#[derive(Debug)]
pub(super) struct Attached {
    id: u64,
    stream: UnixStream,
    phase: Phase,
    /// What is on its way, of which `sent` bytes are gone: a line or a frame.
    out: Vec<u8>,
    sent: usize,
}

#[derive(Debug)]
enum Phase {
    /// With what has come of the line.
    Asking(Vec<u8>),
    /// It has everything that was printed up to this place.
    Watching {
        next: u64,
    },
    /// It gets what is on its way, and no more.
    Leaving,
    Gone,
}

/// What one reading came to.
#[derive(Debug)]
pub(super) enum Heard {
    Nothing,
    Bytes(Vec<u8>),
    End,
}

impl Attached {
    pub(super) fn new(id: u64, stream: UnixStream) -> io::Result<Attached> {
        stream.set_nonblocking(true)?;
        Ok(Attached { id, stream, phase: Phase::Asking(Vec::new()), out: Vec::new(), sent: 0 })
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn is_asking(&self) -> bool {
        matches!(self.phase, Phase::Asking(_))
    }

    /// Whether something waits for room in its socket.
    pub(super) fn has_more(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Up to where it has been given what was printed.
    pub(super) fn place(&self) -> Option<u64> {
        match self.phase {
            Phase::Watching { next } => Some(next),
            _ => None,
        }
    }

    pub(super) fn is_gone(&mut self) {
        self.phase = Phase::Gone;
    }

    pub(super) fn read(&self) -> Heard {
        let mut chunk = [0; CHUNK_BYTES];
        match (&self.stream).read(&mut chunk) {
            Ok(0) => Heard::End,
            Ok(length) => Heard::Bytes(chunk[..length].to_vec()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Heard::Nothing
            }
            Err(_) => Heard::End,
        }
    }

    /// More of the line it asks with; gives what it typed behind that.
    pub(super) fn ask(&mut self, bytes: &[u8], shared: &Shared, keyboard: &mut Option<Keyboard>) -> Vec<u8> {
        let Phase::Asking(line) = &mut self.phase else { return Vec::new() };
        line.extend_from_slice(bytes);
        let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
            if line.len() > REQUEST_BYTES {
                self.refuse("a request is a line, and this one is too long".to_owned());
            }
            return Vec::new();
        };
        let typed = line.split_off(end + 1);
        match serde_json::from_slice(line) {
            Ok(Asked { vmprof_console: VERSION, keyboard: wants, pid }) => {
                let holder = if wants { Some(Keyboard::ask(keyboard, self.id, pid)) } else { *keyboard };
                let has_it = holder.is_some_and(|holder| holder.is_of(self.id));
                let typed_by = holder.filter(|_| !has_it).map(Keyboard::pid);
                self.say(&Answer::Ok(Granted { keyboard: has_it, typed_by }));
                let mut state = shared.lock();
                let next = state.printed.first_line();
                // From now on what it has not been given is kept for it.
                state.slowest = Some(state.slowest.map_or(next, |slowest| slowest.min(next)));
                self.phase = Phase::Watching { next };
                if has_it { typed } else { Vec::new() }
            }
            Ok(Asked { vmprof_console, .. }) => {
                self.refuse(format!("console version {vmprof_console} is not {VERSION}"));
                Vec::new()
            }
            Err(error) => {
                self.refuse(format!("no request that is known here: {error}"));
                Vec::new()
            }
        }
    }

    fn refuse(&mut self, reason: String) {
        self.say(&Answer::Error(reason));
        self.phase = Phase::Leaving;
    }

    fn say(&mut self, answer: &Answer) {
        self.out.extend(vmprof_job::line(answer));
    }

    /// Sends what it takes now of all there is for it. `false`: that was the last.
    pub(super) fn advance(&mut self, shared: &Shared, over: bool) -> bool {
        loop {
            if !self.has_more() {
                self.out.clear();
                self.sent = 0;
                self.fill(&mut shared.lock(), over);
            }
            match self.phase {
                Phase::Gone => return false,
                Phase::Leaving if !self.has_more() => return false,
                _ if !self.has_more() => return true,
                _ => {}
            }
            match (&self.stream).write(self.out.get(self.sent..).unwrap_or_default()) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
    }

    /// The next frame, where there is one.
    fn fill(&mut self, state: &mut State, over: bool) {
        let Phase::Watching { next } = &mut self.phase else {
            if over {
                self.phase = Phase::Gone;
            }
            return;
        };
        protocol::open_printed(&mut self.out);
        match state.printed.take_from(*next, FRAME_BYTES, &mut self.out) {
            Some(0) => {
                self.out.clear();
                if over {
                    protocol::put_end(&mut self.out, Because::Over);
                    self.phase = Phase::Leaving;
                }
            }
            Some(taken) => {
                *next += taken;
                protocol::close_printed(&mut self.out);
            }
            None => {
                self.out.clear();
                protocol::put_end(&mut self.out, Because::Behind);
                self.phase = Phase::Leaving;
            }
        }
    }
}
