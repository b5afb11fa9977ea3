//! The end of the machine: the power button, taking every process down, and power off. PID 1 never exits, since the
//! kernel would panic.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, getpid, kill_process, kill_process_group};
use rustix::system::{RebootCommand, reboot};

use crate::mounts;
use crate::reap::Children;
use crate::wait::Wait;

/// What is left after SIGKILL dies as soon as the kernel lets it.
const KILLED: Duration = Duration::from_secs(2);
/// At processes, while there are new ones.
const MOST_LOOKS: usize = 100;
/// What a terminal still holds would go down with the machine; one that was stopped (Ctrl-S) never lets go of it.
const DRAINED: Duration = Duration::from_secs(2);

/// struct input_event on 64-bit: two longs of time, then type, code, value.
const EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const PRESSED: i32 = 1;

/// Every input device: a power button is one of them, as is the key of that name on a keyboard.
#[derive(Debug, Default)]
pub(crate) struct Buttons {
    devices: Vec<File>,
}

impl Buttons {
    /// A machine without any has no button, which is no failure.
    pub(crate) fn open(directory: &Path) -> Self {
        let mut devices = Vec::new();
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"event") {
                let flags = OFlags::NONBLOCK.bits() as i32;
                devices.extend(OpenOptions::new().read(true).custom_flags(flags).open(entry.path()));
            }
        }
        Buttons { devices }
    }

    pub(crate) fn pressed(&mut self) -> bool {
        let mut pressed = false;
        self.devices.retain_mut(|device| {
            let mut events = [0; EVENT * 16];
            loop {
                match device.read(&mut events) {
                    Ok(0) => return false,
                    Ok(read) => pressed |= holds_press(events.get(..read).unwrap_or_default()),
                    // Unplugged devices are forgotten, or poll would report them without end.
                    Err(error) => {
                        return matches!(
                            error.kind(),
                            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
                        );
                    }
                }
            }
        });
        pressed
    }

    pub(crate) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        for device in &self.devices {
            wait.on(device.as_fd(), PollFlags::IN);
        }
    }
}

fn holds_press(events: &[u8]) -> bool {
    let (events, _) = events.as_chunks::<EVENT>();
    events.iter().any(|event| {
        let [.., a, b, c, d, e, f, g, h] = *event;
        (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), i32::from_ne_bytes([e, f, g, h]))
            == (EV_KEY, KEY_POWER, PRESSED)
    })
}

/// kill(-1): every process but this one. Only as PID 1, where "every process" is the guest and no more.
pub(crate) fn signal_everything(signal: Signal) {
    if getpid() == Pid::INIT {
        // The process group of 1, negated, is the call's word for everything. Nobody there is no failure.
        let _ = kill_process_group(Pid::INIT, signal);
    }
}

/// SIGKILL to every process but this one and `spared`, which kill(2) has no word for.
pub(crate) fn kill_everything_but(spared: Pid) {
    if getpid() == Pid::INIT {
        kill_all(Path::new("/proc"), |pid| {
            if pid != Pid::INIT && pid != spared {
                // One that is gone by now needs none; the kernel's own threads take none.
                let _ = kill_process(pid, Signal::KILL);
            }
        });
    }
}

/// Each process of `proc` once, and those that they start meanwhile; who makes them faster than that is ended with the machine.
fn kill_all(proc: &Path, mut kill: impl FnMut(Pid)) {
    let mut seen = BTreeSet::new();
    for _ in 0..MOST_LOOKS {
        let before = seen.len();
        let names = fs::read_dir(proc).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let numbers: Vec<i32> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
        let new = numbers.into_iter().filter(|number| *number > 0 && seen.insert(*number));
        new.filter_map(Pid::from_raw).for_each(&mut kill);
        if seen.len() == before {
            return;
        }
    }
}

/// Takes every process down, leaves the disks clean, and turns the machine off.
pub(crate) fn end(children: Option<&Children>, grace: Duration) -> ! {
    if let Some(children) = children
        && !children.all_gone(Duration::ZERO)
    {
        signal_everything(Signal::TERM);
        // A stopped process takes SIGTERM only when it goes on.
        signal_everything(Signal::CONT);
        if !children.all_gone(grace) {
            signal_everything(Signal::KILL);
            children.all_gone(KILLED);
        }
    }
    mounts::settle();
    off()
}

/// Instead of a systemd that does not come to its end: every process but it and this one is killed, and the disks are left
/// clean, as far as that goes.
pub(crate) fn end_without_systemd() -> ! {
    let _ = kill_process_group(Pid::INIT, Signal::KILL);
    mounts::settle();
    off()
}

pub(crate) fn off() -> ! {
    within(DRAINED, || {
        let _ = rustix::termios::tcdrain(rustix::stdio::stdout());
    });
    loop {
        if let Err(error) = reboot(RebootCommand::PowerOff) {
            crate::kmsg::error(format_args!("power off: {error}"));
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Does `work` in a thread of its own and waits for it, but not for longer than `limit`. Without a thread it is left out:
/// what may block for ever is not done here.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, is_done) = mpsc::channel();
    let started = thread::Builder::new().spawn(move || {
        work();
        let _ = done.send(());
    });
    started.is_ok() && is_done.recv_timeout(limit).is_ok()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a device writes when its power button is pressed.
    pub(crate) fn press() -> Vec<u8> {
        event(EV_KEY, KEY_POWER, PRESSED)
    }

    fn event(kind: u16, code: u16, value: i32) -> Vec<u8> {
        let mut event = vec![0xff; 16];
        event.extend(kind.to_ne_bytes());
        event.extend(code.to_ne_bytes());
        event.extend(value.to_ne_bytes());
        event
    }

    #[test]
    fn only_pressing_the_power_key_counts() {
        let synchronised = event(0, 0, 0);
        let pressed = [event(EV_KEY, KEY_POWER, 1), synchronised.clone()].concat();
        let released = [event(EV_KEY, KEY_POWER, 0), synchronised].concat();
        assert!(holds_press(&[released.clone(), pressed].concat()));
        assert!(!holds_press(&released));
        assert!(!holds_press(&event(EV_KEY, 30, 1)));
        assert!(!holds_press(&event(EV_KEY, KEY_POWER, 1)[..EVENT - 1]));
    }

    #[test]
    fn everything_is_left_alone_by_anyone_but_pid_1() {
        // The test is not PID 1; reaching the next line is the proof.
        assert_ne!(getpid(), Pid::INIT);
        signal_everything(Signal::KILL);
        kill_everything_but(Pid::INIT);
    }

    #[test]
    fn each_process_is_killed_once_and_so_are_those_that_come_meanwhile() {
        let proc = tempfile::tempdir().unwrap();
        for name in ["1", "70", "self", "80", "sys", "0", "-3"] {
            fs::create_dir(proc.path().join(name)).unwrap();
        }
        let mut killed = Vec::new();
        kill_all(proc.path(), |pid| {
            killed.push(pid.as_raw_pid());
            if pid.as_raw_pid() == 80 {
                fs::create_dir(proc.path().join("90")).unwrap();
            }
        });
        killed.sort_unstable();
        assert_eq!(killed, [1, 70, 80, 90]);
        let mut next = 0;
        kill_all(proc.path(), |_| {
            next += 1;
            fs::create_dir(proc.path().join(format!("{}", 100 + next))).unwrap();
        });
        assert!(next >= MOST_LOOKS, "and it has an end");
    }

    #[test]
    fn what_never_ends_is_not_waited_for() {
        let (held, never) = mpsc::channel::<()>();
        assert!(!within(Duration::ZERO, move || {
            let _ = never.recv();
        }));
        drop(held);
        assert!(within(Duration::from_secs(60), || {}));
    }

    #[test]
    fn a_machine_without_input_devices_has_no_button() {
        assert!(!Buttons::open(Path::new("/nonexistent")).pressed());
    }
}
