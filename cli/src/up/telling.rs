//! What hears of the news of a run: the terminal, the record, and in the lab the vmprof outside.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::report::Report;
use crate::run::detached::Detached;
use crate::run::events::{Events, Happening};
use crate::run::news::{News, Teller};
use crate::run::record::{Kept, State};
use crate::run::relay::Relay;
use crate::run::supervise::Outcome;
use crate::run::verdict::{Ran, verdict};

/// What the news of a run depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Telling {
    /// The VM's name.
    pub name: String,
    /// As in [`super::Work::ran`].
    pub ran: Ran,
    /// Whether the guest has services.
    pub serves: bool,
    /// Whether the guest's console is interactive.
    pub console: bool,
    /// How long its services have for a clean stop.
    pub stop_within: Duration,
    /// This is the vmprof inside an emulated host.
    pub is_inside: bool,
    /// Where it says how far it is, if not over a port of its own.
    pub relay: Option<PathBuf>,
    /// The file that programs read along in.
    pub events: Option<PathBuf>,
}

impl Telling {
    /// What is told each of the news. `raw`: the terminal is, and returns the carriage for nobody.
    pub fn teller(
        &self,
        report: Report,
        kept: Option<Kept>,
        detached: Option<Detached>,
        raw: bool,
    ) -> io::Result<impl FnMut(News) + Send + use<>> {
        let teller = Teller {
            name: self.name.clone(),
            ran: self.ran,
            serves: self.serves,
            // On a console, Ctrl-C is the guest's.
            interrupt_key: if self.console { "Ctrl-A x" } else { "Ctrl-C" },
            stop_within: self.stop_within,
        };
        let end = if raw { "\r" } else { "" };
        let is_inside = self.is_inside;
        let mut relay = self.is_inside.then(|| Relay::open(self.relay.as_deref())).flatten();
        // There is something to tell of: the machine runs.
        relay.iter_mut().for_each(|relay| relay.tell(State::Starting));
        let ran = self.ran;
        let mut events = self.events()?;
        let mut happens = move |happening: &Happening| {
            if events.as_ref().is_some_and(|events| events.write(happening).is_err()) {
                report.notice("the events cannot be written any more; the run goes on");
                events = None;
            }
        };
        if !matches!(ran, Ran::Inside { .. }) {
            happens(&Happening::Started { on: "kvm".to_owned() });
        }
        Ok(move |news| {
            if let Some(happening) = Happening::of(&news, ran, is_inside) {
                happens(&happening);
                relay.iter_mut().for_each(|relay| relay.say(&happening));
            }
            // The record first: whoever reads the line may look there.
            if let Some(state) = teller.state(&news) {
                kept.iter().for_each(|kept| kept.keeper().is_at(state));
                relay.iter_mut().for_each(|relay| relay.tell(state));
                match (&detached, state) {
                    // In the lab: here it had run before this was made.
                    (Some(detached), State::Starting) => detached.started(),
                    (Some(detached), State::Running | State::Serving) => detached.ready(),
                    _ => {}
                }
            }
            match (&kept, &news) {
                (Some(kept), News::Paused { failure }) => {
                    kept.keeper().is_paused(Some(failure.clone().unwrap_or_default()));
                }
                (Some(kept), News::Resumed) => kept.keeper().is_paused(None),
                _ => {}
            }
            // To the vmprof outside it is half of the way.
            let is_told_outside = is_inside && matches!(news, News::Collected { .. });
            if !is_told_outside && let Some(line) = teller.line(&news) {
                report.notice(format_args!("{line}{end}"));
            }
        })
    }

    /// The file, to go on with it.
    pub fn events(&self) -> io::Result<Option<Events>> {
        self.events.clone().map(|path| Events::go_on(path, &self.name)).transpose()
    }

    /// The exit status, and the sentence that goes with it.
    pub fn conclude(&self, report: Report, outcome: &Outcome) -> u8 {
        let verdict = verdict(self.ran, &outcome.account, &outcome.end, outcome.received);
        if let Some(notice) = &verdict.notice {
            report.notice(notice);
        }
        verdict.status
    }
}
