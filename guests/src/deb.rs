//! A .deb, read without dpkg: an ar archive of two compressed tar archives, one with what dpkg should know, one with the
//! files. No maintainer script is run, or even looked at.

use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::sync::Arc;

use tar::EntryType;

use crate::error::{GuestError, Result};
use crate::tree::{Kind, Node};

/// What a member may unpack to: several times the largest kernel package, and less than would take a builder's memory.
const MOST_BYTES: u64 = 4 << 30;

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
        let files = read_files(&self.tar, wanted)
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

/// Decompresses by the ending of the member's name: `.xz`, `.zst`, `.gz` or none.
pub(crate) fn unpack(form: &str, packed: &[u8]) -> Result<Vec<u8>, String> {
    unpack_at_most(MOST_BYTES, form, packed)
}

fn unpack_at_most(most: u64, form: &str, packed: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let read = match form {
        "" => packed.take(most + 1).read_to_end(&mut out),
        ".xz" => liblzma::read::XzDecoder::new_multi_decoder(packed).take(most + 1).read_to_end(&mut out),
        ".gz" => flate2::read::MultiGzDecoder::new(packed).take(most + 1).read_to_end(&mut out),
        ".zst" => unpack_zstd(most, packed, &mut out),
        other => return Err(format!("compression `{other}` is not known")),
    };
    read.map_err(|error| error.to_string())?;
    if out.len() as u64 > most {
        return Err(format!("it unpacks to more than {most} bytes"));
    }
    Ok(out)
}

/// All frames of a zstd stream, one after another.
fn unpack_zstd(most: u64, packed: &[u8], out: &mut Vec<u8>) -> std::io::Result<usize> {
    let mut rest = Cursor::new(packed);
    let mut total = 0;
    while (rest.position() as usize) < packed.len() && total as u64 <= most {
        let frame = ruzstd::decoding::StreamingDecoder::new(&mut rest).map_err(std::io::Error::other)?;
        total += frame.take(most + 1).read_to_end(out)?;
    }
    Ok(total)
}

/// The control file's text.
fn read_control(tar: &[u8]) -> Result<String, String> {
    for member in tar::Archive::new(tar).entries().map_err(|e| e.to_string())? {
        let mut member = member.map_err(|e| e.to_string())?;
        let path = member.path_bytes().into_owned();
        if path != b"./control" && path != b"control" {
            continue;
        }
        let mut text = String::new();
        member.read_to_string(&mut text).map_err(|e| e.to_string())?;
        return Ok(text);
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

fn read_files(tar: &[u8], wanted: &dyn Fn(&str) -> bool) -> Result<Vec<(String, Node)>, String> {
    let mut files = Vec::new();
    // Hard links name an earlier member of the same archive.
    let mut contents: HashMap<String, Node> = HashMap::new();
    for member in tar::Archive::new(tar).entries().map_err(|e| e.to_string())? {
        let mut member = member.map_err(|e| e.to_string())?;
        let path = plain_path(&member.path_bytes())?;
        if !wanted(&path) {
            continue;
        }
        let header = member.header();
        let number = |value: std::io::Result<u64>| value.map_err(|e| format!("{path}: {e}"));
        let mode = (header.mode().map_err(|e| format!("{path}: {e}"))? & 0o7777) as u16;
        let (uid, gid) = (number(header.uid())? as u32, number(header.gid())? as u32);
        let device = || -> Result<(u32, u32), String> {
            let part = |value: std::io::Result<Option<u32>>| {
                value.map_err(|e| e.to_string()).map(Option::unwrap_or_default)
            };
            Ok((part(header.device_major())?, part(header.device_minor())?))
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                let mut content = Vec::new();
                member.read_to_end(&mut content).map_err(|e| format!("{path}: {e}"))?;
                Kind::File(Arc::from(content))
            }
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Link(link_target(&path, &member)?),
            EntryType::Link => {
                let target = plain_path(link_target(&path, &member)?.as_bytes())?;
                let there = contents.get(&target);
                let node = there.ok_or_else(|| {
                    format!("{path} is a hard link to {target}, which is not in the archive")
                })?;
                files.push((path, node.clone()));
                continue;
            }
            EntryType::Char => {
                let (major, minor) = device()?;
                Kind::CharDevice { major, minor }
            }
            EntryType::Block => {
                let (major, minor) = device()?;
                Kind::BlockDevice { major, minor }
            }
            EntryType::Fifo => Kind::Fifo,
            other => return Err(format!("{path} is of an unknown kind: {other:?}")),
        };
        let node = Node { uid, gid, ..Node::new(kind, mode) };
        if matches!(node.kind, Kind::File(_)) {
            contents.insert(path.clone(), node.clone());
        }
        files.push((path, node));
    }
    Ok(files)
}

fn link_target<R: Read>(path: &str, member: &tar::Entry<'_, R>) -> Result<String, String> {
    let target = member.link_name_bytes().ok_or_else(|| format!("{path} is a link to nowhere"))?;
    String::from_utf8(target.into_owned()).map_err(|_| format!("the target of {path} is not UTF-8"))
}

/// `./usr/bin/fio` → `usr/bin/fio`; the root is the empty path.
fn plain_path(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| format!("the path {} is not UTF-8", String::from_utf8_lossy(bytes)))?;
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(format!("the path {text} leads upwards"));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests;
