//! Files that stay open while this process goes on as another program, and are found there again by their numbers.

// UNSAFETY: what a number of a file stands for, and who owns it, is not the compiler's to know.
#![allow(unsafe_code, reason = "an owned file is made of a number")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};

/// Above those that every program has.
const FIRST: RawFd = 3;

/// Leaves `file` open over the next exec, and says what it is called then.
pub fn leave_open(file: BorrowedFd<'_>) -> io::Result<RawFd> {
    fcntl_setfd(file, FdFlags::empty())?;
    Ok(file.as_raw_fd())
}

/// Takes what the program before had left open: to be called once for each number, before this one opens anything. It is not
/// left open again.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST {
        return Err(Errno::BADF.into());
    }
    // SAFETY: the number is looked at and nothing else: what is not open, the kernel says so.
    let flags = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // What this program opened itself, or has taken already, would end with an exec.
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(Errno::BADF.into());
    }
    // SAFETY: it is open, as the kernel has just said. Nobody here owns it: what this program opens ends with an exec, and the
    // standard streams, which the library knows by their numbers, are not taken.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(file.as_fd(), FdFlags::CLOEXEC)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_file_that_was_left_open_is_read_by_its_number_and_not_left_open_again() {
        let file = File::open("/proc/self/comm").unwrap();
        let number = leave_open(file.as_fd()).unwrap();
        assert_eq!(fcntl_getfd(&file).unwrap(), FdFlags::empty());
        assert_eq!(file.into_raw_fd(), number);
        let taken = take(number).unwrap();
        assert_eq!(fcntl_getfd(&taken).unwrap(), FdFlags::CLOEXEC);
        assert!(take(number).is_err(), "once");
        let mut text = String::new();
        File::from(taken).read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
    }

    #[test]
    fn what_is_not_open_and_the_standard_streams_are_not_taken() {
        for number in [-1, 0, 2, 1 << 20] {
            assert_eq!(take(number).unwrap_err().raw_os_error(), Some(Errno::BADF.raw_os_error()));
        }
    }
}
