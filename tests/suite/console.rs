//! `vmprof console` on a terminal, against a run that the test plays: its record, and the other end of its console.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use vmprof_tests::{Home, finish, spawn};

/// A run named `db`, as its record shows it while its lock is held.
struct Run {
    home: Home,
    listener: UnixListener,
    _lock: File,
}

impl Run {
    fn new() -> Run {
        let home = Home::new();
        let directory: PathBuf = home.path().join(".local/state/vmprof/run/db");
        fs::create_dir_all(&directory).unwrap();
        let record = serde_json::json!({
            "schema": "vmprof.run/1", "name": "db", "pid": std::process::id(), "profile": "db.kdl", "on": "kvm",
            "started": 0, "cpus": "", "disks": [],
        });
        fs::write(directory.join("run.json"), record.to_string()).unwrap();
        let lock = File::create(directory.join("lock")).unwrap();
        lock.lock().unwrap();
        let listener = UnixListener::bind(directory.join("console.sock")).unwrap();
        Run { home, listener, _lock: lock }
    }

    /// Accepts, and answers; gives what was asked.
    fn answer(&self, answer: &str) -> (serde_json::Value, UnixStream) {
        let (mut stream, _) = self.listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        stream.write_all(format!("{answer}\n").as_bytes()).unwrap();
        (serde_json::from_str(&line).unwrap(), stream)
    }
}

fn frame(stream: &mut UnixStream, kind: u8, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
    stream.write_all(&[&[kind], &length[..], bytes].concat()).unwrap();
}

const TYPING: &str = r#"{"ok":{"keyboard":true,"typed_by":null}}"#;

/// `vmprof console db` on a terminal of its own.
struct Terminal {
    ours: File,
    theirs: OwnedFd,
    before: Termios,
    child: Child,
    shown: String,
}

impl Terminal {
    fn start(run: &Run) -> Terminal {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = rustix::fs::open(ptsname(&ours, vec![]).unwrap(), flags, Mode::empty()).unwrap();
        let end = || Stdio::from(theirs.try_clone().unwrap());
        let mut command = run.home.vmprof(["console", "db"]);
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let before = tcgetattr(&theirs).unwrap();
        Terminal { ours: ours.into(), theirs, before, child, shown: String::new() }
    }

    /// Until the terminal has shown this.
    fn shows(&mut self, what: &str) {
        while !self.shown.contains(what) {
            let mut bytes = [0; 1024];
            let length = self.ours.read(&mut bytes).unwrap();
            self.shown.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.theirs).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ISIG)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its end, with the terminal as it was.
    fn ends(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        let (now, before) = (tcgetattr(&self.theirs).unwrap(), &self.before);
        assert_eq!(
            (now.local_modes, now.input_modes, now.output_modes),
            (before.local_modes, before.input_modes, before.output_modes)
        );
        status
    }
}

#[test]
fn keys_go_to_the_guest_ctrl_c_too_and_ctrl_a_x_gives_the_terminal_back() {
    let run = Run::new();
    let mut terminal = Terminal::start(&run);
    let (asked, mut guest) = run.answer(TYPING);
    assert_eq!((&asked["vmprof_console"], &asked["keyboard"]), (&1.into(), &true.into()));
    assert_eq!(asked["pid"], terminal.child.id());
    frame(&mut guest, b'p', b"login: ");
    terminal.shows("Ctrl-A x leaves it");
    terminal.shows("login: ");
    assert!(terminal.is_raw());
    terminal.ours.write_all(b"\x03root\r\x01x").unwrap();
    let mut typed = Vec::new();
    guest.read_to_end(&mut typed).unwrap();
    assert_eq!(typed, b"\x03root\r");
    terminal.shows("detached from db's console: it goes on");
    assert_eq!(terminal.ends().code(), Some(0));
}

#[test]
fn the_terminal_is_given_back_whatever_ends_it() {
    use std::os::unix::process::ExitStatusExt;

    let run = Run::new();
    for signal in [Signal::TERM, Signal::HUP] {
        let mut terminal = Terminal::start(&run);
        let (_, mut guest) = run.answer(TYPING);
        frame(&mut guest, b'p', b"login: ");
        terminal.shows("login: ");
        assert!(terminal.is_raw());
        terminal.signal(signal);
        assert_eq!(terminal.ends().signal(), Some(signal.as_raw()));
    }
    for (reason, words, status) in [
        (&b"over"[..], "db has ended", 0),
        (b"behind", "vmprof::console::behind", 1),
        (b"", "vmprof::console::broken_off", 1),
    ] {
        let mut terminal = Terminal::start(&run);
        let (_, mut guest) = run.answer(TYPING);
        frame(&mut guest, b'p', b"login: ");
        terminal.shows("login: ");
        if !reason.is_empty() {
            frame(&mut guest, b'e', reason);
        }
        drop(guest);
        terminal.shows(words);
        assert_eq!(terminal.ends().code(), Some(status));
    }
}

#[test]
fn who_may_not_type_watches_and_leaves_with_ctrl_c() {
    let run = Run::new();
    let mut terminal = Terminal::start(&run);
    let (_, mut guest) = run.answer(r#"{"ok":{"keyboard":false,"typed_by":4711}}"#);
    frame(&mut guest, b'p', b"login: ");
    terminal.shows("read-only: db's console is typed on by pid 4711");
    terminal.shows("login: ");
    assert!(!terminal.is_raw());
    terminal.signal(Signal::INT);
    terminal.shows("detached from db's console: it goes on");
    assert_eq!(terminal.ends().code(), Some(0));
}

#[test]
fn without_a_terminal_it_shows_what_comes_until_the_run_has_ended() {
    let run = Run::new();
    let watching = spawn(run.home.vmprof(["console", "db"]).stdin(Stdio::null()));
    let (asked, mut guest) = run.answer(r#"{"ok":{"keyboard":false,"typed_by":null}}"#);
    assert_eq!(asked["keyboard"], false);
    frame(&mut guest, b'p', b"\x00\xc3\x28 as it is\n");
    frame(&mut guest, b'p', b"last words");
    frame(&mut guest, b'e', b"over");
    let finished = watching.finish().expect(0);
    assert_eq!(finished.stdout, "\0\u{fffd}( as it is\nlast words");
    assert!(finished.stderr.contains("db has ended"), "{}", finished.stderr);

    let refused = spawn(run.home.vmprof(["console", "--read-only", "db"]).stdin(Stdio::null()));
    run.answer(r#"{"error":"console version 1 is not 2"}"#);
    let refused = refused.finish().expect(1);
    assert!(refused.stderr.contains("vmprof::console::unreachable"), "{}", refused.stderr);
    assert!(refused.stderr.contains("console version 1 is not 2"), "{}", refused.stderr);

    let none = finish(&mut run.home.vmprof(["console", "nobody"])).expect(1);
    assert!(none.stderr.contains("vmprof::run::not_running"), "{}", none.stderr);
}
