//! A terminal for programs that need one: a pseudo-terminal whose other end the test holds.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::eventually;

/// A program on a terminal of its own.
#[derive(Debug)]
pub struct OnTerminal {
    child: Child,
    ours: File,
    /// Kept open, so that the terminal outlives the program and can be looked at.
    theirs: OwnedFd,
    before: Termios,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    /// Starts it on a terminal of 160 columns and 50 rows.
    pub fn start(command: &mut Command) -> OnTerminal {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are pseudo-terminals");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("it is ours");
        let name = ptsname(&ours, Vec::new()).expect("it has a name");
        let theirs =
            open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("its other end can be opened");
        let size = Winsize { ws_row: 50, ws_col: 160, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&theirs, size).expect("it has a size");
        let before = tcgetattr(&theirs).expect("it is a terminal");
        let end = || Stdio::from(theirs.try_clone().expect("a descriptor can be copied"));
        let child = command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color").spawn();
        let child = child.expect("the command can be started");
        let ours = File::from(ours);
        let shown = Arc::new(Mutex::new(Vec::new()));
        let (mut from, into) = (ours.try_clone().expect("a descriptor can be copied"), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = from.read(&mut buffer)
                && count > 0
            {
                into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        OnTerminal { child, ours, theirs, before, shown }
    }

    /// All that was written to it, escape sequences included.
    pub fn shown(&self) -> String {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&shown).into_owned()
    }

    /// Waits until it shows this, which has no space in it: a program may move over what is blank already.
    #[track_caller]
    pub fn expect(&self, text: &str) {
        eventually(text, || self.shown().contains(text).then_some(()));
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.ours.write_all(keys.as_bytes()).expect("a terminal takes keys");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the child can be signalled");
    }

    /// Waits for its end: its status, and whether the terminal is as it was, with the screen of before.
    pub fn finish(mut self) -> (Option<i32>, bool) {
        let ended = self.ended();
        // The alternate screen is left, and the cursor is back.
        let is_back = |shown: &str| shown.ends_with("\x1b[?25h") || shown.contains("\x1b[?1049l");
        eventually("the screen of before", || is_back(&self.shown()).then_some(()));
        ended
    }

    /// The same of a program that writes on as others do, without a screen of its own.
    pub fn finish_in_place(mut self) -> (Option<i32>, bool) {
        self.ended()
    }

    fn ended(&mut self) -> (Option<i32>, bool) {
        let status = self.child.wait().expect("the child can be waited for").code();
        let now = tcgetattr(&self.theirs).expect("it is a terminal");
        let modes = |termios: &Termios| {
            (termios.input_modes, termios.output_modes, termios.local_modes, termios.control_modes)
        };
        (status, modes(&now) == modes(&self.before))
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // Ended already where a test finished it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
