//! What is worth a line while a run goes on: services that come and go, readiness, the beginning of the end.

use std::time::Duration;

use vmprof_job::ServiceState;

use super::artifacts::Artifact;
use super::events::Happening;
use super::record::State;
use super::verdict::Ran;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Service {
        name: String,
        state: ServiceState,
    },
    /// Everything is as the job asks.
    Ready {
        /// From the machine's start.
        after: Duration,
    },
    /// How far the run in the emulated host is, whose own news are told there.
    InsideIsAt(State),
    /// What happened to it, which is told for programs alone.
    InsideSays(Happening),
    /// A clean stop has begun.
    Stopping {
        because: Because,
    },
    /// The guest stands still: because of a request that failed, or because somebody asked for it.
    Paused {
        failure: Option<String>,
    },
    Resumed,
    /// What the user should know of, in a sentence; the run goes on.
    Notice(String),
    /// A clean stop was asked of a guest that stands still.
    CannotStopPaused,
    /// The machine has ended so, and the next one begins.
    Reboots {
        because: &'static str,
    },
    /// This was copied out of the guest; or could not be, for that reason.
    Collected {
        artifact: Artifact,
        failure: Option<String>,
    },
}

/// What a clean stop began with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// A signal, or a key on the console.
    Interrupted,
    /// Somebody else wants it: `vmprof stop`, or the vmprof around an emulated host.
    Asked,
    /// `--timeout`.
    TimeIsUp,
}

/// Of which run the news are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Teller {
    /// The VM's name.
    pub name: String,
    pub ran: Ran,
    /// Whether the guest has services.
    pub serves: bool,
    /// What interrupts it where the user is.
    pub interrupt_key: &'static str,
    /// How long its services have for a clean stop.
    pub stop_within: Duration,
}

impl Teller {
    /// The line for the user, where there is something to say.
    pub fn line(&self, news: &News) -> Option<String> {
        let name = &self.name;
        match news {
            News::Service { name, state } => Some(service(name, state)),
            News::Ready { after } => {
                let ready = format!("{name} is ready after {}", seconds(*after));
                match self.ran {
                    Ran::Serving => Some(format!(
                        "{ready}: it serves until it is stopped (Ctrl-C, or `vmprof stop {name}`)"
                    )),
                    Ran::Shell => Some(format!(
                        "{ready}: here is a shell on its console; leaving it (`exit`, or Ctrl-A x) stops the guest"
                    )),
                    Ran::Command | Ran::Recipe if self.serves => Some(format!("{ready}: its command starts")),
                    Ran::Command | Ran::Recipe | Ran::Inside { .. } => None,
                }
            }
            News::InsideIsAt(_) | News::InsideSays(_) => None,
            News::Stopping { because } => {
                let time =
                    (*because == Because::TimeIsUp).then_some("the time that --timeout gives is over: ");
                // What is left to the services, the vmprof inside says.
                if !self.serves || matches!(self.ran, Ran::Inside { .. }) {
                    return time.map(|time| format!("{time}{name} is being stopped"));
                }
                let first = if *because == Because::Interrupted { "again" } else { "twice" };
                let key = self.interrupt_key;
                Some(format!(
                    "{}{name} is being stopped: its services have {} ({key} {first} ends it at once)",
                    time.unwrap_or_default(),
                    seconds(self.stop_within)
                ))
            }
            News::Paused { failure: Some(failure) } => {
                Some(format!("{name} is paused: {failure}; `vmprof resume {name}` tries it again"))
            }
            News::Paused { failure: None } => Some(format!("{name} is paused, until `vmprof resume {name}`")),
            News::Notice(text) => Some(text.clone()),
            News::Resumed => Some(format!("{name} goes on")),
            // The verdict tells of it.
            News::Collected { failure: Some(_), .. } => None,
            News::Collected { artifact, failure: None } => {
                Some(format!("{} is in {}", artifact.named.display(), artifact.into.display()))
            }
            News::CannotStopPaused => Some(format!(
                "{name} is paused and cannot end cleanly: `vmprof resume {name}` lets it, Ctrl-C again ends it at once"
            )),
            News::Reboots { because } => Some(format!("{name} {because}")),
        }
    }

    /// What the record of the run shows from then on, where it changes.
    pub fn state(&self, news: &News) -> Option<State> {
        match (news, self.ran) {
            // Ready is the emulated host; its guest is not yet.
            (News::Service { .. } | News::InsideSays(_) | News::Notice(_), _)
            | (News::Ready { .. }, Ran::Inside { .. }) => None,
            (News::InsideIsAt(state), _) => Some(*state),
            (News::Reboots { .. }, _) => Some(State::Starting),
            (News::Ready { .. }, Ran::Serving) => Some(State::Serving),
            (News::Ready { .. }, _) => Some(State::Running),
            (News::Stopping { .. }, _) => Some(State::Stopping),
            (News::Paused { .. } | News::Resumed | News::CannotStopPaused | News::Collected { .. }, _) => {
                None
            }
        }
    }
}

fn service(name: &str, state: &ServiceState) -> String {
    match state {
        ServiceState::Starting => format!("{name}: starting"),
        ServiceState::Ready { after_ms } => {
            format!("{name}: ready after {}", seconds(Duration::from_millis(*after_ms)))
        }
        ServiceState::Restarting { because, in_ms } => {
            format!("{name}: {because}; started again in {}", seconds(Duration::from_millis(*in_ms)))
        }
        ServiceState::Failed { because } => format!("{name}: failed: {because}"),
        ServiceState::Stopped { killed: false } => format!("{name}: stopped"),
        ServiceState::Stopped { killed: true } => {
            format!("{name}: killed, since it had not stopped in its time")
        }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn teller(ran: Ran, serves: bool) -> Teller {
        Teller {
            name: "db".into(),
            ran,
            serves,
            interrupt_key: "Ctrl-C",
            stop_within: Duration::from_secs(30),
        }
    }

    const READY: News = News::Ready { after: Duration::from_millis(12_340) };

    #[test]
    fn each_state_of_a_service_has_its_line() {
        let line = |state| {
            let news = News::Service { name: "postgresql".into(), state };
            teller(Ran::Serving, true).line(&news).unwrap()
        };
        let because = || "it exited with status 1".to_owned();
        for (state, expected) in [
            (ServiceState::Starting, "postgresql: starting"),
            (ServiceState::Ready { after_ms: 1234 }, "postgresql: ready after 1.2 s"),
            (
                ServiceState::Restarting { because: because(), in_ms: 500 },
                "postgresql: it exited with status 1; started again in 0.5 s",
            ),
            (ServiceState::Failed { because: because() }, "postgresql: failed: it exited with status 1"),
            (ServiceState::Stopped { killed: false }, "postgresql: stopped"),
            (
                ServiceState::Stopped { killed: true },
                "postgresql: killed, since it had not stopped in its time",
            ),
        ] {
            assert_eq!(line(state), expected);
        }
    }

    #[test]
    fn readiness_says_what_comes_next_and_nothing_where_the_command_says_it_itself() {
        let line = |ran, serves| teller(ran, serves).line(&READY);
        assert_eq!(
            line(Ran::Serving, true).unwrap(),
            "db is ready after 12.3 s: it serves until it is stopped (Ctrl-C, or `vmprof stop db`)"
        );
        assert!(line(Ran::Shell, true).unwrap().contains("Ctrl-A x"));
        assert_eq!(line(Ran::Command, true).unwrap(), "db is ready after 12.3 s: its command starts");
        assert_eq!((line(Ran::Command, false), line(Ran::Recipe, false)), (None, None));
        assert_eq!(line(Ran::Inside { with_command: false }, true), None, "the vmprof inside has said it");
    }

    #[test]
    fn the_time_to_stop_is_said_where_there_is_something_to_stop() {
        let line = |ran, serves, because| teller(ran, serves).line(&News::Stopping { because });
        let said = line(Ran::Serving, true, Because::Interrupted).unwrap();
        assert!(said.contains("30.0 s") && said.contains("Ctrl-C again"), "{said}");
        let said = line(Ran::Serving, true, Because::Asked).unwrap();
        assert!(said.contains("30.0 s") && said.contains("Ctrl-C twice"), "{said}");
        let on_a_console = Teller { interrupt_key: "Ctrl-A x", ..teller(Ran::Shell, true) };
        let said = on_a_console.line(&News::Stopping { because: Because::Interrupted }).unwrap();
        assert!(said.contains("Ctrl-A x again"), "{said}");
        assert_eq!(line(Ran::Recipe, false, Because::Interrupted), None);
    }

    #[test]
    fn that_the_time_is_over_is_said_when_it_is_and_in_the_lab_outside() {
        let line = |ran, serves, because| teller(ran, serves).line(&News::Stopping { because });
        let said = line(Ran::Command, true, Because::TimeIsUp).unwrap();
        assert!(said.starts_with("the time that --timeout gives is over: db is being stopped"), "{said}");
        let (inside, short) = (
            Ran::Inside { with_command: false },
            "the time that --timeout gives is over: db is being stopped",
        );
        assert_eq!(line(inside, true, Because::TimeIsUp).unwrap(), short);
        assert_eq!(line(Ran::Command, false, Because::TimeIsUp).unwrap(), short);
        assert_eq!(line(inside, true, Because::Asked), None);
    }

    #[test]
    fn a_pause_says_why_and_what_ends_it() {
        let line = |news| teller(Ran::Serving, true).line(&news).unwrap();
        let failure = "disk `data`, virtqueue 0, head 3: write of sector 8 failed: no space".to_owned();
        let paused = line(News::Paused { failure: Some(failure.clone()) });
        assert!(paused.contains(&failure) && paused.contains("`vmprof resume db`"), "{paused}");
        for news in [News::Paused { failure: None }, News::CannotStopPaused] {
            assert!(line(news).contains("`vmprof resume db`"));
        }
        assert_eq!(line(News::Resumed), "db goes on");
        assert_eq!(line(News::Reboots { because: "reboots" }), "db reboots");
    }

    #[test]
    fn the_record_follows_the_run() {
        let state = |ran, news: &News| teller(ran, true).state(news);
        assert_eq!(state(Ran::Serving, &READY), Some(State::Serving));
        assert_eq!(state(Ran::Command, &READY), Some(State::Running));
        assert_eq!(state(Ran::Serving, &News::Stopping { because: Because::Asked }), Some(State::Stopping));
        assert_eq!(state(Ran::Serving, &News::Reboots { because: "reboots" }), Some(State::Starting));
        let started = News::Service { name: "a".into(), state: ServiceState::Starting };
        assert_eq!(state(Ran::Serving, &started), None);
    }

    #[test]
    fn the_record_of_a_run_in_the_lab_says_what_the_run_inside_does() {
        let teller = teller(Ran::Inside { with_command: false }, true);
        assert_eq!(teller.state(&READY), None, "the emulated host is up, its guest is not");
        let news = News::InsideIsAt(State::Serving);
        assert_eq!((teller.state(&news), teller.line(&news)), (Some(State::Serving), None));
        assert_eq!(teller.state(&News::Stopping { because: Because::Asked }), Some(State::Stopping));
    }
}
