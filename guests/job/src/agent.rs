//! What travels over a connection to a guest's agent: the part of vmprof's first process that does things on demand. The
//! guest listens on virtio-vsock's port [`PORT`], and serves one request a connection.
//!
//! Everything is a [`Frame`]: a kind, a length, bytes. The outside begins with [`Kind::Ask`], the guest answers with
//! [`Kind::Answer`]; what follows depends on what was asked.

mod copy;
mod frame;

use serde::{Deserialize, Serialize};

pub use copy::{CopyError, Target, receive, send};
pub use frame::{Frame, Kind, MOST_PAYLOAD, Stream};

use crate::Bytes;

/// The guest's port: `VMP` as a number.
pub const PORT: u32 = 0x56_4d50;
/// The version of all this, which both sides must have. What one side would pass over, such as a user whom an older guest does
/// not know to become, makes it another.
pub const VERSION: u32 = 2;
/// How much of a command's input may be on its way: what is sent beyond that waits for [`Kind::Taken`].
pub const INPUT_WINDOW: u32 = 256 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    pub version: u32,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Run a command. To the guest go [`Kind::Input`], [`Kind::InputEnded`], [`Kind::Signal`] and [`Kind::Resize`]; back
    /// come [`Kind::Output`], [`Kind::Errors`], [`Kind::Taken`], and last [`Kind::Ended`].
    Exec(Exec),
    /// Send what lies at this path: the answer says what that is, and [`send`] is what follows.
    Fetch { path: Bytes },
    /// Take what the outside sends, as [`receive`] does; the answer to it comes last.
    Store { path: Bytes, item: Item },
    /// Connect to this Unix socket: after the answer the connection is that socket's, without frames.
    Connect { path: Bytes },
}

/// A command, and what it finds around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    pub argv: Vec<Bytes>,
    /// Beside what every command of this guest has.
    pub env: Vec<(Bytes, Bytes)>,
    /// Where it runs; `None`: where CMD would.
    pub directory: Option<Bytes>,
    /// `USER` or `USER:GROUP`, names or numbers, as the guest's /etc/passwd and /etc/group have them; `None`: root, with
    /// nothing looked up. Without `directory` it runs in the user's home.
    pub user: Option<String>,
    /// It gets a terminal of this kind and size, on which input, output and errors are one.
    pub terminal: Option<Terminal>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    pub rows: u16,
    pub columns: u16,
    /// Its `TERM`.
    pub term: String,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// The last part of its path, by which it goes into a directory.
    pub name: Bytes,
    pub is_directory: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is being done.
    Begun,
    /// This is what will be sent.
    Sends(Item),
    /// It has been received, all of it. So many files and directories, so many bytes.
    Stored { items: u64, bytes: u64 },
    /// It cannot be done, and was not begun, or not finished.
    Refused(String),
}

/// The end of what [`send`] sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// What was left out, since it is no file, directory or symbolic link.
    pub skipped: Vec<String>,
    /// Why the rest could not be read.
    pub failed: Option<String>,
}
