//! DISCARD and WRITE_ZEROES, on files and on backings that know only a part of them.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::backing::erase::Erase;
use crate::iothread::counters::FailedSnapshot;

const DISCARD_KIND: u32 = 11;
const WRITE_ZEROES_KIND: u32 = 13;
const SECURE_ERASE_KIND: u32 = 14;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Sector, sectors, flags.
type Ranges<'a> = &'a [(u64, u32, u32)];

fn list(ranges: Ranges<'_>) -> Vec<u8> {
    let bytes = |(sector, sectors, flags): &(u64, u32, u32)| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    ranges.iter().flat_map(bytes).collect()
}

fn erase(driver: &mut BlkDriver, kind: u32, ranges: Ranges<'_>) -> u8 {
    let list = list(ranges);
    driver.put(0, &list);
    driver.run(kind, 0, 0, list.len() as u32).0
}

/// A disk full of its pattern.
fn full_of_pattern(directory: &TempDir, name: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, pattern(0, MIB)).unwrap();
    path
}

fn opened(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn active(config: &config::Disk, backing: Backing) -> (Blk, BlkDriver) {
    let mut blk = Blk::with_backing(config, [0; ID_BYTES], vec![iothread(0, 0)], backing).unwrap();
    let driver = BlkDriver::new(&mock::ram(4 * MIB), 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    (blk, driver)
}

/// The backing with ranges of these blocks, whatever it is.
fn erased_by(mut backing: Backing, block_bytes: u64, granularity_bytes: u64) -> Backing {
    backing.erase = Some(Erase::new(block_bytes, granularity_bytes));
    backing
}

/// The pattern with these bytes zeroed.
fn zeroed(ranges: &[std::ops::Range<usize>]) -> Vec<u8> {
    let mut bytes = pattern(0, MIB);
    ranges.iter().for_each(|range| bytes[range.clone()].fill(0));
    bytes
}

#[test]
fn discards_are_offered_where_they_are_asked_for_with_their_limits() {
    let directory = TempDir::new().unwrap();
    let path = full_of_pattern(&directory, "disk");
    let thread = [iothread(0, 0)];
    let asked = config::Disk { discard: true, ..disk_config(&path, CacheMode::Writeback, &[0]) };
    let word = |blk: &Blk, at| {
        let mut word = [0; 4];
        blk.read_config(at, &mut word);
        u32::from_le_bytes(word)
    };
    for (config, offered) in [
        (asked.clone(), DISCARD | WRITE_ZEROES),
        (config::Disk { discard: false, ..asked.clone() }, 0),
        (config::Disk { read_only: true, ..asked }, 0),
    ] {
        let blk = Blk::new(&config, &thread).unwrap();
        assert_eq!(blk.features() & (DISCARD | WRITE_ZEROES), offered);
        assert_eq!(word(&blk, 36) > 0, offered != 0);
        assert_eq!(word(&blk, 48) > 0, offered != 0);
    }
}

#[test]
fn what_is_discarded_is_given_back_to_the_host_and_reads_as_zeros() {
    let directory = TempDir::new().unwrap();
    for cache in [CacheMode::Writeback, CacheMode::None, CacheMode::Directsync, CacheMode::Unsafe] {
        let path = full_of_pattern(&directory, &format!("{cache:?}"));
        let config = config::Disk { discard: true, ..disk_config(&path, cache, &[0]) };
        opened(&path).sync_all().unwrap();
        let before = opened(&path).metadata().unwrap();
        let mut blk = Blk::new(&config, &[iothread(0, 0)]).unwrap();
        let mut driver = BlkDriver::new(&mock::ram(4 * MIB), 0, 64);
        blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
        assert_eq!(erase(&mut driver, DISCARD_KIND, &[(128, 512, 0), (1024, 64, 0)]), 0, "{cache:?}");
        assert_eq!(erase(&mut driver, WRITE_ZEROES_KIND, &[(1536, 256, 1)]), 0, "{cache:?}");
        assert_eq!(driver.run(0, 128, 65536, 4096), (0, 4097));
        assert_eq!(driver.get(65536, 4096), [0; 4096], "{cache:?}");
        assert_eq!(driver.run(4, 0, 0, 0).0, 0);
        let expected = zeroed(&[128 * 512..640 * 512, 1024 * 512..1088 * 512, 1536 * 512..1792 * 512]);
        assert!(std::fs::read(&path).unwrap() == expected, "{cache:?}");
        let after = opened(&path).metadata().unwrap();
        assert_eq!(after.len(), before.len());
        assert!(
            after.blocks() + 512 <= before.blocks(),
            "{cache:?}: {} of {}",
            after.blocks(),
            before.blocks()
        );
        let counts = blk.stats().snapshot().virtqueues.remove(0);
        assert_eq!((counts.discards, counts.write_zeroes, counts.errors), (1, 1, 0));
        assert_eq!((counts.discarded_bytes, counts.zeroed_bytes), (576 * 512, 256 * 512));
    }
}

#[test]
fn edges_finer_than_a_block_are_zeroed_by_writing_and_left_alone_by_discards() {
    let directory = TempDir::new().unwrap();
    let path = full_of_pattern(&directory, "disk");
    let config = disk_config(&path, CacheMode::Writeback, &[0]);
    let blocks = Alignment { offset: 4096, memory: 4096 };
    let backing = Backing::new(&config, opened(&path), MIB as u64, blocks).unwrap();
    let (_blk, mut driver) = active(&config, erased_by(backing, 4096, 4096));
    assert_eq!(erase(&mut driver, DISCARD_KIND, &[(1, 20, 0)]), 0);
    let mut expected: Vec<_> = std::iter::once(4096..8192).collect();
    assert!(std::fs::read(&path).unwrap() == zeroed(&expected));
    for (sector, sectors, unmap) in [(65, 30, 1), (129, 30, 0), (193, 3, 1), (257, 600, 0)] {
        assert_eq!(erase(&mut driver, WRITE_ZEROES_KIND, &[(sector, sectors, unmap)]), 0);
        let start = sector as usize * 512;
        expected.push(start..start + sectors as usize * 512);
        assert!(std::fs::read(&path).unwrap() == zeroed(&expected), "{sector} {sectors} {unmap}");
    }
}

#[test]
fn lists_that_cannot_be_are_refused_and_change_nothing() {
    let directory = TempDir::new().unwrap();
    let path = full_of_pattern(&directory, "disk");
    let config = config::Disk { discard: true, ..disk_config(&path, CacheMode::Writeback, &[0]) };
    let (_blk, mut driver) = active(&config, Backing::open(&config).unwrap());
    let cases: [(&str, u32, Ranges<'_>, u8); 9] = [
        ("a discard that unmaps", DISCARD_KIND, &[(0, 8, 1)], UNSUPPORTED),
        ("an unknown flag behind a good range", WRITE_ZEROES_KIND, &[(0, 8, 1), (8, 8, 6)], UNSUPPORTED),
        ("across the end", DISCARD_KIND, &[(2047, 2, 0)], IO_ERROR),
        ("past the end behind a good range", WRITE_ZEROES_KIND, &[(0, 8, 0), (4096, 1, 0)], IO_ERROR),
        ("an offset beyond 64 bits", WRITE_ZEROES_KIND, &[(u64::MAX, 8, 1)], IO_ERROR),
        ("an end beyond 64 bits", DISCARD_KIND, &[(u64::MAX / 512, u32::MAX, 0)], IO_ERROR),
        ("too many ranges", DISCARD_KIND, &[(0, 8, 0); 33], IO_ERROR),
        ("no range", DISCARD_KIND, &[], IO_ERROR),
        ("a secure erase", SECURE_ERASE_KIND, &[], UNSUPPORTED),
    ];
    for (name, kind, ranges, status) in cases {
        assert_eq!(erase(&mut driver, kind, ranges), status, "{name}");
    }
    driver.put(0, &list(&[(0, 8, 0), (0, 8, 0)]));
    assert_eq!(driver.run(DISCARD_KIND, 0, 0, 24).0, IO_ERROR, "half a range");
    assert!(std::fs::read(&path).unwrap() == pattern(0, MIB));

    let read_only = config::Disk { read_only: true, ..config.clone() };
    drop((_blk, driver));
    let (_blk, mut driver) = active(&read_only, Backing::open(&read_only).unwrap());
    for kind in [DISCARD_KIND, WRITE_ZEROES_KIND] {
        assert_eq!(erase(&mut driver, kind, &[(0, 8, 0)]), IO_ERROR);
    }
    assert!(std::fs::read(&path).unwrap() == pattern(0, MIB));
}

#[test]
fn zeros_are_written_where_the_backing_has_no_word_for_them() {
    // Files in memory have holes, and nothing that zeroes a range and keeps its space.
    let memory = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(memory);
    file.write_all_at(&pattern(0, MIB), 0).unwrap();
    let looked_at = file.try_clone().unwrap();
    let config = disk_config(Path::new("disk"), CacheMode::Writeback, &[0]);
    let backing = Backing::new(&config, file, MIB as u64, Alignment::NONE).unwrap();
    let (_blk, mut driver) = active(&config, erased_by(backing, 512, 4096));
    for _ in 0..2 {
        assert_eq!(erase(&mut driver, WRITE_ZEROES_KIND, &[(3, 600, 0), (1024, 8, 1)]), 0);
    }
    let mut found = vec![0; MIB];
    looked_at.read_exact_at(&mut found, 0).unwrap();
    assert!(found == zeroed(&[3 * 512..603 * 512, 1024 * 512..1032 * 512]));
}

#[test]
fn a_backing_that_knows_no_holes_after_all_says_so_and_its_errors_are_errors() {
    let config = disk_config(Path::new("/dev/full"), CacheMode::Writeback, &[0]);
    let backing = Backing::new(&config, opened(Path::new("/dev/full")), MIB as u64, Alignment::NONE).unwrap();
    let (blk, mut driver) = active(&config, erased_by(backing, 4096, 4096));
    assert_eq!(erase(&mut driver, DISCARD_KIND, &[(0, 8, 0)]), UNSUPPORTED);
    assert_eq!(erase(&mut driver, WRITE_ZEROES_KIND, &[(0, 8, 1)]), IO_ERROR, "zeros find no space");
    assert_eq!(erase(&mut driver, DISCARD_KIND, &[(1, 2, 0)]), 0, "nothing to do");
    let counts = blk.stats().snapshot().virtqueues.remove(0);
    let failed = FailedSnapshot { discards: 1, write_zeroes: 1, ..FailedSnapshot::default() };
    assert_eq!((counts.failed, counts.errors), (failed, 2));
    assert_eq!((counts.discarded_bytes, counts.zeroed_bytes), (2 * 512, 0), "as asked, of what ended well");
}

/// A file that cannot be flushed shows where one is asked for.
#[test]
fn with_the_cache_off_an_erasure_is_durable_when_it_ends() {
    for (cache, status) in [(CacheMode::Writeback, 0), (CacheMode::Writethrough, IO_ERROR)] {
        let config = disk_config(Path::new("/dev/full"), cache, &[0]);
        let backing =
            Backing::new(&config, opened(Path::new("/dev/full")), MIB as u64, Alignment::NONE).unwrap();
        let (_blk, mut driver) = active(&config, erased_by(backing, 4096, 4096));
        assert_eq!(erase(&mut driver, DISCARD_KIND, &[(1, 2, 0)]), status, "{cache:?}");
    }
}
