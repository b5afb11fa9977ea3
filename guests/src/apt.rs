//! The host's own apt, asked without root and without touching its state: where the archive is, what a list of packages
//! resolves to, and the bytes of one package. vmprof names no host; apt's sources do, its keyring vouches for the index,
//! and its proxy settings hold.

mod archives;
mod download;
mod error;
mod graph;
mod lists;
mod resolve;
mod uris;

use std::process::{Command, Output, Stdio};

use crate::error::{GuestError, Result};

pub(crate) use archives::Archives;
pub(crate) use download::{fetch, host_cache};
pub(crate) use lists::Apt;
pub(crate) use resolve::Wanted;
pub(crate) use uris::encode_path;

pub use error::AptError;

/// What the caller wants done to every process before it starts, such as tying its life to vmprof's.
pub(crate) type Prepare = fn(&mut Command) -> &mut Command;

fn apt(program: &str, prepare: Prepare) -> Command {
    let mut command = Command::new(program);
    // APT_CONFIG stays: whoever sets it means the apt that vmprof asks, too.
    command.stdin(Stdio::null()).env("LC_ALL", "C");
    prepare(&mut command);
    command
}

fn run(command: &mut Command) -> Result<Output> {
    command.output().map_err(|source| {
        AptError::NoApt { program: command.get_program().to_string_lossy().into_owned(), source }.into()
    })
}

fn words(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&both);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("E:") || line.starts_with("W:") || line.starts_with("Err:"))
        .collect();
    let lines = if lines.is_empty() { text.lines().collect() } else { lines };
    let skip = lines.len().saturating_sub(12);
    lines[skip..].join("\n")
}

fn failure(doing: &str, command: &str, output: &Output) -> GuestError {
    AptError::Failed { doing: doing.to_owned(), command: command.to_owned(), output: words(output) }.into()
}
