//! `cp`, the guest's side.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use vmprof_job::agent::{Answer, Item, Kind, Stream, Target, receive, send};

/// Sends what lies at `path`.
pub(super) fn fetch<S: Write>(stream: &mut Stream<S>, path: &Path) -> io::Result<()> {
    match Item::at(path) {
        Ok(item) => {
            stream.write_json(Kind::Answer, &Answer::Sends(item.clone()))?;
            send(stream, path, &item, &mut |_| {}).map(drop)
        }
        Err(error) => stream.write_json(Kind::Answer, &Answer::Refused(error.told())),
    }
}

/// Takes what is sent, as it is: the guest is its user's.
pub(super) fn store<S: Read + Write>(stream: &mut Stream<S>, path: PathBuf, item: &Item) -> io::Result<()> {
    let target = Target { path, is_name: false, keep_modes: true };
    let answer = match receive(stream, &target, item, &mut |_| {}) {
        Ok((items, bytes, _)) => Answer::Stored { items, bytes },
        Err(error) => Answer::Refused(error.told()),
    };
    stream.write_json(Kind::Answer, &answer)
}
