//! A kind, a length, bytes.

use std::io::{self, IoSlice, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest payload of a frame.
pub const MOST_PAYLOAD: usize = 64 * 1024;
/// Kind, and the length in four bytes, the least first.
const HEADER_BYTES: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// [`Ask`](super::Ask), as JSON.
    Ask = 1,
    /// [`Answer`](super::Answer), as JSON.
    Answer = 2,
    /// The command's standard input.
    Input = 3,
    /// There is no more of it.
    InputEnded = 4,
    /// The command's standard output, or its terminal's.
    Output = 5,
    /// The command's standard error.
    Errors = 6,
    /// The command took so many bytes of its input, or never will: a number of four bytes, the least first.
    Taken = 7,
    /// For the command's process group: a number of four bytes, the least first.
    Signal = 8,
    /// Rows and columns of the terminal, two bytes each, the least first.
    Resize = 9,
    /// How the command ended, as JSON of [`Ended`](crate::Ended).
    Ended = 10,
    /// A part of a tar archive.
    Data = 11,
    /// Its end, as JSON of [`Sent`](super::Sent).
    Sent = 12,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        use Kind::{
            Answer, Ask, Data, Ended, Errors, Input, InputEnded, Output, Resize, Sent, Signal, Taken,
        };
        [Ask, Answer, Input, InputEnded, Output, Errors, Taken, Signal, Resize, Ended, Data, Sent]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// One that was read. Its payload is that of the [`Stream`] until the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: Kind,
    pub payload: &'a [u8],
}

impl Frame<'_> {
    pub fn json<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(self.payload).map_err(io::Error::from)
    }

    /// A payload of one number.
    pub fn number(&self) -> io::Result<u32> {
        let bytes = self.payload.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// Frames over a stream of bytes.
#[derive(Debug)]
pub struct Stream<S> {
    inner: S,
    payload: Vec<u8>,
}

impl<S> Stream<S> {
    pub fn new(inner: S) -> Self {
        Stream { inner, payload: Vec::new() }
    }

    /// That of the frame that was read last.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Read> Stream<S> {
    /// The next frame; `None` where the stream ends before it begins.
    pub fn read(&mut self) -> io::Result<Option<Frame<'_>>> {
        let mut header = [0; HEADER_BYTES];
        let first = loop {
            match self.inner.read(&mut header[..1]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if first == 0 {
            return Ok(None);
        }
        self.inner.read_exact(&mut header[1..])?;
        let [kind, length @ ..] = header;
        let length = u32::from_le_bytes(length) as usize;
        let kind = Kind::of(kind).filter(|_| length <= MOST_PAYLOAD);
        let kind = kind.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        self.payload.resize(length, 0);
        self.inner.read_exact(&mut self.payload)?;
        Ok(Some(Frame { kind, payload: &self.payload }))
    }

    /// The next frame, which has to be there.
    pub fn expect(&mut self) -> io::Result<Frame<'_>> {
        self.read()?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl<S: Write> Stream<S> {
    /// `payload` in as many frames as it takes, at least one.
    pub fn write(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        if payload.is_empty() {
            return self.write_one(kind, payload);
        }
        payload.chunks(MOST_PAYLOAD).try_for_each(|chunk| self.write_one(kind, chunk))
    }

    pub fn write_json<T: Serialize>(&mut self, kind: Kind, value: &T) -> io::Result<()> {
        let payload = serde_json::to_vec(value)?;
        if payload.len() > MOST_PAYLOAD {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.write_one(kind, &payload)
    }

    fn write_one(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let [a, b, c, d] = (payload.len() as u32).to_le_bytes();
        let header = [kind as u8, a, b, c, d];
        // Both at once where the stream takes them: a packet of its own for five bytes would be one too many.
        let mut slices = [IoSlice::new(&header), IoSlice::new(payload)];
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match self.inner.write_vectored(left) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut left, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_as_it_was_written() {
        for byte in 0..=255 {
            let Some(kind) = Kind::of(byte) else { continue };
            let mut bytes = Stream::new(Vec::new());
            bytes.write(kind, b"abc").unwrap();
            bytes.write(kind, b"").unwrap();
            let bytes = bytes.into_inner();
            let mut stream = Stream::new(&bytes[..]);
            assert_eq!(stream.read().unwrap(), Some(Frame { kind, payload: b"abc" }));
            assert_eq!(stream.read().unwrap(), Some(Frame { kind, payload: b"" }));
            assert_eq!(stream.read().unwrap(), None);
        }
        assert_eq!((0..=255).filter_map(Kind::of).count(), 12);
    }

    #[test]
    fn what_is_longer_than_a_frame_becomes_several() {
        let long = vec![7; 2 * MOST_PAYLOAD + 1];
        let mut bytes = Stream::new(Vec::new());
        bytes.write(Kind::Output, &long).unwrap();
        let bytes = bytes.into_inner();
        let mut stream = Stream::new(&bytes[..]);
        let mut lengths = Vec::new();
        while let Some(frame) = stream.read().unwrap() {
            lengths.push(frame.payload.len());
        }
        assert_eq!(lengths, [MOST_PAYLOAD, MOST_PAYLOAD, 1]);
    }

    #[test]
    fn nonsense_is_an_error_and_not_read_on() {
        for nonsense in
            [&[0, 0, 0, 0, 0][..], &[200, 0, 0, 0, 0], &[3, 255, 255, 255, 255], &[3, 1], &[3, 4, 0, 0, 0, 1]]
        {
            assert!(Stream::new(nonsense).read().is_err(), "{nonsense:?}");
        }
        let number = Frame { kind: Kind::Taken, payload: &[1, 2, 3] };
        assert!(number.number().is_err() && number.json::<super::super::Sent>().is_err());
    }
}
