//! The files and devices behind a profile's disks: found, and made where the profile says how large.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use vmprof_profiles::{DiskSource, Profile};

use crate::failure::{Failure, Kind};
use crate::run::record::DiskInUse;

/// Paths of the profile's disks, in its order. A relative `file=` lies in `directory`.
pub fn paths(profile: &Profile, directory: &Path) -> Vec<PathBuf> {
    let path = |source: &DiskSource| match source {
        DiskSource::File { path, .. } => directory.join(path),
        DiskSource::Device { path } => PathBuf::from(path),
    };
    profile.disks.iter().map(|disk| path(&disk.source)).collect()
}

/// Makes what is missing and has a size, sparse and whole or not at all; says what each disk is.
pub fn make(profile: &Profile, paths: &[PathBuf]) -> Result<Vec<DiskInUse>, Failure> {
    let mut disks = Vec::new();
    for (disk, path) in profile.disks.iter().zip(paths) {
        let name = &disk.name.value;
        if let DiskSource::File { bytes: Some(bytes), .. } = disk.source
            && !path.exists()
        {
            make_one(path, bytes).map_err(|error| {
                Failure::os(
                    format!(
                        "the file of disk `{name}` cannot be made: {} with {bytes} bytes",
                        path.display()
                    ),
                    error,
                )
            })?;
        }
        disks.push(DiskInUse::look(name, path).map_err(|error| missing(name, path, error))?);
    }
    Ok(disks)
}

fn make_one(path: &Path, bytes: u64) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let file = tempfile::NamedTempFile::new_in(directory)?;
    file.as_file().set_len(bytes)?;
    match file.persist_noclobber(path) {
        // Another `up` made it meanwhile: the lock decides which of the two may use it.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error.error),
        Ok(_) => File::open(directory)?.sync_all(),
    }
}

fn missing(name: &str, path: &Path, error: io::Error) -> Failure {
    if error.kind() != io::ErrorKind::NotFound {
        return Failure::os(
            format!("the source of disk `{name}` cannot be looked at: {}", path.display()),
            error,
        );
    }
    Failure::said(
        Kind::HostCannot,
        "vmprof::up::no_source",
        format!("disk `{name}` has no source on this host: {} does not exist", path.display()),
        "a `source file=` with a `size=` is made when it is missing; a device must be there",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_once_and_kept() {
        let keep = tempfile::tempdir().unwrap();
        let path = keep.path().join("disks/db/data.raw");
        make_one(&path, 1 << 20).unwrap();
        fs::write(&path, b"kept").unwrap();
        make_one(&path, 1 << 20).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"kept");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }
}
