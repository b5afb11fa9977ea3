//! A file that is replaced whole or not at all, with the permissions it had.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Writes `bytes` to `path`. Whoever reads it meanwhile sees the old file or the new one. A link keeps pointing where it
/// does, and what it points to is replaced.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let path = if path.exists() { path.canonicalize()? } else { path.to_owned() };
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".vmprof-").tempfile_in(directory)?;
    file.write_all(bytes)?;
    match fs::metadata(&path) {
        Ok(before) => {
            let now = file.as_file().metadata()?;
            if (before.uid(), before.gid()) != (now.uid(), now.gid()) {
                std::os::unix::fs::fchown(file.as_file(), Some(before.uid()), Some(before.gid()))?;
            }
            file.as_file().set_permissions(before.permissions())?;
        }
        Err(_) => as_new(file.as_file())?,
    }
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

/// Gives a temporary file, which is its owner's alone, the permissions that any new file has.
fn as_new(file: &File) -> io::Result<()> {
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    Ok(rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(0o666) & !umask)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn permissions_and_links_stay() {
        let keep = tempfile::tempdir().unwrap();
        let (file, link) = (keep.path().join("a.kdl"), keep.path().join("link.kdl"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("a.kdl", &link).unwrap();
        replace(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(fs::read_dir(keep.path()).unwrap().count(), 2, "no temporary file stays");
    }

    #[test]
    fn what_cannot_be_written_leaves_nothing_behind() {
        let keep = tempfile::tempdir().unwrap();
        assert!(replace(&keep.path().join("nowhere/a.kdl"), b"x").is_err());
        assert_eq!(fs::read_dir(keep.path()).unwrap().count(), 0);
    }
}
