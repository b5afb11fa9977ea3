//! The verbs that act inside the guest of a running VM: `exec`, `cp`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use clap::builder::OsStringValueParser;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory};

use super::Arguments;

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof exec db -- psql -U postgres -c 'select 1'   its output here, its status ours\n  \
    vmprof exec -t db -- bash                          a shell on this terminal; Ctrl-A x leaves it\n  \
    vmprof exec -u postgres db -- psql                 as a user of the guest, in its home\n  \
    vmprof exec db -- sh -c 'cat > /tmp/in' < file     standard input goes along\n\n\
    Exit status: the command's, 128+N for its signal N, 127 where the guest has no such program, 126 where it may not be run, \
    125 everything else that is not the command's.\n\
    Signals are passed on to the command. A second Ctrl-C leaves it, as Ctrl-A x does: it gets SIGHUP, and SIGKILL ten seconds later; \
    the status is 129.")]
pub struct ExecArguments {
    /// Name of the running VM
    pub name: String,
    /// Give the command a terminal, which is this one
    #[arg(short, long)]
    pub tty: bool,
    /// A variable of its environment, beside those that the recipe gives every command
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = OsStringValueParser::new().try_map(variable))]
    pub env: Vec<(String, OsString)>,
    /// Where in the guest it runs [default: where CMD of `up` does, or the home of --user]
    #[arg(short = 'w', long = "workdir", value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Whom it runs as, names or numbers of the guest's /etc/passwd and /etc/group [default: root]
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub user: Option<String>,
    /// Leave standard input alone: the command reads an end of file
    #[arg(short = 'n', long, conflicts_with = "tty")]
    pub no_stdin: bool,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

fn variable(text: OsString) -> Result<(String, OsString), String> {
    let bytes = text.into_vec();
    let at = bytes.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
    let at = at.ok_or("write NAME=VALUE")?;
    let name = String::from_utf8(bytes[..at].to_vec()).map_err(|_| "a variable's name is text")?;
    Ok((name, OsString::from_vec(bytes[at + 1..].to_vec())))
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    vmprof cp data.sql db:/tmp/            into a directory of the guest\n  \
    vmprof cp db:/var/log ./logs-of-db     a directory with all that is in it\n\n\
    A place in the guest is NAME:PATH; one here that has a colon in it is written with a slash before it, ./a:b.\n\
    In the guest files belong to root and have the modes they have here; here they are yours, and your umask holds.")]
pub struct CpArguments {
    /// A file or a directory, here or in the guest
    #[arg(value_parser = OsStringValueParser::new().map(place))]
    pub from: Place,
    /// Its new name, or the directory that it goes into
    #[arg(value_parser = OsStringValueParser::new().map(place))]
    pub to: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Here(PathBuf),
    Guest { name: String, path: PathBuf },
}

fn place(text: OsString) -> Place {
    let bytes = text.as_bytes();
    let colon = bytes.iter().position(|byte| *byte == b':');
    let name = colon.map(|at| &bytes[..at]).filter(|name| !name.is_empty() && !name.contains(&b'/'));
    match (name.and_then(|name| std::str::from_utf8(name).ok()), colon) {
        (Some(name), Some(at)) => {
            let path = PathBuf::from(OsStr::from_bytes(&bytes[at + 1..]));
            Place::Guest { name: name.to_owned(), path }
        }
        _ => Place::Here(text.into()),
    }
}

impl CpArguments {
    pub fn check(&self) -> Result<(), clap::Error> {
        let message = match (&self.from, &self.to) {
            (Place::Here(_), Place::Here(_)) => {
                "one of both is in a guest, and is written NAME:PATH; `cp` copies from here to here"
            }
            (Place::Guest { .. }, Place::Guest { .. }) => {
                "only one of both is in a guest: copy it here first"
            }
            (Place::Guest { path, .. }, _) | (_, Place::Guest { path, .. })
                if path.as_os_str().is_empty() =>
            {
                "after NAME: comes a path in the guest"
            }
            _ => return Ok(()),
        };
        Err(Arguments::command().error(ErrorKind::ValueValidation, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_guest_has_a_name_before_its_colon() {
        let guest = |name: &str, path: &str| Place::Guest { name: name.into(), path: path.into() };
        for (text, found) in [
            ("db:/tmp/x", guest("db", "/tmp/x")),
            ("db:", guest("db", "")),
            ("db:a:b", guest("db", "a:b")),
            ("./a:b", Place::Here("./a:b".into())),
            (":x", Place::Here(":x".into())),
            ("x", Place::Here("x".into())),
        ] {
            assert_eq!(place(text.into()), found, "{text}");
        }
    }

    #[test]
    fn a_variable_has_a_name_and_a_value() {
        assert_eq!(variable("A=b=c".into()), Ok(("A".into(), "b=c".into())));
        assert_eq!(variable("A=".into()), Ok(("A".into(), "".into())));
        assert!(variable("A".into()).is_err() && variable("=b".into()).is_err());
    }
}
