//! The guest's console: on its way to stderr, where the lines of others come in between ([`WholeLines`]), and to all who attach
//! to it: [`server`] in the run, [`client`] in `vmprof console`, [`protocol`] between them.

use std::io::{self, ErrorKind, Write};

mod attached;
pub mod client;
mod printed;
pub mod protocol;
pub mod server;

/// Our standard error by its number: it may be another file later on.
#[derive(Debug)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stderr(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line of this length is shown in pieces.
const LONGEST: usize = 4096;

/// Passes on whole lines, each time it is flushed: a serial line brings a few bytes at a time, and the lines of others would cut
/// the guest's in two. What has no end yet waits for it, or for the end of the machine.
#[derive(Debug)]
pub struct WholeLines<W: Write> {
    out: W,
    held: Vec<u8>,
}

impl<W: Write> WholeLines<W> {
    pub fn new(out: W) -> WholeLines<W> {
        WholeLines { out, held: Vec::new() }
    }
}

impl<W: Write> Write for WholeLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// An error leaves what is not written to be flushed again.
    fn flush(&mut self) -> io::Result<()> {
        let mut whole = match self.held.iter().rposition(|byte| *byte == b'\n') {
            _ if self.held.len() >= LONGEST => self.held.len(),
            Some(at) => at + 1,
            None => 0,
        };
        while whole > 0 {
            match self.out.write(self.held.get(..whole).unwrap_or_default())? {
                0 => return Err(ErrorKind::WriteZero.into()),
                written => {
                    self.held.drain(..written);
                    whole = whole.saturating_sub(written);
                }
            }
        }
        self.out.flush()
    }
}

impl<W: Write> Drop for WholeLines<W> {
    fn drop(&mut self) {
        if !self.held.is_empty() {
            self.held.push(b'\n');
            // Once: nobody waits for a reader at the end.
            let _ = self.out.write(&self.held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pieces: &[&str]) -> Vec<String> {
        /// Each write on its own, at most ten bytes at once.
        #[derive(Default)]
        struct Writes(Vec<String>);
        impl Write for &mut Writes {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let taken = &bytes[..bytes.len().min(10)];
                self.0.push(String::from_utf8_lossy(taken).into_owned());
                Ok(taken.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut writes = Writes::default();
        let mut lines = WholeLines::new(&mut writes);
        for piece in pieces {
            lines.write_all(piece.as_bytes()).unwrap();
            lines.flush().unwrap();
        }
        drop(lines);
        writes.0
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_shown_in_one() {
        assert_eq!(said(&["[ 6.8", "74] a\n[", " 6.9] b\n"]), ["[ 6.874] a", "\n", "[ 6.9] b\n"]);
        assert_eq!(said(&["a\nb\nc\n"]), ["a\nb\nc\n"]);
    }

    #[test]
    fn what_never_ends_is_shown_at_the_end_of_the_machine_or_when_it_grows_too_long() {
        assert_eq!(said(&["a\nlogin: "]), ["a\n", "login: \n"]);
        let long = "x".repeat(LONGEST);
        assert_eq!(said(&[&long]).concat(), long);
    }
}
