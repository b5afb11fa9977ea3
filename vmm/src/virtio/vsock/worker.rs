//! The device on its event loop: it owns the connections, and the queues while the device is live.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmprof_sys::vring::Position;

use super::muxer::Muxer;
use super::{RECEIVE, TRANSMIT};
use crate::emulator::{Handler, Watch};
use crate::virtio::orders::{Heard, Order};
use crate::virtio::queue::{Broken, Queue};

/// How long the outside may take for what the guest wrote before it stopped.
const LAST_WORDS: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub struct VsockHandler {
    heard: Heard,
    pub(super) muxer: Muxer,
    queues: Queues,
    /// The driver broke a queue: all are kept, unserved, for the reset that must come.
    is_broken: bool,
}

/// virtio 1.3, 5.10.2. The third carries news of a guest that was moved to another host, which none here ever is.
#[derive(Debug, Default)]
struct Queues {
    receive: Option<Queue>,
    transmit: Option<Queue>,
    event: Option<Queue>,
}

impl Queues {
    fn place(&mut self, index: u16) -> &mut Option<Queue> {
        match index {
            RECEIVE => &mut self.receive,
            TRANSMIT => &mut self.transmit,
            _ => &mut self.event,
        }
    }

    fn is_live(&self) -> bool {
        self.receive.is_some() && self.transmit.is_some()
    }
}

impl VsockHandler {
    pub(super) fn new(heard: Heard, muxer: Muxer) -> VsockHandler {
        VsockHandler { heard, muxer, queues: Queues::default(), is_broken: false }
    }

    fn obey(&mut self, watch: &Watch) {
        while let Some(order) = self.heard.next() {
            // Whoever asked may have gone.
            match order {
                Order::Start(queues) => {
                    for active in queues {
                        let place = self.queues.place(active.index);
                        *place = Some(Queue::new(active, watch));
                    }
                }
                Order::StopQueue(index, answer) => {
                    let _ = answer.send(self.stop_queue(index, watch));
                }
                Order::Stop(answer) => {
                    for index in [RECEIVE, TRANSMIT, super::EVENT] {
                        self.stop_queue(index, watch);
                    }
                    self.is_broken = false;
                    self.muxer.forget_guest();
                    let _ = answer.send(());
                }
            }
        }
    }

    fn stop_queue(&mut self, index: u16, watch: &Watch) -> Option<Position> {
        let queue = self.queues.place(index).take()?;
        let position = queue.position();
        queue.forget(watch);
        (!self.is_broken).then_some(position)
    }

    fn work(&mut self) {
        if self.is_broken {
            // Connections of a guest that nobody serves any more are not kept waiting.
            if self.muxer.look_outside(false) {
                self.heard.ring();
            }
            return;
        }
        let more = self.muxer.look_outside(self.queues.is_live());
        match self.turn() {
            Ok(false) if !more => {}
            // The others get their turn first.
            Ok(_) => self.heard.ring(),
            Err(_) => {
                self.is_broken = true;
                self.muxer.forget_guest();
                self.heard.distress.raise();
            }
        }
    }

    /// Everything that can be done now, up to a share. `true`: there is more.
    fn turn(&mut self) -> Result<bool, Broken> {
        let Queues { receive: Some(receive), transmit: Some(transmit), .. } = &mut self.queues else {
            return Ok(false);
        };
        let mut more = self.muxer.hear(transmit)?;
        more |= self.muxer.speak(receive)?;
        // What came into the queue meanwhile is looked at, where there is use for it.
        more |= transmit.settle()? && !self.muxer.is_full();
        more |= receive.settle()? && self.muxer.has_word();
        Ok(more)
    }
}

impl Handler for VsockHandler {
    fn start(&mut self, watch: &Watch) {
        // An eventfd and an epoll can be watched as long as the kernel has memory.
        let _ = watch.add_event(&self.heard.bell);
        let _ = watch.add(self.muxer.events());
    }

    fn ready(&mut self, watch: &Watch) {
        self.obey(watch);
        self.work();
    }

    fn finish(&mut self) {
        let deadline = Instant::now() + LAST_WORDS;
        while !self.is_broken && matches!(self.turn(), Ok(true)) && Instant::now() < deadline {}
        loop {
            self.muxer.look_outside(false);
            let left = deadline.saturating_duration_since(Instant::now());
            let mut waits: Vec<PollFd<'_>> = self
                .muxer
                .waiting_for_outside()
                .map(|connection| PollFd::new(&connection.stream, PollFlags::OUT))
                .collect();
            if waits.is_empty() || left.is_zero() {
                return;
            }
            let left = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos() as _ };
            if poll(&mut waits, Some(&left)).is_err() {
                return;
            }
        }
    }
}
