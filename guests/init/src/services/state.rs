//! What a service is at, and by when that changes by itself.

use std::time::Instant;

use vmprof_job::Ended;

#[derive(Debug)]
pub(super) enum State {
    /// For what it needs.
    Waiting,
    /// It failed and is started again, not before this.
    Delayed {
        until: Instant,
    },
    /// The step of `prepare` with this number runs.
    Preparing {
        step: usize,
        began: Instant,
        deadline: Instant,
    },
    /// `exec` runs and is not ready.
    Starting {
        began: Instant,
        deadline: Instant,
        probe: Probe,
    },
    /// `exec` runs and is ready.
    Ready,
    /// It ran once, and well.
    Done,
    /// Killed, because of this, and not yet dead.
    Dying {
        because: String,
        give_up: Instant,
    },
    /// It was sent its signal; `killed` since then, too.
    Stopping {
        kill_at: Instant,
        killed: Option<Instant>,
    },
    Over(Over),
}

#[derive(Debug)]
pub(super) enum Over {
    Failed(String),
    Stopped { killed: bool },
}

/// The ready check of a service that starts.
#[derive(Debug)]
pub(super) enum Probe {
    /// There is none, or its time has not come.
    None,
    At(Instant),
    Runs {
        until: Instant,
        killed: bool,
    },
    Connecting,
}

impl State {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self, State::Ready | State::Done)
    }

    pub(super) fn has_process(&self) -> bool {
        self.runs_unstopped() || matches!(self, State::Dying { .. } | State::Stopping { .. })
    }

    /// It has a process that nobody has told to end.
    pub(super) fn runs_unstopped(&self) -> bool {
        matches!(self, State::Preparing { .. } | State::Starting { .. } | State::Ready)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        match self {
            State::Waiting | State::Ready | State::Done | State::Over(_) => None,
            State::Delayed { until } => Some(*until),
            State::Preparing { deadline, .. } => Some(*deadline),
            State::Starting { deadline, probe, .. } => match probe {
                Probe::At(at) => Some(*deadline.min(at)),
                Probe::Runs { until, killed: false } => Some(*deadline.min(until)),
                Probe::Runs { killed: true, .. } | Probe::None | Probe::Connecting => Some(*deadline),
            },
            State::Dying { give_up, .. } => Some(*give_up),
            State::Stopping { kill_at, killed: None } => Some(*kill_at),
            State::Stopping { killed: Some(at), .. } => Some(*at + super::KILLED),
        }
    }
}

/// As people say it: `60 s`, `1.5 s`.
pub(super) fn in_seconds(ms: u64) -> String {
    format!("{} s", ms as f64 / 1000.0)
}

/// In words: `it ended with status 1`.
pub(super) fn told(status: Ended) -> String {
    match status {
        Ended::Exited(code) => format!("it ended with status {code}"),
        Ended::Signaled(signal) => format!("it was ended by signal {signal}"),
        Ended::NotStarted { status, errno } => {
            let error = std::io::Error::from_raw_os_error(errno);
            format!("it could not be started (status {status}): {error}")
        }
    }
}
