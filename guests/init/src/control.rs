//! The control port: one JSON message a line, both ways.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use vmprof_job::{FromGuest, ToGuest};

use crate::kmsg;
use crate::ports::{Moved, Port};
use crate::power::Buttons;
use crate::wait::Wait;

/// Longer than any message: more without an end is not one.
const LONGEST_LINE: usize = 1 << 20;
/// Away for this long at the end is away for good.
pub(crate) const GONE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Control {
    port: Port,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Of `outgoing`, what the port has taken.
    taken: usize,
}

impl Control {
    pub(crate) fn new(port: Port) -> Self {
        Control { port, incoming: Vec::new(), outgoing: Vec::new(), taken: 0 }
    }

    /// Sends as much as the port takes now; the rest goes with the next [`Control::step`].
    pub(crate) fn send(&mut self, message: &FromGuest) {
        self.outgoing.extend_from_slice(&vmprof_job::line(message));
        self.flush(Instant::now());
    }

    /// What has arrived.
    pub(crate) fn step(&mut self, now: Instant) -> Vec<ToGuest> {
        self.flush(now);
        let mut buffer = [0; 4096];
        let mut messages = Vec::new();
        while let Moved::Bytes(read) = self.port.read(&mut buffer, now) {
            self.incoming.extend_from_slice(&buffer[..read]);
            while let Some(end) = self.incoming.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.incoming.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(message) => messages.push(message),
                    Err(error) => kmsg::error(format_args!(
                        "control: not a message: {error}: {}",
                        String::from_utf8_lossy(&line[..line.len().min(200)]).trim_end()
                    )),
                }
            }
            if self.incoming.len() > LONGEST_LINE {
                kmsg::error("control: a line without an end, dropped");
                self.incoming.clear();
            }
        }
        messages
    }

    pub(crate) fn expect<'a>(&'a self, now: Instant, wait: &mut Wait<'a>) {
        let flags = if self.is_flushed() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        self.port.expect(flags, now, wait);
    }

    /// Waits until the port has taken everything, not longer than `limit`.
    pub(crate) fn flush_within(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while !self.is_flushed() && Instant::now() < end {
            let mut wait = Wait::default();
            self.port.expect(PollFlags::OUT, Instant::now(), &mut wait);
            wait.until(end);
            wait.sleep();
            self.flush(Instant::now());
        }
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.port.descriptor()
    }

    /// How long nobody has been at the other end.
    pub(crate) fn away_for(&self, now: Instant) -> Duration {
        self.port.away_for(now)
    }

    pub(crate) fn is_flushed(&self) -> bool {
        self.taken == self.outgoing.len()
    }

    /// Waits until the outside says that it has everything, or wants the guest to stop anyway, by the power button too;
    /// not longer than `limit`, and not for an outside that is gone. Says whether it was told.
    pub(crate) fn farewell(&mut self, limit: Duration, buttons: &mut Buttons) -> bool {
        let end = Instant::now() + limit;
        loop {
            let now = Instant::now();
            for message in self.step(now) {
                match message {
                    ToGuest::Received | ToGuest::Stop { .. } => return true,
                    // Too late for these: what they are about is over.
                    ToGuest::InputEnded { .. }
                    | ToGuest::Signal { .. }
                    | ToGuest::Run { .. }
                    | ToGuest::Schedulers { .. }
                    | ToGuest::Ping => {}
                }
            }
            if buttons.pressed() {
                return true;
            }
            if now >= end || self.port.away_for(now) >= GONE {
                return false;
            }
            let mut wait = Wait::default();
            self.expect(now, &mut wait);
            buttons.expect(&mut wait);
            wait.until(end);
            wait.sleep();
        }
    }

    fn flush(&mut self, now: Instant) {
        while let Some(rest @ [_, ..]) = self.outgoing.get(self.taken..) {
            match self.port.write(rest, now) {
                Moved::Bytes(written) => self.taken += written,
                Moved::NotNow | Moved::Away => return,
            }
        }
        self.outgoing.clear();
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn control() -> (Control, UnixStream) {
        let (inside, outside) = UnixStream::pair().unwrap();
        inside.set_nonblocking(true).unwrap();
        (Control::new(Port::new(inside.into())), outside)
    }

    #[test]
    fn messages_arrive_whole_however_they_were_cut() {
        let (mut control, mut outside) = control();
        let mut bytes = vmprof_job::line(&ToGuest::Signal { number: 2 });
        bytes.extend(vmprof_job::line(&ToGuest::Received));
        let (first, second) = bytes.split_at(7);
        outside.write_all(first).unwrap();
        assert_eq!(control.step(Instant::now()), []);
        outside.write_all(second).unwrap();
        assert_eq!(control.step(Instant::now()), [ToGuest::Signal { number: 2 }, ToGuest::Received]);
    }

    #[test]
    fn what_is_no_message_does_not_hide_the_next_one() {
        let (mut control, mut outside) = control();
        outside.write_all(b"{\"fly\":{}}\n\xff\n\"received\"\n").unwrap();
        assert_eq!(control.step(Instant::now()), [ToGuest::Received]);
    }

    #[test]
    fn farewell_ends_with_the_outsides_word() {
        let (mut control, mut outside) = control();
        outside.write_all(b"{\"signal\":{\"number\":2}}\n\"received\"\n").unwrap();
        assert!(control.farewell(Duration::from_secs(600), &mut Buttons::default()));
    }

    #[test]
    fn farewell_does_not_wait_for_an_outside_that_is_gone() {
        let (mut control, outside) = control();
        drop(outside);
        assert!(!control.farewell(Duration::from_secs(600), &mut Buttons::default()));
    }

    #[test]
    fn farewell_to_an_outside_that_says_nothing_ends_by_itself() {
        let (mut control, _outside) = control();
        assert!(!control.farewell(Duration::from_millis(20), &mut Buttons::default()));
    }

    #[test]
    fn a_message_larger_than_the_port_takes_at_once_arrives_whole() {
        let (mut control, outside) = control();
        let message = FromGuest::Failed { message: "x".repeat(3 << 20) };
        control.send(&message);
        assert!(!control.is_flushed());
        let reader = std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(outside).read_line(&mut line).unwrap();
            line
        });
        while !control.is_flushed() {
            control.step(Instant::now());
            let mut wait = Wait::default();
            control.expect(Instant::now(), &mut wait);
            wait.until(Instant::now() + Duration::from_millis(50));
            wait.sleep();
        }
        assert_eq!(serde_json::from_str::<FromGuest>(&reader.join().unwrap()).unwrap(), message);
    }
}
