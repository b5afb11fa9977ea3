//! Requests that the backing failed: told to the guest, passed over, or kept until the machine goes on, as the profile says
//! (`rerror`, `werror`).

use std::io;

use rustix::io::Errno;

use super::{BlkQueue, Stage, State};
use crate::backing::SECTOR_BYTES;
use crate::config::ErrorPolicy;
use crate::iothread::service::Io;
use crate::pause::Failure;
use crate::virtio::blk::in_flight;
use crate::virtio::blk::request::{Kind, Request, Status};

impl BlkQueue {
    /// The backing failed a request: what becomes of it is the profile's to say.
    #[cold]
    pub(super) fn failed(&mut self, head: u16, request: Request, stage: Stage, error: io::Error) {
        let read = matches!(request.kind, Kind::Read { .. });
        let policy = if read { self.disk.on_error.read } else { self.disk.on_error.write };
        let no_space = Errno::from_io_error(&error) == Some(Errno::NOSPC);
        match (policy, &self.disk.pause) {
            (ErrorPolicy::Ignore, _) => {
                self.counters.errors.add(1);
                self.finish(head, request, Status::Ok);
            }
            (ErrorPolicy::Stop, Some(pause)) if !self.ending => {
                self.held_since = pause.stop_for(self.failure(head, request, &error));
                self.hold(head, request, stage);
            }
            (ErrorPolicy::Enospc, Some(pause)) if no_space && !self.ending => {
                self.held_since = pause.stop_for(self.failure(head, request, &error));
                self.hold(head, request, stage);
            }
            _ => self.finish(head, request, Status::IoError),
        }
    }

    pub(super) fn failure(&self, head: u16, request: Request, error: &io::Error) -> Failure {
        let errno = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
        Failure {
            disk: self.disk.name.clone(),
            vq: self.queue.index,
            head,
            kind: in_flight::word(request.kind).to_owned(),
            sector: match request.kind {
                Kind::Read { offset } | Kind::Write { offset } => Some(offset / SECTOR_BYTES),
                _ => None,
            },
            errno,
            error: io::Error::from_raw_os_error(errno).to_string(),
        }
    }

    pub(super) fn hold(&mut self, head: u16, request: Request, stage: Stage) {
        self.slots[usize::from(head)].state = State::Held(request, stage);
        self.held.push_back(head);
    }

    /// Once the machine was resumed, tries again in their order what had failed.
    pub(super) fn try_held(&mut self, io: &mut Io<'_>) {
        let resumed = self.disk.pause.as_ref().is_some_and(|pause| pause.resumes() > self.held_since);
        let due = if resumed { self.held.len() } else { 0 };
        for _ in 0..due {
            let Some(head) = self.held.pop_front() else { return };
            let slot = &mut self.slots[usize::from(head)];
            let State::Held(request, stage) = slot.state else { continue };
            slot.transfer.retry();
            match (stage, request.kind) {
                (Stage::Syncing, _) => self.sync(head, request, io),
                (Stage::Moving, Kind::Discard | Kind::WriteZeroes) => self.erase(head, request, io),
                (Stage::Moving, _) => self.advance(head, request, io),
            }
        }
    }
}
