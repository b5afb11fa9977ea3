//! `vmprof cp`: files and directories into a running guest, and out of it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmprof_job::agent::{Answer, CopyError, Item, Stream, Target, What, receive, send};

use crate::args::{CpArguments, Place};
use crate::failure::{Failure, Kind};
use crate::places::Places;
use crate::progress::Bytes;
use crate::reach;
use crate::report::Report;

pub fn cp(arguments: &CpArguments, report: Report) -> Result<(), Failure> {
    let places = Places::from_environment()?;
    match (&arguments.from, &arguments.to) {
        (Place::Here(from), Place::Guest { name, path }) => {
            let item = Item::at(from).map_err(|error| failed(name, error))?;
            let mut stream = reach::guest(&places, name)?;
            let skipped = put(&mut stream, name, from, path, item, report)?;
            say_skipped(&skipped, report);
            Ok(())
        }
        (Place::Guest { name, path }, Place::Here(to)) => {
            let mut stream = reach::guest(&places, name)?;
            let target = Target { path: to.clone(), is_name: false, keep_modes: false };
            let progress = Bytes::new(report);
            let skipped = fetch(&mut stream, name, path, &target, &mut |bytes| progress.add(bytes))?;
            drop(progress);
            say_skipped(&skipped, report);
            Ok(())
        }
        // Refused as they were read.
        _ => Ok(()),
    }
}

fn put(
    stream: &mut Stream<UnixStream>,
    name: &str,
    from: &Path,
    to: &Path,
    item: Item,
    report: Report,
) -> Result<Vec<String>, Failure> {
    let lost = |error: io::Error| reach::lost(name, &error);
    let ask = vmprof_job::agent::Ask {
        version: vmprof_job::agent::VERSION,
        what: What::Store { path: to.into(), item: item.clone() },
    };
    stream.write_json(vmprof_job::agent::Kind::Ask, &ask).map_err(lost)?;
    let progress = Bytes::new(report);
    let sent = send(stream, from, &item, &mut |bytes| progress.add(bytes));
    // A guest that would not take it has said why, and need not have read the rest.
    let answer = reach::answer(stream);
    drop(progress);
    match (answer, sent) {
        (Ok(Answer::Refused(why)), _) => Err(reach::refused(why)),
        (Ok(_), Ok(sent)) => match sent.failed {
            Some(why) => Err(reach::refused(why)),
            None => Ok(sent.skipped),
        },
        (_, Err(error)) | (Err(error), _) => Err(lost(error)),
    }
}

/// What lies at `from` in the guest comes to `target`. Answers what was left out.
pub fn fetch(
    stream: &mut Stream<UnixStream>,
    name: &str,
    from: &Path,
    target: &Target,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<String>, Failure> {
    let lost = |error: io::Error| reach::lost(name, &error);
    let item = match reach::ask(stream, What::Fetch { path: from.into() }).map_err(lost)? {
        Answer::Sends(item) => item,
        Answer::Refused(why) => return Err(reach::refused(why)),
        _ => return Err(lost(io::ErrorKind::InvalidData.into())),
    };
    let (_, _, skipped) = receive(stream, target, &item, progress).map_err(|error| failed(name, error))?;
    Ok(skipped)
}

fn failed(name: &str, error: CopyError) -> Failure {
    match error {
        CopyError::Lost(error) => reach::lost(name, &error),
        CopyError::There(why) => reach::refused(why),
        error => Failure::caused(Kind::Failure, "vmprof::cp::failed", error, ""),
    }
}

fn say_skipped(skipped: &[String], report: Report) {
    for path in skipped {
        report.notice(format_args!("{path} is no file, directory or link, and was left out"));
    }
}
