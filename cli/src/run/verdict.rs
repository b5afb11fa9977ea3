//! What a run comes to: the exit status of `up`, and the sentence that goes with it.

use serde::{Deserialize, Serialize};
use vmprof_job::Ended;

use super::conversation::Account;

/// How the machine ended, whichever machine it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEnd {
    PowerOff,
    Reboot,
    Panicked,
    /// The VMM could not go on, in its own words.
    Broken(String),
    /// We ended it.
    Killed,
    /// The emulated host is gone, with its last words; whether its work was done is the account's to say.
    LabGone(String),
}

/// What was run, which decides whose statuses are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ran {
    /// CMD in a guest of this host: its status is ours.
    Command,
    /// What the guest's recipe names.
    Recipe,
    /// Services, until somebody stops them.
    Serving,
    /// A shell on the console of a guest that serves: whoever leaves it is done.
    Shell,
    /// A whole `up` in the emulated host, with or without CMD: its status is ours already.
    Inside { with_command: bool },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub status: u8,
    /// For the user, when the status alone does not say it.
    pub notice: Option<String>,
}

/// `received` is how many bytes came out of the stdout and stderr ports.
pub fn verdict(ran: Ran, account: &Account, end: &MachineEnd, received: (u64, u64)) -> Verdict {
    let verdict = verdict_on_work(ran, account, end, received);
    if account.uncollected.is_empty() {
        return verdict;
    }
    // Work that failed has its own status; work that was done, and whose fruits are lost, has ours.
    let status = if verdict.status == 0 { ours(ran) } else { verdict.status };
    let lost = account.uncollected.join("\n  ");
    let lost = format!("what was to be copied out of the guest is not here:\n  {lost}");
    let notice = verdict.notice.map_or(lost.clone(), |notice| format!("{notice}\n{lost}"));
    Verdict { status, notice: Some(notice) }
}

/// The status of what is not the work's own failure.
fn ours(ran: Ran) -> u8 {
    match ran {
        Ran::Inside { .. } | Ran::Command => 125,
        Ran::Recipe | Ran::Serving | Ran::Shell => 1,
    }
}

fn verdict_on_work(ran: Ran, account: &Account, end: &MachineEnd, received: (u64, u64)) -> Verdict {
    let say = |status: u8, notice: String| Verdict { status, notice: Some(notice) };
    let with_command = matches!(ran, Ran::Command | Ran::Inside { with_command: true });
    let ours = ours(ran);
    // With CMD a shell's rule; without, the one status that the contract has for it.
    let interrupted = |signal: i32| if with_command { 128 + signal as u8 } else { 130 };
    let lab = |text: String| match end {
        MachineEnd::LabGone(words) if !words.is_empty() => {
            format!("the lab failed: {text}. Its last words:\n{words}")
        }
        MachineEnd::LabGone(_) => format!("the lab failed: {text}"),
        _ => text,
    };
    if account.timed_out {
        return say(124, "the time that --timeout gives ran out".into());
    }
    if let (Some(signal), None, None) = (account.interrupted, account.ended, &account.stopped)
        && account.failed.is_some()
    {
        // What fails while it is being stopped has not failed.
        return say(interrupted(signal), "interrupted".into());
    }
    if let Some(message) = &account.failed {
        let what = match account.ready_after {
            None => "the guest did not become ready",
            Some(_) => "the guest cannot go on",
        };
        return say(ours, lab(format!("{what}: {message}")));
    }
    if let Some(killed) = &account.stopped {
        let status = if account.interrupted.is_some() { 130 } else { 0 };
        return match killed[..] {
            [] if status == 0 => Verdict { status, notice: None },
            [] => say(status, "interrupted: the guest has stopped cleanly".into()),
            _ => say(
                status,
                format!("the guest has stopped, but not cleanly: {} had to be killed", killed.join(", ")),
            ),
        };
    }
    if let Some(ended) = account.ended {
        let written = (ended.stdout_bytes, ended.stderr_bytes);
        if written != received {
            let text = format!(
                "output was lost: {written:?} bytes were written to stdout and stderr, {received:?} came"
            );
            return say(ours, lab(text));
        }
        return match (ran, ended.status) {
            (Ran::Command, Ended::NotStarted { status, errno }) => {
                let reason = std::io::Error::from_raw_os_error(errno);
                say(status as u8, format!("the guest could not start the command: {reason}"))
            }
            // It was asked to stop before it could listen.
            (Ran::Inside { .. }, Ended::Signaled(_)) if account.interrupted.is_some() => {
                say(account.interrupted.map_or(ours, interrupted), "interrupted".into())
            }
            (Ran::Inside { with_command: false }, Ended::Signaled(_)) if account.stop_asked => {
                say(0, "stopped before the guest had booted".into())
            }
            (Ran::Inside { .. }, Ended::NotStarted { errno, .. }) => {
                let reason = std::io::Error::from_raw_os_error(errno);
                say(ours, lab(format!("vmprof could not be started in it: {reason}")))
            }
            (Ran::Command | Ran::Inside { .. }, status) => {
                Verdict { status: status.shell_status(), notice: None }
            }
            (_, _) if account.interrupted.is_some() => say(130, "interrupted".into()),
            (_, _) if account.stop_asked => Verdict { status: 0, notice: None },
            (Ran::Shell, Ended::NotStarted { errno, .. }) => {
                let reason = std::io::Error::from_raw_os_error(errno);
                say(ours, format!("the guest could not start a shell on its console: {reason}"))
            }
            // The last command's status, and nobody's verdict.
            (Ran::Shell, _) => Verdict { status: 0, notice: None },
            (_, Ended::Exited(0)) => Verdict { status: 0, notice: None },
            (_, status) => {
                say(1, format!("what the guest's recipe runs ended with status {}", status.shell_status()))
            }
        };
    }
    if let Some(signal) = account.interrupted {
        let how = match account.killed && account.hello_after.is_some() {
            true => "interrupted: the guest was ended before it had stopped",
            false => "interrupted",
        };
        return say(interrupted(signal), how.into());
    }
    if account.mute {
        return say(ours, lab("its first process did not say hello in time".into()));
    }
    if account.stalled {
        return say(ours, lab("its first process answers no more: the emulated host has stalled".into()));
    }
    match end {
        MachineEnd::PowerOff if !with_command || account.stop_asked => Verdict { status: 0, notice: None },
        MachineEnd::PowerOff => say(ours, "the guest powered off before the command had ended".into()),
        MachineEnd::Reboot if !with_command => {
            say(0, "the guest asked for a reboot: the run ends here".into())
        }
        MachineEnd::Reboot => say(ours, "the guest rebooted before the command had ended".into()),
        MachineEnd::Panicked => say(ours, "the guest's kernel panicked: its console above says why".into()),
        MachineEnd::Broken(reason) => say(ours, reason.clone()),
        MachineEnd::Killed if account.stop_asked => match account.hello_after {
            None => say(if with_command { ours } else { 0 }, "stopped before the guest had booted".into()),
            Some(_) => say(ours, "the guest did not stop in the time it had, and was ended".into()),
        },
        MachineEnd::Killed => say(ours, "the machine was ended before the command had".into()),
        MachineEnd::LabGone(_) => say(125, lab("the emulated host ended before its work was done".into())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::conversation::Finish;
    use super::*;

    fn ended(status: Ended) -> Account {
        Account { ended: Some(Finish { status, stdout_bytes: 4, stderr_bytes: 0 }), ..Account::default() }
    }

    fn status(ran: Ran, account: &Account, end: MachineEnd) -> u8 {
        verdict(ran, account, &end, (4, 0)).status
    }

    const INSIDE: Ran = Ran::Inside { with_command: false };

    #[test]
    fn a_commands_status_is_ours_whatever_it_is() {
        for (ended_as, expected) in [(Ended::Exited(0), 0), (Ended::Exited(7), 7), (Ended::Signaled(9), 137)]
        {
            assert_eq!(status(Ran::Command, &ended(ended_as), MachineEnd::PowerOff), expected);
        }
        let missing = Ended::NotStarted { status: 127, errno: 2 };
        assert_eq!(status(Ran::Command, &ended(missing), MachineEnd::PowerOff), 127);
    }

    #[test]
    fn without_a_command_anything_but_success_is_one() {
        assert_eq!(status(Ran::Recipe, &ended(Ended::Exited(0)), MachineEnd::PowerOff), 0);
        assert_eq!(status(Ran::Recipe, &ended(Ended::Exited(7)), MachineEnd::PowerOff), 1);
        assert_eq!(status(Ran::Recipe, &Account::default(), MachineEnd::PowerOff), 0);
        assert_eq!(status(Ran::Recipe, &Account::default(), MachineEnd::Panicked), 1);
    }

    #[test]
    fn a_guest_that_serves_ends_as_it_was_asked_to() {
        let stopped = |killed: &[&str]| Account {
            stopped: Some(killed.iter().map(|name| (*name).to_owned()).collect()),
            hello_after: Some(Duration::ZERO),
            ..Account::default()
        };
        let interrupted = |account| Account { interrupted: Some(2), ..account };
        let asked = |account| Account { stop_asked: true, ..account };
        for (account, end, expected, notice) in [
            (interrupted(stopped(&[])), MachineEnd::PowerOff, 130, "cleanly"),
            (interrupted(stopped(&["db", "web"])), MachineEnd::PowerOff, 130, "db, web had to be killed"),
            (asked(stopped(&[])), MachineEnd::PowerOff, 0, ""),
            (asked(stopped(&["db"])), MachineEnd::PowerOff, 0, "db had to be killed"),
            // The power button, or `poweroff` inside.
            (stopped(&[]), MachineEnd::PowerOff, 0, ""),
            (Account::default(), MachineEnd::PowerOff, 0, ""),
            (Account { timed_out: true, ..stopped(&[]) }, MachineEnd::PowerOff, 124, "--timeout"),
            (interrupted(Account { killed: true, ..stopped(&[]) }), MachineEnd::Killed, 130, "cleanly"),
        ] {
            let verdict = verdict(Ran::Serving, &account, &end, (0, 0));
            let said = verdict.notice.unwrap_or_default();
            assert_eq!(verdict.status, expected, "{account:?}");
            assert!(said.contains(notice) && said.is_empty() == notice.is_empty(), "{account:?}: {said}");
        }
    }

    #[test]
    fn a_guest_that_does_not_stop_is_ended_and_that_is_a_failure_unless_it_was_interrupted() {
        let hard = Account { killed: true, hello_after: Some(Duration::ZERO), ..Account::default() };
        let asked = Account { stop_asked: true, ..hard };
        assert_eq!(status(Ran::Serving, &asked, MachineEnd::Killed), 1);
        let early = Account { stop_asked: true, killed: true, ..Account::default() };
        assert_eq!(status(Ran::Serving, &early, MachineEnd::Killed), 0);
        assert_eq!(status(Ran::Command, &early, MachineEnd::Killed), 125);
    }

    #[test]
    fn a_service_that_failed_is_the_guests_failure_before_and_after_it_was_ready() {
        let failed = |ready_after| Account {
            failed: Some("db failed: it exited with status 1".into()),
            ready_after,
            ..Account::default()
        };
        for (ran, expected) in [(Ran::Serving, 1), (Ran::Recipe, 1), (Ran::Shell, 1), (Ran::Command, 125)] {
            for (ready_after, words) in [(None, "not become ready"), (Some(Duration::ZERO), "cannot go on")] {
                let verdict = verdict(ran, &failed(ready_after), &MachineEnd::PowerOff, (0, 0));
                assert_eq!(verdict.status, expected);
                let notice = verdict.notice.unwrap();
                assert!(notice.contains(words) && notice.contains("status 1"), "{notice}");
            }
        }
        let interrupted = Account { interrupted: Some(2), ..failed(None) };
        assert_eq!(status(Ran::Serving, &interrupted, MachineEnd::PowerOff), 130);
        assert_eq!(status(Ran::Command, &interrupted, MachineEnd::PowerOff), 130);
    }

    #[test]
    fn leaving_a_shell_is_no_verdict_on_its_last_command() {
        let left = ended(Ended::Exited(127));
        assert_eq!(status(Ran::Shell, &left, MachineEnd::PowerOff), 0);
        let absent = ended(Ended::NotStarted { status: 127, errno: 2 });
        assert_eq!(status(Ran::Shell, &absent, MachineEnd::PowerOff), 1);
    }

    #[test]
    fn an_inner_run_that_is_stopped_before_it_listens_is_stopped_all_the_same() {
        let gone = |account: &Account, ran| status(ran, account, MachineEnd::LabGone(String::new()));
        let asked = Account { stop_asked: true, ..ended(Ended::Signaled(10)) };
        assert_eq!(gone(&asked, INSIDE), 0);
        let interrupted = Account { interrupted: Some(2), ..ended(Ended::Signaled(15)) };
        assert_eq!(gone(&interrupted, INSIDE), 130);
        assert_eq!(gone(&interrupted, Ran::Inside { with_command: true }), 130);
    }

    #[test]
    fn the_inner_status_passes_through_the_lab() {
        for inner in [0, 1, 3, 4, 7, 124, 125] {
            assert_eq!(
                status(INSIDE, &ended(Ended::Exited(inner)), MachineEnd::LabGone(String::new())),
                inner as u8
            );
        }
    }

    #[test]
    fn a_lab_that_fails_is_never_the_guests_fault() {
        let gone = || MachineEnd::LabGone("Kernel panic".into());
        assert_eq!(status(INSIDE, &Account::default(), gone()), 125);
        let mute = Account { mute: true, killed: true, ..Account::default() };
        let verdict = verdict(INSIDE, &mute, &gone(), (0, 0));
        assert_eq!(verdict.status, 125);
        assert!(verdict.notice.unwrap().contains("the lab failed"));
    }

    #[test]
    fn lost_output_is_no_success() {
        let short = verdict(Ran::Command, &ended(Ended::Exited(0)), &MachineEnd::PowerOff, (3, 0));
        assert_eq!(short.status, 125);
    }

    #[test]
    fn time_and_interruption_have_statuses_of_their_own() {
        let late = Account { timed_out: true, ..ended(Ended::Signaled(15)) };
        assert_eq!(status(Ran::Command, &late, MachineEnd::PowerOff), 124);
        let interrupted = Account { interrupted: Some(2), ..ended(Ended::Signaled(15)) };
        assert_eq!(status(Ran::Recipe, &interrupted, MachineEnd::PowerOff), 130);
        let hard = Account { interrupted: Some(2), killed: true, ..Account::default() };
        assert_eq!(status(Ran::Command, &hard, MachineEnd::Killed), 130);
    }

    #[test]
    fn a_guest_that_goes_before_its_command_is_a_failure_of_ours() {
        for end in
            [MachineEnd::PowerOff, MachineEnd::Reboot, MachineEnd::Panicked, MachineEnd::Broken("x".into())]
        {
            assert_eq!(status(Ran::Command, &Account::default(), end), 125);
        }
    }
}
