//! The disk under a driver's mock: real files, real IOThreads, bytes compared.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vm_memory::{Bytes as _, GuestAddress};
use vmprof_sys::memory::GuestRam;

use super::*;
use crate::backing::Alignment;
use crate::config::{CacheMode, Engine};
use crate::iothread::{IoThread, tested};
use crate::virtio::mock::{self, Driver, readable, writable};

mod costs;
mod engines;
mod erasing;
mod faults;
mod iopoll;
mod layouts;
mod policies;
mod recorded;
mod resets;
mod seen;
mod timed;

const MIB: usize = 1 << 20;

fn iothread(id: u32, max_ns: u64) -> Handle {
    let name = format!("iothread{id}");
    let polling = config::Polling { max_ns, ..config::Polling::default() };
    IoThread::spawn(&config::IoThread { polling, ..tested::iothread(id, &name) }).unwrap()
}

fn disk_config(path: &Path, cache: CacheMode, virtqueues: &[u32]) -> config::Disk {
    let plain = config::Disk::named("data", path, virtqueues.to_vec());
    config::Disk { cache, engine: tested::engine_for(cache), queue_size: 64, ..plain }
}

fn file_of(directory: &TempDir, name: &str, bytes: u64) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

/// A driver of one queue of a disk, with a data area of its own.
struct BlkDriver {
    queue: Driver,
    /// 16 bytes of header and a status byte for each head, then the data.
    headers: u64,
    data: u64,
}

const SLOT_BYTES: u64 = 32;
const REGION: u64 = MIB as u64;

impl BlkDriver {
    /// The queue `index` of a disk, in a region of guest memory of its own.
    fn new(ram: &Arc<GuestRam>, region: u64, size: u16) -> Self {
        Self::with_events(ram, region, size, true)
    }

    fn with_events(ram: &Arc<GuestRam>, region: u64, size: u16, event_idx: bool) -> Self {
        let base = region * REGION;
        let headers = base + Driver::bytes(size);
        let data = (headers + SLOT_BYTES * u64::from(size)).next_multiple_of(4096);
        BlkDriver { queue: Driver::new(ram, base, size, event_idx), headers, data }
    }

    /// Puts a request with its data at `data` bytes into the driver's area; `tag` chooses its header.
    fn request(&mut self, tag: u16, kind: u32, sector: u64, data: u64, len: u32) -> u16 {
        let header = self.headers + SLOT_BYTES * u64::from(tag);
        let ram = &self.queue.ram;
        ram.write_obj(kind, GuestAddress(header)).unwrap();
        ram.write_obj(sector, GuestAddress(header + 8)).unwrap();
        ram.write_obj(0xff_u8, GuestAddress(header + 16)).unwrap();
        let mut buffers = vec![readable(header, 16)];
        if len > 0 {
            let address = self.data + data;
            let given = matches!(kind, 1 | 11 | 13);
            buffers.push(if given { readable(address, len) } else { writable(address, len) });
        }
        buffers.push(writable(header + 16, 1));
        self.queue.add(&buffers).unwrap()
    }

    fn status(&self, tag: u16) -> u8 {
        self.queue.ram.read_obj(GuestAddress(self.headers + SLOT_BYTES * u64::from(tag) + 16)).unwrap()
    }

    /// One request from its kick to its status.
    fn run(&mut self, kind: u32, sector: u64, data: u64, len: u32) -> (u8, u32) {
        let head = self.request(0, kind, sector, data, len);
        self.queue.kick();
        let (used, written) = self.queue.wait_used();
        assert_eq!(used, head);
        (self.status(0), written)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.queue.ram.write_slice(bytes, GuestAddress(self.data + at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.queue.ram.read_slice(&mut bytes, GuestAddress(self.data + at)).unwrap();
        bytes
    }
}

/// Every 512 bytes say where they belong.
fn pattern(sector: u64, bytes: usize) -> Vec<u8> {
    let of_sector = |sector: u64| sector.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(64);
    (sector..).take(bytes / 512).flat_map(of_sector).collect()
}

const ALL_FEATURES: u64 = u64::MAX;

#[test]
fn what_the_guest_writes_is_in_the_file_and_comes_back() {
    let directory = TempDir::new().unwrap();
    for cache in [
        CacheMode::None,
        CacheMode::Directsync,
        CacheMode::Writeback,
        CacheMode::Writethrough,
        CacheMode::Unsafe,
    ] {
        let path = file_of(&directory, &format!("{cache:?}"), MIB as u64);
        let ram = mock::ram(4 * MIB);
        let thread = iothread(0, 0);
        let mut blk = Blk::new(&disk_config(&path, cache, &[0]), std::slice::from_ref(&thread)).unwrap();
        let mut driver = BlkDriver::new(&ram, 0, 64);
        blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
        driver.put(0, &pattern(8, 8192));
        assert_eq!(driver.run(1, 8, 0, 8192), (0, 1), "{cache:?}");
        assert_eq!(driver.run(4, 0, 0, 0), (0, 1), "{cache:?}");
        assert_eq!(driver.run(0, 9, 65536, 4096), (0, 4097), "{cache:?}");
        assert_eq!(driver.get(65536, 4096), pattern(9, 4096), "{cache:?}");
        let mut found = vec![0; 8192];
        std::fs::File::open(&path).unwrap().read_exact_at(&mut found, 8 * 512).unwrap();
        assert_eq!(found, pattern(8, 8192), "{cache:?}");
        let counts = &blk.stats().snapshot().virtqueues[0];
        assert_eq!((counts.reads, counts.writes, counts.flushes, counts.errors), (1, 1, 1, 0));
        assert_eq!((counts.read_bytes, counts.written_bytes, counts.iothread), (4096, 8192, Some(0)));
    }
}

#[test]
fn the_serial_is_the_disks_name() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4096);
    let (ram, thread) = (mock::ram(4 * MIB), iothread(0, 0));
    let mut blk = Blk::new(&disk_config(&path, CacheMode::Writeback, &[0]), &[thread]).unwrap();
    let mut driver = BlkDriver::new(&ram, 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    driver.put(0, &[0xff; 64]);
    assert_eq!(driver.run(8, 0, 0, 20), (0, 21));
    assert_eq!(driver.get(0, 21), *b"data\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\xff");
    assert_eq!(driver.run(8, 0, 32, 4), (0, 5), "a shorter buffer gets what fits");
    assert_eq!(driver.get(32, 5), *b"data\xff");
}

#[test]
fn requests_that_cannot_be_are_answered_and_harm_nothing() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 1 << 20);
    let (ram, thread) = (mock::ram(4 * MIB), iothread(0, 0));
    let mut blk = Blk::new(&disk_config(&path, CacheMode::Writeback, &[0]), &[thread]).unwrap();
    let mut driver = BlkDriver::new(&ram, 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    let cases = [
        ("past the end", 0, 2048, 512, 1),
        ("across the end", 1, 2047, 1024, 1),
        ("an offset beyond 64 bits", 0, u64::MAX, 512, 1),
        ("half a sector", 1, 0, 256, 1),
        ("no such type", 99, 0, 0, 2),
        ("discard, not offered", 11, 0, 0, 2),
    ];
    for (name, kind, sector, len, status) in cases {
        assert_eq!(driver.run(kind, sector, 0, len).0, status, "{name}");
    }
    assert_eq!(driver.run(0, 2047, 0, 512).0, 0, "the last sector is there");
    assert_eq!(blk.stats().snapshot().virtqueues[0].errors, cases.len() as u64);
}

#[test]
fn a_read_only_disk_is_never_written() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4096);
    let (ram, thread) = (mock::ram(4 * MIB), iothread(0, 0));
    let config = config::Disk { read_only: true, ..disk_config(&path, CacheMode::Writeback, &[0]) };
    let mut blk = Blk::new(&config, &[thread]).unwrap();
    assert_ne!(blk.features() & READ_ONLY, 0);
    let mut driver = BlkDriver::new(&ram, 0, 64);
    blk.activate(ALL_FEATURES, vec![driver.queue.device_side(0)]).unwrap();
    driver.put(0, &[1; 512]);
    assert_eq!(driver.run(1, 0, 0, 512).0, 1);
    assert_eq!(driver.run(4, 0, 0, 0).0, 0, "firmware flushes read-only disks too");
    assert_eq!(std::fs::read(&path).unwrap(), [0; 4096]);
}

#[test]
fn the_write_cache_is_shown_and_switched_as_the_mode_allows() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4096);
    let thread = iothread(0, 0);
    let cache_of = |blk: &Blk| {
        let mut byte = [0xff];
        blk.read_config(32, &mut byte);
        byte[0]
    };
    for (cache, offered) in
        [(CacheMode::Writeback, true), (CacheMode::Unsafe, true), (CacheMode::Writethrough, false)]
    {
        let mut blk = Blk::new(&disk_config(&path, cache, &[0]), std::slice::from_ref(&thread)).unwrap();
        let both = FLUSH | CONFIG_WCE;
        assert_eq!(blk.features() & both, if offered { both } else { 0 }, "{cache:?}");
        assert_eq!(cache_of(&blk), u8::from(offered));
        blk.write_config(32, &[0]);
        assert_eq!(cache_of(&blk), 0);
        blk.write_config(31, &[0, 1, 0]);
        assert_eq!(
            cache_of(&blk),
            u8::from(offered),
            "{cache:?}: what the mode promises is not the guest's to change"
        );
        blk.activate(ALL_FEATURES & !FLUSH, Vec::new()).unwrap();
        assert_eq!(cache_of(&blk), 0, "a driver that cannot flush writes through");
        assert_eq!(blk.disk.cache.write_is_durable(), cache != CacheMode::Unsafe);
        blk.reset();
        assert_eq!(cache_of(&blk), u8::from(offered));
    }
}

#[test]
fn the_guest_is_told_the_blocks_that_were_asked_for_and_else_those_of_direct_io() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 64 << 10);
    let config = |logical_block_bytes, physical_block_bytes| {
        let plain = disk_config(&path, CacheMode::Writeback, &[0]);
        config::Disk { logical_block_bytes, physical_block_bytes, ..plain }
    };
    let told = |config: &config::Disk, direct_block: u64, physical_bytes: u64| {
        let file = std::fs::File::open(&path).unwrap();
        let alignment = Alignment { offset: direct_block, memory: 1 };
        let mut backing = Backing::new(config, file, 64 << 10, alignment).unwrap();
        backing.physical_bytes = physical_bytes;
        let blk = Blk::with_backing(config, [0; ID_BYTES], vec![iothread(0, 0)], backing).unwrap();
        assert_ne!(blk.features() & BLK_SIZE, 0);
        assert_ne!(blk.features() & TOPOLOGY, 0);
        let (mut size, mut exponent) = ([0; 4], [0]);
        blk.read_config(20, &mut size);
        blk.read_config(24, &mut exponent);
        let logical = u32::from_le_bytes(size);
        (logical, logical << exponent[0])
    };
    assert_eq!(told(&config(None, None), 1, 0), (512, 512), "the page cache asks for nothing");
    assert_eq!(
        told(&config(None, None), 4096, 0),
        (512, 4096),
        "a smaller write would be a read and a write"
    );
    assert_eq!(told(&config(None, None), 512, 4096), (512, 4096), "a drive of 512e");
    assert_eq!(told(&config(None, None), 512, 1 << 40), (512, 2 << 20), "more than the device can tell");
    assert_eq!(told(&config(Some(4096), None), 512, 0), (4096, 4096));
    assert_eq!(told(&config(None, Some(16 << 10)), 4096, 512), (512, 16 << 10));
    assert_eq!(told(&config(Some(2048), Some(4096)), 512, 8192), (2048, 4096));
}

#[test]
fn blocks_that_no_guest_can_use_are_refused() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4096 + 512);
    let refused = |logical_block_bytes, physical_block_bytes| {
        let plain = disk_config(&path, CacheMode::Writeback, &[0]);
        let config = config::Disk { logical_block_bytes, physical_block_bytes, ..plain };
        Blk::new(&config, &[iothread(0, 0)]).unwrap_err()
    };
    for logical in [0, 1, 256, 513, 3072, 8192, u32::MAX] {
        assert!(matches!(refused(Some(logical), None), DiskError::LogicalBlock { .. }), "{logical}");
    }
    for physical in [0, 256, 4097, 4 << 20, u32::MAX] {
        assert!(matches!(refused(None, Some(physical)), DiskError::PhysicalBlock { .. }), "{physical}");
    }
    assert!(matches!(refused(Some(4096), Some(512)), DiskError::PhysicalBlock { least: 4096, .. }));
    assert!(matches!(refused(Some(4096), None), DiskError::PartialLogicalBlock { size_bytes: 4608, .. }));
}

#[test]
fn a_disk_that_cannot_be_as_asked_is_refused_by_name() {
    let directory = TempDir::new().unwrap();
    let path = file_of(&directory, "disk", 4096);
    let threads = [iothread(0, 0)];
    let good = disk_config(&path, CacheMode::Writeback, &[0]);
    let refused = |config: config::Disk| Blk::new(&config, &threads).unwrap_err();
    let name = "a-name-of-twenty-one-".to_owned();
    assert!(matches!(refused(config::Disk { name, ..good.clone() }), DiskError::NameTooLong { .. }));
    assert!(matches!(
        refused(config::Disk { queue_size: 2, ..good.clone() }),
        DiskError::QueueSize { size: 2, .. }
    ));
    assert!(matches!(refused(config::Disk { queue_size: 48, ..good.clone() }), DiskError::QueueSize { .. }));
    let missing = refused(config::Disk { virtqueues: vec![0, 7], ..good.clone() });
    assert!(matches!(missing, DiskError::NoSuchIoThread { queue: 1, iothread: 7, .. }));
    assert!(matches!(
        refused(config::Disk { virtqueues: vec![], ..good.clone() }),
        DiskError::NoQueue { .. }
    ));
    let engine = Engine::Native;
    let error = refused(config::Disk { engine, cache: CacheMode::None, ..good.clone() });
    assert!(
        matches!(&error, DiskError::EngineNotHere { .. }) && error.to_string().contains("`iothread0`"),
        "{error}"
    );
    let ready = [IoThread::spawn(&config::IoThread {
        engines: vec![engine],
        ..config::IoThread::named(0, "iothread0")
    })
    .unwrap()];
    let error = Blk::new(&config::Disk { engine, ..good.clone() }, &ready).unwrap_err();
    assert!(matches!(&error, DiskError::NativeNeedsDirect { .. }), "{error}");
    let held = Blk::new(&good, &threads).unwrap();
    assert!(matches!(refused(good.clone()), DiskError::InUse { .. }));
    drop(held);
    Blk::new(&good, &threads).unwrap();
}
