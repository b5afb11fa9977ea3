//! Between the two halves of a device that is no IOThread's: the one that the transport calls, on vCPU threads, and the one that
//! serves its queues on an event loop. The first orders, the second obeys; one that has ended has dropped its queues.

use std::io;
use std::sync::{Arc, mpsc};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmprof_sys::vring::Position;

use super::device::{ActivateError, ActiveQueue};
use super::distress::Distress;

#[derive(Debug)]
pub(crate) enum Order {
    Start(Vec<ActiveQueue>),
    /// Drop one queue, and answer where its ring stands.
    StopQueue(u16, mpsc::Sender<Option<Position>>),
    /// Drop all queues, then answer.
    Stop(mpsc::Sender<()>),
}

/// The transport's half.
#[derive(Debug)]
pub(crate) struct Orders {
    orders: mpsc::Sender<Order>,
    bell: EventFd,
    distress: Arc<Distress>,
}

/// The event loop's half.
#[derive(Debug)]
pub(crate) struct Heard {
    orders: mpsc::Receiver<Order>,
    /// Rung for orders, and by the handler itself when a turn left something undone.
    pub(crate) bell: EventFd,
    pub(crate) distress: Arc<Distress>,
}

pub(crate) fn pair() -> io::Result<(Orders, Heard)> {
    let bell = EventFd::new(EFD_NONBLOCK)?;
    let (orders, heard) = mpsc::channel();
    let distress = Arc::<Distress>::default();
    let heard = Heard { orders: heard, bell: bell.try_clone()?, distress: distress.clone() };
    Ok((Orders { orders, bell, distress }, heard))
}

impl Orders {
    /// `device` is its name.
    pub(crate) fn start(&self, device: &str, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        let queue = queues.first().map_or(0, |queue| queue.index);
        if self.send(Order::Start(queues)) {
            return Ok(());
        }
        let reason = "the thread that serves it has ended".to_owned();
        Err(ActivateError { device: device.to_owned(), queue, reason })
    }

    pub(crate) fn stop_queue(&self, index: u16) -> Option<Position> {
        let (answer, answered) = mpsc::channel();
        self.send(Order::StopQueue(index, answer)).then(|| answered.recv().ok()).flatten().flatten()
    }

    /// Returns when every queue has been dropped.
    pub(crate) fn stop(&self) {
        let (answer, answered) = mpsc::channel();
        if self.send(Order::Stop(answer)) {
            // A thread that ends before it answers drops the queues as it goes.
            let _ = answered.recv();
        }
    }

    pub(crate) fn distress(&self) -> Arc<Distress> {
        self.distress.clone()
    }

    fn send(&self, order: Order) -> bool {
        let heard = self.orders.send(order).is_ok();
        ring(&self.bell);
        heard
    }
}

impl Heard {
    pub(crate) fn next(&self) -> Option<Order> {
        self.orders.try_recv().ok()
    }

    /// Another turn, once the others have had theirs.
    pub(crate) fn ring(&self) {
        ring(&self.bell);
    }
}

fn ring(bell: &EventFd) {
    // A counter that is full has been rung.
    let _ = bell.write(1);
}
