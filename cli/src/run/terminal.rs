//! The terminal while the guest's console has it: raw, and given back as it was.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;
use std::time::Duration;

use rustix::termios::{self, OptionalActions, Termios};
use signal_hook::consts::SIGINT;

use super::conversation::Event;

/// A terminal in raw mode; dropping it restores what was. Only SIGKILL leaves it raw.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: File,
    before: Termios,
}

impl RawTerminal {
    /// Makes standard input raw; `None` where it is no terminal.
    pub fn take() -> io::Result<Option<RawTerminal>> {
        let stdin = rustix::stdio::stdin();
        if !termios::isatty(stdin) {
            return Ok(None);
        }
        let terminal = File::from(stdin.try_clone_to_owned()?);
        let before = termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&terminal, OptionalActions::Flush, &raw)?;
        Ok(Some(RawTerminal { terminal, before }))
    }

    /// Makes it again what it was, from whichever thread has to.
    pub fn restore(&self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Rows and columns of the terminal on standard input, else what LINES and COLUMNS say (the lab hands the outer terminal's
/// on that way), else 24 by 80.
pub fn size() -> (u16, u16) {
    let said = |name: &str| std::env::var(name).ok()?.parse().ok().filter(|number| *number > 0);
    match termios::tcgetwinsize(rustix::stdio::stdin()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (said("LINES").unwrap_or(24), said("COLUMNS").unwrap_or(80)),
    }
}

const CTRL_A: u8 = 1;
const CTRL_D: u8 = 4;

/// What the keys typed so far mean: most go to the guest, Ctrl-A x leaves, Ctrl-A Ctrl-A is one Ctrl-A.
#[derive(Debug, Default)]
pub struct Keys {
    after_ctrl_a: bool,
}

/// What one chunk of input comes to.
#[derive(Debug, PartialEq, Eq)]
pub struct Typed {
    pub for_guest: Vec<u8>,
    pub leave: bool,
}

impl Keys {
    pub fn read(&mut self, input: &[u8]) -> Typed {
        let mut typed = Typed { for_guest: Vec::with_capacity(input.len()), leave: false };
        for &key in input {
            match (std::mem::take(&mut self.after_ctrl_a), key) {
                (false, CTRL_A) => self.after_ctrl_a = true,
                (true, b'x' | b'X') => typed.leave = true,
                (true, CTRL_A) | (false, _) => typed.for_guest.push(key),
                (true, _) => typed.for_guest.extend([CTRL_A, key]),
            }
        }
        typed
    }
}

/// Chunks that are read ahead of a guest that boots, or takes its time: of somebody who types, a key each.
const READ_AHEAD: usize = 4096;
/// Between the Ctrl-D that say that the input has ended.
const AT_THE_END: Duration = Duration::from_secs(1);

/// Carries keys from standard input to the guest's console; `typed` on a terminal of ours, they may leave it. None goes out
/// before `begins` is closed at its other end: a serial line that nobody listens to yet forgets them. Never joined: it waits
/// in read(2).
pub fn carry_keys(
    mut to: impl Write + Send + 'static,
    typed: bool,
    begins: Receiver<()>,
    events: Sender<Event>,
) -> io::Result<()> {
    let from = File::from(rustix::stdio::stdin().try_clone_to_owned()?);
    let (read, chunks) = mpsc::sync_channel(READ_AHEAD);
    thread::Builder::new().name("console keys".into()).spawn(move || carry(from, &read, typed, &events))?;
    thread::Builder::new().name("console input".into()).spawn(move || {
        // Nothing is ever sent.
        let _ = begins.recv();
        // An error is the guest's end.
        let _ = hand_over(&chunks, &mut to, typed, AT_THE_END);
        // The console stays open until then.
        std::mem::forget(to);
    })?;
    Ok(())
}

/// A file or a pipe has no key for its end, and the shell would wait for more of it: Ctrl-D says so, again and again. One alone
/// ends a program that reads, and not the shell behind it; and one that comes while a shell takes its terminal over is lost.
fn hand_over(chunks: &Receiver<Vec<u8>>, mut to: impl Write, typed: bool, pause: Duration) -> io::Result<()> {
    chunks.iter().try_for_each(|chunk| to.write_all(&chunk))?;
    if typed {
        return Ok(());
    }
    loop {
        thread::sleep(pause);
        to.write_all(&[CTRL_D])?;
    }
}

fn carry(mut from: impl Read, to: &SyncSender<Vec<u8>>, typed: bool, events: &Sender<Event>) {
    let mut keys = Keys::default();
    let mut buffer = [0; 4096];
    loop {
        let keys = match from.read(&mut buffer) {
            Ok(length @ 1..) if typed => keys.read(&buffer[..length]),
            Ok(length @ 1..) => Typed { for_guest: buffer[..length].to_owned(), leave: false },
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // A terminal that is gone says so with a signal.
            Ok(0) | Err(_) => return,
        };
        // Leaving the console of `up` ends the run as Ctrl-C elsewhere does.
        if keys.leave && events.send(Event::Interrupted { signal: SIGINT }).is_err() {
            return;
        }
        if to.send(keys.for_guest).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn typed(keys: &mut Keys, input: &[u8]) -> (Vec<u8>, bool) {
        let typed = keys.read(input);
        (typed.for_guest, typed.leave)
    }

    #[test]
    fn ctrl_c_goes_to_the_guest_and_ctrl_a_x_leaves() {
        let mut keys = Keys::default();
        assert_eq!(typed(&mut keys, b"ls\r\x03"), (b"ls\r\x03".to_vec(), false));
        assert_eq!(typed(&mut keys, b"\x01"), (vec![], false));
        assert_eq!(typed(&mut keys, b"x"), (vec![], true));
    }

    #[test]
    fn the_bytes_of_a_file_are_the_guests_whatever_they_are() {
        let (events, heard) = mpsc::channel();
        let carried = |input: &[u8], typed| {
            let (to, guest) = mpsc::sync_channel(READ_AHEAD);
            carry(input, &to, typed, &events);
            drop(to);
            guest.iter().flatten().collect::<Vec<u8>>()
        };
        assert_eq!(carried(b"\x01x ls\n", false), b"\x01x ls\n");
        assert_eq!(carried(b"ls\r", true), b"ls\r");
        assert!(heard.try_recv().is_err(), "nobody has left");
        assert_eq!(carried(b"a\x01xb", true), b"ab");
        assert!(matches!(heard.try_recv(), Ok(Event::Interrupted { signal: SIGINT })));
    }

    #[test]
    fn the_end_of_a_file_is_said_until_the_guest_ends_and_that_of_a_terminal_is_not() {
        let (to, chunks) = mpsc::sync_channel(READ_AHEAD);
        to.send(b"ls\n".to_vec()).unwrap();
        drop(to);
        let (ours, mut guest) = UnixStream::pair().unwrap();
        let handing = thread::spawn(move || hand_over(&chunks, ours, false, Duration::ZERO));
        let mut got = [0; 6];
        guest.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ls\n\x04\x04\x04");
        drop(guest);
        handing.join().unwrap().unwrap_err();

        let (to, chunks) = mpsc::sync_channel(READ_AHEAD);
        to.send(b"ls\r".to_vec()).unwrap();
        drop(to);
        let mut got = Vec::new();
        hand_over(&chunks, &mut got, true, Duration::ZERO).unwrap();
        assert_eq!(got, b"ls\r");
    }

    #[test]
    fn ctrl_a_twice_is_one_and_before_another_key_it_is_kept() {
        let mut keys = Keys::default();
        assert_eq!(typed(&mut keys, b"\x01\x01x"), (b"\x01x".to_vec(), false));
        assert_eq!(typed(&mut keys, b"\x01b"), (b"\x01b".to_vec(), false));
    }
}
