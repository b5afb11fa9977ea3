//! The socket that clients connect to: a path that belongs to one server at a time, and that is gone when the server is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::error::SocketError;

/// unix(7): what `sun_path` holds beside the byte that ends it.
const LONGEST_PATH: usize = 107;

/// A socket that listens.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Which file is ours, whatever stands at the path later.
    identity: Option<(u64, u64)>,
}

impl Socket {
    /// Listens at `path`. What a server that died left there is replaced; anything else that is there stays.
    pub(super) fn bind(path: &Path) -> Result<Socket, SocketError> {
        let owned = || path.to_owned();
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(SocketError::TooLong { path: owned(), most: LONGEST_PATH });
        }
        let bound = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                clear(path)?;
                UnixListener::bind(path)
            }
            bound => bound,
        };
        let listener = bound.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SocketError::NoDirectory { path: owned() },
            _ => SocketError::Bind { path: owned(), source },
        })?;
        let socket = Socket { identity: identity(path), listener, path: owned() };
        let nonblocking = socket.listener.set_nonblocking(true);
        nonblocking.map_err(|source| SocketError::Bind { path: owned(), source })?;
        Ok(socket)
    }

    /// Who has connected and was not taken yet, if anyone.
    pub(super) fn accept(&self) -> Option<UnixStream> {
        // One that went away before it was taken is nobody; the kernel's lack of something passes.
        self.listener.accept().ok().map(|(stream, _)| stream)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another server may have put its own there, should someone have removed ours.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Removes the socket of a server that is gone: nobody listens there, so nobody misses it.
fn clear(path: &Path) -> Result<(), SocketError> {
    let refused = |source| SocketError::Bind { path: path.to_owned(), source };
    let kind = std::fs::symlink_metadata(path).map_err(refused)?.file_type();
    if !kind.is_socket() {
        return Err(SocketError::NoSocket { path: path.to_owned() });
    }
    // A server whose queue of clients is full would have a blocking connect wait.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let asking = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|errno| refused(errno.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|errno| refused(errno.into()))?;
    match connect(&asking, &address) {
        Ok(()) | Err(Errno::AGAIN) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(refused),
        // Gone by itself just now.
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(refused(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_there_while_the_server_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = Socket::bind(&path).unwrap();
        assert!(socket.accept().is_none());
        let _client = UnixStream::connect(&path).unwrap();
        assert!(socket.accept().is_some());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn the_socket_of_a_dead_server_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        // Closed without being unlinked, as a process that was killed leaves it.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = Socket::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(socket);
    }

    #[test]
    fn the_socket_of_a_living_server_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let first = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        UnixStream::connect(&path).unwrap();
        drop(first);
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::NoSocket { .. }), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let error = Socket::bind(directory.path()).unwrap_err();
        assert!(matches!(error, SocketError::NoSocket { .. }), "{error}");
    }

    #[test]
    fn a_path_that_cannot_be_is_refused_with_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let error = Socket::bind(&directory.path().join("missing/s")).unwrap_err();
        assert!(matches!(error, SocketError::NoDirectory { .. }), "{error}");
        let error = Socket::bind(&directory.path().join("s".repeat(108))).unwrap_err();
        assert!(matches!(error, SocketError::TooLong { .. }), "{error}");
    }

    #[test]
    fn a_socket_that_another_put_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = Socket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
