//! One port: the stream outside, and the two queues inside. Bytes wait where they are until the other side has room: the
//! guest's in its own buffers, the outside's in the socket.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::machine;
use crate::virtio::queue::{Broken, Queue, Taken};

/// How much travels in one step.
const CHUNK_BYTES: usize = 32 * 1024;
/// Steps of one chain in one turn: a chain may name the same memory a thousand times, and its reader may keep pace.
const STEPS: usize = 4;

/// The two queues of a port, each there only if the driver enabled it.
#[derive(Debug, Default)]
pub(super) struct PortQueues {
    pub(super) receive: Option<Queue>,
    pub(super) transmit: Option<Queue>,
}

#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: String,
    stream: OwnedFd,
    /// A process in the guest has it open: only then does Linux keep what it receives.
    pub(super) guest_open: bool,
    /// The driver knows the port, and so can be told whether anybody is outside.
    pub(super) known: bool,
    outside: Outside,
    sending: Option<Sending>,
}

/// The outside's half of the stream.
#[derive(Debug, PartialEq, Eq)]
enum Outside {
    /// It may send: these bytes have been read and not been delivered, from the second field on.
    Sends { bytes: Vec<u8>, delivered: usize },
    /// It sends no more. The driver may have to hear of it yet.
    Ended { told: bool },
}

/// A chain of the guest's on its way out.
#[derive(Debug)]
struct Sending {
    taken: Taken,
    bytes: Vec<u8>,
    sent: usize,
}

/// How far a step came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It stopped because its share is used up.
    More,
    /// It waits for one of the two sides.
    Waits,
}

impl Port {
    pub(super) fn new(port: machine::Port) -> Port {
        Port {
            name: port.name,
            stream: port.stream,
            guest_open: false,
            known: false,
            outside: Outside::Sends { bytes: Vec::new(), delivered: 0 },
            sending: None,
        }
    }

    pub(super) fn stream(&self) -> &OwnedFd {
        &self.stream
    }

    pub(super) fn is_outside_open(&self) -> bool {
        matches!(self.outside, Outside::Sends { .. })
    }

    /// The guest gave bytes that the outside has no room for.
    pub(super) fn waits_for_outside(&self) -> bool {
        self.sending.is_some()
    }

    /// The outside sent bytes that the guest, which has the port open, has given no buffer for.
    pub(super) fn waits_for_guest(&self) -> bool {
        let undelivered =
            matches!(&self.outside, Outside::Sends { bytes, delivered } if *delivered < bytes.len());
        self.guest_open && undelivered
    }

    /// Whether the driver is to be told now that the outside has ended; said once.
    pub(super) fn take_end(&mut self) -> bool {
        match &mut self.outside {
            Outside::Ended { told } if self.known => !std::mem::replace(told, true),
            _ => false,
        }
    }

    /// The driver is gone: so is what it gave us.
    pub(super) fn reset(&mut self) {
        (self.guest_open, self.known, self.sending) = (false, false, None);
        if let Outside::Ended { told } = &mut self.outside {
            *told = false;
        }
    }

    /// Guest to outside, at most `budget` chains.
    pub(super) fn transmit(&mut self, queue: &mut Queue, budget: usize) -> Result<Progress, Broken> {
        for _ in 0..budget {
            let mut sending = match self.sending.take() {
                Some(sending) => sending,
                None => match queue.take(false)? {
                    Some(taken) => Sending { taken, bytes: Vec::new(), sent: 0 },
                    None => return Ok(Progress::Waits),
                },
            };
            if let Some(progress) = self.send(&mut sending) {
                self.sending = Some(sending);
                return Ok(progress);
            }
            queue.give_back(sending.taken.head, 0);
        }
        Ok(Progress::More)
    }

    /// `None`: all of it is out, or nobody is there to take it.
    fn send(&self, sending: &mut Sending) -> Option<Progress> {
        for _ in 0..STEPS {
            if sending.sent == sending.bytes.len() {
                let left = sending.taken.buffers.bytes().min(CHUNK_BYTES as u64) as usize;
                if left == 0 {
                    return None;
                }
                sending.bytes.resize(left, 0);
                sending.taken.buffers.take_front(&mut sending.bytes);
                sending.sent = 0;
            }
            let rest = sending.bytes.get(sending.sent..).unwrap_or_default();
            match rustix::net::send(&self.stream, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => sending.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Some(Progress::Waits),
                // The outside has closed its end: a guest that writes must not wait for it for ever.
                Err(_) => return None,
            }
        }
        Some(Progress::More)
    }

    /// Outside to guest, at most `budget` chains.
    pub(super) fn receive(&mut self, queue: &mut Queue, budget: usize) -> Result<Progress, Broken> {
        for _ in 0..budget {
            if !self.guest_open || !self.fetch() {
                return Ok(Progress::Waits);
            }
            let Outside::Sends { bytes, delivered } = &mut self.outside else { return Ok(Progress::Waits) };
            let Some(mut taken) = queue.take(true)? else { return Ok(Progress::Waits) };
            let count = taken.buffers.fill_front(bytes.get(*delivered..).unwrap_or_default());
            *delivered += count;
            queue.give_back(taken.head, count as u32);
        }
        Ok(Progress::More)
    }

    /// `true`: there are bytes to deliver.
    fn fetch(&mut self) -> bool {
        let Outside::Sends { bytes, delivered } = &mut self.outside else { return false };
        if *delivered < bytes.len() {
            return true;
        }
        bytes.resize(CHUNK_BYTES, 0);
        *delivered = 0;
        let outcome = loop {
            match rustix::net::recv(&self.stream, bytes.as_mut_slice(), RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => {}
                outcome => break outcome,
            }
        };
        bytes.truncate(outcome.as_ref().map_or(0, |(_, count)| *count));
        match outcome {
            Ok((_, count)) if count > 0 => true,
            Err(Errno::AGAIN) => false,
            _ => {
                self.outside = Outside::Ended { told: false };
                false
            }
        }
    }

    /// The guest has stopped: what it gave us goes out, as long as somebody takes it before `deadline`.
    pub(super) fn drain(&mut self, queue: &mut Queue, deadline: Instant) -> Result<(), Broken> {
        loop {
            // A step at a time: the deadline holds for a reader that keeps pace, too.
            if self.transmit(queue, 1)? == Progress::Waits && self.sending.is_none() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Ok(());
            }
            let wait = rustix::event::Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [rustix::event::PollFd::new(&self.stream, rustix::event::PollFlags::OUT)];
            // Whatever comes of it, the next try tells.
            let _ = rustix::event::poll(&mut fds, Some(&wait));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use vmprof_sys::segments::GuestBuffers;

    use super::*;
    use crate::virtio::mock;

    #[test]
    fn a_long_chain_does_not_keep_the_thread_while_its_reader_keeps_pace() {
        let (_outside, inside) = UnixStream::pair().unwrap();
        let port = Port::new(machine::Port { name: "a".into(), stream: inside.into() });
        let mut buffers = GuestBuffers::new(&mock::ram(0x10_0000));
        buffers.push(0, 0x10_0000).unwrap();
        let mut sending = Sending { taken: Taken { head: 0, buffers }, bytes: Vec::new(), sent: 0 };
        // A socket holds more than the share: it is not what stops the step.
        assert_eq!(port.send(&mut sending), Some(Progress::More));
        assert_eq!(sending.taken.buffers.bytes(), 0x10_0000 - (STEPS * CHUNK_BYTES) as u64);
    }

    #[test]
    fn bytes_for_a_port_that_the_guest_closed_wait_for_its_message_and_not_for_buffers() {
        let (_outside, inside) = UnixStream::pair().unwrap();
        let mut port = Port::new(machine::Port { name: "a".into(), stream: inside.into() });
        port.outside = Outside::Sends { bytes: vec![1], delivered: 0 };
        port.guest_open = true;
        assert!(port.waits_for_guest());
        // Buffers that are there change nothing now: to look for them on and on would never end.
        port.guest_open = false;
        assert!(!port.waits_for_guest());
    }
}
