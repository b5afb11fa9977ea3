//! A disk on a file that records what is done to it, and fails or hangs when told to: a FUSE file of the tests' own. The kernel
//! passes on each write, with the O_DSYNC that it was made with, and each flush; every one of them ends late and out of order.
//! Where no FUSE file can be had, a test says by its name that it is skipped.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, WriteFlags,
};

use super::*;

const SECTORS: u64 = 256;
const DISK: INodeNo = INodeNo(2);
/// The kernel forgets nothing of a file system that never changes.
const FOR_EVER: Duration = Duration::from_secs(1 << 20);

/// What happened, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A write of a sector ended; `durable` if it was made with O_DSYNC.
    Written { sector: u64, version: u64, durable: bool },
    /// A flush ended that had begun after so many events.
    Flushed { begun: usize },
    /// The driver may rely on a sector's version, or a later one.
    Promised { sector: u64, version: u64 },
}

#[derive(Debug)]
enum Held {
    Write {
        offset: u64,
        data: Vec<u8>,
        durable: bool,
        reply: ReplyWrite,
    },
    /// Reads are held only while they hang.
    Read {
        offset: u64,
        bytes: usize,
        reply: ReplyData,
    },
    Flush {
        begun: usize,
        reply: ReplyEmpty,
    },
}

#[derive(Debug, Default)]
struct Record {
    content: Vec<u8>,
    events: Vec<Event>,
    held: Vec<Held>,
    /// Writes that cover this sector end with this error, or never; reads that do may hang as well.
    fault: Option<(u64, Fault)>,
    chance: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Error(i32),
    Hang,
}

/// Any number but the last one (SplitMix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 27)
}

impl Record {
    fn end(&mut self, held: Held) {
        match held {
            Held::Write { offset, data, durable, reply } => {
                self.content[offset as usize..][..data.len()].copy_from_slice(&data);
                for (sector, bytes) in (offset / 512..).zip(data.chunks(512)) {
                    self.events.push(Event::Written { sector, version: version_in(bytes), durable });
                }
                reply.written(data.len() as u32);
            }
            Held::Read { offset, bytes, reply } => reply.data(self.bytes_at(offset, bytes)),
            Held::Flush { begun, reply } => {
                self.events.push(Event::Flushed { begun });
                reply.ok();
            }
        }
    }

    fn covers(&self, held: &Held, fault: Fault) -> bool {
        match held {
            Held::Write { offset, data, .. } => self.faulty(*offset, data.len(), fault),
            Held::Read { offset, bytes, .. } => self.faulty(*offset, *bytes, fault),
            Held::Flush { .. } => false,
        }
    }

    fn faulty(&self, offset: u64, bytes: usize, fault: Fault) -> bool {
        let sectors = offset / 512..(offset + bytes as u64) / 512;
        self.fault.is_some_and(|(sector, found)| found == fault && sectors.contains(&sector))
    }

    fn bytes_at(&self, offset: u64, bytes: usize) -> &[u8] {
        let start = (offset as usize).min(self.content.len());
        &self.content[start..(start + bytes).min(self.content.len())]
    }
}

fn version_in(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

/// The file system: one file, `disk`.
#[derive(Debug)]
struct Recorder {
    record: Arc<Mutex<Record>>,
    /// Whether the kernel may go on while it waits for our answer to direct I/O, as libfuse lets it.
    async_dio: bool,
}

fn attributes(inode: INodeNo) -> FileAttr {
    let (kind, perm, size) = match inode {
        DISK => (FileType::RegularFile, 0o600, SECTORS * 512),
        _ => (FileType::Directory, 0o700, 0),
    };
    FileAttr {
        ino: inode,
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: 512,
        flags: 0,
    }
}

impl Filesystem for Recorder {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        if self.async_dio {
            config
                .add_capabilities(InitFlags::FUSE_ASYNC_DIO)
                .map_err(|_| std::io::ErrorKind::Unsupported)?;
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("disk") => reply.entry(&FOR_EVER, &attributes(DISK), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // As a drive would, where the page cache is not in the way.
        let flags = match flags.0 & rustix::fs::OFlags::DIRECT.bits() as i32 {
            0 => FopenFlags::empty(),
            _ => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
        };
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (mut record, bytes) = (self.record.lock().unwrap(), size as usize);
        match record.faulty(offset, bytes, Fault::Hang) {
            true => record.held.push(Held::Read { offset, bytes, reply }),
            false => reply.data(record.bytes_at(offset, bytes)),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durable = flags.0 & rustix::fs::OFlags::DSYNC.bits() as i32 != 0;
        self.record.lock().unwrap().held.push(Held::Write { offset, data: data.to_vec(), durable, reply });
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut record = self.record.lock().unwrap();
        let begun = record.events.len();
        record.held.push(Held::Flush { begun, reply });
    }
}

/// The mounted file, and the thread that ends what is done to it.
struct Recorded {
    record: Arc<Mutex<Record>>,
    over: Arc<AtomicBool>,
    ending: Option<JoinHandle<()>>,
    session: Option<BackgroundSession>,
    directory: TempDir,
}

impl Recorded {
    /// `None`, and said so, where there is no FUSE.
    fn mount(test: &str, seed: u64) -> Option<Recorded> {
        Self::with(test, seed, false)
    }

    fn with(test: &str, seed: u64, async_dio: bool) -> Option<Recorded> {
        let record = Record { content: vec![0; SECTORS as usize * 512], chance: seed, ..Record::default() };
        let record = Arc::new(Mutex::new(record));
        let directory = TempDir::new().unwrap();
        let recorder = Recorder { record: record.clone(), async_dio };
        let session = match fuser::spawn_mount(recorder, directory.path(), &Config::default()) {
            Ok(session) => session,
            Err(error) => {
                eprintln!("skipped: {test}: no FUSE file can be had: {error}");
                return None;
            }
        };
        let over = Arc::new(AtomicBool::new(false));
        let (ours, until) = (record.clone(), over.clone());
        let ending = std::thread::spawn(move || {
            loop {
                let mut record = ours.lock().unwrap();
                let last = until.load(Ordering::Acquire);
                if last && record.held.is_empty() {
                    return;
                }
                let ready: Vec<usize> = (0..record.held.len())
                    .filter(|&at| last || !record.covers(&record.held[at], Fault::Hang))
                    .collect();
                // One of them, or none for a while.
                let chance = next(&mut record.chance) as usize;
                if !ready.is_empty() && !chance.is_multiple_of(4) {
                    let held = record.held.swap_remove(ready[chance / 4 % ready.len()]);
                    let error = match record.fault {
                        Some((_, fault @ Fault::Error(error))) if record.covers(&held, fault) => Some(error),
                        _ => None,
                    };
                    match (held, error) {
                        (Held::Write { reply, .. }, Some(error)) => reply.error(Errno::from_i32(error)),
                        (held, _) => record.end(held),
                    }
                }
                drop(record);
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        Some(Recorded { record, over, ending: Some(ending), session: Some(session), directory })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    fn promise(&self, sectors: impl IntoIterator<Item = (u64, u64)>) {
        let promised = sectors.into_iter().map(|(sector, version)| Event::Promised { sector, version });
        self.record.lock().unwrap().events.extend(promised);
    }

    fn fault(&self, fault: Option<(u64, Fault)>) {
        self.record.lock().unwrap().fault = fault;
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // The file is closed by now, so that the last of its flushes may end.
        self.ending.take().map(JoinHandle::join);
        drop(self.session.take());
    }
}

/// The first promise that a power cut just behind it would break: at any moment only that is sure to be there which ended
/// with O_DSYNC, or had ended when a flush began that has ended.
fn broken(events: &[Event]) -> Option<(usize, Event)> {
    let mut sure = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        let mut keep = |sector: u64, version: u64| {
            let kept = sure.entry(sector).or_insert(0);
            *kept = version.max(*kept);
        };
        match *event {
            Event::Written { sector, version, durable: true } => keep(sector, version),
            Event::Written { .. } => {}
            Event::Flushed { begun } => {
                for event in &events[..begun] {
                    if let Event::Written { sector, version, .. } = *event {
                        keep(sector, version);
                    }
                }
            }
            Event::Promised { sector, version } => {
                if sure.get(&sector).is_none_or(|kept| *kept < version) {
                    return Some((at, *event));
                }
            }
        }
    }
    None
}

/// A request of the driver's, from its kick to its end.
#[derive(Debug)]
enum Asked {
    Write {
        first: u64,
        sectors: u64,
        version: u64,
    },
    /// The writes that had ended by then.
    Flush(BTreeMap<u64, u64>),
}

/// A driver that writes, flushes and switches its cache at random, and takes down what it may rely on.
fn drive(recorded: &Recorded, cache: CacheMode, seed: u64) -> (usize, Option<(usize, Event)>) {
    let (ram, thread) = (mock::ram(4 * MIB), iothread(0, 0));
    let mut blk =
        Blk::new(&disk_config(&recorded.path(), cache, &[0]), std::slice::from_ref(&thread)).unwrap();
    let mut driver = BlkDriver::new(&ram, 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    let (mut chance, mut version) = (seed, 0_u64);
    let mut flying: BTreeMap<u16, (u16, Asked)> = BTreeMap::new();
    let mut tags: BTreeSet<u16> = (0..16).collect();
    let (mut ended, mut write_back) = (BTreeMap::new(), !cache.writes_through());
    for _ in 0..400 {
        while flying.len() < 8 {
            let tag = tags.pop_first().unwrap();
            let first = next(&mut chance) % (SECTORS - 8);
            let sectors = 1 + next(&mut chance) % 8;
            let busy = flying.values().any(|(_, asked)| match asked {
                Asked::Write { first: other, sectors: more, .. } => {
                    first < other + more && *other < first + sectors
                }
                Asked::Flush(_) => false,
            });
            if next(&mut chance).is_multiple_of(4) || busy {
                let head = driver.request(tag, 4, 0, 0, 0);
                flying.insert(head, (tag, Asked::Flush(ended.clone())));
            } else {
                version += 1;
                let (at, bytes) = (8192 * u64::from(tag), 512 * sectors as usize);
                driver.put(at, &version.to_le_bytes().repeat(bytes / 8));
                let head = driver.request(tag, 1, first, at, bytes as u32);
                flying.insert(head, (tag, Asked::Write { first, sectors, version }));
            }
        }
        driver.queue.kick();
        let (head, _) = driver.queue.wait_used();
        let (tag, asked) = flying.remove(&head).unwrap();
        assert_eq!(driver.status(tag), 0);
        tags.insert(tag);
        match asked {
            Asked::Write { first, sectors, version } => {
                let written = (first..first + sectors).map(|sector| (sector, version));
                if !write_back {
                    recorded.promise(written.clone());
                }
                ended.extend(written);
            }
            Asked::Flush(before) => recorded.promise(before),
        }
        if !cache.writes_through() && next(&mut chance).is_multiple_of(32) {
            write_back = !write_back;
            blk.write_config(WRITEBACK_AT, &[write_back.into()]);
            if !write_back {
                // From here on it may rely on all that ended.
                recorded.promise(ended.clone());
            }
        }
    }
    drop(blk);
    let events = recorded.record.lock().unwrap().events.clone();
    let promises = events.iter().filter(|event| matches!(event, Event::Promised { .. })).count();
    (promises, broken(&events))
}

#[test]
fn what_the_driver_may_rely_on_survives_a_power_cut_at_any_moment() {
    use CacheMode::{Directsync, None, Unsafe, Writeback, Writethrough};
    for (seed, cache) in (1..).zip([None, Directsync, Writeback, Writethrough, Unsafe]) {
        let name = "what_the_driver_may_rely_on_survives_a_power_cut";
        let Some(recorded) = Recorded::mount(name, seed) else { return };
        let (promises, broken) = drive(&recorded, cache, seed);
        assert!(promises > 1_000, "{cache:?}: {promises} promises");
        match cache {
            Unsafe => assert!(broken.is_some(), "a disk that ignores flushes breaks what a flush promises"),
            _ => assert_eq!(broken, Option::None, "{cache:?}"),
        }
    }
}

/// Lets go of what hangs, before anyone waits for it.
struct Hanging<'a>(&'a Recorded);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.fault(None);
    }
}

/// A disk of that file and one of a file that is well, on one IOThread.
struct Pair {
    blks: [Blk; 2],
    bad: BlkDriver,
    good: BlkDriver,
    _directory: TempDir,
}

impl Pair {
    fn new(recorded: &Recorded, cache: CacheMode) -> Pair {
        let directory = TempDir::new().unwrap();
        let path = file_of(&directory, "good", MIB as u64);
        let (ram, threads) = (mock::ram(8 * MIB), [iothread(0, 0)]);
        let mut blks = [recorded.path(), path].map(|path| {
            let config = config::Disk { queue_size: 256, ..disk_config(&path, cache, &[0]) };
            Blk::new(&config, &threads).unwrap()
        });
        let drivers = [0, 4].map(|region| BlkDriver::new(&ram, region, 256));
        for (blk, driver) in blks.iter_mut().zip(&drivers) {
            blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
        }
        let [bad, good] = drivers;
        Pair { blks, bad, good, _directory: directory }
    }
}

#[test]
fn a_backing_that_fails_is_told_of_and_its_neighbour_goes_on() {
    let Some(recorded) = Recorded::mount("a_backing_that_fails_is_told_of", 1) else { return };
    let Pair { blks, mut bad, mut good, _directory } = Pair::new(&recorded, CacheMode::None);
    for error in [rustix::io::Errno::IO, rustix::io::Errno::NOSPC] {
        recorded.fault(Some((9, Fault::Error(error.raw_os_error()))));
        assert_eq!(bad.run(1, 8, 0, 1024).0, 1, "{error}: told as an I/O error");
        assert_eq!(bad.run(1, 16, 0, 1024).0, 0, "{error}: the next request is as good as ever");
        assert_eq!(good.run(1, 8, 0, 1024).0, 0);
    }
    assert_eq!(blks[0].stats().snapshot().virtqueues[0].errors, 2);
}

/// Whether or not the server lets the kernel go on while it waits for direct I/O, which it does for 12 requests: the next one is
/// waited for where it is begun. And however many hang: the neighbour's flushes need a worker of the kernel's, or a thread of
/// the pool.
#[test]
fn a_backing_that_hangs_stops_no_disk_of_the_same_iothread() {
    for (cache, async_dio) in
        [(CacheMode::None, false), (CacheMode::None, true), (CacheMode::Writethrough, false)]
    {
        if tested::engine_for(cache) == Engine::Native {
            // There io_submit itself waits, as docs/dataplane.md says.
            continue;
        }
        let name = "a_backing_that_hangs_stops_no_disk";
        let Some(recorded) = Recorded::with(name, 1, async_dio) else { return };
        let Pair { blks, mut bad, mut good, _directory } = Pair::new(&recorded, cache);
        let hanging = Hanging(&recorded);
        recorded.fault(Some((9, Fault::Hang)));
        let stuck = 80;
        let asked: BTreeSet<u16> =
            (0..stuck).map(|tag| bad.request(tag, u32::from(tag % 2), 8, 8192, 1024)).collect();
        bad.queue.kick();
        for _ in 0..16 {
            for (kind, bytes) in [(1, 1024), (0, 1024), (4, 0)] {
                assert_eq!(good.run(kind, 8, 0, bytes).0, 0, "{cache:?} {async_dio}");
            }
        }
        let queue = &blks[0].stats().snapshot().virtqueues[0];
        assert_eq!(queue.in_flight, u64::from(stuck), "{cache:?}: {queue:?}");
        drop(hanging);
        let ended: BTreeSet<u16> = (0..stuck).map(|_| bad.queue.wait_used().0).collect();
        assert_eq!(ended, asked);
        assert!((0..stuck).all(|tag| bad.status(tag) == 0));
    }
}

#[test]
fn other_engines_keep_and_tell_the_same() {
    tested::over_other_engines(&[
        ("power cuts", what_the_driver_may_rely_on_survives_a_power_cut_at_any_moment),
        ("faults", a_backing_that_fails_is_told_of_and_its_neighbour_goes_on),
        ("hangs", a_backing_that_hangs_stops_no_disk_of_the_same_iothread),
    ]);
}
