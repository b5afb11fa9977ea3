//! An eventfd as a borrowed descriptor, for the polls that take one.

// UNSAFETY: vmm-sys-util's EventFd gives its descriptor only as a number.
#![allow(unsafe_code, reason = "BorrowedFd::borrow_raw of an EventFd's descriptor")]

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

pub fn borrowed(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` lives, and the borrow of `event` lasts as long as the result does.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
