//! The program's role between the supervisor and a service: it enters the service's cgroup, gives up root for the
//! service's user, and becomes the service's program. Done here and not by the supervisor, because between fork and exec
//! only the process itself can do it, and only a program of its own can do it in safe code.
//!
//! On its standard input it has a pipe to the supervisor: closed without a word by exec, which is success; otherwise one
//! line says what failed. The service itself gets /dev/null.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::Mode;
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};
use vmprof_job::{Bytes, Ended, Step};

use crate::command::{self, Surroundings, text};
use crate::users::Ids;

/// First argument of the program in this role; not for the command line of anybody else.
pub(crate) const WORD: &str = "as-user";
/// Number of arguments before the service's own.
const HEAD: usize = 4;

/// How this program is started in this role.
#[derive(Debug, Clone)]
pub(crate) struct Doorway {
    /// The program, and arguments up to the role's own.
    pub(crate) words: Vec<OsString>,
}

impl Doorway {
    /// Through /proc/self/exe, which stays valid when the initramfs is out of reach.
    pub(crate) fn ourselves() -> Self {
        Doorway { words: vec!["/proc/self/exe".into(), WORD.into()] }
    }

    /// Everything but the streams.
    pub(crate) fn command(&self, step: &Step, ids: &Ids, cgroup: Option<&Path>) -> Command {
        let mut words = self.words.iter();
        let mut command = Command::new(words.next().map_or(OsStr::new(""), OsString::as_os_str));
        let groups: Vec<String> = ids.groups.iter().map(u32::to_string).collect();
        command.args(words).process_group(0).current_dir("/").env_clear();
        command.envs(step.env.iter().map(|(name, value)| (text(name), text(value))));
        command.arg(format!("{}:{}", ids.uid, ids.gid)).arg(groups.join(","));
        command.arg(cgroup.unwrap_or(Path::new(""))).arg(&step.directory);
        command.args(step.argv.iter().map(text));
        command
    }
}

/// The role. Returns only where it failed, with the status a shell would give.
pub(crate) fn become_user(arguments: &[OsString]) -> u8 {
    let Ok(report) = io::stdin().as_fd().try_clone_to_owned() else { return 126 };
    let (what, errno, status) = match try_become(arguments) {
        Ok(never) => match never {},
        Err(failed) => failed,
    };
    let error = io::Error::from_raw_os_error(errno);
    // Onto the log too: there it stands among the service's own words.
    let line = format!("{what}: {error}\n");
    let _ = File::from(report).write_all(line.as_bytes());
    let _ = io::stderr().write_all(line.as_bytes());
    status
}

type Never = std::convert::Infallible;
type Failed = (String, i32, u8);

fn try_become(arguments: &[OsString]) -> Result<Never, Failed> {
    let failed = |what: String| move |error: io::Error| (what, error.raw_os_error().unwrap_or(22), 126);
    let Some((head, argv)) = arguments.split_at_checked(HEAD) else {
        return Err(("too few arguments".to_owned(), 22, 126));
    };
    let [ids, groups, cgroup, directory] = head else { return Err(("arguments".to_owned(), 22, 126)) };
    let ids = parse(ids, groups).ok_or_else(|| ("user and groups are no numbers".to_owned(), 22, 126))?;

    let null =
        File::options().read(true).open("/dev/null").map_err(failed("opening /dev/null".to_owned()))?;
    rustix::stdio::dup2_stdin(&null).map_err(|errno| failed("closing the input".to_owned())(errno.into()))?;
    if !cgroup.is_empty() {
        // 0 is the writer itself.
        fs::write(Path::new(cgroup).join("cgroup.procs"), "0")
            .map_err(failed(format!("entering the cgroup {}", cgroup.display())))?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    become_ids(&ids).map_err(failed(format!("becoming user {} and group {}", ids.uid, ids.gid)))?;
    // As the user: whose directory it may not enter is not its working directory.
    env::set_current_dir(directory)
        .map_err(failed(format!("entering the directory {}", directory.display())))?;

    let argv: Vec<Bytes> = argv.iter().map(|word| word.as_bytes().into()).collect();
    let surroundings =
        Surroundings { environment: env::vars_os().collect(), directory: PathBuf::from(directory) };
    let name = argv.first().map(text).unwrap_or_default();
    let starting = |ended: Ended| match ended {
        Ended::NotStarted { status, errno } => (format!("starting {}", name.display()), errno, status as u8),
        _ => (format!("starting {}", name.display()), 22, 126),
    };
    let program = surroundings.find(&argv).map_err(starting)?;
    let mut command = Command::new(program);
    command.arg0(&name).args(argv.iter().skip(1).map(text)).stdin(Stdio::from(null));
    let error = command.exec();
    let errno = rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::INVAL);
    Err(starting(command::not_started(errno)))
}

/// Groups first: without root there is no way to set them. Who has the ids already, root or not, needs no right.
pub(crate) fn become_ids(ids: &Ids) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    if rustix::process::geteuid().is_root() {
        let groups: Vec<Gid> = ids.groups.iter().copied().map(Gid::from_raw).collect();
        set_thread_groups(&groups)?;
    }
    // The calls are those of a thread, and this process has but one.
    set_thread_gid(gid)?;
    set_thread_uid(uid)?;
    Ok(())
}

pub(crate) fn parse(ids: &OsStr, groups: &OsStr) -> Option<Ids> {
    let (uid, gid) = ids.to_str()?.split_once(':')?;
    let groups = groups.to_str()?.split(',').filter(|group| !group.is_empty());
    let groups = groups.map(|group| group.parse().ok()).collect::<Option<_>>()?;
    Some(Ids { uid: uid.parse().ok()?, gid: gid.parse().ok()?, groups })
}

/// What the role's report says, where it says anything.
pub(crate) fn report(bytes: &[u8]) -> Option<String> {
    let line = String::from_utf8_lossy(bytes);
    let line = line.trim_end();
    (!line.is_empty()).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_the_arguments_they_travel_in() {
        let ids = Ids { uid: 105, gid: 110, groups: vec![90, 104] };
        let step = Step {
            argv: vec!["postgres".into(), "-D".into()],
            user: "postgres".into(),
            group: None,
            env: vec![("PGDATA".into(), "/data".into())],
            directory: "/data".into(),
        };
        let command = Doorway::ourselves().command(&step, &ids, Some(Path::new("/sys/fs/cgroup/x")));
        let arguments: Vec<OsString> = command.get_args().map(OsStr::to_owned).collect();
        assert_eq!(
            arguments,
            ["as-user", "105:110", "90,104", "/sys/fs/cgroup/x", "/data", "postgres", "-D"]
                .map(OsString::from)
        );
        assert_eq!(parse(&arguments[1], &arguments[2]), Some(ids));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for (ids, groups) in [("0", ""), ("0:x", ""), ("0:0", "1,x"), ("-1:0", "")] {
            assert_eq!(parse(OsStr::new(ids), OsStr::new(groups)), None);
        }
        assert_eq!(try_become(&["0:0".into()]).unwrap_err().0, "too few arguments");
    }
}
