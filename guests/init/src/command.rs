//! Starting processes: the command of the job, and helpers beside it. Looking the program up is done here, as a shell
//! does it, so that "no such program" and "may not be run" are told apart.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::process::Pid;
use vmprof_job::{Bytes, Ended, Job};

/// Where programs are looked for when the environment names no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn environment(said: &[(Bytes, Bytes)]) -> Vec<(OsString, OsString)> {
    said.iter().map(|(name, value)| (text(name), text(value))).collect()
}

/// What a process finds around it when it starts.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) directory: PathBuf,
}

impl Surroundings {
    /// Of whatever is run beside the guest's services: the same for its command and for others.
    pub(crate) fn of(job: &Job) -> Self {
        let root = Surroundings::of_root();
        let directory = PathBuf::from(&job.directory);
        Surroundings {
            environment: if job.env.is_empty() { root.environment } else { environment(&job.env) },
            // A command is not started without its own.
            directory: if directory.is_dir() { directory } else { root.directory },
        }
    }

    /// Of root, where nobody says more.
    pub(crate) fn of_root() -> Self {
        let path = OsStr::from_bytes(DEFAULT_PATH).to_owned();
        let home = Path::new("/root");
        let directory = if home.is_dir() { home } else { Path::new("/") };
        let environment =
            vec![("HOME".into(), directory.into()), ("PATH".into(), path), ("TERM".into(), "dumb".into())];
        Surroundings { environment, directory: directory.into() }
    }

    fn path(&self) -> &[u8] {
        let path = self.environment.iter().rev().find(|(name, _)| name == "PATH");
        path.map_or(DEFAULT_PATH, |(_, value)| value.as_bytes())
    }

    /// `program` is where [`find`] found it.
    pub(crate) fn command(&self, program: &Path, name: &OsStr) -> Command {
        let mut command = Command::new(program);
        command.arg0(name).env_clear().current_dir(&self.directory);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The program that argv names; `Err` says how a shell would have it.
    pub(crate) fn find(&self, argv: &[Bytes]) -> Result<PathBuf, Ended> {
        let name = argv.first().map(Bytes::as_bytes).unwrap_or_default();
        find(name, self.path(), &self.directory).map_err(not_started)
    }
}

/// The three ends the outside of a process holds.
#[derive(Debug)]
pub(crate) struct Pipes {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Starts `argv` as the leader of a process group of its own, with pipes for streams. The pipes are there even when the
/// process is not: they then are at their end.
pub(crate) fn start(surroundings: &Surroundings, argv: &[Bytes]) -> io::Result<(Result<Pid, Ended>, Pipes)> {
    let (stdin, our_stdin) = io::pipe()?;
    let (our_stdout, stdout) = io::pipe()?;
    let (our_stderr, stderr) = io::pipe()?;
    let started = surroundings.find(argv).and_then(|program| {
        let mut command = surroundings.command(&program, &argv.first().map(text).unwrap_or_default());
        command.args(argv.iter().skip(1).map(text)).process_group(0);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        spawn(&mut command)
    });
    Ok((started, Pipes { stdin: our_stdin.into(), stdout: our_stdout.into(), stderr: our_stderr.into() }))
}

/// The child is reaped by number later, with all the others.
pub(crate) fn spawn(command: &mut Command) -> Result<Pid, Ended> {
    let child =
        command.spawn().map_err(|error| not_started(Errno::from_io_error(&error).unwrap_or(Errno::INVAL)))?;
    Ok(Pid::from_child(&child))
}

/// 127 where there is no such program, 126 where it may not be run.
pub(crate) fn not_started(errno: Errno) -> Ended {
    let status = if matches!(errno, Errno::NOENT | Errno::NOTDIR) { 127 } else { 126 };
    Ended::NotStarted { status, errno: errno.raw_os_error() }
}

/// A name with a slash is a path, any other is looked for along `path`. The first that may be run is taken; when there
/// are only such that may not, that is the answer.
fn find(name: &[u8], path: &[u8], directory: &Path) -> Result<PathBuf, Errno> {
    if name.contains(&b'/') {
        // exec itself answers for it, from the directory it will be in.
        return Ok(OsStr::from_bytes(name).into());
    }
    let mut outcome = Errno::NOENT;
    if name.is_empty() {
        return Err(outcome);
    }
    for entry in path.split(|byte| *byte == b':') {
        let candidate = directory.join(OsStr::from_bytes(entry)).join(OsStr::from_bytes(name));
        match fs::metadata(&candidate) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => return Ok(candidate),
            Ok(_) => outcome = Errno::ACCESS,
            Err(_) => {}
        }
    }
    Err(outcome)
}

pub(crate) fn text(bytes: &Bytes) -> OsString {
    OsString::from_vec(bytes.as_bytes().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(directory: &Path, name: &str, mode: u32) {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join(name), "#!/bin/sh\n").unwrap();
        fs::set_permissions(directory.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_first_along_the_path_that_may_be_run_is_taken() {
        let root = tempfile::tempdir().unwrap();
        program(&root.path().join("a"), "fio", 0o644);
        program(&root.path().join("b"), "fio", 0o755);
        fs::create_dir_all(root.path().join("b/sh")).unwrap();
        let look = |name: &str| find(name.as_bytes(), b"a:b:absent", root.path());
        assert_eq!(look("fio"), Ok(root.path().join("b/fio")));
        assert_eq!(look("sh"), Err(Errno::ACCESS));
        assert_eq!(look("absent"), Err(Errno::NOENT));
        assert_eq!(look(""), Err(Errno::NOENT));
    }

    #[test]
    fn a_name_with_a_slash_is_not_looked_for() {
        assert_eq!(find(b"./x", b"/bin", Path::new("/")), Ok("./x".into()));
    }

    #[test]
    fn not_started_reads_as_a_shell_has_it() {
        assert_eq!(not_started(Errno::NOENT), Ended::NotStarted { status: 127, errno: 2 });
        assert_eq!(not_started(Errno::ACCESS), Ended::NotStarted { status: 126, errno: 13 });
        assert_eq!(not_started(Errno::NOEXEC), Ended::NotStarted { status: 126, errno: 8 });
    }
}
