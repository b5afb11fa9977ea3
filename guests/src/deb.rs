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

/// A package out of its compression: what is kept of it between builds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unpacked {
    /// The text of its control file.
    pub(crate) control: String,
    /// The archive of its files.
    pub(crate) tar: Vec<u8>,
}

impl Unpacked {
    /// Takes a .deb apart. `what` names it in errors.
    pub(crate) fn read(what: &str, bytes: &[u8]) -> Result<Self> {
        let bad = |problem: String| GuestError::BadArchive { what: what.to_owned(), problem };
        let (mut control, mut data) = (None, None);
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
                data = Some(unpack(form, &packed).map_err(&bad)?);
            }
        }
        let control = control.ok_or_else(|| bad("it has no control.tar".to_owned()))?;
        let tar = data.ok_or_else(|| bad("it has no data.tar".to_owned()))?;
        Ok(Self { control, tar })
    }

    /// Opens it, keeping only paths that are `wanted`: a kernel package holds hundreds of megabytes.
    pub(crate) fn open(&self, what: &str, wanted: &dyn Fn(&str) -> bool) -> Result<Deb> {
        let files = archive::read(what, &self.tar, wanted)
            .map_err(|problem| GuestError::BadArchive { what: what.to_owned(), problem })?;
        let replaces = field(&self.control, "Replaces");
        let replaces = replaces.split(',').filter_map(|one| one.split_whitespace().next()).map(str::to_owned);
        Ok(Deb {
            name: field(&self.control, "Package").trim().to_owned(),
            replaces: replaces.collect(),
            files,
        })
    }
}

impl Deb {
    /// Reads a whole .deb.
    #[cfg(test)]
    pub(crate) fn read(what: &str, bytes: &[u8]) -> Result<Self> {
        Self::read_some(what, bytes, &|_| true)
    }

    /// Reads a .deb, keeping only paths that are `wanted`. `what` names it in errors.
    pub(crate) fn read_some(what: &str, bytes: &[u8], wanted: &dyn Fn(&str) -> bool) -> Result<Self> {
        Unpacked::read(what, bytes)?.open(what, wanted)
    }
}

/// The control file's text.
fn read_control(tar: &[u8]) -> Result<String, String> {
    for (_, node) in archive::read("control", tar, &|path| path == "control")? {
        if let Kind::File(content) = node.kind {
            let text =
                std::str::from_utf8(&content).map_err(|_| "its control file is not UTF-8".to_owned())?;
            return Ok(text.to_owned());
        }
    }
    Err("its control.tar holds no control file".to_owned())
}

/// A field of a control file, its continuation lines joined; empty where there is none.
fn field(control: &str, name: &str) -> String {
    let mut value = String::new();
    let mut inside = false;
    for line in control.lines() {
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
}

#[cfg(test)]
mod tests;
