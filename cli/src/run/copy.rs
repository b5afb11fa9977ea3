//! The threads that carry bytes between this process's standard streams and the channels of a run.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::conversation::Event;

const CHUNK_BYTES: usize = 64 << 10;

/// A copier from a channel to one of our standard streams.
#[derive(Debug)]
pub struct Output {
    /// Bytes taken out of the channel so far.
    taken: Arc<AtomicU64>,
    /// Closed by the copier's end.
    done: Receiver<()>,
}

/// What becomes of a line's end on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    AsTheyAre,
    /// A raw terminal returns the carriage for nobody.
    ForRawTerminal,
}

impl Lines {
    fn written(self, chunk: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Lines::AsTheyAre => Cow::Borrowed(chunk),
            Lines::ForRawTerminal => {
                chunk.split_inclusive(|byte| *byte == b'\n').fold(Cow::default(), |mut all, line| {
                    match line.strip_suffix(b"\n") {
                        Some(text) => all.to_mut().extend([text, b"\r\n"].concat()),
                        None => all.to_mut().extend(line),
                    }
                    all
                })
            }
        }
    }
}

/// Copies until the machine closes its end. When our reader goes away the rest is thrown away, and the command is told
/// once, as a shell's pipeline would tell it. Nothing is copied before `begins` is closed at its other end.
pub fn output(
    from: UnixStream,
    to: impl AsFd + Send + 'static,
    lines: Lines,
    begins: Receiver<()>,
    events: Sender<Event>,
) -> io::Result<Output> {
    let taken = Arc::new(AtomicU64::new(0));
    let counter = taken.clone();
    let (until_the_end, done) = mpsc::channel::<()>();
    thread::Builder::new().name("copy output".into()).spawn(move || {
        let _until_the_end = until_the_end;
        // Nothing is ever sent.
        let _ = begins.recv();
        let mut open = Some(to);
        each_chunk(from, |chunk| {
            counter.fetch_add(chunk.len() as u64, Ordering::Release);
            if let Some(to) = &open
                && write_patiently(to, &lines.written(chunk)).is_err()
            {
                open = None;
                // The conversation may be over: then nobody is left to tell.
                let _ = events.send(Event::ReaderGone);
            }
            true
        });
    })?;
    Ok(Output { taken, done })
}

impl Output {
    /// Bytes that have come so far; readable after [`Output::finish`] too.
    pub fn count(&self) -> Arc<AtomicU64> {
        self.taken.clone()
    }

    /// Waits for the channel's end, which comes with the machine's, and says how many bytes came through it. With a limit,
    /// whoever reads our output may keep us no longer than that.
    pub fn finish(self, limit: Option<Duration>) -> u64 {
        // Nothing is ever sent: both waits end with the copier, well or not, and the count shows what is missing.
        match limit {
            None => drop(self.done.recv()),
            Some(limit) => drop(self.done.recv_timeout(limit)),
        }
        self.taken.load(Ordering::Acquire)
    }
}

/// Copies our standard input into the channel; at its end says so with the number of bytes. Never joined: it may wait in
/// read(2) for as long as the process lives.
pub fn input(from: impl AsFd, mut to: UnixStream, events: Sender<Event>) -> io::Result<()> {
    let from = File::from(from.as_fd().try_clone_to_owned()?);
    thread::Builder::new().name("copy input".into()).spawn(move || {
        let mut bytes = 0;
        each_chunk(from, |chunk| {
            let written = to.write_all(chunk).is_ok();
            bytes += if written { chunk.len() as u64 } else { 0 };
            written
        });
        let _ = events.send(Event::InputEnded { bytes });
        // Not shut down before the guest has read it all: the machine holds its end open until then.
        let _ = to.shutdown(Shutdown::Read);
        std::mem::forget(to);
    })?;
    Ok(())
}

/// Hands every chunk to `take` until the end, an error, or until it wants no more.
fn each_chunk(mut from: impl Read, mut take: impl FnMut(&[u8]) -> bool) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if take(&buffer[..length]) => {}
            Ok(_) => return,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A terminal that is another job's to read (EIO with SIGTTIN ignored) has no input for us.
            Err(_) => return,
        }
    }
}

/// Like write_all, on a stream that somebody else may have made non-blocking. Not through std's handles: their line buffering would
/// hold back what has no newline.
pub(super) fn write_patiently(to: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut ready = [rustix::event::PollFd::new(to, rustix::event::PollFlags::OUT)];
                rustix::event::poll(&mut ready, None)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::RecvTimeoutError;

    use super::*;

    #[test]
    fn output_counts_what_came_through_even_when_its_reader_is_gone() {
        let (mut machine, ours) = UnixStream::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let (events, heard) = mpsc::channel();
        let (_, begins) = mpsc::channel();
        let output = output(ours, writer, Lines::AsTheyAre, begins, events).unwrap();
        machine.write_all(&[7; 100_000]).unwrap();
        drop(machine);
        assert_eq!(output.finish(None), 100_000);
        assert!(matches!(heard.recv().unwrap(), Event::ReaderGone));
        assert!(heard.recv().is_err(), "the command is told once");
    }

    #[test]
    fn output_waits_for_its_beginning() {
        let (mut machine, ours) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let (begin, begins) = mpsc::channel();
        let (events, _heard) = mpsc::channel();
        let output = output(ours, writer, Lines::AsTheyAre, begins, events).unwrap();
        machine.write_all(b"second\n").unwrap();
        drop(machine);
        let early = output.done.recv_timeout(Duration::from_millis(20));
        assert_eq!((early, output.count().load(Ordering::Acquire)), (Err(RecvTimeoutError::Timeout), 0));
        drop(begin);
        assert_eq!(output.finish(None), 7);
        let mut written = String::new();
        reader.read_to_string(&mut written).unwrap();
        assert_eq!(written, "second\n");
    }

    #[test]
    fn a_raw_terminal_gets_its_carriage_returned() {
        assert_eq!(&*Lines::ForRawTerminal.written(b"a\nb\n\nc"), b"a\r\nb\r\n\r\nc");
        assert_eq!(&*Lines::AsTheyAre.written(b"a\n"), b"a\n");
    }

    #[test]
    fn input_ends_with_its_length() {
        let (mut machine, ours) = UnixStream::pair().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let (events, heard) = mpsc::channel();
        input(&reader, ours, events).unwrap();
        writer.write_all(b"seven b").unwrap();
        drop(writer);
        assert!(matches!(heard.recv().unwrap(), Event::InputEnded { bytes: 7 }));
        let mut got = [0; 7];
        machine.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"seven b");
    }
}
