//! What a thread that waits is told of beside its operations, whether it waits in a ring or in epoll: edges, told once each.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vmm_sys_util::eventfd::EventFd;

use crate::eventfd;

/// A descriptor, and what of it is told. A file that is to be watched twice is given by two descriptors.
#[derive(Debug)]
pub enum Watched {
    /// Each write of it rings, and a count that it already holds. It is never read.
    Bell(EventFd),
    /// There is something to read, or the other side has closed; told again when there is more.
    Readable(OwnedFd),
    /// There is room to write; told again when there is more.
    Writable(OwnedFd),
}

impl Watched {
    /// As poll(2) has it.
    pub(super) fn events(&self) -> u32 {
        let events = match self {
            Watched::Bell(_) => libc::POLLIN,
            Watched::Readable(_) => libc::POLLIN | libc::POLLRDHUP,
            Watched::Writable(_) => libc::POLLOUT,
        };
        events as u32
    }
}

impl From<EventFd> for Watched {
    fn from(bell: EventFd) -> Watched {
        Watched::Bell(bell)
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Watched::Bell(bell) => eventfd::borrowed(bell),
            Watched::Readable(file) | Watched::Writable(file) => file.as_fd(),
        }
    }
}
