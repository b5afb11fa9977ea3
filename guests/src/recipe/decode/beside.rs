//! Files of this machine that a recipe names. Reading a recipe needs none of them; whoever wants to know whether it can be built
//! has them looked at, and hears of each that is not there at the place that names it.

use std::fs;
use std::path::{Path, PathBuf};

use vmprof_document::{Findings, Value};

/// Where they are found from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside<'d> {
    pub(super) directory: &'d Path,
    pub(super) looked_at: bool,
}

/// What may be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    File,
    Directory,
    Either,
}

impl Beside<'_> {
    pub(super) fn path(self, found: &Findings, value: Value<'_>, wanted: Wanted) -> Option<PathBuf> {
        let path = self.directory.join(value.text()?);
        if !self.looked_at {
            return Some(path);
        }
        let (message, help) = match (fs::metadata(&path), wanted) {
            (Err(error), _) => (
                format!("{} cannot be read: {error}", path.display()),
                "a path is taken from the directory of the recipe that names it",
            ),
            (Ok(there), Wanted::File) if !there.is_file() => (
                format!("{} is not a file", path.display()),
                "name one file; a directory's are named one by one",
            ),
            (Ok(there), Wanted::Directory) if !there.is_dir() => {
                (format!("{} is not a directory", path.display()), "name the directory lib/modules/RELEASE")
            }
            _ => return Some(path),
        };
        found.push(value.problem("missing_file", message).help(help));
        Some(path)
    }
}
