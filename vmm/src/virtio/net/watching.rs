//! A queue's watch of its backend: at most one at a time, whose end is waited for.

use std::io;

use vmprof_sys::ring::Watched;

use crate::iothread::service::{Io, Watch};

/// A queue has one watch, and needs no tags to tell it from others.
const TAG: u16 = 0;

#[derive(Debug, Default)]
pub(super) enum Watching {
    #[default]
    Idle,
    Open(Watch),
    Ending,
    /// It cannot be had: not tried again.
    GivenUp,
}

impl Watching {
    /// Whether there is none, and one may begin.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self, Watching::Idle)
    }

    /// How many have not ended.
    pub(super) fn open(&self) -> usize {
        usize::from(matches!(self, Watching::Open(_) | Watching::Ending))
    }

    pub(super) fn begin(&mut self, watched: Watched, io: &mut Io<'_>) -> io::Result<()> {
        if self.is_idle() {
            *self = Watching::Open(io.watch(watched, TAG)?);
        }
        Ok(())
    }

    pub(super) fn end(&mut self, io: &mut Io<'_>) {
        if let Watching::Open(watch) = *self {
            io.unwatch(watch);
            *self = Watching::Ending;
        }
    }

    /// The thread says that it has ended.
    pub(super) fn ended(&mut self) {
        *self = Watching::Idle;
    }

    /// One that has ended, or never began.
    pub(super) fn give_up(&mut self) {
        *self = Watching::GivenUp;
    }
}
