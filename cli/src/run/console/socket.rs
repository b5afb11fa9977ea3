//! Where a run's console is reached: `console.sock` in its record.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::run::control::short_path;

/// Its name in the record.
pub const SOCKET: &str = "console.sock";

/// Whoever accepts hands each stream to a [`super::server::Console`], or relays its bytes to where one is.
pub fn bind(directory: &Path) -> io::Result<UnixListener> {
    let (_keep, path) = short_path(directory, SOCKET)?;
    let listener = UnixListener::bind(&path)?;
    // Who may write to the socket may connect.
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub fn connect(directory: &Path) -> io::Result<UnixStream> {
    let (_keep, path) = short_path(directory, SOCKET)?;
    UnixStream::connect(path)
}
