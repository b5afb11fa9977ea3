//! What a service writes: all of it into a file of bounded size, line by line onto the console as far as that is fast
//! enough, and the last lines kept for the moment it fails.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::kmsg;
use crate::wait::Wait;

/// Then the file becomes NAME.log.1, and the one of that name goes.
const FILE_BYTES: u64 = 8 << 20;
const LAST_LINES: usize = 20;
/// What is longer goes on in a line of its own.
const LINE_BYTES: usize = 2048;
const CHUNK: usize = 32 * 1024;
/// Chunks one log reads before the others have their turn.
const TURN: usize = 8;
/// A serial console is slow, and the VM exits for every byte: so many lines of one service each second, no more.
const LINES_A_WINDOW: u32 = 100;
const WINDOW: Duration = Duration::from_secs(1);
/// What waits for the console; lines that have no room are left out.
const CONSOLE_BYTES: usize = 64 * 1024;

/// The console, shared by all, line by line. Never waited for.
#[derive(Debug, Default)]
pub(crate) struct Console {
    out: Option<OwnedFd>,
    pending: Vec<u8>,
}

impl Console {
    /// `out` is the supervisor's alone, so that nobody else's writes become non-blocking with it.
    pub(crate) fn new(out: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&out, fcntl_getfl(&out)? | OFlags::NONBLOCK)?;
        Ok(Console { out: Some(out), pending: Vec::new() })
    }

    /// From now on it is somebody else's.
    pub(super) fn close(&mut self) {
        *self = Console::default();
    }

    /// Says whether there was room.
    fn line(&mut self, service: &str, text: &[u8]) -> bool {
        if self.out.is_none() {
            return true;
        }
        if self.pending.len() + service.len() + text.len() > CONSOLE_BYTES {
            return false;
        }
        self.pending.extend_from_slice(service.as_bytes());
        self.pending.extend_from_slice(b": ");
        // A terminal would take the others for orders.
        let shown = text
            .iter()
            .map(|byte| if *byte >= b' ' && *byte != 127 || *byte == b'\t' { *byte } else { b'?' });
        self.pending.extend(shown);
        self.pending.push(b'\n');
        true
    }

    pub(super) fn step(&mut self) {
        let Some(out) = &self.out else { return };
        match rustix::io::write(out, &self.pending) {
            Ok(written) => drop(self.pending.drain(..written.min(self.pending.len()))),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The console has gone; the files have everything.
            Err(_) => self.close(),
        }
    }

    pub(super) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        if let Some(out) = &self.out
            && !self.pending.is_empty()
        {
            wait.on(out.as_fd(), PollFlags::OUT);
        }
    }
}

/// One service's. The pipe is there from the first start to the end of the machine: what a process left behind goes on
/// writing is still of this service.
#[derive(Debug)]
pub(super) struct Log {
    service: String,
    reading: OwnedFd,
    writing: OwnedFd,
    path: PathBuf,
    file: Option<File>,
    written: u64,
    line: Vec<u8>,
    last: VecDeque<String>,
    window: Option<Window>,
}

#[derive(Debug)]
struct Window {
    until: Instant,
    shown: u32,
    left_out: u64,
}

impl Log {
    pub(super) fn new(service: &str, directory: &Path) -> io::Result<Self> {
        let (reading, writing) = io::pipe()?;
        let reading = OwnedFd::from(reading);
        fcntl_setfl(&reading, fcntl_getfl(&reading)? | OFlags::NONBLOCK)?;
        Ok(Log {
            service: service.to_owned(),
            reading,
            writing: writing.into(),
            path: directory.join(format!("{service}.log")),
            file: None,
            written: 0,
            line: Vec::new(),
            last: VecDeque::new(),
            window: None,
        })
    }

    /// For a process to write to.
    pub(super) fn pipe(&self) -> io::Result<OwnedFd> {
        self.writing.try_clone()
    }

    /// Takes in what is there, up to a limit.
    pub(super) fn step(&mut self, console: &mut Console, now: Instant) {
        self.close_window(console, now);
        let mut buffer = [0; CHUNK];
        for _ in 0..TURN {
            match rustix::io::read(&self.reading, &mut buffer) {
                Ok(read @ 1..) => self.take(buffer.get(..read).unwrap_or_default(), console, now),
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// A process has ended: what it wrote without ending the line is a line.
    pub(super) fn process_ended(&mut self, console: &mut Console, now: Instant) {
        self.step(console, now);
        if !self.line.is_empty() {
            self.keep(b"\n");
            self.end_line(console, now);
        }
    }

    /// A line of the supervisor's own about this service.
    pub(super) fn note(&mut self, text: &str, console: &mut Console, now: Instant) {
        self.take(format!("{text}\n").as_bytes(), console, now);
    }

    /// The last lines, the oldest first.
    pub(super) fn last(&self) -> impl Iterator<Item = &str> {
        self.last.iter().map(String::as_str)
    }

    pub(super) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        wait.on(self.reading.as_fd(), PollFlags::IN);
        if let Some(Window { until, left_out: 1.., .. }) = &self.window {
            wait.until(*until);
        }
    }

    fn take(&mut self, bytes: &[u8], console: &mut Console, now: Instant) {
        self.keep(bytes);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (piece, ends) = match piece.split_last() {
                Some((b'\n', rest)) => (rest, true),
                _ => (piece, false),
            };
            for piece in piece.chunks(LINE_BYTES) {
                if self.line.len() + piece.len() > LINE_BYTES {
                    self.end_line(console, now);
                }
                self.line.extend_from_slice(piece);
            }
            if ends {
                self.end_line(console, now);
            }
        }
    }

    fn end_line(&mut self, console: &mut Console, now: Instant) {
        let mut line = std::mem::take(&mut self.line);
        while line.last() == Some(&b'\r') {
            line.pop();
        }
        if self.last.len() >= LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(String::from_utf8_lossy(&line).into_owned());
        self.close_window(console, now);
        let window = self.window.get_or_insert(Window { until: now + WINDOW, shown: 0, left_out: 0 });
        if window.left_out == 0 && window.shown < LINES_A_WINDOW && console.line(&self.service, &line) {
            window.shown += 1;
        } else {
            window.left_out += 1;
        }
        // Its room is used again.
        line.clear();
        self.line = line;
    }

    fn close_window(&mut self, console: &mut Console, now: Instant) {
        let Some(window) = self.window.take_if(|window| now >= window.until) else { return };
        if window.left_out > 0 {
            let note =
                format!("... {} lines left out here; {} has them", window.left_out, self.path.display());
            if !console.line(&self.service, note.as_bytes()) {
                self.window = Some(Window { until: now + WINDOW, ..window });
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.file.is_none() || self.written + bytes.len() as u64 > FILE_BYTES {
            if self.file.take().is_some() {
                let _ = fs::rename(&self.path, self.path.with_extension("log.1"));
            }
            match File::options().create(true).write(true).truncate(true).open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) => return kmsg::error(format_args!("{}: {error}", self.path.display())),
            }
            self.written = 0;
        }
        if let Some(file) = &mut self.file {
            // Memory that is full: the service goes on, and so do the console and the last lines.
            let _ = file.write_all(bytes);
            self.written += bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    struct Logged {
        directory: tempfile::TempDir,
        log: Log,
        console: Console,
        screen: io::PipeReader,
        now: Instant,
    }

    fn logged() -> Logged {
        let directory = tempfile::tempdir().unwrap();
        let log = Log::new("db", directory.path()).unwrap();
        let (screen, out) = io::pipe().unwrap();
        let console = Console::new(out.into()).unwrap();
        Logged { directory, log, console, screen, now: Instant::now() }
    }

    impl Logged {
        fn write(&mut self, bytes: &[u8]) {
            let mut pipe = File::from(self.log.pipe().unwrap());
            for chunk in bytes.chunks(CHUNK) {
                pipe.write_all(chunk).unwrap();
                self.log.step(&mut self.console, self.now);
            }
        }

        fn screen(mut self) -> (String, tempfile::TempDir) {
            self.console.step();
            drop(self.console);
            let mut text = String::new();
            self.screen.read_to_string(&mut text).unwrap();
            (text, self.directory)
        }
    }

    #[test]
    fn lines_come_whole_with_the_services_name_before_each() {
        let mut logged = logged();
        logged.write(b"rea");
        logged.write(b"dy\nhalf\x1b[2J\r\nand no end");
        logged.log.process_ended(&mut logged.console, logged.now);
        assert_eq!(logged.log.last().collect::<Vec<_>>(), ["ready", "half\u{1b}[2J", "and no end"]);
        let (screen, directory) = logged.screen();
        assert_eq!(screen, "db: ready\ndb: half?[2J\ndb: and no end\n");
        let file = fs::read(directory.path().join("db.log")).unwrap();
        assert_eq!(file, b"ready\nhalf\x1b[2J\r\nand no end\n");
    }

    #[test]
    fn a_flood_is_left_out_of_the_console_with_a_count_and_is_whole_in_the_file() {
        let mut logged = logged();
        let flood: String = (0..10_000).map(|n| format!("line {n}\n")).collect();
        logged.write(flood.as_bytes());
        assert_eq!(logged.log.last().last(), Some("line 9999"));
        assert_eq!(logged.log.last().count(), LAST_LINES);
        logged.now += WINDOW;
        logged.write(b"quiet again\n");
        let (screen, directory) = logged.screen();
        let lines: Vec<&str> = screen.lines().collect();
        assert_eq!(lines.len(), 102);
        assert!(lines[100].starts_with("db: ... 9900 lines left out here; "), "{}", lines[100]);
        assert_eq!(lines[101], "db: quiet again");
        let file = fs::read_to_string(directory.path().join("db.log")).unwrap();
        assert_eq!(file, flood + "quiet again\n");
    }

    #[test]
    fn a_file_that_is_full_gives_way_to_a_new_one() {
        let mut logged = logged();
        let mebibyte = vec![b'x'; 1 << 20];
        for _ in 0..18 {
            logged.write(&mebibyte);
        }
        let size = |name: &str| fs::metadata(logged.directory.path().join(name)).map(|file| file.len());
        assert_eq!(size("db.log.1").unwrap(), FILE_BYTES);
        assert_eq!(size("db.log").unwrap(), 2 << 20);
        assert_eq!(fs::read_dir(logged.directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_console_that_takes_nothing_holds_nobody_up() {
        let mut logged = logged();
        for _ in 0..50 {
            logged.now += WINDOW;
            logged.write("x".repeat(LINE_BYTES * 100).as_bytes());
            logged.console.step();
        }
        assert!(logged.console.pending.len() <= CONSOLE_BYTES);
    }
}
