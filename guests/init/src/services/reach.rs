//! Whether somebody takes connections: at a path, or at a port of the loopback interface. Never waited for; the one
//! connection that is made is dropped at once.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt::socket_error,
};

/// On the loopback interface both sides are this machine: it answers at once, unless a CPU has much to do.
const ANSWER: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

pub(super) fn unix(path: &Path) -> bool {
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // A queue that is full is refused as EAGAIN: somebody listens, but does not take it.
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .is_ok_and(|socket| connect(&socket, &address).is_ok())
}

pub(super) fn tcp(port: u16) -> bool {
    tcp_at(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        || tcp_at(SocketAddr::from((Ipv6Addr::LOCALHOST, port)))
}

fn tcp_at(address: SocketAddr) -> bool {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(socket) = socket_with(family, SocketType::STREAM, flags, None) else { return false };
    match connect(&socket, &address) {
        Ok(()) => true,
        Err(Errno::INPROGRESS) => {
            let mut answered = [PollFd::new(&socket, PollFlags::OUT)];
            matches!(poll(&mut answered, Some(&ANSWER)), Ok(1)) && matches!(socket_error(&socket), Ok(Ok(())))
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_is_reached_while_somebody_listens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        assert!(!unix(&path));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(unix(&path));
        drop(listener);
        assert!(!unix(&path), "a socket that nobody has open any more");
        assert!(!unix(Path::new(&"x".repeat(200))));
    }

    #[test]
    fn a_port_is_reached_while_somebody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(tcp(port));
        drop(listener);
        assert!(!tcp(port));
    }
}
