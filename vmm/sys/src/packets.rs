//! Packets between guest memory and what carries them, a tap device or a stream socket: one system call for each list of
//! pieces, none of which waits.

// UNSAFETY: no safe interface reads or writes memory that the guest shares.
#![allow(unsafe_code, reason = "readv, writev and sendmsg on guest memory")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use libc::iovec;

use crate::segments::GuestBuffers;

/// A part of what is sent.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    Own(&'a [u8]),
    Guest(&'a GuestBuffers),
}

/// Room for the pieces of one system call, kept for the next. The kernel takes no more than
/// [`MOST_SEGMENTS`](crate::segments::MOST_SEGMENTS) pieces and refuses longer lists.
#[derive(Debug, Default)]
pub struct Vectors(Vec<iovec>);

// SAFETY: between two calls the list is empty: each call fills it from what it borrows, and empties it before it returns.
unsafe impl Send for Vectors {}

impl Vectors {
    /// sendmsg(2) that neither waits nor raises SIGPIPE. The bytes that the socket took, from the front.
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        pieces: impl IntoIterator<Item = Piece<'a>>,
    ) -> io::Result<usize> {
        self.with(pieces, |list| {
            // SAFETY: zeros are a message without address, pieces, control data and flags.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            (message.msg_iov, message.msg_iovlen) = (list.as_mut_ptr(), list.len());
            let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            // SAFETY: `message` names `list` alone, whose pieces `with` keeps borrowed for the whole call.
            unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) }
        })
    }

    /// writev(2), of one packet for a file that takes packets.
    pub fn write<'a>(
        &mut self,
        file: BorrowedFd<'_>,
        pieces: impl IntoIterator<Item = Piece<'a>>,
    ) -> io::Result<usize> {
        self.with(pieces, |list| {
            // SAFETY: the pieces are memory that `with` keeps borrowed for the whole call.
            unsafe { libc::writev(file.as_raw_fd(), list.as_ptr(), list.len() as i32) }
        })
    }

    /// readv(2) into `guest` and then into `spill`: of one packet from a file that gives packets. The bytes that were read.
    pub fn read<'a>(
        &mut self,
        file: BorrowedFd<'_>,
        guest: impl IntoIterator<Item = &'a GuestBuffers>,
        spill: &mut [u8],
    ) -> io::Result<usize> {
        let spill = iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() };
        self.with(guest.into_iter().map(Piece::Guest), |list| {
            list.push(spill);
            // SAFETY: the pieces are guest memory, which may change at any time, that `with` keeps borrowed for the whole
            // call, and `spill`, which this function has for itself.
            unsafe { libc::readv(file.as_raw_fd(), list.as_ptr(), list.len() as i32) }
        })
    }

    /// Calls with the list of `pieces`, which stay borrowed until it returns, and empties the list.
    fn with<'a>(
        &mut self,
        pieces: impl IntoIterator<Item = Piece<'a>>,
        call: impl FnOnce(&mut Vec<iovec>) -> isize,
    ) -> io::Result<usize> {
        self.0.clear();
        for piece in pieces {
            match piece {
                Piece::Own([]) => {}
                Piece::Own(bytes) => {
                    self.0.push(iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
                }
                Piece::Guest(buffers) => self.0.extend_from_slice(buffers.segments()),
            }
        }
        let moved = usize::try_from(call(&mut self.0)).map_err(|_| io::Error::last_os_error());
        self.0.clear();
        moved
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;
    use crate::memory::GuestRam;

    fn buffers(pieces: &[(u64, u32)]) -> (Arc<GuestRam>, GuestBuffers) {
        let ram = Arc::new(GuestRam::from_ranges(&[(GuestAddress(0), 1 << 16)]).unwrap());
        let mut buffers = GuestBuffers::new(&ram);
        pieces.iter().for_each(|(address, len)| buffers.push(*address, *len).unwrap());
        (ram, buffers)
    }

    #[test]
    fn what_is_sent_is_the_pieces_in_their_order() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let (ram, guest) = buffers(&[(0x1000, 3), (0x2000, 2)]);
        ram.write_slice(b"abc", GuestAddress(0x1000)).unwrap();
        ram.write_slice(b"de", GuestAddress(0x2000)).unwrap();
        let mut vectors = Vectors::default();
        let pieces = [Piece::Own(b"<"), Piece::Guest(&guest), Piece::Own(b""), Piece::Own(b">")];
        assert_eq!(vectors.send(ours.as_fd(), pieces).unwrap(), 7);
        assert_eq!(vectors.write(ours.as_fd(), pieces).unwrap(), 7);
        let mut found = [0; 14];
        theirs.read_exact(&mut found).unwrap();
        assert_eq!(&found, b"<abcde><abcde>");
        drop(theirs);
        let error = vectors.send(ours.as_fd(), pieces).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "and no signal");
    }

    #[test]
    fn what_the_guest_has_no_room_for_is_spilled() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let (ram, guest) = buffers(&[(0x1000, 3), (0x2000, 2)]);
        theirs.write_all(b"abcdefg").unwrap();
        let (mut vectors, mut spill) = (Vectors::default(), [0; 16]);
        assert_eq!(vectors.read(ours.as_fd(), [&guest], &mut spill).unwrap(), 7);
        assert_eq!(ram.read_obj::<[u8; 4]>(GuestAddress(0x1000)).unwrap(), *b"abc\0");
        assert_eq!(ram.read_obj::<[u8; 3]>(GuestAddress(0x2000)).unwrap(), *b"de\0");
        assert_eq!(&spill[..3], b"fg\0");
    }
}
