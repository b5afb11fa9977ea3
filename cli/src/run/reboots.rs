//! A guest that reboots: whether the run goes on with the next machine, or ends.

use serde::{Deserialize, Serialize};

use super::supervise::Outcome;
use super::verdict::{MachineEnd, Ran};

/// How often in a row a guest may reboot before it was ready. One that cannot boot would else do so for ever.
pub const MOST_UNREADY: u32 = 5;

/// After what the guest is started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// A reset that it asked for.
    pub at_reboot: bool,
    /// A panic of its kernel which that said: with `panic=N` of the recipe's own words the guest is to reboot then.
    pub at_panic: bool,
}

impl Policy {
    /// `own` are the kernel's words of the guest's recipe.
    pub fn of(no_reboot: bool, own: Option<&str>) -> Policy {
        let seconds = |word: &str| word.strip_prefix("panic=").and_then(|value| value.parse::<i64>().ok());
        // The kernel takes the last of several; 0 waits for ever.
        let after = own.and_then(|words| words.split_whitespace().filter_map(seconds).next_back());
        Policy { at_reboot: !no_reboot, at_panic: !no_reboot && after.is_some_and(|after| after != 0) }
    }
}

/// What a machine's end is for the run.
#[derive(Debug, PartialEq, Eq)]
pub enum After {
    /// The guest is started anew; what it did, for whoever reads along.
    Again(&'static str),
    Over,
}

/// The reboots of one run.
#[derive(Debug)]
pub struct Reboots {
    policy: Policy,
    /// In a row, by a guest that was not ready.
    unready: u32,
}

impl Reboots {
    pub fn new(policy: Policy) -> Reboots {
        Reboots { policy, unready: 0 }
    }

    /// The end of a machine whose `outcome` this is. One reboot too many makes it a failure.
    pub fn after(&mut self, ran: Ran, outcome: &mut Outcome) -> After {
        let account = &outcome.account;
        // CMD never ended: that is the verdict's. And what was wanted of the run, or came of it, ends it however the machine did.
        let is_command = matches!(ran, Ran::Command | Ran::Inside { .. });
        let is_wanted = account.interrupted.is_some() || account.stop_asked || account.timed_out;
        // A guest whose work is done powers off. One that resets then has ended that work for its reboot, as systemd does.
        let is_done = account.ended.is_some() && outcome.end != MachineEnd::Reboot;
        if is_command || is_wanted || account.killed || account.failed.is_some() || is_done {
            return After::Over;
        }
        let again = match outcome.end {
            MachineEnd::Reboot if self.policy.at_reboot => "reboots",
            MachineEnd::Panicked if self.policy.at_panic => "has panicked, and reboots",
            _ => return After::Over,
        };
        self.unready = if account.ready_after.is_some() { 0 } else { self.unready + 1 };
        if self.unready < MOST_UNREADY {
            return After::Again(again);
        }
        (outcome.account.stopped, outcome.account.ended) = (None, None);
        outcome.end = MachineEnd::Broken(format!(
            "the guest has rebooted {MOST_UNREADY} times in a row before it was ready: the run ends here"
        ));
        After::Over
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmprof_job::Ended;

    use super::super::conversation::{Account, Finish};
    use super::super::verdict::verdict;
    use super::*;

    const ALWAYS: Policy = Policy { at_reboot: true, at_panic: true };

    fn ready() -> Account {
        Account { ready_after: Some(Duration::ZERO), ..Account::default() }
    }

    fn after(policy: Policy, ran: Ran, account: Account, end: MachineEnd) -> After {
        Reboots::new(policy).after(ran, &mut Outcome { account, end, received: (0, 0) })
    }

    #[test]
    fn a_guest_that_reboots_is_started_anew_unless_its_end_was_wanted_or_it_has_failed() {
        let rebooted = |ran, account| after(ALWAYS, ran, account, MachineEnd::Reboot);
        let again = || After::Again("reboots");
        for ran in [Ran::Serving, Ran::Recipe, Ran::Shell] {
            assert_eq!(rebooted(ran, ready()), again());
            assert_eq!(rebooted(ran, Account::default()), again());
            // Systemd stops its services before it reboots.
            assert_eq!(rebooted(ran, Account { stopped: Some(vec![]), ..ready() }), again());
            let ended = Finish { status: Ended::Signaled(15), stdout_bytes: 0, stderr_bytes: 0 };
            assert_eq!(rebooted(ran, Account { ended: Some(ended), ..ready() }), again());
            let panicked =
                after(ALWAYS, ran, Account { ended: Some(ended), ..ready() }, MachineEnd::Panicked);
            assert_eq!(panicked, After::Over, "what it was for is done");
        }
        for ran in [Ran::Command, Ran::Inside { with_command: false }, Ran::Inside { with_command: true }] {
            assert_eq!(rebooted(ran, ready()), After::Over);
        }
        for account in [
            Account { stop_asked: true, ..ready() },
            Account { interrupted: Some(2), ..ready() },
            Account { timed_out: true, ..ready() },
            Account { killed: true, ..ready() },
            Account { failed: Some("no disk".into()), ..ready() },
        ] {
            let said = format!("{account:?}");
            assert_eq!(rebooted(Ran::Recipe, account), After::Over, "{said}");
        }
        for end in [MachineEnd::PowerOff, MachineEnd::Killed, MachineEnd::Broken("x".into())] {
            assert_eq!(after(ALWAYS, Ran::Serving, ready(), end), After::Over);
        }
    }

    #[test]
    fn a_panic_is_a_reboot_where_the_recipe_says_so_and_nothing_is_where_none_is_wanted() {
        let policy = |own| Policy::of(false, own);
        assert_eq!(policy(None), Policy { at_reboot: true, at_panic: false });
        for (own, at_panic) in [("panic=10 quiet", true), ("panic=0", false), ("panic=10 panic=0", false)] {
            assert_eq!(policy(Some(own)).at_panic, at_panic, "{own}");
        }
        let panicked = |policy| after(policy, Ran::Serving, ready(), MachineEnd::Panicked);
        assert!(matches!(panicked(policy(Some("panic=-1"))), After::Again(_)));
        assert_eq!(panicked(policy(None)), After::Over);
        let never = Policy::of(true, Some("panic=10"));
        assert_eq!(panicked(never), After::Over);
        assert_eq!(after(never, Ran::Serving, ready(), MachineEnd::Reboot), After::Over);
    }

    #[test]
    fn a_guest_that_never_gets_ready_reboots_so_often_and_fails() {
        let mut reboots = Reboots::new(ALWAYS);
        let mut reboot = |account| {
            let mut outcome = Outcome { account, end: MachineEnd::Reboot, received: (0, 0) };
            (reboots.after(Ran::Serving, &mut outcome), outcome)
        };
        for _ in 1..MOST_UNREADY {
            assert_eq!(reboot(Account::default()).0, After::Again("reboots"));
        }
        assert_eq!(reboot(ready()).0, After::Again("reboots"), "it was ready, and that counts anew");
        for _ in 1..MOST_UNREADY {
            assert_eq!(reboot(Account::default()).0, After::Again("reboots"));
        }
        let (after, outcome) = reboot(Account { stopped: Some(vec![]), ..Account::default() });
        assert_eq!(after, After::Over);
        let verdict = verdict(Ran::Serving, &outcome.account, &outcome.end, outcome.received);
        assert_eq!(verdict.status, 1);
        assert!(verdict.notice.unwrap().contains("5 times in a row before it was ready"));
    }
}
