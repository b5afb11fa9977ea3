//! What the two sides of `console.sock` say over one stream, so that a relay of bytes may be between them. The client asks with a
//! line of JSON and is answered with one; from then on it sends what is typed, as it is, and is sent frames: a byte that says
//! what it is, four that say how long (little endian), and that.

use std::io::{self, ErrorKind, Read};

use serde::{Deserialize, Serialize};

pub const VERSION: u32 = 1;
/// The longest line that a client asks with; there are only words in it.
pub const REQUEST_BYTES: usize = 256;
/// The longest frame that is sent.
pub const FRAME_BYTES: usize = 8 << 10;
/// The longest that is taken.
const LONGEST: u32 = 64 << 10;
const HEADER_BYTES: usize = 5;

const PRINTED: u8 = b'p';
const END: u8 = b'e';

/// The client's line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub vmprof_console: u32,
    /// Whether it wants to type.
    pub keyboard: bool,
    /// Its process, for those who cannot type meanwhile.
    pub pid: u32,
}

/// The server's line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    Ok(Granted),
    Error(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Whether what the client types reaches the guest.
    pub keyboard: bool,
    /// Who types, where another one does.
    pub typed_by: Option<u32>,
}

/// Why the server ends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The run is over.
    Over,
    /// The client has not taken what was printed, and is too far behind.
    Behind,
}

impl Because {
    fn word(self) -> &'static str {
        match self {
            Because::Over => "over",
            Because::Behind => "behind",
        }
    }

    fn from_word(word: &[u8]) -> Option<Because> {
        [Because::Over, Because::Behind].into_iter().find(|because| because.word().as_bytes() == word)
    }
}

/// Begins a frame of printed bytes, which are to be appended, and then to be counted by [`close_printed`].
pub fn open_printed(out: &mut Vec<u8>) {
    header(out, PRINTED, 0);
}

/// Counts what was appended since the frame began, as the first thing in `out`.
pub fn close_printed(out: &mut [u8]) {
    if let Some((header, rest)) = out.split_at_mut_checked(HEADER_BYTES) {
        // Never longer than FRAME_BYTES.
        let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        header[1..].copy_from_slice(&length.to_le_bytes());
    }
}

pub fn put_end(out: &mut Vec<u8>, because: Because) {
    header(out, END, because.word().len() as u32);
    out.extend_from_slice(because.word().as_bytes());
}

fn header(out: &mut Vec<u8>, kind: u8, length: u32) {
    out.push(kind);
    out.extend_from_slice(&length.to_le_bytes());
}

/// One thing that the server sends.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Printed(Vec<u8>),
    End(Because),
}

/// The next frame; `None` where the stream ends between two.
pub fn read_frame(from: &mut impl Read) -> io::Result<Option<Frame>> {
    let mut header = [0; HEADER_BYTES];
    if from.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut header[1..])?;
    let [kind, length @ ..] = header;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    match kind {
        PRINTED => Ok(Some(Frame::Printed(bytes))),
        END => match Because::from_word(&bytes) {
            Some(because) => Ok(Some(Frame::End(because))),
            None => Err(ErrorKind::InvalidData.into()),
        },
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_sent_and_nonsense_is_refused() {
        let mut sent = Vec::new();
        open_printed(&mut sent);
        sent.extend(b"login: ");
        close_printed(&mut sent);
        put_end(&mut sent, Because::Behind);
        let mut from = &sent[..];
        assert_eq!(read_frame(&mut from).unwrap(), Some(Frame::Printed(b"login: ".to_vec())));
        assert_eq!(read_frame(&mut from).unwrap(), Some(Frame::End(Because::Behind)));
        assert_eq!(read_frame(&mut from).unwrap(), None);
        for nonsense in [&b"x\0\0\0\0"[..], b"p\xff\xff\xff\xff", b"p\x01\0\0\0", b"p\0", b"e\x01\0\0\0?"] {
            read_frame(&mut &*nonsense).unwrap_err();
        }
    }
}
