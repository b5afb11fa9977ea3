//! Unix sockets in the record of a run, however long its path is: sun_path ends at 108 bytes.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// What `control.rs` serves.
pub const CONTROL: &str = "control.sock";
/// What `console/` serves.
pub const CONSOLE: &str = "console.sock";
/// Where connections to the guest begin: say `CONNECT port` and a line's end, and read `OK`.
pub const VSOCK: &str = "vsock.sock";

/// Listens at `name` in the record of this process's own run; what a dead run left there goes.
pub fn listen(directory: &Path, name: &str) -> io::Result<UnixListener> {
    clear(directory, name)?;
    let (_keep, path) = short_path(directory, name)?;
    let listener = UnixListener::bind(&path)?;
    // Who may write to the socket may connect.
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Has `name` lead to a socket that is another's.
pub fn lead(directory: &Path, name: &str, to: &Path) -> io::Result<()> {
    clear(directory, name)?;
    symlink(to, directory.join(name))
}

fn clear(directory: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let (_keep, path) = short_path(directory, name)?;
    UnixStream::connect(path)
}

/// A path by way of an open directory, which must stay open while the path is used.
fn short_path(directory: &Path, name: &str) -> io::Result<(File, PathBuf)> {
    let opened = File::open(directory)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd()));
    Ok((opened, path))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_socket_is_reached_below_a_path_too_long_for_one_and_a_stale_one_is_no_hindrance() {
        let keep = tempfile::tempdir().unwrap();
        let directory = keep.path().join("d".repeat(200));
        fs::create_dir(&directory).unwrap();
        for _ in 0..2 {
            let listener = listen(&directory, VSOCK).unwrap();
            let mut ours = connect(&directory, VSOCK).unwrap();
            let (mut theirs, _) = listener.accept().unwrap();
            ours.write_all(b"x").unwrap();
            theirs.read_exact(&mut [0]).unwrap();
            lead(&directory, CONSOLE, &directory.join(VSOCK)).unwrap();
            connect(&directory, CONSOLE).unwrap();
        }
        assert!(connect(&directory, CONTROL).is_err());
    }
}
