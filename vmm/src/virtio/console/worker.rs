//! The console on the emulator thread: it owns the ports, and the queues while the device is live.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::control::{FromDriver, HEADER_BYTES, ToDriver};
use super::port::{Port, PortQueues, Progress};
use super::{CONTROL_RECEIVE, CONTROL_TRANSMIT, FIRST_PORT, port_of_queue};
use crate::emulator::{Handler, Watch};
use crate::virtio::device::ActiveQueue;
use crate::virtio::orders::{Heard, Order};
use crate::virtio::queue::{Broken, Queue};

/// Chains of one queue in one turn, so that no guest keeps the thread to itself.
const SHARE: usize = 64;
/// How long the outside may take for what the guest wrote before it stopped.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub struct ConsoleHandler {
    heard: Heard,
    ports: Vec<Port>,
    phase: Phase,
}

impl std::fmt::Debug for ConsoleHandler {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("ConsoleHandler").field("ports", &self.ports).finish_non_exhaustive()
    }
}

enum Phase {
    Idle,
    Live(Live),
    /// The driver broke a queue: all are kept, unserved, for the reset that must come.
    Broken(Live),
}

/// What there is only while the driver has the device.
#[derive(Default)]
struct Live {
    to_driver: Option<Queue>,
    from_driver: Option<Queue>,
    /// By port, as `ports`.
    queues: Vec<PortQueues>,
    /// Port 0 is the console that the device does not have; its queues are kept and left alone.
    spare: PortQueues,
    /// Messages for which the driver had no room.
    pending: VecDeque<ToDriver>,
}

impl ConsoleHandler {
    pub(super) fn new(heard: Heard, ports: Vec<Port>) -> ConsoleHandler {
        ConsoleHandler { heard, ports, phase: Phase::Idle }
    }

    fn obey(&mut self, watch: &Watch) {
        while let Some(order) = self.heard.next() {
            match order {
                Order::Start(queues) => self.phase = Phase::Live(Live::new(queues, self.ports.len(), watch)),
                Order::StopQueue(_, answer) => drop(answer.send(None)),
                Order::Stop(answer) => {
                    self.stop(watch);
                    // Whoever asked may have gone.
                    let _ = answer.send(());
                }
            }
        }
    }

    fn stop(&mut self, watch: &Watch) {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Idle => {}
            Phase::Live(live) | Phase::Broken(live) => live.queues().for_each(|queue| queue.forget(watch)),
        }
        self.ports.iter_mut().for_each(Port::reset);
    }

    fn work(&mut self) {
        let Phase::Live(live) = &mut self.phase else { return };
        match live.turn(&mut self.ports) {
            Ok(false) => {}
            // The others get their turn first.
            Ok(true) => self.heard.ring(),
            Err(_) => {
                if let Phase::Live(live) = std::mem::replace(&mut self.phase, Phase::Idle) {
                    self.phase = Phase::Broken(live);
                }
                self.heard.distress.raise();
            }
        }
    }
}

impl Handler for ConsoleHandler {
    fn start(&mut self, watch: &Watch) {
        // These are sockets and an eventfd, which can be watched as long as the kernel has memory.
        let _ = watch.add_event(&self.heard.bell);
        for port in &self.ports {
            let _ = watch.add(port.stream());
        }
    }

    fn ready(&mut self, watch: &Watch) {
        self.obey(watch);
        self.work();
    }

    fn finish(&mut self) {
        let Phase::Live(live) = &mut self.phase else { return };
        let deadline = Instant::now() + LAST_WORDS;
        for (port, queues) in self.ports.iter_mut().zip(&mut live.queues) {
            if let Some(queue) = &mut queues.transmit {
                // A queue that is broken has no last words.
                let _ = port.drain(queue, deadline);
            }
        }
    }
}

impl Live {
    fn new(queues: Vec<ActiveQueue>, ports: usize, watch: &Watch) -> Live {
        let mut live =
            Live { queues: (0..ports).map(|_| PortQueues::default()).collect(), ..Live::default() };
        for active in queues {
            let index = active.index;
            let queue = Queue::new(active, watch);
            match index {
                CONTROL_RECEIVE => live.to_driver = Some(queue),
                CONTROL_TRANSMIT => live.from_driver = Some(queue),
                _ => {
                    let (port, transmits) = port_of_queue(index);
                    let place = match port.checked_sub(FIRST_PORT) {
                        Some(position) => live.queues.get_mut(position as usize),
                        None => Some(&mut live.spare),
                    };
                    if let Some(place) = place {
                        let side = if transmits { &mut place.transmit } else { &mut place.receive };
                        *side = Some(queue);
                    }
                }
            }
        }
        live
    }

    fn queues(self) -> impl Iterator<Item = Queue> {
        let ports =
            self.queues.into_iter().chain([self.spare]).flat_map(|port| [port.receive, port.transmit]);
        [self.to_driver, self.from_driver].into_iter().chain(ports).flatten()
    }

    /// Everything that can be done now, up to a share. `true`: there is more.
    fn turn(&mut self, ports: &mut [Port]) -> Result<bool, Broken> {
        let mut more = self.listen(ports)?;
        for (port, queues) in ports.iter_mut().zip(&mut self.queues) {
            if let Some(queue) = &mut queues.transmit {
                let progress = port.transmit(queue, SHARE)?;
                // What is there by now is looked at, unless the port waits for the outside.
                more |= queue.settle()? && !port.waits_for_outside();
                more |= progress == Progress::More;
            }
            if let Some(queue) = &mut queues.receive {
                let progress = port.receive(queue, SHARE)?;
                more |= queue.settle()? && port.waits_for_guest();
                more |= progress == Progress::More;
            }
        }
        for (position, port) in ports.iter_mut().enumerate() {
            if port.take_end() {
                let port = FIRST_PORT + position as u32;
                self.pending.push_back(ToDriver::PortOpen { port, open: false });
            }
        }
        let was_full = self.is_full();
        self.speak()?;
        // Room again: what the driver says can be heard again.
        Ok(more | (was_full && !self.is_full()))
    }

    /// So much is pending that the driver has to take some of it before it is heard again.
    fn is_full(&self) -> bool {
        self.pending.len() >= 4 * (self.queues.len() + 1)
    }

    /// Takes the driver's messages, as long as there is room for what follows from them.
    fn listen(&mut self, ports: &mut [Port]) -> Result<bool, Broken> {
        for _ in 0..SHARE {
            let full = self.is_full();
            let Some(queue) = &mut self.from_driver else { return Ok(false) };
            if full {
                queue.settle()?;
                return Ok(false);
            }
            let Some(mut taken) = queue.take(false)? else { break };
            let mut bytes = [0; HEADER_BYTES];
            let count = taken.buffers.take_front(&mut bytes);
            queue.give_back(taken.head, 0);
            let message = FromDriver::parse(bytes.get(..count).unwrap_or_default());
            answer(message, ports, &mut self.pending);
        }
        self.from_driver.as_mut().map_or(Ok(false), Queue::settle)
    }

    /// Gives the driver what is pending, one buffer a message.
    fn speak(&mut self) -> Result<(), Broken> {
        let Some(queue) = &mut self.to_driver else { return Ok(()) };
        loop {
            while let Some(message) = self.pending.front() {
                let Some(mut taken) = queue.take(true)? else { break };
                let count = taken.buffers.fill_front(&message.bytes());
                queue.give_back(taken.head, count as u32);
                self.pending.pop_front();
            }
            if !queue.settle()? || self.pending.is_empty() {
                return Ok(());
            }
        }
    }
}

/// virtio 1.3, 5.3.6.2: what the device says when the driver says something.
fn answer(message: FromDriver, ports: &mut [Port], pending: &mut VecDeque<ToDriver>) {
    match message {
        FromDriver::DeviceReady(true) => {
            pending.extend((FIRST_PORT..).take(ports.len()).map(|port| ToDriver::PortAdd { port }));
        }
        FromDriver::PortReady { port: id, ready: true } => {
            let Some(port) = at(ports, id) else { return };
            port.known = true;
            pending.push_back(ToDriver::PortName { port: id, name: port.name.clone() });
            if port.is_outside_open() {
                pending.push_back(ToDriver::PortOpen { port: id, open: true });
            }
        }
        FromDriver::PortOpen { port, open } => {
            if let Some(port) = at(ports, port) {
                port.guest_open = open;
            }
        }
        FromDriver::DeviceReady(false) | FromDriver::PortReady { .. } | FromDriver::Other => {}
    }
}

fn at(ports: &mut [Port], id: u32) -> Option<&mut Port> {
    ports.get_mut(id.checked_sub(FIRST_PORT)? as usize)
}
