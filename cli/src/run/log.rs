//! The log of a run that nobody watches: what it prints, as it comes, in a file below the state. It is bounded: a file that has
//! grown to its limit becomes the older one, and the one before that goes. `vmprof logs` reads both. Whoever writes it holds a lock
//! on it: when that is free, the log is whole.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl};

/// How long each of the two files may grow.
const LIMIT: u64 = 8 << 20;
const CHUNK_BYTES: usize = 64 << 10;

/// Where the older part of `log` is.
fn older(log: &Path) -> PathBuf {
    let mut path = log.as_os_str().to_owned();
    path.push(".old");
    path.into()
}

/// The file, and how it is written.
#[derive(Debug)]
struct Bounded {
    path: PathBuf,
    file: File,
    length: u64,
    limit: u64,
    /// Bytes that could not be written since the last that could.
    lost: u64,
}

impl Bounded {
    /// Begins anew: the log is one run's.
    fn create(path: &Path, limit: u64) -> io::Result<Bounded> {
        match fs::remove_file(older(path)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Another file, and not the same one emptied: whoever follows the last run's has that to its end.
        let (new, file) = Bounded::new_file(path)?;
        fs::rename(new, path)?;
        Ok(Bounded { path: path.to_owned(), file, length: 0, limit, lost: 0 })
    }

    /// The next file, locked, and where it is until it takes its place.
    fn new_file(path: &Path) -> io::Result<(PathBuf, File)> {
        let new = path.with_extension("new");
        // What a guest prints may be nobody else's to read.
        let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.lock()?;
        Ok((new, file))
    }

    /// Nobody can be told of an error but the log: it says later how much is missing.
    fn write(&mut self, bytes: &[u8]) {
        let written = self.try_write(bytes);
        if written.is_err() {
            self.lost += bytes.len() as u64;
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length >= self.limit {
            let (new, file) = Bounded::new_file(&self.path)?;
            fs::rename(&self.path, older(&self.path))?;
            fs::rename(new, &self.path)?;
            (self.file, self.length) = (file, 0);
        }
        if self.lost > 0 {
            let told = format!("\nvmprof: {} bytes are missing here: they could not be written\n", self.lost);
            self.file.write_all(told.as_bytes())?;
            self.lost = 0;
        }
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

impl Drop for Bounded {
    fn drop(&mut self) {
        // Closing it would leave the lock to a child that another thread is about to start, until its exec (flock(2)).
        let _ = self.file.unlock();
    }
}

/// Writes a log; dropping it writes what is left.
#[derive(Debug)]
pub struct Writer {
    /// Closed, it says that nothing more is to come.
    end: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// From here on the log in `path` has what is written to the pipe.
    pub fn start(path: &Path) -> io::Result<(Writer, PipeWriter)> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let log = Bounded::create(path, LIMIT)?;
        let (from, to) = io::pipe()?;
        let (ended, end) = io::pipe()?;
        fcntl_setfl(&from, OFlags::NONBLOCK)?;
        let keep = move || keep(log, from, &ended);
        let thread = thread::Builder::new().name("log".into()).spawn(keep)?;
        Ok((Writer { end: Some(end), thread: Some(thread) }, to))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It does nothing that panics, and a log that is cut short is one all the same.
            let _ = thread.join();
        }
    }
}

/// Until its writers are gone, or the end was said and the pipe is empty.
fn keep(mut log: Bounded, mut from: PipeReader, ended: &PipeReader) {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => log.write(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut either = [PollFd::new(&from, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
                let waited = poll(&mut either, None);
                let [more, end] = either.map(|one| !one.revents().is_empty());
                if waited.is_ok() && end && !more {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// A log as it is read, from its oldest line on, while it may still be written.
#[derive(Debug)]
pub struct Reading {
    path: PathBuf,
    file: File,
}

impl Reading {
    /// What is there by now, and how to go on. An error that says NotFound: there is none.
    pub fn open(path: &Path) -> io::Result<(Vec<u8>, Reading)> {
        let mut all = Vec::new();
        match File::open(older(path)) {
            Ok(mut older) => drop(older.read_to_end(&mut all)?),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut reading = Reading { path: path.to_owned(), file: File::open(path)? };
        reading.file.read_to_end(&mut all)?;
        Ok((all, reading))
    }

    /// Whether there may be more to come.
    pub fn is_written(&self) -> io::Result<bool> {
        match File::open(&self.path) {
            // One file takes the other's place just now.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
            Ok(file) => match file.try_lock_shared() {
                Ok(()) => Ok(false),
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(error)) => Err(error),
            },
        }
    }

    /// What has come since.
    pub fn more(&mut self) -> io::Result<Vec<u8>> {
        let mut more = Vec::new();
        // Looked up before this one is read to its end: nothing is written to a file once another has its place.
        let now = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            other => Some(other?),
        };
        self.file.read_to_end(&mut more)?;
        if let Some(mut now) = now
            && now.metadata()?.ino() != self.file.metadata()?.ino()
        {
            now.read_to_end(&mut more)?;
            self.file = now;
        }
        Ok(more)
    }
}

/// The last so many lines.
pub fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    let Some(from) = lines.checked_sub(1) else { return &[] };
    let whole = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = whole.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(from).map_or(text, |start| &text[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/db.log");
        (directory, path)
    }

    #[test]
    fn what_was_written_is_in_the_log_though_a_writer_is_still_there() {
        let (_keep, path) = log();
        let (writer, mut to) = Writer::start(&path).unwrap();
        to.write_all(&[b'x'; 300_000]).unwrap();
        to.write_all(b"\nlast words").unwrap();
        let (_, reading) = Reading::open(&path).unwrap();
        assert!(reading.is_written().unwrap());
        drop(writer);
        assert!(!reading.is_written().unwrap());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let text = fs::read(&path).unwrap();
        assert_eq!((text.len(), text.ends_with(b"x\nlast words")), (300_011, true));
    }

    #[test]
    fn a_log_is_bounded_and_its_reader_misses_nothing_of_what_it_kept_up_with() {
        let (_keep, path) = log();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut written = Bounded::create(&path, 1000).unwrap();
        written.write(b"first\n");
        let (mut all, mut reading) = Reading::open(&path).unwrap();
        let mut expected = b"first\n".to_vec();
        for number in 0..200 {
            let line = format!("line {number} of very many\n");
            written.write(line.as_bytes());
            assert!(reading.is_written().unwrap());
            expected.extend(line.as_bytes());
            // Not after each: some of what it reads lies on both sides of a change of files.
            if line.contains('7') {
                all.extend(reading.more().unwrap());
            }
        }
        all.extend(reading.more().unwrap());
        assert_eq!(String::from_utf8(all).unwrap(), String::from_utf8(expected.clone()).unwrap());
        let (late, _) = Reading::open(&path).unwrap();
        assert!(late.len() >= 1000 && late.len() < 2100 && expected.ends_with(&late), "{}", late.len());

        // The next run's log has nothing of this one's, and who follows this one does not lose its end.
        written.write(b"the end\n");
        let mut next = Bounded::create(&path, 1000).unwrap();
        next.write(b"next\n");
        assert_eq!(Reading::open(&path).unwrap().0, b"next\n");
        assert_eq!(reading.more().unwrap(), b"the end\nnext\n");
    }

    #[test]
    fn what_could_not_be_written_is_told_of() {
        let (_keep, path) = log();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut written = Bounded::create(&path, 1000).unwrap();
        let file =
            std::mem::replace(&mut written.file, File::options().write(true).open("/dev/full").unwrap());
        written.write(b"1234");
        written.write(b"56");
        written.file = file;
        written.write(b"7\n");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "\nvmprof: 6 bytes are missing here: they could not be written\n7\n");
    }

    #[test]
    fn the_last_lines_are_whole() {
        let text = b"a\nb\n\nc\n";
        for (lines, expected) in [(0, &b""[..]), (1, b"c\n"), (2, b"\nc\n"), (3, b"b\n\nc\n"), (9, text)] {
            assert_eq!(last_lines(text, lines), expected, "{lines}");
        }
        assert_eq!((last_lines(b"a\nb", 1), last_lines(b"", 3)), (&b"b"[..], &b""[..]));
    }
}
