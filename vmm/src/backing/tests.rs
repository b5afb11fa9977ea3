use std::path::Path;

use rustix::fs::{CWD, FileType, mknodat};
use tempfile::TempDir;

use super::*;

pub(super) fn disk(path: &Path, cache: CacheMode) -> config::Disk {
    config::Disk { cache, ..config::Disk::named("data", path, vec![0]) }
}

fn file(directory: &TempDir, bytes: u64) -> std::path::PathBuf {
    let path = directory.path().join("disk");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

#[test]
fn direct_modes_open_with_o_direct_and_others_without() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, 8_192);
    for cache in [
        CacheMode::None,
        CacheMode::Directsync,
        CacheMode::Writeback,
        CacheMode::Writethrough,
        CacheMode::Unsafe,
    ] {
        let backing = Backing::open(&disk(&path, cache)).unwrap();
        let flags = rustix::fs::fcntl_getfl(&*backing.file).unwrap();
        assert_eq!(flags.contains(OFlags::DIRECT), cache.is_direct(), "{cache:?}");
        assert_eq!(backing.alignment != Alignment::NONE, cache.is_direct(), "{cache:?}");
    }
}

#[test]
fn a_size_is_rounded_up_to_whole_sectors() {
    let directory = TempDir::new().unwrap();
    let backing = Backing::open(&disk(&file(&directory, 1_000), CacheMode::Writeback)).unwrap();
    assert_eq!((backing.size_bytes, backing.capacity_bytes), (1_000, 1_024));
}

#[test]
fn a_block_that_would_grow_the_file_is_refused_when_it_could_be_written() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, 6_144);
    let blocks = Alignment { offset: 4_096, memory: 512 };
    let open = |read_only| {
        let disk = config::Disk { read_only, ..disk(&path, CacheMode::None) };
        Backing::new(&disk, File::open(&path).unwrap(), 6_144, blocks)
    };
    assert!(matches!(
        open(false),
        Err(DiskError::PartialBlock { size_bytes: 6_144, block_bytes: 4_096, .. })
    ));
    assert_eq!(open(true).unwrap().capacity_bytes, 6_144);
}

#[test]
fn what_is_no_disk_is_told_apart() {
    let directory = TempDir::new().unwrap();
    let opened = |path: &Path| Backing::open(&disk(path, CacheMode::Writeback)).unwrap_err();
    assert!(matches!(opened(&file(&directory, 0)), DiskError::Empty { .. }));
    assert!(matches!(opened(&directory.path().join("missing")), DiskError::Open { .. }));
    assert!(matches!(opened(directory.path()), DiskError::NotADisk { .. }));
    let fifo = directory.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(matches!(opened(&fifo), DiskError::NotADisk { .. }), "and it does not wait for a writer");
}

#[test]
fn writers_exclude_everyone_and_readers_share() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, 4_096);
    let writer = disk(&path, CacheMode::Writeback);
    let reader = config::Disk { read_only: true, ..writer.clone() };
    let held = Backing::open(&writer).unwrap();
    assert!(matches!(Backing::open(&reader), Err(DiskError::InUse { .. })));
    drop(held);
    // A child that another test just starts has the file, too, until its exec.
    while matches!(Backing::open(&reader), Err(DiskError::InUse { .. })) {
        std::thread::yield_now();
    }
    let (_one, _two) = (Backing::open(&reader).unwrap(), Backing::open(&reader).unwrap());
    let error = Backing::open(&writer).unwrap_err();
    assert!(matches!(error, DiskError::InUse { .. }) && error.to_string().contains("`data`"), "{error}");
}

#[test]
fn a_lock_outlasts_the_disk_that_was_opened_under_it_and_is_good_for_the_next() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, 4_096);
    let writer = disk(&path, CacheMode::Writeback);
    let lock = DiskLock::take(&writer).unwrap();
    for _ in 0..2 {
        drop(Backing::open_locked(&writer, lock.clone()).unwrap());
        assert!(matches!(Backing::open(&writer), Err(DiskError::InUse { .. })), "nobody's for a moment");
    }
    std::fs::rename(&path, directory.path().join("aside")).unwrap();
    std::fs::write(&path, [0; 4_096]).unwrap();
    let error = Backing::open_locked(&writer, lock).unwrap_err();
    assert!(matches!(error, DiskError::Exchanged { .. }), "{error}");
}

#[test]
fn a_filesystem_without_direct_io_is_named_with_the_way_out() {
    let disk = disk(Path::new("some/file"), CacheMode::Directsync);
    let text = DiskError::no_direct(&disk).to_string();
    for word in ["`data`", "cache=directsync", "some/file", "cache=writethrough"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn discards_are_tried_where_they_are_asked_for_and_can_be_used() {
    let directory = TempDir::new().unwrap();
    let path = file(&directory, 8_192);
    let asked = config::Disk { discard: true, ..disk(&path, CacheMode::Writeback) };
    assert!(Backing::open(&asked).unwrap().erase.is_some());
    assert!(Backing::open(&disk(&path, CacheMode::Writeback)).unwrap().erase.is_none());
    assert!(Backing::open(&config::Disk { read_only: true, ..asked }).unwrap().erase.is_none());
}
