//! Directory entries: a tree of files and links that is published as one, named by the hash of its listing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FlockOperation, flock, syncfs};

use super::{Entry, Store, entry_name, sync_dir};
use crate::error::{Result, failed};

/// A directory being filled. Dropped unpublished, it is gone.
#[derive(Debug)]
pub struct TempDir {
    path: PathBuf,
    held: File,
    published: bool,
}

impl TempDir {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file below the directory, with the directories on its way.
    pub(crate) fn write(&self, at: &str, bytes: &[u8], executable: bool) -> Result<()> {
        let path = self.make_parent(at)?;
        let mode = if executable { 0o555 } else { 0o444 };
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .map_err(failed("make", &path))?;
        file.write_all(bytes).map_err(failed("write", &path))?;
        // The umask must not decide what the listing says.
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(failed("protect", &path))
    }

    fn make_parent(&self, at: &str) -> Result<PathBuf> {
        let path = self.path.join(at);
        // A library's name comes out of a program: it must not lead the writer out of the directory.
        if !Path::new(at).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(failed("write below the directory", &path)(io::ErrorKind::InvalidInput.into()));
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed("make", parent))?;
        }
        Ok(path)
    }
}

impl TempDir {
    /// Gone with all that is in it; an error where something stays.
    pub(super) fn remove(mut self) -> Result<()> {
        self.published = true;
        remove(&self.path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if !self.published {
            let _ = remove(&self.path);
        }
    }
}

impl Store {
    /// A new empty directory under `tmp`, held by this process.
    pub fn temp_dir(&self) -> Result<TempDir> {
        let _gate = self.gate()?;
        let path = self.temp_path();
        fs::create_dir(&path).map_err(self.refused("make the temporary directory", &path))?;
        let held = File::open(&path).map_err(failed("open", &path))?;
        flock(&held, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .map_err(failed("lock", &path))?;
        Ok(TempDir { path, held, published: false })
    }

    /// Publishes the directory as an entry called `name`, read-only.
    pub fn publish_dir(&self, mut temp: TempDir, name: &str) -> Result<Entry> {
        let name = entry_name(listing_hash(&temp.path)?, name);
        if let Some(there) = self.entry(&name) {
            return Ok(there);
        }
        for (path, kind) in walk(&temp.path)? {
            if kind.is_dir() {
                let mode = fs::Permissions::from_mode(0o555);
                fs::set_permissions(&path, mode).map_err(failed("protect", &path))?;
            }
        }
        syncfs(&temp.held).map_err(io::Error::from).map_err(failed("write", &temp.path))?;
        let path = self.root.join(&name);
        // The directory itself stays writable until it has its name: a rename changes its `..`.
        match fs::rename(&temp.path, &path) {
            Ok(()) => temp.published = true,
            Err(_) if path.is_dir() => return Ok(Entry { path, name, bytes: None }),
            Err(error) => return Err(failed("publish", &path)(error)),
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).map_err(failed("protect", &path))?;
        sync_dir(&self.root)?;
        Ok(Entry { path, name, bytes: None })
    }
}

/// The hash of path, kind, executable bit and content of everything below `root`, in path order.
pub(super) fn listing_hash(root: &Path) -> Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    let mut lines = Vec::new();
    for (path, kind) in walk(root)? {
        let below = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        let what = if kind.is_dir() {
            "dir".to_owned()
        } else if kind.is_symlink() {
            format!("link {}", fs::read_link(&path).map_err(failed("read", &path))?.display())
        } else {
            let file = File::open(&path).map_err(failed("read", &path))?;
            let meta = file.metadata().map_err(failed("look at", &path))?;
            let mut content = blake3::Hasher::new();
            io::copy(&mut &file, &mut content).map_err(failed("read", &path))?;
            let kind = if meta.permissions().mode() & 0o111 != 0 { "program" } else { "file" };
            format!("{kind} {}", content.finalize().to_hex())
        };
        lines.push((below, what));
    }
    lines.sort();
    for (path, what) in lines {
        for part in [path, what] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
    }
    Ok(hasher.finalize())
}

/// Bytes of all files below `root`.
pub(super) fn size(root: &Path) -> Result<u64> {
    Ok(sizes(root)?.0)
}

/// Of a file, or of all files at and below a directory: bytes that can be read, and bytes taken of the disk.
pub(super) fn sizes(root: &Path) -> Result<(u64, u64)> {
    let meta = fs::symlink_metadata(root).map_err(failed("look at", root))?;
    // stat(2) counts in units of 512 bytes, whatever the filesystem's blocks are.
    let disk = |meta: &fs::Metadata| meta.blocks() * 512;
    if !meta.is_dir() {
        return Ok((meta.len(), disk(&meta)));
    }
    let (mut bytes, mut disk_bytes) = (0, disk(&meta));
    for (path, kind) in walk(root)? {
        let meta = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        if kind.is_file() {
            bytes += meta.len();
        }
        disk_bytes += disk(&meta);
    }
    Ok((bytes, disk_bytes))
}

/// Everything below `root`, in no order, links not followed.
fn walk(root: &Path) -> Result<Vec<(PathBuf, fs::FileType)>> {
    walk_with(root, |_| Ok(()))
}

/// As [`walk`]; `enter` is called on each directory before it is listed.
fn walk_with(root: &Path, enter: impl Fn(&Path) -> Result<()>) -> Result<Vec<(PathBuf, fs::FileType)>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        enter(&dir)?;
        for item in fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let item = item.map_err(failed("list", &dir))?;
            let kind = item.file_type().map_err(failed("look at", item.path()))?;
            if kind.is_dir() {
                open.push(item.path());
            }
            found.push((item.path(), kind));
        }
    }
    Ok(found)
}

/// Removes a file or a whole tree, read-only directories included.
pub(super) fn remove(path: &Path) -> Result<()> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at", path)(error)),
    };
    if !meta.is_dir() {
        return fs::remove_file(path).map_err(failed("remove", path));
    }
    walk_with(path, |dir| {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(failed("unprotect", dir))
    })?;
    fs::remove_dir_all(path).map_err(failed("remove", path))
}
