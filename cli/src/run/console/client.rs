//! Attached to a console, from the other end of a stream.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::protocol::{Answer, Asked, Because, Frame, Granted, VERSION, read_frame};

/// How long the answer may take, by way of an emulated host too.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The longest answer.
const ANSWER_BYTES: u64 = 4096;

/// The stream once it was asked and answered.
#[derive(Debug)]
pub struct Attachment {
    pub granted: Granted,
    from: BufReader<UnixStream>,
}

/// How it came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The other side has said why.
    Because(Because),
    /// It has not: it is gone.
    BrokenOff,
    /// Whoever is given what is printed wants no more.
    Unwanted,
}

/// Attaches to the console at the other end of `stream`, which may be a relay of bytes; `keyboard`: to type.
pub fn attach(stream: UnixStream, keyboard: bool) -> io::Result<Attachment> {
    let asked = Asked { vmprof_console: VERSION, keyboard, pid: std::process::id() };
    (&stream).write_all(&vmprof_job::line(&asked))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let mut from = BufReader::new(stream);
    let mut line = Vec::new();
    from.by_ref().take(ANSWER_BYTES).read_until(b'\n', &mut line)?;
    from.get_ref().set_read_timeout(None)?;
    match serde_json::from_slice(&line) {
        Ok(Answer::Ok(granted)) => Ok(Attachment { granted, from }),
        Ok(Answer::Error(reason)) => Err(io::Error::other(reason)),
        Err(_) if line.is_empty() => Err(ErrorKind::ConnectionReset.into()),
        Err(error) => Err(io::Error::new(ErrorKind::InvalidData, error)),
    }
}

impl Attachment {
    /// What is written to it is typed.
    pub fn keys(&self) -> io::Result<UnixStream> {
        self.from.get_ref().try_clone()
    }

    /// Gives each piece that is printed to `take` until the end; `false` of `take` is one.
    pub fn copy<E>(mut self, mut take: impl FnMut(&[u8]) -> Result<bool, E>) -> Result<Left, E> {
        loop {
            match read_frame(&mut self.from) {
                Ok(Some(Frame::Printed(bytes))) if take(&bytes)? => {}
                Ok(Some(Frame::Printed(_))) => return Ok(Left::Unwanted),
                Ok(Some(Frame::End(because))) => return Ok(Left::Because(because)),
                Ok(None) | Err(_) => return Ok(Left::BrokenOff),
            }
        }
    }
}
