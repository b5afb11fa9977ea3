//! What others ask of the guest in the course of a run, each question with a number by which its answer is known.

use std::collections::HashMap;
use std::sync::mpsc::Sender;

use vmprof_job::{Bytes, DiskScheduler, Ended, ToGuest};

/// What a helper in the guest printed, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub status: Ended,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Those that have no answer yet.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// The last one's number.
    last: u64,
    runs: HashMap<u64, Sender<Ran>>,
    schedulers: HashMap<u64, Sender<Vec<DiskScheduler>>>,
}

impl Questions {
    /// The message that asks for it.
    pub(super) fn run(&mut self, argv: Vec<Bytes>, answer: Sender<Ran>) -> ToGuest {
        let id = self.number();
        self.runs.insert(id, answer);
        ToGuest::Run { id, argv }
    }

    /// The message that asks for them.
    pub(super) fn schedulers(&mut self, answer: Sender<Vec<DiskScheduler>>) -> ToGuest {
        let id = self.number();
        self.schedulers.insert(id, answer);
        ToGuest::Schedulers { id }
    }

    /// An answer to nobody's question is dropped.
    pub(super) fn has_run(&mut self, id: u64, ran: Ran) {
        if let Some(answer) = self.runs.remove(&id) {
            // Whoever asked may have left.
            let _ = answer.send(ran);
        }
    }

    /// The same of schedulers.
    pub(super) fn has_schedulers(&mut self, id: u64, disks: Vec<DiskScheduler>) {
        if let Some(answer) = self.schedulers.remove(&id) {
            // Whoever asked may have left.
            let _ = answer.send(disks);
        }
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}
