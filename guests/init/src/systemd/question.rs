//! What systemctl is asked until the guest is ready, and what its answers mean.

use vmprof_job::{Bytes, Ended};

use super::failed::FailedUnit;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// Answered when no job is left of the boot.
    State,
    /// With the units that failed.
    Target(Vec<FailedUnit>),
}

impl Question {
    pub(super) fn argv(&self) -> Vec<Bytes> {
        let words: &[&str] = match self {
            Question::State => &["is-system-running", "--wait"],
            Question::Target(_) => &["show", "--property=Id,ActiveState", "default.target"],
        };
        systemctl(words)
    }
}

pub(super) fn systemctl(words: &[&str]) -> Vec<Bytes> {
    ["systemctl"].iter().chain(words).map(|word| (*word).into()).collect()
}

/// `Err` names the target that is not active.
pub(super) fn reached(text: &str) -> Result<(), String> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
    match value("ActiveState=") {
        Some("active") => Ok(()),
        _ => Err(value("Id=").unwrap_or("default.target").to_owned()),
    }
}

pub(super) fn not_reached(target: &str, failed: &[FailedUnit]) -> String {
    let names: Vec<&str> = failed.iter().map(|unit| unit.name.as_str()).collect();
    match names.as_slice() {
        [] => format!("{target} was not reached, and no unit failed"),
        names => format!("{target} was not reached; units that failed: {}", names.join(", ")),
    }
}

/// Of an answer that is none.
pub(super) fn complaint_of(status: Ended, said: &str, complaint: &str) -> String {
    format!(
        "systemctl does not reach it ({}): {}{}",
        status.shell_status(),
        said.trim_end(),
        complaint.trim_end()
    )
}
