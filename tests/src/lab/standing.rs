//! The one emulated host that tests share: started by the first that needs it, and stopped when the test run ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use rustix::process::{Pid, Signal, kill_process};

use super::locked;
use crate::{binary, finish, shared_store};

#[derive(Debug)]
struct Standing {
    directory: tempfile::TempDir,
    /// Waits for the end of this process, and stops the lab: a process that tests end with runs nothing at its end.
    _ends_it: Child,
}

static STANDING: Mutex<Option<Standing>> = Mutex::new(None);

fn vmprof(directory: &Path, words: [&str; 2]) -> Command {
    let mut command = Command::new(binary());
    command.args(words).env_clear().env("HOME", directory).env("VMPROF_STORE", shared_store());
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("VMPROF_LAB", directory.join("lab"));
    command
}

/// The lab's directory. One that has ended is started anew.
pub(super) fn up() -> PathBuf {
    let mut standing = locked(&STANDING);
    let is_up = |standing: &Standing| {
        finish(&mut vmprof(standing.directory.path(), ["lab", "status"])).status == Some(0)
    };
    match &*standing {
        Some(standing) if is_up(standing) => standing.directory.path().join("lab"),
        _ => {
            let started = start();
            let lab = started.directory.path().join("lab");
            *standing = Some(started);
            lab
        }
    }
}

fn start() -> Standing {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    finish(&mut vmprof(directory.path(), ["lab", "start"])).expect(0);
    let stop = vmprof(directory.path(), ["lab", "stop"]);
    let mut ends_it = Command::new("sh");
    ends_it.args(["-c", "read -r _; \"$0\" lab stop; rm -rf \"$1\""]);
    ends_it.arg(binary()).arg(directory.path());
    ends_it.env_clear().envs(stop.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ends_it = ends_it.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    Standing { directory, _ends_it: ends_it.expect("a shell can be started") }
}

/// Ends it, for what happened in it: the next test has a new one.
pub(super) fn end() {
    if let Some(standing) = locked(&STANDING).take() {
        let facts = std::fs::read(standing.directory.path().join("lab/lab.json")).unwrap_or_default();
        let facts: serde_json::Value = serde_json::from_slice(&facts).unwrap_or_default();
        let keeper = facts["pid"].as_i64().and_then(|pid| Pid::from_raw(pid as i32));
        // It may have ended by itself. Its emulator goes with it.
        let _ = keeper.map(|keeper| kill_process(keeper, Signal::KILL));
    }
}
