//! The thread `vmprof`: one event loop for every device that is no IOThread's. Whatever has descriptors to watch is a
//! [`Handler`]; the loop tells it when one of them has something new and leaves the rest to it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, mpsc};

use rustix::event::epoll;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmprof_sys::eventfd;

use crate::config::Cpus;
use crate::exit::Exit;
use crate::thread::{self, Thread, ThreadError};
use crate::vcpu::PanicReport;

pub const THREAD_NAME: &str = "vmprof";
const ORDERS: u64 = u64::MAX;
const MOST_EVENTS: usize = 32;

/// Something that lives on the emulator thread.
pub trait Handler: Send {
    /// The loop begins: watch what there is to watch.
    fn start(&mut self, watch: &Watch);
    /// Something that is watched changed. All that can be done without waiting is done now, since a change is told once.
    fn ready(&mut self, watch: &Watch);
    /// The guest has stopped for good: bring what it already gave us to where it belongs.
    fn finish(&mut self);
}

/// Lets one handler say what it wants to hear of.
#[derive(Debug)]
pub struct Watch {
    epoll: Arc<OwnedFd>,
    handler: u64,
}

impl Watch {
    /// Tells of everything that newly becomes possible on `fd`, until it is closed or forgotten. `false`: this kind of file
    /// is always ready and cannot be watched.
    pub fn add(&self, fd: impl AsFd) -> io::Result<bool> {
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        self.register(fd, flags)
    }

    /// Like [`add`](Self::add), for an eventfd that others signal.
    pub fn add_event(&self, event: &EventFd) -> io::Result<bool> {
        self.register(eventfd::borrowed(event), epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    pub fn forget(&self, fd: impl AsFd) {
        // What is not watched needs no forgetting.
        let _ = epoll::delete(&self.epoll, fd);
    }

    pub fn forget_event(&self, event: &EventFd) {
        self.forget(eventfd::borrowed(event));
    }

    fn register(&self, fd: impl AsFd, flags: epoll::EventFlags) -> io::Result<bool> {
        match epoll::add(&self.epoll, fd, epoll::EventData::new_u64(self.handler), flags) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::PERM) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// For a handler without the thread.
#[cfg(any(test, feature = "fuzzing"))]
impl Watch {
    pub(crate) fn alone() -> io::Result<Watch> {
        Ok(Watch { epoll: Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?), handler: 0 })
    }

    /// Whether something that is watched has changed since this was asked last.
    pub(crate) fn has_news(&self) -> bool {
        let mut events = Vec::with_capacity(MOST_EVENTS);
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&now));
        !events.is_empty()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    #[error("the emulator thread's event loop could not be made")]
    Loop(#[source] io::Error),
    #[error(transparent)]
    Thread(#[from] ThreadError),
}

/// The running thread.
#[derive(Debug)]
pub struct Emulator {
    name: String,
    tid: i32,
    /// `None` once it has been stopped.
    thread: Option<Thread<()>>,
    orders: mpsc::Sender<Order>,
    bell: EventFd,
}

#[derive(Debug)]
enum Order {
    /// Have every handler finish, then answer.
    Finish(mpsc::Sender<()>),
    Stop,
}

impl Emulator {
    /// Starts the thread; should it break down, `ends` hears of it.
    pub fn start(
        cpus: &Cpus,
        handlers: Vec<Box<dyn Handler>>,
        ends: mpsc::Sender<Exit>,
    ) -> Result<Emulator, EmulatorError> {
        let made = |errno: rustix::io::Errno| EmulatorError::Loop(errno.into());
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(made)?);
        let bell = EventFd::new(EFD_NONBLOCK).map_err(EmulatorError::Loop)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, eventfd::borrowed(&bell), epoll::EventData::new_u64(ORDERS), flags)
            .map_err(made)?;
        let (orders, heard) = mpsc::channel();
        let thread = thread::spawn(THREAD_NAME, cpus, move || {
            let _report = PanicReport { thread: THREAD_NAME.to_owned(), ends };
            Turning { epoll, handlers, orders: heard }.turn();
        })?;
        let (name, tid) = (thread.name.clone(), thread.tid);
        Ok(Emulator { name, tid, thread: Some(thread), orders, bell })
    }

    pub fn thread(&self) -> (String, i32) {
        (self.name.clone(), self.tid)
    }

    /// Has every handler finish; the thread goes on, for devices that are still to be reset.
    pub fn finish(&self) {
        let (answer, answered) = mpsc::channel();
        self.order(Order::Finish(answer));
        // A thread that broke down finishes nothing, and has said so.
        let _ = answered.recv();
    }

    /// Ends the thread. An error is the text of a panic.
    pub fn stop(mut self) -> Result<(), String> {
        self.end()
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        self.order(Order::Stop);
        thread.join()
    }

    fn order(&self, order: Order) {
        // To a thread that is gone there is nothing to say.
        if self.orders.send(order).is_ok() {
            // A counter that is full has been written, too.
            let _ = self.bell.write(1);
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // Whoever did not stop it does not ask how it ended.
        let _ = self.end();
    }
}

/// The thread's own side.
struct Turning {
    epoll: Arc<OwnedFd>,
    handlers: Vec<Box<dyn Handler>>,
    orders: mpsc::Receiver<Order>,
}

impl Turning {
    fn turn(mut self) {
        for (index, handler) in self.handlers.iter_mut().enumerate() {
            handler.start(&Watch { epoll: self.epoll.clone(), handler: index as u64 });
        }
        let mut events = Vec::with_capacity(MOST_EVENTS);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                // Nothing a guest does leads here; without its event loop the machine cannot go on.
                Err(errno) => panic!("epoll_wait failed: {errno}"),
            }
            let mut told: Vec<u64> = events.iter().map(|event| event.data.u64()).collect();
            told.sort_unstable();
            told.dedup();
            for &index in &told {
                if let Some(handler) = self.handlers.get_mut(index as usize) {
                    handler.ready(&Watch { epoll: self.epoll.clone(), handler: index });
                }
            }
            if told.contains(&ORDERS) && self.obey() {
                return;
            }
        }
    }

    /// `true`: the thread is to end.
    fn obey(&mut self) -> bool {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Finish(answer) => {
                    self.handlers.iter_mut().for_each(|handler| handler.finish());
                    // Whoever asked may have gone.
                    let _ = answer.send(());
                }
                Order::Stop => return true,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bell {
        event: EventFd,
        heard: mpsc::Sender<&'static str>,
    }

    impl Handler for Bell {
        fn start(&mut self, watch: &Watch) {
            assert!(watch.add_event(&self.event).unwrap());
        }
        fn ready(&mut self, _watch: &Watch) {
            self.heard.send("ready").unwrap();
        }
        fn finish(&mut self) {
            self.heard.send("finish").unwrap();
        }
    }

    #[test]
    fn a_handler_hears_of_each_signal_and_of_the_end() {
        let (heard, hears) = mpsc::channel();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let bell = Bell { event: event.try_clone().unwrap(), heard };
        let emulator = Emulator::start(&vec![], vec![Box::new(bell)], mpsc::channel().0).unwrap();
        for _ in 0..3 {
            // Never read back: each write is a change all the same.
            event.write(1).unwrap();
            assert_eq!(hears.recv().unwrap(), "ready");
        }
        emulator.finish();
        emulator.stop().unwrap();
        assert_eq!(hears.iter().collect::<Vec<_>>(), ["finish"]);
    }

    #[test]
    fn a_plain_file_cannot_be_watched_and_says_so() {
        let file = tempfile::tempfile().unwrap();
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        assert!(!Watch { epoll, handler: 0 }.add(&file).unwrap());
    }
}
