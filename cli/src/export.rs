//! `build --export`: a guest's root disk as a file of the user's own, whole or not at all.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use vmprof_guests::{GuestImage, Store};

use crate::failure::{Failure, Kind};
use crate::replace::as_new;

/// Holes are found in pieces of this size: a filesystem's block, or a few.
const PIECE_BYTES: usize = 64 << 10;

/// Writes the root disk to `to`, after holding it against the digest in its name. What is there already may be a disk with
/// somebody's data on it: it is replaced only where the user says so.
pub fn root_disk(store: &Store, image: &GuestImage, to: &Path, force: bool) -> Result<(), Failure> {
    let Some(root) = &image.root else {
        let message = format!("guest `{}` has no root disk: it lives in its initramfs", image.name);
        let help = "--format json names the kernel and the initramfs";
        return Err(Failure::said(Kind::Failure, "vmprof::build::no_disk", message, help));
    };
    let name = root.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(entry) = store.entry(name) {
        store.verify(&entry)?;
    }
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => Failure::said(
            Kind::Failure,
            "vmprof::build::export_exists",
            format!("{} exists", to.display()),
            "name another file, or replace this one with --force",
        ),
        _ => Failure::os(format!("the disk cannot be written to {}", to.display()), error),
    };
    replaceable(to, &root.path)?;
    if !force && to.symlink_metadata().is_ok() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let mut from = File::open(&root.path).map_err(failed)?;
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temp = tempfile::Builder::new().prefix(".vmprof-").tempfile_in(directory).map_err(failed)?;
    copy(&mut from, temp.as_file_mut()).map_err(failed)?;
    as_new(temp.as_file()).map_err(failed)?;
    temp.as_file().sync_all().map_err(failed)?;
    let kept = if force { temp.persist(to) } else { temp.persist_noclobber(to) };
    kept.map_err(|error| failed(error.error))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// Refuses what --force replaces neither: a device would lose its node, and nobody means a directory to go.
fn replaceable(to: &Path, root: &Path) -> Result<(), Failure> {
    let Some(there) = to.metadata().ok().filter(|there| !there.is_file()) else { return Ok(()) };
    let (what, help) = match there.is_dir() {
        true => ("a directory", "name the file in it".to_owned()),
        false => ("not a plain file", format!("write the image there yourself: it is {}", root.display())),
    };
    let message = format!("{} is {what}", to.display());
    Err(Failure::said(Kind::Failure, "vmprof::build::export_exists", message, help))
}

/// Shares the blocks where the filesystem can, and otherwise copies what is not zero.
fn copy(from: &mut File, to: &mut File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(&*to, &*from).is_ok() {
        return Ok(());
    }
    let mut piece = vec![0; PIECE_BYTES];
    let mut bytes = 0;
    loop {
        let read = from.read(&mut piece)?;
        let Some(content) = piece.get(..read).filter(|content| !content.is_empty()) else { break };
        match content.iter().all(|byte| *byte == 0) {
            true => drop(to.seek(SeekFrom::Current(read as i64))?),
            false => to.write_all(content)?,
        }
        bytes += read as u64;
    }
    to.set_len(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let keep = tempfile::tempdir().unwrap();
        let source = keep.path().join("source");
        let mut bytes = vec![0_u8; 8 << 20];
        bytes[3 << 20] = 7;
        bytes.extend([0; 1000]);
        std::fs::write(&source, &bytes).unwrap();
        let target = keep.path().join("target");
        copy(&mut File::open(&source).unwrap(), &mut File::create(&target).unwrap()).unwrap();
        assert!(std::fs::read(&target).unwrap() == bytes);
        assert!(target.metadata().unwrap().blocks() < source.metadata().unwrap().blocks() / 8);
    }

    #[test]
    fn a_device_and_a_directory_are_never_replaced() {
        let keep = tempfile::tempdir().unwrap();
        let refused = |to: &Path| replaceable(to, Path::new("/store/root")).unwrap_err().problem.to_string();
        assert_eq!(refused(Path::new("/dev/null")), "/dev/null is not a plain file");
        assert!(refused(keep.path()).ends_with("is a directory"));
        std::fs::write(keep.path().join("old"), "disk").unwrap();
        assert!(replaceable(&keep.path().join("old"), Path::new("")).is_ok());
        assert!(replaceable(&keep.path().join("new"), Path::new("")).is_ok());
    }
}
