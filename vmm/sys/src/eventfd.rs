//! Eventfds as other interfaces want them: borrowed for the polls that take descriptors, and adopted from another process.

// UNSAFETY: vmm-sys-util's EventFd gives and takes its descriptor only as a number.
#![allow(unsafe_code, reason = "an EventFd's descriptor borrowed, adopted and redirected by its number")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, IntoRawFd as _};

use vmm_sys_util::eventfd::EventFd;

pub fn borrowed(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` lives, and the borrow of `event` lasts as long as the result does.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Takes a file that another process sent as an eventfd. One that is something else is refused: polling or writing it could
/// fail, wait or do anything.
pub fn adopt(file: File) -> io::Result<EventFd> {
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()), Vec::new())?;
    if link.as_bytes() != b"anon_inode:[eventfd]" {
        let found = link.to_string_lossy().into_owned();
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{found} is no eventfd")));
    }
    // SAFETY: `into_raw_fd` gives the descriptor away, and the EventFd is its only owner from here on.
    Ok(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}

/// From now on whoever writes `event` writes `to`: threads that use `event` meanwhile reach one or the other, and need not be
/// told or stopped.
pub fn redirect(event: &EventFd, to: &EventFd) -> io::Result<()> {
    // SAFETY: both descriptors are open; `event` stays open under its number, as its users rely on.
    let result = unsafe { libc::dup3(to.as_raw_fd(), event.as_raw_fd(), libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn eventfd() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn only_an_eventfd_is_adopted() {
        let event = eventfd();
        let sent = File::from(borrowed(&event).try_clone_to_owned().unwrap());
        adopt(sent).unwrap().write(3).unwrap();
        assert_eq!(event.read().unwrap(), 3);
        let error = adopt(File::open("/dev/null").unwrap()).unwrap_err();
        assert!(error.to_string().contains("/dev/null is no eventfd"), "{error}");
    }

    #[test]
    fn a_write_goes_where_it_was_redirected_last() {
        let (ours, first, second) = (eventfd(), eventfd(), eventfd());
        redirect(&ours, &first).unwrap();
        ours.write(1).unwrap();
        redirect(&ours, &second).unwrap();
        ours.write(2).unwrap();
        assert_eq!((first.read().unwrap(), second.read().unwrap()), (1, 2));
        drop(first);
        drop(second);
        ours.write(1).unwrap();
    }
}
