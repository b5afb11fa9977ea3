//! `up --events FILE`: what happens to a run, for programs: a line of JSON for each.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use vmprof_job::ServiceState;

use super::news::{Because, News};
use super::record::State;
use super::verdict::Ran;
use crate::failure::Failure;
use crate::lower::milliseconds;

/// Of every line. Events and fields may be added under it; what is there keeps its meaning.
const SCHEMA: &str = "vmprof.event/1";

/// Something that happened to a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "snake_case")]
pub enum Happening {
    /// The machine runs.
    Started {
        on: String,
    },
    /// A service is at something new: `starting`, `ready`, `restarting`, `failed`, `stopped` or `killed`.
    Service {
        name: String,
        state: String,
        /// Why it is restarted, or failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        because: Option<String>,
    },
    /// The guest is: its services are, or its command starts.
    Ready {
        after_ms: u64,
    },
    /// It stands still, because of this failure, or because somebody asked.
    Paused {
        because: Option<String>,
    },
    Resumed,
    /// The machine has ended so, and the next one begins.
    Reboots {
        because: String,
    },
    /// A clean stop has begun: `interrupted`, `asked` or `timeout`.
    Stopping {
        because: String,
    },
    /// It was copied out of the guest, or could not be.
    Artifact {
        path: PathBuf,
        into: PathBuf,
        error: Option<String>,
    },
    /// The last one, with the status of `up`. `code` and `message` are those of vmprof's own failure.
    Ended {
        status: u8,
        code: Option<String>,
        message: Option<String>,
    },
}

impl Happening {
    /// What the news are to a program that reads along. `is_inside`: this is the vmprof inside an emulated host, and the one
    /// outside tells of what it knows itself.
    pub fn of(news: &News, ran: Ran, is_inside: bool) -> Option<Happening> {
        let is_outside = matches!(ran, Ran::Inside { .. });
        match news {
            News::InsideSays(happening) => Some(happening.clone()),
            News::InsideIsAt(State::Starting) => Some(Happening::Started { on: "lab".to_owned() }),
            // Ready is the emulated host.
            News::Ready { .. } if is_outside => None,
            News::Ready { after } => Some(Happening::Ready { after_ms: milliseconds(*after) }),
            News::Service { name, state } => Some(service(name, state)),
            News::Paused { failure } => Some(Happening::Paused { because: failure.clone() }),
            News::Resumed => Some(Happening::Resumed),
            News::Reboots { because } => Some(Happening::Reboots { because: (*because).to_owned() }),
            News::Stopping { .. } | News::Collected { .. } if is_inside => None,
            News::Stopping { because } => {
                let because = match because {
                    Because::Interrupted => "interrupted",
                    Because::Asked => "asked",
                    Because::TimeIsUp => "timeout",
                };
                Some(Happening::Stopping { because: because.to_owned() })
            }
            News::Collected { artifact, failure } => Some(Happening::Artifact {
                path: artifact.named.clone(),
                into: artifact.into.clone(),
                error: failure.clone(),
            }),
            News::InsideIsAt(_) | News::CannotStopPaused | News::Notice(_) => None,
        }
    }

    pub fn end(status: u8, failure: Option<&Failure>) -> Happening {
        let code = failure.and_then(|failure| failure.problem.code()).map(|code| code.to_string());
        Happening::Ended { status, code, message: failure.map(Failure::told) }
    }
}

fn service(name: &str, state: &ServiceState) -> Happening {
    let (state, because) = match state {
        ServiceState::Starting => ("starting", None),
        ServiceState::Ready { .. } => ("ready", None),
        ServiceState::Restarting { because, .. } => ("restarting", Some(because.clone())),
        ServiceState::Failed { because } => ("failed", Some(because.clone())),
        ServiceState::Stopped { killed: false } => ("stopped", None),
        ServiceState::Stopped { killed: true } => ("killed", None),
    };
    Happening::Service { name: name.to_owned(), state: state.to_owned(), because }
}

#[derive(Serialize)]
struct Line<'a> {
    schema: &'a str,
    /// Milliseconds since the epoch.
    at_ms: u64,
    vm: &'a str,
    #[serde(flatten)]
    happening: &'a Happening,
}

/// The file, to which one line after the other is added.
#[derive(Debug, Clone)]
pub struct Events {
    path: PathBuf,
    file: Arc<File>,
    vm: String,
}

impl Events {
    /// A new file, or one that is emptied.
    pub fn create(path: &Path, vm: &str) -> io::Result<Events> {
        let path = std::path::absolute(path)?;
        File::create(&path)?;
        Events::go_on(path, vm)
    }

    /// One that was created for this run.
    pub fn go_on(path: PathBuf, vm: &str) -> io::Result<Events> {
        let file = Arc::new(File::options().append(true).open(&path)?);
        Ok(Events { path, file, vm: vm.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The line goes out whole, or is told to be missing.
    pub fn write(&self, happening: &Happening) -> io::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = Line { schema: SCHEMA, at_ms: milliseconds(now), vm: &self.vm, happening };
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        (&*self.file).write_all(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Value;

    use super::*;

    #[test]
    fn each_side_of_an_emulated_host_tells_what_it_alone_knows() {
        let outside = Ran::Inside { with_command: true };
        let ready = News::Ready { after: Duration::from_millis(1500) };
        let stopping = News::Stopping { because: Because::TimeIsUp };
        assert_eq!(Happening::of(&ready, outside, false), None);
        assert_eq!(Happening::of(&ready, Ran::Command, true), Some(Happening::Ready { after_ms: 1500 }));
        assert_eq!(Happening::of(&stopping, Ran::Command, true), None);
        let stopped = Happening::Stopping { because: "timeout".to_owned() };
        assert_eq!(Happening::of(&stopping, outside, false), Some(stopped));
        let said = Happening::Resumed;
        assert_eq!(Happening::of(&News::InsideSays(said.clone()), outside, false), Some(said));
    }

    #[test]
    fn a_file_has_a_line_of_json_for_each_and_nothing_of_the_run_before() {
        let keep = tempfile::tempdir().unwrap();
        let path = keep.path().join("events");
        std::fs::write(&path, "old\n").unwrap();
        let events = Events::create(&path, "db").unwrap();
        events.write(&Happening::Started { on: "kvm".to_owned() }).unwrap();
        let again = Events::go_on(events.path().to_owned(), "db").unwrap();
        let state = ServiceState::Failed { because: "it\nexited".to_owned() };
        again.write(&service("postgresql", &state)).unwrap();
        let failure = Failure::said(crate::failure::Kind::Failure, "vmprof::a::b", "why", "");
        events.write(&Happening::end(125, Some(&failure))).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines.iter().all(|line| line["schema"] == SCHEMA && line["vm"] == "db" && line["at_ms"].is_u64())
        );
        assert_eq!((&lines[0]["event"], &lines[0]["on"]), (&"started".into(), &"kvm".into()));
        assert_eq!((&lines[1]["event"], &lines[1]["state"]), (&"service".into(), &"failed".into()));
        assert_eq!(lines[1]["because"], "it\nexited");
        assert_eq!((&lines[2]["status"], &lines[2]["code"]), (&125.into(), &"vmprof::a::b".into()));
        assert!(Events::create(&keep.path().join("none/events"), "db").is_err());
    }
}
