//! What a boot is for: CMD, what the recipe names, services that run until they are stopped, or a shell beside those.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use vmprof_guests::{Conduct, Init};
use vmprof_job::Bytes;

use super::BootImage;
use crate::failure::{Failure, Kind};
use crate::run::verdict::Ran;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// CMD, with its words.
    Command(Vec<Bytes>),
    /// What the recipe's `run` names.
    Recipe(Vec<Bytes>),
    /// The guest's services, until somebody stops them.
    Serve,
    /// A shell on the console of a guest that serves.
    Shell,
}

const SHELL: &str = "/bin/sh";

impl Work {
    /// What `up` does with this image; `console` is whether the guest's console is interactive.
    pub fn of(image: &BootImage, command: &[OsString], console: bool) -> Result<Work, Failure> {
        if !command.is_empty() {
            return Ok(Work::Command(command.iter().map(|word| word.as_bytes().into()).collect()));
        }
        if !image.conduct.run.is_empty() {
            return Ok(Work::Recipe(image.conduct.run.iter().map(|word| word.as_str().into()).collect()));
        }
        match (serves(&image.conduct), console, image.abilities.shell) {
            (_, true, true) => Ok(Work::Shell),
            (true, true, false) => Err(Failure::said(
                Kind::Invalid,
                "vmprof::up::no_shell",
                format!("--console has nothing to run: the guest `{}` has no {SHELL}", image.guest),
                "add a shell to the recipe, such as `packages dash` with `link \"/usr/bin/sh\" to=\"dash\"`; or leave \
                 --console out, and the console is shown",
            )),
            (true, false, _) => Ok(Work::Serve),
            (false, ..) => Err(Failure::said(
                Kind::Invalid,
                "vmprof::up::nothing_to_run",
                format!(
                    "the guest `{}` has nothing to run: its recipe has neither `run` nor a service",
                    image.guest
                ),
                "give a command behind `--`, as in `vmprof up PROFILE -- uname -a`, or add `run` or a `service` to the recipe",
            )),
        }
    }

    /// What runs once the guest is ready.
    pub fn argv(&self) -> Option<Vec<Bytes>> {
        match self {
            Work::Command(argv) | Work::Recipe(argv) => Some(argv.clone()),
            Work::Serve => None,
            Work::Shell => Some(vec![SHELL.into()]),
        }
    }

    /// Whose status the run has.
    pub fn ran(&self) -> Ran {
        match self {
            Work::Command(_) => Ran::Command,
            Work::Recipe(_) => Ran::Recipe,
            Work::Serve => Ran::Serving,
            Work::Shell => Ran::Shell,
        }
    }
}

/// Whether the guest goes on without a command.
pub fn serves(conduct: &Conduct) -> bool {
    !conduct.services.is_empty() || matches!(conduct.init, Init::Systemd { .. })
}

#[cfg(test)]
mod tests {
    use vmprof_guests::Abilities;

    use super::*;

    fn image(run: &[&str], serving: bool, shell: bool) -> BootImage {
        let init = match serving {
            true => Init::Systemd { enable: vec![], mask: vec![] },
            false => Init::Vmprof,
        };
        BootImage {
            guest: "g".into(),
            kernel: "k".into(),
            initramfs: "i".into(),
            root: None,
            private_root: false,
            digest: "d".into(),
            cmdline: None,
            conduct: Conduct {
                hostname: "g".into(),
                env: vec![],
                sysctl: vec![],
                mounts: vec![],
                init,
                services: vec![],
                stop_within_ms: 1,
                run: run.iter().map(|word| (*word).to_owned()).collect(),
            },
            abilities: Abilities { shell, ..Abilities::default() },
        }
    }

    #[test]
    fn a_command_comes_first_then_what_the_recipe_names_then_its_services() {
        let ran = |run: &[&str], serving, command: &[&str], console| {
            let command: Vec<OsString> = command.iter().map(OsString::from).collect();
            Work::of(&image(run, serving, true), &command, console).unwrap().ran()
        };
        assert_eq!(ran(&["greet"], true, &["true"], false), Ran::Command);
        assert_eq!(ran(&["greet"], true, &["true"], true), Ran::Command);
        assert_eq!(ran(&["greet"], true, &[], true), Ran::Recipe);
        assert_eq!(ran(&[], true, &[], false), Ran::Serving);
        assert_eq!(ran(&[], true, &[], true), Ran::Shell);
        assert_eq!(ran(&[], false, &[], true), Ran::Shell);
    }

    #[test]
    fn nothing_to_run_and_no_shell_are_refused() {
        let code = |serving, console, shell| {
            let failure = Work::of(&image(&[], serving, shell), &[], console).unwrap_err();
            assert_eq!(failure.kind, Kind::Invalid);
            failure.problem.code().unwrap().to_string()
        };
        assert_eq!(code(true, true, false), "vmprof::up::no_shell");
        for (console, shell) in [(false, true), (false, false), (true, false)] {
            assert_eq!(code(false, console, shell), "vmprof::up::nothing_to_run");
        }
    }
}
