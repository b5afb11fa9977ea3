//! Files and directories from one side to the other, as a tar archive in frames. Paths in it begin below what is copied, so
//! that the receiver alone says where that goes; it lets nothing out of there, whatever the archive says.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::frame::{Kind, MOST_PAYLOAD, Stream};
use super::{Item, Sent};
use crate::Bytes;

/// Names of what was left out are told up to so many.
const MOST_SKIPPED: usize = 20;

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("{} cannot be {what}", path.display())]
    Here { what: &'static str, path: PathBuf, source: io::Error },
    /// The sender's words.
    #[error("{0}")]
    There(String),
    #[error("the connection was lost")]
    Lost(#[source] io::Error),
    #[error("what was received is no archive as it is sent: {0}")]
    Archive(String),
}

impl CopyError {
    /// It and what caused it, in one line.
    pub fn told(&self) -> String {
        match self {
            CopyError::Here { source, .. } | CopyError::Lost(source) => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }
}

fn here(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_owned();
    move |source| CopyError::Here { what, path, source }
}

impl Item {
    /// What lies at `path`. A symbolic link stands for what it leads to.
    pub fn at(path: &Path) -> Result<Item, CopyError> {
        let metadata = fs::metadata(path).map_err(here("read", path))?;
        let kind = metadata.file_type();
        if !kind.is_dir() && !kind.is_file() {
            let source = io::Error::other("it is neither a file nor a directory");
            return Err(here("copied", path)(source));
        }
        // `..` and `/` have no name of their own.
        let whole = fs::canonicalize(path).map_err(here("read", path))?;
        let name = path.file_name().or(whole.file_name()).unwrap_or(OsStr::new("root"));
        Ok(Item { name: name.as_bytes().into(), is_directory: kind.is_dir() })
    }
}

/// Sends the item at `path`, and how that went. An error: the other side hears nothing any more.
pub fn send<S: Write>(
    stream: &mut Stream<S>,
    path: &Path,
    item: &Item,
    progress: &mut dyn FnMut(u64),
) -> io::Result<Sent> {
    let mut skipped = Vec::new();
    let framed = Framed { stream, pending: Vec::with_capacity(MOST_PAYLOAD), lost: None, progress };
    let mut archive = tar::Builder::new(framed);
    archive.follow_symlinks(false);
    archive.mode(tar::HeaderMode::Complete);
    let outcome = if item.is_directory {
        append_directory(&mut archive, path, &mut skipped)
    } else {
        let file = File::open(path);
        file.and_then(|mut file| archive.append_file("file", &mut file))
            .map_err(|error| (path.to_owned(), error))
    };
    let failed = outcome.err().map(|(path, error)| format!("{} cannot be read: {error}", path.display()));
    let finished = if failed.is_none() { archive.finish() } else { Ok(()) };
    let lost = match archive.into_inner() {
        Ok(mut framed) => framed.flush().err().or(framed.lost),
        Err(error) => Some(error),
    };
    if let Some(lost) = lost.or(finished.err()) {
        return Err(lost);
    }
    let sent = Sent { skipped, failed };
    stream.write_json(Kind::Sent, &sent)?;
    Ok(sent)
}

type Archive<'a, S> = tar::Builder<Framed<'a, S>>;

/// Everything below `top`, in the order of names.
fn append_directory<S: Write>(
    archive: &mut Archive<'_, S>,
    top: &Path,
    skipped: &mut Vec<String>,
) -> Result<(), (PathBuf, io::Error)> {
    archive.append_dir(".", top).map_err(|error| (top.to_owned(), error))?;
    let mut waiting = vec![PathBuf::new()];
    while let Some(below) = waiting.pop() {
        let directory = top.join(&below);
        let failed = |error| (directory.clone(), error);
        let entries = fs::read_dir(&directory).map_err(failed)?;
        let mut names: Vec<OsString> = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()
            .map_err(failed)?;
        names.sort();
        for name in names {
            let (inside, outside) = (below.join(&name), directory.join(&name));
            let failed = |error| (outside.clone(), error);
            let kind = match fs::symlink_metadata(&outside) {
                Ok(metadata) => metadata.file_type(),
                // It went while we looked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            if kind.is_dir() {
                archive.append_dir(&inside, &outside).map_err(failed)?;
                waiting.push(inside);
            } else if kind.is_file() || kind.is_symlink() {
                archive.append_path_with_name(&outside, &inside).map_err(failed)?;
            } else if skipped.len() < MOST_SKIPPED {
                skipped.push(inside.to_string_lossy().into_owned());
            }
        }
    }
    Ok(())
}

/// An archive's bytes on their way into frames.
struct Framed<'a, S> {
    stream: &'a mut Stream<S>,
    pending: Vec<u8>,
    lost: Option<io::Error>,
    progress: &'a mut dyn FnMut(u64),
}

impl<S: Write> Write for Framed<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(MOST_PAYLOAD - self.pending.len());
        self.pending.extend_from_slice(&bytes[..count]);
        if self.pending.len() == MOST_PAYLOAD {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        (self.progress)(self.pending.len() as u64);
        let sent = self.stream.write(Kind::Data, &self.pending);
        self.pending.clear();
        sent.inspect_err(|error| self.lost = Some(io::Error::new(error.kind(), error.to_string())))
    }
}

/// Where a copy goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A file's or directory's name, or a directory for it to go into.
    pub path: PathBuf,
    /// The path is the name, also where it is that of a directory which is there: what comes goes among what it holds.
    pub is_name: bool,
    /// Whether modes are taken as they are; otherwise the umask holds, and nobody's rights change with a program (setuid).
    pub keep_modes: bool,
}

impl Target {
    /// Where the item itself goes.
    fn place(&self, item: &Item) -> Result<PathBuf, CopyError> {
        let name = Path::new(OsStr::from_bytes(item.name.as_bytes()));
        if name.file_name() != Some(name.as_os_str()) {
            return Err(CopyError::Archive(format!("{} is no name", name.display())));
        }
        let ends_in_slash = self.path.as_os_str().as_bytes().ends_with(b"/");
        match fs::metadata(&self.path) {
            _ if self.is_name => Ok(self.path.clone()),
            Ok(found) if found.is_dir() => Ok(self.path.join(name)),
            Ok(_) if item.is_directory || ends_in_slash => {
                Err(here("made a directory", &self.path)(io::ErrorKind::AlreadyExists.into()))
            }
            Err(error) if ends_in_slash && !item.is_directory => Err(here("found", &self.path)(error)),
            _ => Ok(self.path.clone()),
        }
    }
}

/// Takes what [`send`] sends: how many files and directories, how many bytes of files, and what the sender left out. A file
/// is there whole or not at all; of a directory what came before an error stays.
pub fn receive<S: Read>(
    stream: &mut Stream<S>,
    target: &Target,
    item: &Item,
    progress: &mut dyn FnMut(u64),
) -> Result<(u64, u64, Vec<String>), CopyError> {
    let place = target.place(item)?;
    let mut unframed = Unframed { stream, at: 0, end: 0, sent: None, lost: None, progress };
    let outcome = unpack(&mut unframed, target, &place, item);
    if let Err(error @ CopyError::Here { .. }) = outcome {
        // Nobody needs the rest.
        return Err(error);
    }
    // What follows the archive's end, and where it was cut short, why.
    while unframed.sent.is_none() && unframed.lost.is_none() {
        unframed.at = unframed.end;
        let _ = unframed.fill();
    }
    if let Some(lost) = unframed.lost {
        return Err(CopyError::Lost(lost));
    }
    if let Some(Sent { failed: Some(failed), .. }) = unframed.sent {
        return Err(CopyError::There(failed));
    }
    let (items, bytes) = outcome?;
    Ok((items, bytes, unframed.sent.map_or_else(Vec::new, |sent| sent.skipped)))
}

fn unpack<S: Read>(
    unframed: &mut Unframed<'_, S>,
    target: &Target,
    place: &Path,
    item: &Item,
) -> Result<(u64, u64), CopyError> {
    let archived = |error: io::Error| CopyError::Archive(error.to_string());
    let mut archive = tar::Archive::new(unframed);
    archive.set_preserve_permissions(target.keep_modes);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    let (mut items, mut bytes) = (0, 0);
    if item.is_directory {
        match fs::create_dir(place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && place.is_dir() => {}
            made => made.map_err(here("made", place))?,
        }
    }
    for entry in archive.entries().map_err(archived)? {
        let mut entry = entry.map_err(archived)?;
        let kind = entry.header().entry_type();
        if !item.is_directory {
            if !kind.is_file() {
                return Err(CopyError::Archive("a file was to come".to_owned()));
            }
            let mode = entry.header().mode().unwrap_or(0o644);
            let size = entry.size();
            put_file(&mut entry, place, mode, target.keep_modes, size)?;
            bytes += size;
        } else if kind.is_dir() || kind.is_file() || kind.is_symlink() {
            bytes += if kind.is_file() { entry.size() } else { 0 };
            // Refuses what would lead out of the directory, by `..` or by way of a link.
            let unpacked = entry.unpack_in(place).map_err(here("written", place))?;
            if !unpacked {
                return Err(CopyError::Archive("a path in it leads elsewhere".to_owned()));
            }
        } else {
            return Err(CopyError::Archive("it holds what is no file, directory or link".to_owned()));
        }
        items += 1;
    }
    Ok((items, bytes))
}

/// Under another name beside it first, so that nobody sees a part of it, and what was there stays until it is whole.
fn put_file(
    from: &mut impl Read,
    place: &Path,
    mode: u32,
    keep_modes: bool,
    size: u64,
) -> Result<(), CopyError> {
    let (mut file, partial) = beside(place, mode & 0o777)?;
    let written = io::copy(from, &mut file).and_then(|bytes| {
        if bytes != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if keep_modes {
            file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        }
        fs::rename(&partial, place)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&partial);
        here("written", place)(error)
    })
}

/// A new file where `place` is to be. Several may be made for one place at once, and a process that was killed may have left its own.
fn beside(place: &Path, mode: u32) -> Result<(File, PathBuf), CopyError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = place.with_file_name(format!(".vmprof-{}-{number}", std::process::id()));
        match File::options().write(true).create_new(true).mode(mode).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|file| (file, path.clone())).map_err(here("written", &path)),
        }
    }
}

/// An archive's bytes out of their frames.
struct Unframed<'a, S> {
    stream: &'a mut Stream<S>,
    /// What of the last frame has been read, and its length.
    at: usize,
    end: usize,
    sent: Option<Sent>,
    lost: Option<io::Error>,
    progress: &'a mut dyn FnMut(u64),
}

impl<S: Read> Unframed<'_, S> {
    /// Makes sure that there are bytes to read; `false` at the end of the archive.
    fn fill(&mut self) -> io::Result<bool> {
        while self.at == self.end {
            if self.sent.is_some() || self.lost.is_some() {
                return Ok(false);
            }
            let frame = self.stream.expect().and_then(|frame| match frame.kind {
                Kind::Data => Ok((frame.payload.len(), None)),
                Kind::Sent => Ok((0, Some(frame.json()?))),
                _ => Err(io::ErrorKind::InvalidData.into()),
            });
            match frame {
                Ok((length, sent)) => {
                    (self.at, self.end, self.sent) = (0, length, sent);
                    (self.progress)(length as u64);
                }
                Err(error) => {
                    let told = io::Error::new(error.kind(), error.to_string());
                    self.lost = Some(error);
                    return Err(told);
                }
            }
        }
        Ok(true)
    }
}

impl<S: Read> Read for Unframed<'_, S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if !self.fill()? {
            return Ok(0);
        }
        let rest = &self.stream.payload()[self.at..self.end];
        let count = rest.len().min(bytes.len());
        bytes[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}

impl From<&Path> for Bytes {
    fn from(path: &Path) -> Bytes {
        path.as_os_str().as_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn sent(path: &Path) -> (Item, Vec<u8>) {
        let item = Item::at(path).unwrap();
        let mut stream = Stream::new(Vec::new());
        send(&mut stream, path, &item, &mut |_| {}).unwrap();
        (item, stream.into_inner())
    }

    fn received(bytes: &[u8], path: &Path, item: &Item) -> Result<(u64, u64, Vec<String>), CopyError> {
        let target = Target { path: path.to_owned(), is_name: false, keep_modes: true };
        receive(&mut Stream::new(bytes), &target, item, &mut |_| {})
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_file_gets_a_new_name_or_goes_into_a_directory() {
        let keep = tempfile::tempdir().unwrap();
        let here = |name: &str| keep.path().join(name);
        fs::write(here("a"), [7; 300_000]).unwrap();
        fs::set_permissions(here("a"), Permissions::from_mode(0o751)).unwrap();
        fs::create_dir(here("d")).unwrap();
        let (item, bytes) = sent(&here("a"));
        for (target, place) in [("b", "b"), ("d", "d/a"), ("d/", "d/a"), ("b", "b")] {
            assert_eq!(received(&bytes, &here(target), &item).unwrap().1, 300_000);
            assert_eq!(fs::read(here(place)).unwrap(), [7; 300_000]);
            assert_eq!(mode(&here(place)), 0o751);
        }
        for nowhere in ["none/b", "none/", "b/"] {
            assert!(received(&bytes, &here(nowhere), &item).is_err(), "{nowhere}");
        }
        let left: Vec<_> =
            fs::read_dir(keep.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 3, "{left:?}");
    }

    #[test]
    fn copies_to_one_place_at_once_are_each_whole() {
        let keep = tempfile::tempdir().unwrap();
        // As long as a name may be.
        let place = keep.path().join("n".repeat(255));
        let begin = |letter: u8| {
            let path = keep.path().join("from");
            fs::write(&path, [letter; 300_000]).unwrap();
            sent(&path)
        };
        let copies = [begin(b'a'), begin(b'b')];
        fs::remove_file(keep.path().join("from")).unwrap();
        std::thread::scope(|scope| {
            for (item, bytes) in &copies {
                let place = &place;
                scope.spawn(move || {
                    for _ in 0..50 {
                        assert_eq!(received(bytes, place, item).unwrap().1, 300_000);
                    }
                });
            }
        });
        let found = fs::read(&place).unwrap();
        assert!(found == [b'a'; 300_000] || found == [b'b'; 300_000]);
        assert_eq!(fs::read_dir(keep.path()).unwrap().count(), 1, "no part stays");
    }

    #[test]
    fn what_a_killed_copy_left_is_in_nobodys_way() {
        let keep = tempfile::tempdir().unwrap();
        for number in 0..1000 {
            let left = keep.path().join(format!(".vmprof-{}-{number}", std::process::id()));
            fs::write(left, "left").unwrap();
        }
        let (_, path) = beside(&keep.path().join("a"), 0o600).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"");
    }

    #[test]
    fn a_directory_arrives_with_all_that_is_in_it() {
        let keep = tempfile::tempdir().unwrap();
        let from = keep.path().join("from");
        fs::create_dir_all(from.join("x/empty")).unwrap();
        fs::write(from.join("x/file"), "text").unwrap();
        symlink("../nowhere", from.join("x/link")).unwrap();
        let long = "n".repeat(200);
        fs::create_dir(from.join(&long)).unwrap();
        fs::write(from.join(&long).join("deep"), "d").unwrap();
        make_fifo(&from.join("x/fifo"));
        let (item, bytes) = sent(&from);
        let to = keep.path().join("to");
        for _ in 0..2 {
            let (items, count, skipped) = received(&bytes, &to, &item).unwrap();
            assert_eq!((items, count), (7, 5));
            assert_eq!(skipped, ["x/fifo"]);
            // Now it is there, and the next goes into it.
            assert_eq!(fs::read(to.join("x/file")).unwrap(), b"text");
            assert_eq!(fs::read_link(to.join("x/link")).unwrap(), Path::new("../nowhere"));
            assert!(to.join("x/empty").is_dir() && to.join(&long).join("deep").exists());
        }
        assert!(to.join("from/x/file").exists());
    }

    fn make_fifo(path: &Path) {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    }

    #[test]
    fn nothing_gets_out_of_the_directory_whatever_the_archive_says() {
        let keep = tempfile::tempdir().unwrap();
        let outside = keep.path().join("outside");
        fs::create_dir(&outside).unwrap();
        let item = Item { name: "x".into(), is_directory: true };
        let mut archives = Vec::new();
        for path in ["../escaped", "/escaped", "a/../../escaped"] {
            let mut header = tar::Header::new_gnu();
            // The library refuses to write such a name, so it is put where it belongs.
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(1);
            header.set_mode(0o644);
            header.set_cksum();
            let mut archive = tar::Builder::new(Vec::new());
            archive.append(&header, &b"x"[..]).unwrap();
            archives.push(archive.into_inner().unwrap());
        }
        let mut through_link = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        through_link.append_link(&mut header, "link", &outside).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        through_link.append_data(&mut header, "link/escaped", &b"x"[..]).unwrap();
        archives.push(through_link.into_inner().unwrap());
        for (number, archive) in archives.iter().enumerate() {
            let mut stream = Stream::new(Vec::new());
            stream.write(Kind::Data, archive).unwrap();
            stream.write_json(Kind::Sent, &Sent { skipped: vec![], failed: None }).unwrap();
            let place = keep.path().join(format!("into{number}"));
            let outcome = received(&stream.into_inner(), &place, &item);
            assert!(fs::read_dir(&outside).unwrap().next().is_none(), "{number}: {outcome:?}");
            assert!(!keep.path().join("escaped").exists() && !Path::new("/escaped").exists(), "{number}");
        }
        for name in ["", ".", "..", "a/b", "/"] {
            let item = Item { name: name.into(), is_directory: false };
            assert!(received(&[], keep.path(), &item).is_err(), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_cut_short_is_not_there() {
        let keep = tempfile::tempdir().unwrap();
        let from = keep.path().join("from");
        fs::write(&from, [1; 100_000]).unwrap();
        let (item, bytes) = sent(&from);
        let to = keep.path().join("to");
        for cut in [0, 3, 600, 70_000, 99_000] {
            assert!(received(&bytes[..cut], &to, &item).is_err(), "{cut}");
            assert!(!to.exists());
        }
        // The sender may say so itself.
        let frame = &bytes[..5 + MOST_PAYLOAD];
        let mut stream = Stream::new(frame.to_vec());
        stream.write_json(Kind::Sent, &Sent { skipped: vec![], failed: Some("gone".into()) }).unwrap();
        assert!(received(&stream.into_inner(), &to, &item).is_err());
        assert_eq!(fs::read_dir(keep.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_the_sender_cannot_read_is_said_by_the_receiver() {
        let keep = tempfile::tempdir().unwrap();
        let item = Item { name: "x".into(), is_directory: false };
        let mut stream = Stream::new(Vec::new());
        let sent = send(&mut stream, &keep.path().join("none"), &item, &mut |_| {}).unwrap();
        assert!(sent.failed.is_some());
        let error = received(&stream.into_inner(), &keep.path().join("to"), &item).unwrap_err();
        assert!(matches!(&error, CopyError::There(why) if why.contains("none cannot be read")), "{error}");
        assert!(matches!(Item::at(Path::new("/dev/null")), Err(CopyError::Here { .. })));
    }
}
