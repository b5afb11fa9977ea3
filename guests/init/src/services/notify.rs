//! The socket on which a service says that it is ready (sd_notify(3)): one for each service, so that nobody has to say who
//! they are, and open to nobody but the service's user.

use std::fs::{self, Permissions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::event::PollFlags;
use rustix::io::IoSliceMut;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, UCred, recvmsg};

use crate::cgroups;
use crate::users::Ids;
use crate::wait::Wait;

/// Longer than any message of the protocol.
const MESSAGE: usize = 4096;
/// Messages taken before others have their turn.
const TURN: usize = 16;

#[derive(Debug)]
pub(super) struct Notify {
    socket: OwnedFd,
    pub(super) path: PathBuf,
    uid: u32,
}

/// What one message says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) ready: bool,
    pub(super) status: Option<String>,
}

impl Notify {
    /// `directory` is one that any user may pass through.
    pub(super) fn new(directory: &Path, service: &str, ids: &Ids) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        fs::set_permissions(directory, Permissions::from_mode(0o711))?;
        let path = directory.join(service);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        set_socket_passcred(&socket, true)?;
        // Whose it is already cannot always be given away, and need not.
        if ids.uid != rustix::process::geteuid().as_raw() {
            std::os::unix::fs::chown(&path, Some(ids.uid), Some(ids.gid))?;
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Notify { socket: socket.into(), path, uid: ids.uid })
    }

    /// What the service's own processes have said since.
    pub(super) fn step(&self, cgroup: Option<&Path>) -> Vec<Said> {
        let mut all = Vec::new();
        for _ in 0..TURN {
            let mut bytes = [0; MESSAGE];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            // Descriptors that come along have no room, and are closed by the kernel.
            let received = recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            );
            let Ok(received) = received else { break };
            let sender = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmCredentials(sender) => Some(sender),
                _ => None,
            });
            if sender.is_some_and(|sender| self.is_its_own(sender, cgroup)) {
                all.push(said(bytes.get(..received.bytes).unwrap_or_default()));
            }
        }
        all
    }

    /// By the cgroup while the sender lives; else by the user, whom the kernel vouches for.
    fn is_its_own(&self, sender: UCred, cgroup: Option<&Path>) -> bool {
        let uid = sender.uid.as_raw();
        let inside = cgroup.and_then(|cgroup| cgroups::holds(cgroup, sender.pid.as_raw_nonzero().get()));
        inside.unwrap_or(uid == self.uid || uid == 0)
    }

    pub(super) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        wait.on(self.socket.as_fd(), PollFlags::IN);
    }
}

fn said(message: &[u8]) -> Said {
    let mut said = Said::default();
    for line in message.split(|byte| *byte == b'\n') {
        if line == b"READY=1" {
            said.ready = true;
        } else if let Some(status) = line.strip_prefix(b"STATUS=") {
            said.status = Some(String::from_utf8_lossy(status).into_owned());
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_lines_of_which_two_matter() {
        assert_eq!(
            said(b"STATUS=up\nMAINPID=7\nREADY=1"),
            Said { ready: true, status: Some("up".to_owned()) }
        );
        assert_eq!(said(b"READY=10\nXREADY=1\n"), Said::default());
        assert_eq!(said(b"\xff\0"), Said::default());
    }

    #[test]
    fn what_its_own_user_says_is_heard_and_the_socket_is_only_theirs() {
        let directory = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let ids = Ids { uid, gid: 0, groups: Vec::new() };
        let notify = Notify::new(&directory.path().join("notify"), "db", &ids).unwrap();
        // A second start makes it anew.
        drop(notify);
        let notify = Notify::new(&directory.path().join("notify"), "db", &ids).unwrap();
        assert_eq!(fs::metadata(&notify.path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(notify.step(None), []);
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"READY=1", &notify.path).unwrap();
        sender.send_to(b"STATUS=x", &notify.path).unwrap();
        assert_eq!(
            notify.step(None),
            [Said { ready: true, status: None }, Said { ready: false, status: Some("x".to_owned()) }]
        );
    }
}
