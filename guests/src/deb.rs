//! A .deb, read without dpkg: an ar archive of two compressed tar archives, one with what dpkg should know, one with the
//! files. No maintainer script is run, or even looked at.

use std::io::Read;

use crate::archive;
use crate::error::{GuestError, Result};
use crate::packed::unpack;
use crate::tree::{Kind, Node};

/// An opened package.
#[derive(Debug)]
pub(crate) struct Deb {
    pub(crate) name: String,
    /// Packages whose files this one's take the place of (Debian policy 7.6).
    pub(crate) replaces: Vec<String>,
    /// Path below the root, without a leading slash, and what is there; in the archive's order.
    pub(crate) files: Vec<(String, Node)>,
}

impl Deb {
    /// Reads the whole package. `what` names it in errors.
    pub(crate) fn read(what: &str, bytes: &[u8]) -> Result<Self> {
        Self::read_some(what, bytes, &|_| true)
    }

    /// As [`Deb::read`], keeping only paths that are `wanted`: a kernel package unpacks to hundreds of megabytes.
    pub(crate) fn read_some(what: &str, bytes: &[u8], wanted: &dyn Fn(&str) -> bool) -> Result<Self> {
        let bad = |problem: String| GuestError::BadArchive { what: what.to_owned(), problem };
        let mut control = None;
        let mut files = None;
        let mut archive = ar::Archive::new(bytes);
        while let Some(member) = archive.next_entry() {
            let mut member = member.map_err(|error| bad(error.to_string()))?;
            let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
            let mut packed = Vec::new();
            if name.starts_with("control.tar") || name.starts_with("data.tar") {
                member.read_to_end(&mut packed).map_err(|error| bad(error.to_string()))?;
            }
            if let Some(form) = name.strip_prefix("control.tar") {
                let tar = unpack(form, &packed).map_err(&bad)?;
                control = Some(read_control(&tar).map_err(&bad)?);
            } else if let Some(form) = name.strip_prefix("data.tar") {
                let tar = unpack(form, &packed).map_err(&bad)?;
                files = Some(archive::read(what, &tar, wanted).map_err(&bad)?);
            }
        }
        let control = control.ok_or_else(|| bad("it has no control.tar".to_owned()))?;
        let files = files.ok_or_else(|| bad("it has no data.tar".to_owned()))?;
        Ok(Self { name: control.name, replaces: control.replaces, files })
    }
}

struct Control {
    name: String,
    replaces: Vec<String>,
}

fn read_control(tar: &[u8]) -> Result<Control, String> {
    for (_, node) in archive::read("control", tar, &|path| path == "control")? {
        let Kind::File(content) = node.kind else { continue };
        let text = std::str::from_utf8(&content).map_err(|_| "its control file is not UTF-8".to_owned())?;
        let field = |name: &str| -> String {
            let mut value = String::new();
            let mut inside = false;
            for line in text.lines() {
                if let Some(first) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')) {
                    inside = true;
                    value.push_str(first);
                } else if inside && line.starts_with([' ', '\t']) {
                    value.push_str(line);
                } else {
                    inside = false;
                }
            }
            value
        };
        let replaces = field("Replaces");
        let replaces = replaces.split(',').filter_map(|one| one.split_whitespace().next()).map(str::to_owned);
        return Ok(Control { name: field("Package").trim().to_owned(), replaces: replaces.collect() });
    }
    Err("its control.tar holds no control file".to_owned())
}

#[cfg(test)]
mod tests;
