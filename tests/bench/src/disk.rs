//! The file that everything is measured on: written whole, without holes, each of its 4 KiB blocks beginning with its own
//! number, so that every read can be held against where it came from. A second half of the same size is fio's to write,
//! which does not know of the numbers.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Doing as _, Error};
use crate::point::Random;

/// What carries a number.
pub const STAMPED_BYTES: u64 = 4 << 10;
const CHUNK_BYTES: u64 = 4 << 20;
/// The name of the whole: a file that begins otherwise is not ours to write.
const MAGIC: u64 = 0x6b73_6964_6d70_7600;

#[derive(Debug)]
pub struct Disk {
    pub path: PathBuf,
    /// The half that is measured; as much follows.
    pub area_bytes: u64,
}

/// What the first eight bytes of the 4 KiB at `offset` are.
pub fn stamp(offset: u64) -> u64 {
    (offset / STAMPED_BYTES) ^ MAGIC
}

impl Disk {
    /// Makes the file, or takes it as an earlier run left it.
    pub fn prepare(path: &Path, area_bytes: u64) -> Result<Disk, Error> {
        let doing = |what: &str| format!("{} could not be {what}", path.display());
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).doing(|| doing("given its directory"))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .doing(|| doing("opened"))?;
        let bytes = file.seek(SeekFrom::End(0)).doing(|| doing("measured"))?;
        let mut first = [0; 8];
        if bytes > 0 {
            file.rewind().and_then(|()| file.read_exact(&mut first)).doing(|| doing("read"))?;
            if u64::from_ne_bytes(first) != stamp(0) {
                return Err(Error::Asked(format!(
                    "{} was not made by this benchmark and is left alone: name another with --file",
                    path.display()
                )));
            }
        }
        if bytes != 2 * area_bytes || !is_whole(&file, area_bytes) {
            eprintln!("writing {} MiB to {}", (2 * area_bytes) >> 20, path.display());
            write(&mut file, 2 * area_bytes).doing(|| doing("written"))?;
        }
        file.sync_all().doing(|| doing("made durable"))?;
        // What lies in the page cache would be served from there by who does not ask for O_DIRECT, and be written back later.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        Ok(Disk { path: path.to_owned(), area_bytes })
    }
}

/// Whether an earlier run wrote all of it: no hole, and some stamps of each MiB.
fn is_whole(file: &File, area_bytes: u64) -> bool {
    let hole = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(0));
    let mut random = Random::new(1);
    hole.is_ok_and(|hole| hole >= 2 * area_bytes)
        && (0..area_bytes >> 20).all(|mib| {
            let offset = (mib << 20) + random.below(256) * STAMPED_BYTES;
            let mut word = [0; 8];
            file.read_exact_at(&mut word, offset).is_ok() && u64::from_ne_bytes(word) == stamp(offset)
        })
}

fn write(file: &mut File, bytes: u64) -> std::io::Result<()> {
    file.set_len(0)?;
    rustix::fs::fallocate(&*file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
    file.rewind()?;
    let mut random = Random::new(2);
    // Noise, so that nothing below can make it small; the same in every chunk but for the stamps.
    let mut chunk: Vec<u8> = (0..CHUNK_BYTES / 8).flat_map(|_| random.next().to_ne_bytes()).collect();
    for start in (0..bytes).step_by(CHUNK_BYTES as usize) {
        for at in (0..CHUNK_BYTES).step_by(STAMPED_BYTES as usize) {
            chunk[at as usize..][..8].copy_from_slice(&stamp(start + at).to_ne_bytes());
        }
        let left = (bytes - start).min(CHUNK_BYTES);
        file.write_all(&chunk[..left as usize])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_made_once_and_made_again_when_something_else_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/disk");
        let disk = Disk::prepare(&path, 4 << 20).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&disk.path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8 << 20);
        assert!(is_whole(&file, 4 << 20));
        for mib in 0..4 {
            file.write_all_at(&[0; 1 << 20], mib << 20).unwrap();
            assert!(!is_whole(&file, 4 << 20));
            file.write_all_at(&stamp(0).to_ne_bytes(), 0).unwrap();
            Disk::prepare(&path, 4 << 20).unwrap();
            assert!(is_whole(&file, 4 << 20));
        }
    }

    #[test]
    fn a_file_of_somebody_else_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("theirs");
        std::fs::write(&path, b"not a benchmark's").unwrap();
        assert!(Disk::prepare(&path, 4 << 20).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"not a benchmark's");
    }
}
