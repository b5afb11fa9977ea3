//! Files and directories that go into a guest and come out of one, over a connection to its agent (`reach.rs`).

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vmprof_job::agent::{Answer, CopyError, Item, Stream, Target, What, receive, send};

use super::reach;
use crate::failure::{Failure, Kind};

/// What lies here at `from`, an `item`, comes to `to` in the guest. Answers what was left out.
pub fn put(
    stream: &mut Stream<UnixStream>,
    name: &str,
    from: &Path,
    to: &Path,
    item: Item,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<String>, Failure> {
    let lost = |error: io::Error| reach::lost(name, &error);
    let ask = vmprof_job::agent::Ask {
        version: vmprof_job::agent::VERSION,
        what: What::Store { path: to.into(), item: item.clone() },
    };
    stream.write_json(vmprof_job::agent::Kind::Ask, &ask).map_err(lost)?;
    let sent = send(stream, from, &item, progress);
    // A guest that would not take it has said why, and need not have read the rest.
    let answer = reach::answer(stream);
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

pub fn failed(name: &str, error: CopyError) -> Failure {
    match error {
        CopyError::Lost(error) => reach::lost(name, &error),
        CopyError::There(why) => reach::refused(why),
        error => Failure::caused(Kind::Failure, "vmprof::cp::failed", error, ""),
    }
}
