//! One reader of tar archives for packages, images and roots: bytes in, paths and nodes out. It knows the formats in use
//! (v7, ustar, GNU, pax with extended attributes, sparse files of both) and trusts nothing: what is cut off, twice there,
//! larger than it may be or leads out of the root is an error. Packing is `packed`'s business.

mod header;
mod pax;
mod sparse;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::packed::MOST_BYTES;
use crate::tree::{Kind, Node};
use header::{BLOCK_BYTES, Header};
use pax::Records;

/// What extended headers and long names may take; xattrs of one file have 64 KiB each.
const MOST_EXTENSION_BYTES: u64 = 1 << 20;
/// What headers that hold for all members may take together: each of them looks there, and a few words are usual.
const MOST_GLOBAL_BYTES: usize = 64 << 10;

/// A member as it stands in the archive; contents are still the archive's bytes.
#[derive(Debug, Clone)]
pub(crate) struct Member<'a> {
    /// Below the root, without a leading slash; the root is the empty path.
    pub(crate) path: String,
    pub(crate) what: What<'a>,
    mode: u16,
    uid: u32,
    gid: u32,
    xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Clone)]
pub(crate) enum What<'a> {
    File(Content<'a>),
    /// The path of an earlier member, of this archive or of what it lies upon.
    HardLink(String),
    Other(Kind),
}

/// A file's content.
#[derive(Debug, Clone)]
pub(crate) enum Content<'a> {
    Whole(&'a [u8]),
    /// `parts` are sorted, apart, and end within `bytes`; between them are zeros.
    Sparse {
        bytes: usize,
        parts: Vec<(usize, &'a [u8])>,
    },
}

impl Content<'_> {
    fn bytes(&self) -> usize {
        match self {
            Self::Whole(content) => content.len(),
            Self::Sparse { bytes, .. } => *bytes,
        }
    }

    fn expanded(&self) -> Arc<[u8]> {
        match self {
            Self::Whole(content) => Arc::from(*content),
            Self::Sparse { bytes, parts } => {
                let mut out = Vec::with_capacity(*bytes);
                for (at, part) in parts {
                    out.resize(*at, 0);
                    out.extend_from_slice(part);
                }
                out.resize(*bytes, 0);
                Arc::from(out)
            }
        }
    }
}

impl Member<'_> {
    /// As a node of its own; `None` for a hard link.
    pub(crate) fn node(&self) -> Option<Node> {
        let kind = match &self.what {
            What::File(content) => Kind::File(content.expanded()),
            What::Other(kind) => kind.clone(),
            What::HardLink(_) => return None,
        };
        Some(Node { uid: self.uid, gid: self.gid, xattrs: self.xattrs.clone(), ..Node::new(kind, self.mode) })
    }

    fn is_directory(&self) -> bool {
        matches!(self.what, What::Other(Kind::Directory))
    }

    /// Whether it says the same as another directory.
    fn same_directory(&self, other: &Self) -> bool {
        let facts = |one: &Self| (one.mode, one.uid, one.gid);
        self.is_directory()
            && other.is_directory()
            && facts(self) == facts(other)
            && self.xattrs == other.xattrs
    }
}

/// The members in the archive's order, each path once but for directories that are said again. After an error nothing more
/// comes.
pub(crate) fn members(bytes: &[u8]) -> Result<Vec<Member<'_>>, String> {
    let mut reader = Reader { rest: bytes, global: Records::default(), left: MOST_BYTES };
    let mut members: Vec<Member<'_>> = Vec::new();
    let mut seen: HashMap<String, usize> = HashMap::new();
    while let Some(member) = reader.member()? {
        if let Some(before) = seen.get(&member.path).and_then(|at| members.get(*at)) {
            if member.same_directory(before) {
                continue;
            }
            return Err(format!("{} is in it twice", member.path));
        }
        seen.insert(member.path.clone(), members.len());
        members.push(member);
    }
    Ok(members)
}

/// Everything in the archive that is `wanted`, in its order. Hard links are nodes that share an inode, whose word is made
/// of `word` and the first name; a link to something that is not wanted takes its place.
pub(crate) fn read(
    word: &str,
    bytes: &[u8],
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<(String, Node)>, String> {
    let members = members(bytes)?;
    let mut files: Vec<(String, Node)> = Vec::new();
    // Which member a name leads to, and where in `files` the first wanted name of a member is.
    let mut leads: HashMap<&str, usize> = HashMap::new();
    let mut first: HashMap<usize, usize> = HashMap::new();
    for (at, member) in members.iter().enumerate() {
        let path = member.path.as_str();
        let original = match &member.what {
            What::HardLink(target) => *leads.get(target.as_str()).ok_or_else(|| {
                format!("{path} is a hard link to {target}, which is not in the archive before it")
            })?,
            _ => at,
        };
        leads.insert(path, original);
        let Some(source) = members.get(original) else { continue };
        if original != at && source.is_directory() {
            return Err(format!("{path} is a hard link to a directory"));
        }
        if !wanted(path) {
            continue;
        }
        if let Some(there) = first.get(&original).and_then(|index| files.get_mut(*index)) {
            let inode: Arc<str> = format!("{word}:{}", source.path).into();
            there.1.inode = Some(inode);
            let again = there.1.clone();
            files.push((path.to_owned(), again));
        } else if let Some(node) = source.node() {
            first.insert(original, files.len());
            files.push((path.to_owned(), node));
        }
    }
    Ok(files)
}

struct Reader<'a> {
    rest: &'a [u8],
    /// Of `g` headers: hold for all members that come.
    global: Records,
    /// How many bytes of content may still come.
    left: u64,
}

impl<'a> Reader<'a> {
    fn member(&mut self) -> Result<Option<Member<'a>>, String> {
        let mut long_name = None;
        let mut long_target = None;
        let mut local: Option<Records> = None;
        loop {
            let Some(header) = self.header()? else {
                if long_name.is_some() || long_target.is_some() || local.is_some() {
                    return Err("it ends behind a header that belongs to a next member".to_owned());
                }
                return Ok(None);
            };
            let twice = || "two headers of one kind belong to one member".to_owned();
            match header.kind() {
                b'L' if long_name.is_some() => return Err(twice()),
                b'K' if long_target.is_some() => return Err(twice()),
                b'x' if local.is_some() => return Err(twice()),
                b'L' => long_name = Some(self.long_text(&header)?),
                b'K' => long_target = Some(self.long_text(&header)?),
                b'x' => local = Some(Records::parse(self.extension(&header)?)?),
                b'g' => {
                    let records = Records::parse(self.extension(&header)?)?;
                    self.global.extend(records);
                    if self.global.bytes() > MOST_GLOBAL_BYTES {
                        return Err(format!("its global headers have more than {MOST_GLOBAL_BYTES} bytes"));
                    }
                }
                _ => {
                    let records = self.global.with(local.unwrap_or_default());
                    return self.finish(&header, &records, long_name, long_target).map(Some);
                }
            }
        }
    }

    /// The next header; `None` at the archive's end, behind which only zeros may follow.
    fn header(&mut self) -> Result<Option<Header<'a>>, String> {
        let cut = "it is cut off: an archive ends with a block of zeros";
        let (block, rest) = self.rest.split_first_chunk::<BLOCK_BYTES>().ok_or(cut)?;
        if block.iter().all(|byte| *byte == 0) {
            if rest.iter().any(|byte| *byte != 0) {
                return Err("something follows behind its end".to_owned());
            }
            return Ok(None);
        }
        self.rest = rest;
        Header::new(block).map(Some)
    }

    /// A member's bytes, and past the zeros that fill up its last block.
    fn data(&mut self, bytes: u64, whose: &str) -> Result<&'a [u8], String> {
        let cut = || format!("{whose} is cut off");
        let bytes = usize::try_from(bytes).map_err(|_| cut())?;
        let data = self.rest.get(..bytes).ok_or_else(cut)?;
        let whole = bytes.checked_next_multiple_of(BLOCK_BYTES).ok_or_else(cut)?;
        self.rest = self.rest.get(whole..).ok_or_else(cut)?;
        Ok(data)
    }

    fn extension(&mut self, header: &Header<'_>) -> Result<&'a [u8], String> {
        let bytes = header.size()?;
        if bytes > MOST_EXTENSION_BYTES {
            return Err(format!("a header of {bytes} bytes is larger than {MOST_EXTENSION_BYTES}"));
        }
        self.data(bytes, "a header")
    }

    fn long_text(&mut self, header: &Header<'_>) -> Result<Vec<u8>, String> {
        let text = self.extension(header)?;
        Ok(text.strip_suffix(b"\0").unwrap_or(text).to_vec())
    }

    fn finish(
        &mut self,
        header: &Header<'a>,
        records: &Records,
        long_name: Option<Vec<u8>>,
        long_target: Option<Vec<u8>>,
    ) -> Result<Member<'a>, String> {
        let name = records.text("GNU.sparse.name").or_else(|| records.text("path"));
        let name = name.map(<[u8]>::to_vec).or(long_name).unwrap_or_else(|| header.name());
        let path = plain_path(&name)?;
        let of = |error: String| format!("{path}: {error}");
        if path.is_empty() && header.kind() != b'5' && !name.ends_with(b"/") {
            return Err("a member that is not a directory has no name".to_owned());
        }
        let size = records.number("size").map_err(of)?.map_or_else(|| header.size(), Ok).map_err(of)?;
        let target = || {
            let target = records.text("linkpath").map(<[u8]>::to_vec).or(long_target);
            link_target(&path, target.unwrap_or_else(|| header.link_name()))
        };
        let is_file = matches!(header.kind(), b'0' | b'\0' | b'7' | b'S') && !name.ends_with(b"/");
        // A size where nothing can follow is read differently by different programs.
        if !is_file && size != 0 {
            return Err(format!("{path} is not a file, but has {size} bytes"));
        }
        let what = match header.kind() {
            b'S' => What::File(sparse::old_gnu(self, header, size).map_err(of)?),
            b'0' | b'\0' | b'7' if is_file => {
                let data = self.data(size, &path)?;
                What::File(sparse::of_pax(records, data).map_err(of)?.unwrap_or(Content::Whole(data)))
            }
            // As archives of the seventies say it: a file whose name ends with a slash.
            b'0' | b'\0' | b'7' | b'5' => What::Other(Kind::Directory),
            b'1' => What::HardLink(plain_path(target()?.as_bytes())?),
            b'2' => What::Other(Kind::Link(target()?)),
            b'3' => {
                let (major, minor) = header.device().map_err(of)?;
                What::Other(Kind::CharDevice { major, minor })
            }
            b'4' => {
                let (major, minor) = header.device().map_err(of)?;
                What::Other(Kind::BlockDevice { major, minor })
            }
            b'6' => What::Other(Kind::Fifo),
            other => {
                return Err(format!("{path} is of a kind that is not known: `{}`", other.escape_ascii()));
            }
        };
        if let What::File(content) = &what {
            let left = self.left.checked_sub(content.bytes() as u64);
            self.left = left.ok_or_else(|| format!("its files have more than {MOST_BYTES} bytes"))?;
        }
        let id = |key: &str, field: Result<u64, String>| -> Result<u32, String> {
            let id = records.number(key)?.map_or(field, Ok)?;
            // The last number means "no id" to the kernel.
            u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or_else(|| format!("{key} {id} is no id"))
        };
        Ok(Member {
            mode: (header.mode().map_err(of)? & 0o7777) as u16,
            uid: id("uid", header.uid()).map_err(of)?,
            gid: id("gid", header.gid()).map_err(of)?,
            xattrs: records.xattrs().map_err(of)?,
            path,
            what,
        })
    }
}

fn link_target(path: &str, target: Vec<u8>) -> Result<String, String> {
    if target.is_empty() {
        return Err(format!("{path} is a link to nowhere"));
    }
    match String::from_utf8(target) {
        Ok(target) if !target.contains('\0') => Ok(target),
        _ => Err(format!("the target of {path} is not UTF-8 text")),
    }
}

/// `./usr/bin/fio` → `usr/bin/fio`; the root is the empty path.
fn plain_path(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    let text = text.ok_or_else(|| format!("the path {} is not UTF-8 text", bytes.escape_ascii()))?;
    if text.starts_with('/') {
        return Err(format!("the path {text} is absolute"));
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(format!("the path {text} leads upwards"));
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests;
