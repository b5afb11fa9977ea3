//! What a run came to, as far as its conversation tells: the verdict is made of it.

use std::time::Duration;

use vmprof_job::Ended;

/// What a run came to, as far as the conversation tells.
#[derive(Debug, Default)]
pub struct Account {
    pub kernel: Option<String>,
    /// From the machine's start to the first process's first word.
    pub hello_after: Option<Duration>,
    pub ready_after: Option<Duration>,
    pub ended: Option<Finish>,
    /// A guest that served has stopped: the services that had to be killed.
    pub stopped: Option<Vec<String>>,
    /// The boot could not be finished, or a service failed for good: the first process's own words.
    pub failed: Option<String>,
    pub garbled: Option<String>,
    pub interrupted: Option<i32>,
    pub stop_asked: bool,
    /// The time ran out before the work was done.
    pub timed_out: bool,
    /// The machine was ended hard: it ignored a clean stop, or nobody wanted to wait for one.
    pub killed: bool,
    /// The machine never said hello in the time it had.
    pub mute: bool,
    /// It said hello, and later nothing any more.
    pub stalled: bool,
    /// What was to outlive the guest and is not here, each with the reason.
    pub uncollected: Vec<String>,
}

impl Account {
    /// Whether the first process has said its last word: nothing that happens later changes what the run came to.
    pub(super) fn is_over(&self) -> bool {
        self.ended.is_some() || self.stopped.is_some() || self.failed.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finish {
    pub status: Ended,
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
}
