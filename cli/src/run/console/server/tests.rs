use std::io::Read;
use std::sync::mpsc;

use super::super::client::{Attachment, Left, attach};
use super::super::printed::{BEHIND, KEPT};
use super::super::protocol::Because;
use super::*;
use crate::run::sockets::{self, CONSOLE};

/// A console in a directory of its own, with a machine plugged into it that prints nowhere else.
struct Run {
    keep: tempfile::TempDir,
    console: Console,
    printing: Printing,
    guest: UnixStream,
}

impl Run {
    fn new(typed_by: Option<u32>) -> Run {
        let keep = tempfile::tempdir().unwrap();
        let console = Console::start(sockets::listen(keep.path(), CONSOLE).unwrap(), typed_by).unwrap();
        let (printing, guest) = console.plug(Box::new(io::sink())).unwrap();
        let guest = UnixStream::from(guest);
        guest.set_nonblocking(false).unwrap();
        Run { keep, console, printing, guest }
    }

    fn attach(&self, keyboard: bool) -> Attachment {
        attach(sockets::connect(self.keep.path(), CONSOLE).unwrap(), keyboard).unwrap()
    }

    fn print(&mut self, text: &[u8]) {
        self.printing.write_all(text).unwrap();
    }

    fn typed(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.guest.read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// Reads along on a thread of its own; what it has read, as it grows, and its end.
fn watch(attachment: Attachment) -> (mpsc::Receiver<Vec<u8>>, JoinHandle<Left>) {
    let (heard, hears) = mpsc::channel();
    let thread = thread::spawn(move || {
        let end: Result<Left, ()> = attachment.copy(|bytes| Ok(heard.send(bytes.to_vec()).is_ok()));
        end.unwrap()
    });
    (hears, thread)
}

/// What comes until it ends in `end`.
fn until(hears: &mpsc::Receiver<Vec<u8>>, end: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while !all.ends_with(end) {
        all.extend(hears.recv().unwrap());
    }
    all
}

#[test]
fn whoever_attaches_gets_the_last_that_was_printed_and_then_what_comes_until_the_run_is_over() {
    let mut run = Run::new(None);
    let line = [&[b'x'; 99][..], b"\n"].concat();
    for _ in 0..1_000 {
        run.print(&line);
    }
    run.print(b"login: ");
    let (first, first_end) = watch(run.attach(false));
    let kept = until(&first, b"login: ");
    assert!(kept.starts_with(&line) && kept.len() as u64 <= KEPT, "{}", kept.len());
    let (second, second_end) = watch(run.attach(false));
    assert_eq!(until(&second, b"login: "), kept);
    run.print(b"root\n");
    for hears in [&first, &second] {
        assert_eq!(until(hears, b"\n"), b"root\n");
    }
    run.print(b"last words");
    drop(run.console);
    assert_eq!(until(&first, b"words"), b"last words");
    for end in [first_end, second_end] {
        assert_eq!(end.join().unwrap(), Left::Because(Because::Over));
    }
}

#[test]
fn one_types_and_when_it_leaves_the_next_that_comes_may() {
    let mut run = Run::new(None);
    let watcher = run.attach(false);
    assert_eq!((watcher.granted.keyboard, watcher.granted.typed_by), (false, None));
    let first = run.attach(true);
    assert!(first.granted.keyboard);
    let second = run.attach(true);
    assert_eq!((second.granted.keyboard, second.granted.typed_by), (false, Some(std::process::id())));
    // What a watcher writes is nobody's.
    second.keys().unwrap().write_all(b"not me").unwrap();
    first.keys().unwrap().write_all(b"ls\r").unwrap();
    assert_eq!(run.typed(3), b"ls\r");
    drop(first);
    let mut third = run.attach(true);
    while !third.granted.keyboard {
        // The first's end is seen in its own time.
        third = run.attach(true);
    }
    third.keys().unwrap().write_all(b"w").unwrap();
    assert_eq!(run.typed(1), b"w");
    // It stops typing, and watches on.
    third.keys().unwrap().shutdown(std::net::Shutdown::Write).unwrap();
    let mut fourth = run.attach(true);
    while !fourth.granted.keyboard {
        fourth = run.attach(true);
    }
    run.print(b"still here\n");
    assert_eq!(until(&watch(third).0, b"\n"), b"still here\n");
}

#[test]
fn one_who_does_not_read_holds_up_nobody_and_is_told_why_it_was_left_behind() {
    let mut run = Run::new(None);
    let stopped = run.attach(true);
    let (reads, _end) = watch(run.attach(false));
    let line = [&[b'x'; 999][..], b"\n"].concat();
    // As much again as its socket may hold.
    for _ in 0..4 * BEHIND / 1_000 {
        run.print(&line);
        assert_eq!(until(&reads, b"\n"), line);
    }
    let mut got = 0;
    let end: Result<Left, ()> = stopped.copy(|bytes| {
        got += bytes.len() as u64;
        Ok(true)
    });
    assert_eq!(end.unwrap(), Left::Because(Because::Behind));
    assert!(got > 0 && got < 4 * BEHIND, "{got}");
    // Its keyboard is free once it has gone.
    while !run.attach(true).granted.keyboard {}
}

#[test]
fn a_guest_that_takes_no_keys_loses_none_and_the_next_machine_gets_its_own() {
    let mut run = Run::new(None);
    let typist = run.attach(true);
    let mut keys = typist.keys().unwrap();
    let text: Vec<u8> = (0..1_000_000u32).map(|index| (index >> 3) as u8).collect();
    let typed = text.clone();
    let typing = thread::spawn(move || {
        keys.write_all(&typed).unwrap();
        keys
    });
    run.print(b"printed meanwhile\n");
    let watcher = run.attach(false);
    assert_eq!(until(&watch(watcher).0, b"\n"), b"printed meanwhile\n");
    assert!(run.typed(text.len()) == text);
    let mut keys = typing.join().unwrap();

    // A reboot: the one who is attached stays so.
    run.console.unplug();
    let (printing, guest) = run.console.plug(Box::new(io::sink())).unwrap();
    (run.printing, run.guest) = (printing, guest.into());
    run.guest.set_nonblocking(false).unwrap();
    keys.write_all(b"again").unwrap();
    assert_eq!(run.typed(5), b"again");
    run.print(b"and again\n");
    assert_eq!(until(&watch(typist).0, b"again\n"), b"printed meanwhile\nand again\n");
}

#[test]
fn the_terminals_keys_wait_for_each_machine_until_it_is_ready() {
    let mut run = Run::new(Some(7));
    assert_eq!(run.attach(true).granted.typed_by, Some(7));
    let (mut keys, (go, goes)) = (run.console.keys(), mpsc::channel());
    let (done, is_done) = mpsc::channel();
    let typing = thread::spawn(move || {
        for text in goes {
            done.send(keys.write_all(text).is_ok()).unwrap();
        }
    });
    go.send(b"first").unwrap();
    run.guest.set_nonblocking(true).unwrap();
    assert_eq!(run.guest.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
    run.guest.set_nonblocking(false).unwrap();
    run.console.readiness()();
    assert_eq!(run.typed(5), b"first");
    // A machine that has just ended takes what is typed into it along.
    run.guest = UnixStream::pair().unwrap().0;
    go.send(b"never").unwrap();
    assert_eq!(is_done.iter().take(2).collect::<Vec<_>>(), [true, true]);
    run.console.unplug();
    let (_printing, guest) = run.console.plug(Box::new(io::sink())).unwrap();
    go.send(b"later").unwrap();
    run.guest = guest.into();
    run.console.readiness()();
    run.guest.set_nonblocking(false).unwrap();
    assert_eq!(run.typed(5), b"later");
    assert!(is_done.recv().unwrap());
    run.console.unplug();
    go.send(b"ended").unwrap();
    drop((go, run.console));
    assert!(!is_done.recv().unwrap());
    typing.join().unwrap();
}

#[test]
fn nonsense_is_answered_and_harms_nothing() {
    let run = Run::new(None);
    let long = "x".repeat(2_000);
    for nonsense in ["\n", "{}\n", "{\"vmprof_console\":2,\"keyboard\":true,\"pid\":1}\n", &long] {
        let mut stream = sockets::connect(run.keep.path(), CONSOLE).unwrap();
        stream.write_all(nonsense.as_bytes()).unwrap();
        let mut answer = String::new();
        // The server may end it before it has read all.
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.starts_with("{\"error\":"), "{answer}");
    }
    drop(sockets::connect(run.keep.path(), CONSOLE).unwrap());
    assert!(run.attach(true).granted.keyboard);
}

#[test]
fn those_who_say_nothing_leave_room_for_those_who_do() {
    let run = Run::new(None);
    let silent: Vec<UnixStream> =
        (0..MOST_ATTACHED).map(|_| sockets::connect(run.keep.path(), CONSOLE).unwrap()).collect();
    let (attached, has_attached) = mpsc::channel();
    let stream = sockets::connect(run.keep.path(), CONSOLE).unwrap();
    thread::spawn(move || attached.send(attach(stream, true).unwrap().granted).unwrap());
    drop(silent);
    assert!(has_attached.recv().unwrap().keyboard);
}

/// Takes what `takes` allows of each write, and fails when that is all.
struct Reader(Vec<usize>, Arc<Mutex<Vec<u8>>>);

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.pop() {
            None => Err(ErrorKind::BrokenPipe.into()),
            Some(0) => Err(ErrorKind::WouldBlock.into()),
            Some(takes) => {
                let taken = takes.min(bytes.len());
                self.1.lock().unwrap().extend(&bytes[..taken]);
                Ok(taken)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn those_who_are_attached_get_each_byte_once_whatever_the_reader_beside_them_takes() {
    let run = Run::new(None);
    let shown = Arc::<Mutex<Vec<u8>>>::default();
    let reader = Reader(vec![4, 0, 0, 2, 3], shown.clone());
    let (mut printing, _guest) = run.console.plug(Box::new(reader)).unwrap();
    // As the serial port's thread does it.
    let mut rest = &b"abcdefghijklm"[..];
    while !rest.is_empty() {
        match printing.write(rest) {
            Ok(taken) => rest = &rest[taken..],
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    printing.write_all(b" nobody reads this beside them\n").unwrap();
    printing.flush().unwrap();
    let all = until(&watch(run.attach(false)).0, b"\n");
    assert_eq!(String::from_utf8(all).unwrap(), "abcdefghijklm nobody reads this beside them\n");
    assert_eq!(*shown.lock().unwrap(), b"abcdefghi");
}

mod guest;
