//! Decisions as a table; and the making of a filesystem, cut off after every write it does.

use std::fs::OpenOptions;
use std::path::PathBuf;

use super::*;

fn decided(seen: Seen, wished: Option<Filesystem>, needed: bool) -> Result<Decision, String> {
    decide("data", seen, 512 * MIB, wished, needed).map_err(|failure| failure.message())
}

#[test]
fn the_format_is_a_wish_for_empty_disks_and_never_destroys() {
    use Decision::{Leave, Make, Use};
    use Filesystem::{Ext4, Xfs};
    assert_eq!(decided(Seen::Empty, Some(Xfs), true), Ok(Make(Xfs)));
    assert_eq!(decided(Seen::CutShort, Some(Ext4), false), Ok(Make(Ext4)));
    assert_eq!(decided(Seen::Holds(Ext4), Some(Xfs), true), Ok(Use(Ext4)));
    assert_eq!(decided(Seen::Holds(Xfs), None, false), Ok(Use(Xfs)));
    assert_eq!(decided(Seen::Empty, None, false), Ok(Leave));
    assert_eq!(decided(Seen::Foreign("swap space".into()), None, false), Ok(Leave));
    for (wished, needed) in [(Some(Ext4), false), (Some(Ext4), true), (None, true)] {
        assert_eq!(
            decided(Seen::Foreign("a LUKS container".into()), wished, needed),
            Err("disk `data` holds a LUKS container: it is left as it is; give it a disk that is empty (its first and \
                last MiB zeroes), or one with ext4 or xfs"
                .into())
        );
    }
    assert!(decided(Seen::Empty, None, true).unwrap_err().contains("`format`"));
    assert!(decided(Seen::CutShort, None, true).unwrap_err().contains("cut short"));
}

#[test]
fn a_disk_too_small_is_refused_with_its_size() {
    let refused = |filesystem, bytes| {
        decide("data", Seen::Empty, bytes, Some(filesystem), true).map_err(|failure| failure.message())
    };
    for (filesystem, least, said) in [
        (
            Filesystem::Ext4,
            SMALLEST,
            "disk `data` of 33554431 bytes is too small for ext4, which needs 32 MiB or more",
        ),
        (
            Filesystem::Xfs,
            300 * MIB,
            "disk `data` of 314572799 bytes is too small for xfs, which needs 300 MiB or more",
        ),
    ] {
        assert_eq!(refused(filesystem, least), Ok(Decision::Make(filesystem)));
        assert_eq!(refused(filesystem, least - 1).unwrap_err(), said);
    }
}

fn disk(bytes: u64) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    OpenOptions::new().create(true).truncate(true).write(true).open(&path).unwrap().set_len(bytes).unwrap();
    (directory, path)
}

fn seen(path: &Path) -> Seen {
    let file = File::open(path).unwrap();
    probe(&file, size(&file).unwrap()).unwrap()
}

fn died() -> Result<(), Failure> {
    Err(Failure::NoUser("the machine died".to_owned()))
}

#[test]
fn a_death_while_it_is_made_leaves_a_disk_that_is_made_again() {
    // What a program has written when the machine dies: nothing, half a superblock, one that looks whole.
    let xfs: &[(u64, &[u8])] = &[(0, b"XFSB")];
    let half: &[(u64, &[u8])] = &[(1080, &[0x53, 0xef]), (20 * MIB, b"inode table")];
    let over_a_mark: &[(u64, &[u8])] = &[(62 * MIB, &[7; 4096]), (0, b"XFSB")];
    for written in [&[], xfs, half, over_a_mark] {
        let (_directory, path) = disk(64 * MIB);
        let program = || {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            written.iter().for_each(|(at, bytes)| file.write_all_at(bytes, *at).unwrap());
            died()
        };
        assert!(make_marked("data", &path, 64 * MIB, program).is_err());
        assert_eq!(seen(&path), Seen::CutShort, "{written:?}");
    }
}

#[test]
fn every_moment_of_marking_and_clearing_is_one_that_the_next_boot_understands() {
    let (_directory, path) = disk(64 * MIB);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // One mark of two, either way round, while a whole filesystem is there: before the last one is cleared.
    file.write_all_at(b"XFSB", 0).unwrap();
    for from_end in MARKS {
        let at = mark_at(64 * MIB, from_end).unwrap();
        file.write_all_at(&mark(), at).unwrap();
        assert_eq!(seen(&path), Seen::CutShort);
        file.write_all_at(&[0; MARK_BYTES], at).unwrap();
        assert_eq!(seen(&path), Seen::Holds(Filesystem::Xfs));
    }
}

#[test]
fn a_whole_filesystem_has_no_mark_and_keeps_what_it_put_over_one() {
    let (_directory, path) = disk(64 * MIB);
    let program = || {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"XFSB", 0).unwrap();
        file.write_all_at(&[7; 4096], 62 * MIB).unwrap();
        Ok(())
    };
    make_marked("data", &path, 64 * MIB, program).unwrap();
    assert_eq!(seen(&path), Seen::Holds(Filesystem::Xfs));
    let mut block = [0; 4096];
    File::open(&path).unwrap().read_exact_at(&mut block, 62 * MIB).unwrap();
    assert_eq!(block, [7; 4096], "the filesystem's own bytes are not cleared with the mark");
}

#[test]
fn the_marks_lie_outside_of_what_is_looked_at_for_emptiness() {
    for bytes in [SMALLEST, SMALLEST + 512, 100 * MIB + 4095] {
        for from_end in MARKS {
            let at = mark_at(bytes, from_end).unwrap();
            assert!(at >= MIB && at + MARK_BYTES as u64 <= bytes - MIB);
            assert_eq!(at % MARK_BYTES as u64, 0);
        }
    }
}

/// The real program, which every Debian has.
#[test]
fn mkfs_ext4_makes_what_is_found_again_and_an_interrupted_one_is_repeated() {
    if !Path::new("/usr/sbin/mkfs.ext4").exists() {
        eprintln!("skipped: mkfs_ext4_makes_what_is_found_again: no /usr/sbin/mkfs.ext4");
        return;
    }
    let _alone = crate::reap::ONE_FAMILY_AT_A_TIME.lock();
    // 386 MiB: the last block group, with a copy of the superblock, begins where the first mark lies.
    for bytes in [SMALLEST, 64 * MIB, 386 * MIB] {
        let (_directory, path) = disk(bytes);
        let interrupted = || make("data", &path, Filesystem::Ext4).and_then(|()| died());
        assert!(make_marked("data", &path, bytes, interrupted).is_err());
        assert_eq!(seen(&path), Seen::CutShort, "{bytes}");
        assert_eq!(settle_on("data", &path, Some(Filesystem::Ext4), true).unwrap(), Some(Filesystem::Ext4));
        assert_eq!(seen(&path), Seen::Holds(Filesystem::Ext4), "{bytes}");
        assert!(!wants_check(&File::open(&path).unwrap()).unwrap());
        // Clean after the marks were cleared.
        if Path::new("/usr/sbin/e2fsck").exists() {
            let checked =
                std::process::Command::new("/usr/sbin/e2fsck").args(["-fn"]).arg(&path).output().unwrap();
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        }
        // Used as it is from now on, whatever the wish.
        assert_eq!(settle_on("data", &path, Some(Filesystem::Xfs), true).unwrap(), Some(Filesystem::Ext4));
    }
}

#[test]
fn a_superblock_that_noted_errors_asks_for_a_check() {
    let (_directory, path) = disk(64 * MIB);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for (state, wants) in [(1u16, false), (0, true), (3, true), (2, true)] {
        file.write_all_at(&state.to_le_bytes(), 1024 + 58).unwrap();
        assert_eq!(wants_check(&file).unwrap(), wants, "{state}");
    }
}
