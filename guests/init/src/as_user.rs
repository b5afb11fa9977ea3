//! A command as another user than root, with streams or a terminal of its own. Between fork and exec this program runs once
//! more, since only the process itself can give up root, and only a program of its own can do it in safe code. Unlike a
//! service's process ([`crate::become_user`]) it keeps all three of its streams, so that its standard input is that of the
//! report until it has taken the other.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use vmprof_job::{Bytes, Ended};

use crate::become_user::{become_ids, parse};
use crate::command::{self, Pipes, Surroundings, text};
use crate::failure::Failure;
use crate::users::{Accounts, Ids};

/// First argument of the program in this role; not for the command line of anybody else.
pub(crate) const WORD: &str = "with-streams-as";
/// Arguments of the role before the command's own.
const HEAD: usize = 5;
/// How the role reports: one of these, a blank, an errno. Nothing at all is success.
const NO_PROGRAM: &str = "program";

/// Who a command is, and where it is then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guise {
    pub(crate) ids: Ids,
    pub(crate) directory: PathBuf,
}

/// What a command finds as this user: variables, and a home where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) ids: Ids,
    pub(crate) home: PathBuf,
    pub(crate) environment: Vec<(OsString, OsString)>,
}

impl Login {
    /// `user` is `USER` or `USER:GROUP`, of names or numbers, of the system below `root`. A number needs no line in
    /// /etc/passwd; its group is then 0, as container engines have it.
    pub(crate) fn of(user: &str, root: &Path) -> Result<Login, Failure> {
        let accounts = Accounts::read(root);
        let (user, group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        let profile = accounts.profile(user);
        let group = group.or(match (&profile, user.parse::<u32>()) {
            (None, Ok(_)) => Some("0"),
            _ => None,
        });
        let ids = accounts.ids(user, group)?;
        // Whoever names a group wants that and no other.
        let ids = if group.is_some() { Ids { groups: Vec::new(), ..ids } } else { ids };
        let home = profile.as_ref().map_or("/", |profile| profile.home);
        let mut environment = vec![("HOME".into(), home.into())];
        if let Some(profile) = &profile {
            let name = OsString::from(profile.name);
            environment.extend([("USER".into(), name.clone()), ("LOGNAME".into(), name)]);
            environment.push(("SHELL".into(), profile.shell.into()));
        }
        Ok(Login { ids, home: home.into(), environment })
    }
}

impl Guise {
    /// As arguments of a role: three.
    pub(crate) fn words(guise: Option<&Guise>) -> [OsString; 3] {
        let Some(Guise { ids, directory }) = guise else { return Default::default() };
        let groups: Vec<String> = ids.groups.iter().map(u32::to_string).collect();
        [format!("{}:{}", ids.uid, ids.gid).into(), groups.join(",").into(), directory.into()]
    }

    /// `Ok(None)`: as it is. `Err`: these are no such words.
    pub(crate) fn of([ids, groups, directory]: [&OsStr; 3]) -> io::Result<Option<Guise>> {
        if ids.is_empty() {
            return Ok(None);
        }
        let ids = parse(ids, groups).ok_or(Errno::INVAL)?;
        Ok(Some(Guise { ids, directory: directory.into() }))
    }

    /// For good. The user's directory is entered as the user: one that it may not enter is none for it.
    pub(crate) fn put_on(&self) -> io::Result<()> {
        become_ids(&self.ids)?;
        env::set_current_dir(&self.directory)
    }
}

/// Starts `argv` in this guise, as the leader of a process group of its own, with pipes for streams. `ourselves` is this
/// program.
pub(crate) fn start(
    ourselves: &Path,
    surroundings: &Surroundings,
    argv: &[Bytes],
    guise: &Guise,
) -> Result<(Result<Pid, Ended>, Pipes), Failure> {
    let pipe = || io::pipe().map_err(Failure::step("making the command's streams"));
    let ((stdin, our_stdin), (our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?, pipe()?);
    let pipes = Pipes { stdin: our_stdin.into(), stdout: our_stdout.into(), stderr: our_stderr.into() };
    let program = match surroundings.find(argv) {
        Ok(program) => program,
        Err(ended) => return Ok((Err(ended), pipes)),
    };
    let (mut report, reporting) = pipe()?;
    let mut role = surroundings.command(ourselves, OsStr::new("vmprof-init"));
    // Where it may not be is for the user to find out.
    role.current_dir("/").process_group(0).arg(WORD);
    role.arg(format!("/proc/{}/fd/{}", std::process::id(), stdin.as_raw_fd()));
    role.args(Guise::words(Some(guise))).arg(program).args(argv.iter().map(text));
    role.stdin(reporting).stdout(stdout).stderr(stderr);
    let pid = match command::spawn(&mut role) {
        Ok(pid) => pid,
        Err(ended) => return Ok((Err(ended), pipes)),
    };
    // Our own copy of the writing end: while it is open, the report never ends.
    drop(role);
    let mut words = String::new();
    let read = report.read_to_string(&mut words);
    // Until here, since the role takes it by its number.
    drop(stdin);
    if read.is_ok() && words.is_empty() {
        return Ok((Ok(pid), pipes));
    }
    // It ends at once; nobody else reaps the children of this process.
    let _ = waitpid(Some(pid), WaitOptions::empty());
    let (what, errno) = words.trim_end().rsplit_once(' ').unwrap_or(("starting the command", ""));
    let errno = errno.parse().map_or(Errno::IO, Errno::from_raw_os_error);
    match what {
        NO_PROGRAM => Ok((Err(command::not_started(errno)), pipes)),
        what => Err(Failure::step(what)(errno.into())),
    }
}

/// The role. Returns only where it failed, which it has then reported; the value is for nobody.
pub(crate) fn become_command(arguments: &[OsString]) -> u8 {
    // A copy that exec closes: whoever started this sees the end of the report when the command is there.
    let Ok(report) = io::stdin().as_fd().try_clone_to_owned() else { return 126 };
    let Err((what, error)) = try_become(arguments);
    let errno = Errno::from_io_error(&error).unwrap_or(Errno::INVAL).raw_os_error();
    let _ = File::from(report).write_all(format!("{what} {errno}\n").as_bytes());
    126
}

type Never = std::convert::Infallible;

fn try_become(arguments: &[OsString]) -> Result<Never, (String, io::Error)> {
    let too_few = || ("too few arguments".to_owned(), io::Error::from(Errno::INVAL));
    let (head, argv) = arguments.split_at_checked(HEAD).ok_or_else(too_few)?;
    let ([stdin, ids, groups, directory, program], [name, rest @ ..]) = (head, argv) else {
        return Err(too_few());
    };
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| (what, error)
    };
    let guise = Guise::of([ids, groups, directory]).map_err(failed("user and groups are no numbers"))?;
    let stdin = File::open(stdin).map_err(failed("the command's input"))?;
    rustix::stdio::dup2_stdin(&stdin).map_err(|errno| failed("the command's input")(errno.into()))?;
    if let Some(guise) = guise {
        let what = format!(
            "becoming user {} and group {} in {}",
            guise.ids.uid,
            guise.ids.gid,
            guise.directory.display()
        );
        guise.put_on().map_err(failed(&what))?;
    }
    let mut command = Command::new(program);
    command.arg0(name).args(rest).stdin(std::process::Stdio::inherit());
    Err((NO_PROGRAM.to_owned(), command.exec()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn system() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let passwd = "root:x:0:0:root:/root:/bin/ash\nweb:x:33:34:Web,,:/srv/web:/bin/false\n";
        fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        fs::write(root.path().join("etc/group"), "web:x:34:\nlogs:x:50:web\ntty:x:5:x,web,y\n").unwrap();
        root
    }

    fn login(user: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        let login = Login::of(user, system().path()).map_err(|failure| failure.message())?;
        let told: Vec<String> = login
            .environment
            .iter()
            .map(|(name, value)| format!("{}={}", name.display(), value.display()))
            .collect();
        assert_eq!(told[0], format!("HOME={}", login.home.display()));
        Ok((login.ids.uid, login.ids.gid, login.ids.groups, told.join(" ")))
    }

    #[test]
    fn a_user_has_groups_and_an_environment_by_name_and_by_number() {
        let web = "HOME=/srv/web USER=web LOGNAME=web SHELL=/bin/false".to_owned();
        for name in ["web", "33"] {
            assert_eq!(login(name), Ok((33, 34, vec![5, 50], web.clone())));
        }
        // Who names a group has that alone.
        for name in ["web:logs", "33:50", "web:50"] {
            assert_eq!(login(name), Ok((33, 50, vec![], web.clone())));
        }
        let root = "HOME=/root USER=root LOGNAME=root SHELL=/bin/ash".to_owned();
        assert_eq!(login("root"), Ok((0, 0, vec![], root)));
    }

    #[test]
    fn a_number_needs_no_line_and_a_name_does() {
        assert_eq!(login("1234"), Ok((1234, 0, vec![], "HOME=/".to_owned())));
        assert_eq!(login("1234:99"), Ok((1234, 99, vec![], "HOME=/".to_owned())));
        assert_eq!(login("nobody"), Err("no user `nobody` in /etc/passwd".to_owned()));
        assert_eq!(login("web:none"), Err("no group `none` in /etc/group".to_owned()));
        assert_eq!(login(""), Err("no user `` in /etc/passwd".to_owned()));
        assert_eq!(login("web:"), Err("no group `` in /etc/group".to_owned()));
        assert_eq!(login("-1"), Err("no user `-1` in /etc/passwd".to_owned()));
    }

    #[test]
    fn a_guise_survives_the_words_it_travels_in() {
        let ids = Ids { uid: 33, gid: 34, groups: vec![5, 50] };
        let guise = Guise { ids, directory: "/srv/a b".into() };
        let words = Guise::words(Some(&guise));
        assert_eq!(Guise::of(words.each_ref().map(OsString::as_os_str)).unwrap(), Some(guise));
        let words = Guise::words(None);
        assert_eq!(Guise::of(words.each_ref().map(OsString::as_os_str)).unwrap(), None);
        assert!(Guise::of(["33", "", "/"].map(OsStr::new)).is_err());
    }

    #[test]
    fn the_role_refuses_a_line_of_arguments_that_is_too_short() {
        let arguments = ["/dev/null", "1:1", "", "/", "/bin/true"].map(OsString::from);
        assert_eq!(try_become(&arguments).unwrap_err().0, "too few arguments");
        assert_eq!(try_become(&arguments[..2]).unwrap_err().0, "too few arguments");
    }
}
