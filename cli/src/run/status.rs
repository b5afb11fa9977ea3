//! How a run is: the answer to `status`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vmprof_vmm::pause::PauseSnapshot;

use super::record::{Run, State};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub schema: String,
    pub name: String,
    /// Of the process that was started with `up`; a VM in the lab has another one inside.
    pub pid: u32,
    /// `kvm` or `lab`.
    pub on: String,
    pub state: State,
    /// Whether all services of the guest are ready, or its command runs, and no stop has begun.
    pub ready: bool,
    /// Whether the guest runs, as QEMU's `query-status` has it.
    pub running: bool,
    /// Since when and why the guest stands still.
    pub paused: Option<PauseSnapshot>,
    /// Seconds since the epoch.
    pub started: u64,
    pub profile: PathBuf,
    /// Of the plan that the run began with. `None`: in the lab, as long as the VM starts.
    pub plan_digest: Option<String>,
}

impl Status {
    pub fn of(run: Run, paused: Option<PauseSnapshot>, plan_digest: Option<String>) -> Status {
        let Run { name, pid, on, state, started, profile, .. } = run;
        let (ready, running) = (matches!(state, State::Running | State::Serving), paused.is_none());
        let schema = "vmprof.status/1".to_owned();
        Status { schema, name, pid, on, state, ready, running, paused, started, profile, plan_digest }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_guest_is_ready_until_its_stop_begins_and_runs_unless_it_is_paused() {
        let status = |state, paused| {
            let run = Run { state, ..Run::new("db", Path::new("/p.kdl"), "kvm", String::new(), vec![]) };
            let status = Status::of(run, paused, Some("abc".into()));
            (status.ready, status.running)
        };
        assert_eq!(status(State::Starting, None), (false, true));
        assert_eq!(status(State::Serving, None), (true, true));
        let pause = PauseSnapshot { since_ms: 1, asked: true, failures: vec![], more_failures: 0 };
        assert_eq!(status(State::Running, Some(pause)), (true, false));
        assert_eq!(status(State::Stopping, None), (false, true));
    }
}
