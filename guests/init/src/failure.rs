//! Why a boot could not be finished: what was asked and what was found, in one text that leaves through the control port
//! and the console.

use std::error::Error;
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("mounting {filesystem} on {} failed", .target.display())]
    Mount { filesystem: String, target: PathBuf, source: io::Error },
    #[error("{doing}")]
    Step { doing: String, source: io::Error },
    #[error("kernel module {} could not be loaded", .path.display())]
    Module { path: PathBuf, source: io::Error },
    #[error("kernel module {} needs a symbol of a module that was not loaded before it", .path.display())]
    ModuleTooEarly { path: PathBuf },
    #[error("no virtio-serial port `{name}` within {waited_ms} ms; found: {}", listed(.found))]
    NoPort { name: &'static str, waited_ms: u128, found: Vec<String> },
    #[error("the virtio-serial port `{name}` could not be opened")]
    Port { name: &'static str, source: io::Error },
    #[error("the job {} could not be read", .path.display())]
    NoJob { path: PathBuf, source: io::Error },
    #[error("the job is of schema `{found}`; this first process reads `{asked}`")]
    JobSchema { asked: &'static str, found: String },
    #[error("the job is not one of schema `{schema}`")]
    Job { schema: &'static str, source: serde_json::Error },
    #[error("the job names no command")]
    NoCommand,
    #[error("the command's directory `{0}` is not in the guest")]
    NoDirectory(String),
    #[error("disk `{name}`: no block device with serial `{serial}` within {waited_ms} ms; found: {}", listed(.found))]
    NoDisk { name: String, serial: String, waited_ms: u128, found: Vec<String> },
    #[error("disk `{name}`: serial `{serial}` belongs to several block devices: {}", listed(.devices))]
    SerialTwice { name: String, serial: String, devices: Vec<String> },
    #[error("disk `{disk}` ({device}): asked for the scheduler `{asked}`, found `{found}`")]
    Scheduler { disk: String, device: String, asked: String, found: String, source: Option<io::Error> },
    #[error("the link {} to {} could not be made", .path.display(), .device.display())]
    Link { path: PathBuf, device: PathBuf, source: io::Error },
    #[error("the terminal {} could not become the command's own", .terminal.display())]
    Terminal { terminal: PathBuf, source: io::Error },
}

impl Failure {
    pub(crate) fn step(doing: &str) -> impl FnOnce(io::Error) -> Failure {
        let doing = doing.to_owned();
        move |source| Failure::Step { doing, source }
    }

    /// The failure and its causes in one line: the outside gets text, not a chain.
    pub(crate) fn message(&self) -> String {
        let mut message = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            message.push_str(": ");
            message.push_str(&error.to_string());
            cause = error.source();
        }
        message
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_ends_with_the_cause() {
        let failure = Failure::Module {
            path: "/modules/overlay.ko".into(),
            source: io::Error::from_raw_os_error(rustix::io::Errno::NOEXEC.raw_os_error()),
        };
        assert_eq!(
            failure.message(),
            "kernel module /modules/overlay.ko could not be loaded: Exec format error (os error 8)"
        );
    }

    #[test]
    fn a_missing_port_names_those_that_are_there() {
        let mut found = Vec::new();
        let missing = |found| Failure::NoPort { name: "vmprof.control", waited_ms: 5, found }.message();
        assert!(missing(found.clone()).ends_with("found: none"));
        found.extend(["vmprof.stdin".to_owned(), "other".to_owned()]);
        assert!(missing(found).ends_with("found: vmprof.stdin, other"));
    }
}
