//! What a run comes to: the exit status of `up`, and the sentence that goes with it.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// CMD in a guest of this host: its status is ours.
    Command,
    /// What the guest's recipe names.
    Recipe,
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
    let say = |status: u8, notice: String| Verdict { status, notice: Some(notice) };
    let with_command = matches!(ran, Ran::Command | Ran::Inside { with_command: true });
    let ours = match ran {
        Ran::Inside { .. } => 125,
        Ran::Command => 125,
        Ran::Recipe => 1,
    };
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
    if let Some(message) = &account.failed {
        return say(ours, lab(format!("the first process inside could not finish the boot: {message}")));
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
            (Ran::Inside { .. }, Ended::NotStarted { errno, .. }) => {
                let reason = std::io::Error::from_raw_os_error(errno);
                say(ours, lab(format!("vmprof could not be started in it: {reason}")))
            }
            (Ran::Command | Ran::Inside { .. }, status) => {
                Verdict { status: status.shell_status(), notice: None }
            }
            (Ran::Recipe, _) if account.interrupted.is_some() => say(130, "interrupted".into()),
            (Ran::Recipe, _) if account.stop_asked => Verdict { status: 0, notice: None },
            (Ran::Recipe, Ended::Exited(0)) => Verdict { status: 0, notice: None },
            (Ran::Recipe, status) => {
                say(1, format!("what the guest's recipe runs ended with status {}", status.shell_status()))
            }
        };
    }
    if let Some(signal) = account.interrupted {
        // With CMD a shell's rule; without, the one status that the contract has for it.
        return say(if with_command { 128 + signal as u8 } else { 130 }, "interrupted".into());
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
        MachineEnd::Killed => say(ours, "the machine was ended before the command had".into()),
        MachineEnd::LabGone(_) => say(125, lab("the emulated host ended before its work was done".into())),
    }
}

#[cfg(test)]
mod tests {
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
