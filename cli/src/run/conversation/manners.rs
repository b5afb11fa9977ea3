//! How a run is ended before its time: in which words, and who waits how long.

use std::time::{Duration, Instant};

use vmprof_job::ToGuest;

use crate::run::news::Because;

/// How a run is ended before its time.
#[derive(Debug, Clone)]
pub struct Manners {
    /// The message that asks for a clean stop because of a signal or a key.
    pub interrupt: ToGuest,
    /// The message that asks for one because of `vmprof stop` or the timeout.
    pub clean_stop: ToGuest,
    /// The message that nobody reads the command's output any more.
    pub reader_gone: ToGuest,
    /// How long a clean stop may take before the hard one.
    pub grace: Duration,
    /// How much longer it may take once the guest has said its last word. What is left of its services stops in the time it
    /// had before, and then the disks are written back.
    pub last_word: Duration,
    /// How long the whole run may take, from the machine's start.
    pub timeout: Option<Duration>,
    /// How long the machine may take until its first process says hello; `None` trusts it.
    pub hello_within: Option<Duration>,
    /// How long the first process may leave a ping unanswered while the command runs, and how long it may take from its
    /// last word to the machine's end; `None` trusts it, as a guest with much to write back must be.
    pub silence: Option<Duration>,
}

impl Manners {
    /// The message that asks for a clean stop.
    pub(super) fn asking(&self, because: Because) -> &ToGuest {
        match because {
            Because::Interrupted => &self.interrupt,
            Because::Asked | Because::TimeIsUp => &self.clean_stop,
        }
    }

    /// When a clean stop that began at `began` has had its time; `over`: the guest has said its last word.
    pub(super) fn hard_end(&self, began: Instant, over: bool) -> Instant {
        began + self.grace + if over { self.last_word } else { Duration::ZERO }
    }
}

#[cfg(test)]
impl Manners {
    /// Longer than any test takes, and without a limit to the run.
    pub fn patient(stop: ToGuest) -> Manners {
        Manners {
            interrupt: stop.clone(),
            clean_stop: stop,
            reader_gone: ToGuest::Signal { number: 13 },
            grace: Duration::from_secs(600),
            last_word: Duration::from_secs(600),
            timeout: None,
            hello_within: None,
            silence: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_outlast_their_command_keep_their_time_and_the_disks_theirs() {
        let (recipe, writing) = (Duration::from_secs(3600), Duration::from_secs(120));
        let manners = Manners { grace: recipe, last_word: writing, ..Manners::patient(ToGuest::Received) };
        let began = Instant::now();
        assert_eq!(manners.hard_end(began, false), began + recipe);
        // Its command may have ended at once, and its services may still take all of their time.
        assert_eq!(manners.hard_end(began, true), began + recipe + writing);
    }
}
