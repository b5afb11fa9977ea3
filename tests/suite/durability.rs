//! What a guest was told is safe stays, wherever the power is cut. QEMU's `blklogwrites` keeps a log of all that reaches the
//! drives of the emulated host; each promise of the guest's writers is taken down with the length that the log has by then, so
//! that it may be held to what stood in the log before. From the log the drives are made again as they could have been at many
//! moments; each is recovered as its filesystem's own tools do it, and every promise up to that moment must be kept.
//!
//! `tests/durability` runs it with more of everything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vmprof_guests::{Builder, Realised, Silent, Store, Toolset};
use vmprof_tests::drives::{Drive, Drives, file_node};
use vmprof_tests::promises::{self, Files};
use vmprof_tests::writelog::{Replay, Unflushed, WriteLog};
use vmprof_tests::{Home, checkout, finish, in_labs_of_its_own_for, shared_store, spawn_with_log};

const WRITER: &str = include_str!("../fixtures/proof/writer.pl");
const READER: &str = include_str!("../fixtures/proof/reader.pl");

/// The tools that recover an ext4 and read it.
const E2FSPROGS: Toolset = Toolset {
    name: "e2fsprogs",
    // From trixie on it lies below /usr, as toolsets do.
    suites: &["trixie"],
    packages: &["e2fsprogs"],
    programs: &["usr/sbin/e2fsck", "usr/sbin/debugfs"],
    data: &[],
    linked: &[],
    layout: "1",
};

fn e2fsprogs() -> &'static Realised {
    static REALISED: OnceLock<Realised> = OnceLock::new();
    REALISED.get_or_init(|| {
        let store = Store::open(shared_store()).expect("the tests' store opens");
        E2FSPROGS.realise(&Builder::new(&store, &Silent)).expect("e2fsprogs comes from Debian's trixie")
    })
}

fn e2fs(program: &str) -> Command {
    let argv = e2fsprogs().argv(program);
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]);
    command
}

/// How much of everything.
struct Size {
    disks: Vec<Disk>,
    seconds: u32,
    /// Moments to cut the power at, for each disk.
    moments: usize,
}

#[derive(Debug, Clone, Copy)]
struct Disk {
    name: &'static str,
    cache: &'static str,
    filesystem: &'static str,
    /// Its engine and its format of ring.
    aio: &'static str,
    ring: &'static str,
}

impl Disk {
    fn title(&self) -> String {
        format!("{}/{}", self.cache, self.filesystem)
    }

    /// The least that mkfs.xfs takes is 300 MiB.
    fn mib(&self) -> usize {
        if self.filesystem == "xfs" { 320 } else { 64 }
    }

    fn is_safe(&self) -> bool {
        self.cache != "unsafe"
    }
}

const fn disk(name: &'static str, cache: &'static str, filesystem: &'static str) -> Disk {
    Disk { name, cache, filesystem, aio: "io_uring", ring: "split" }
}

impl Size {
    fn asked_for() -> Size {
        let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
        let Some(seconds) = number("VMPROF_DURABILITY_SECONDS") else {
            let disks = vec![
                Disk { aio: "native", ring: "packed", ..disk("d0", "none", "ext4") },
                Disk { aio: "threads", ..disk("d1", "writethrough", "ext4") },
                Disk { ring: "packed", ..disk("d2", "unsafe", "ext4") },
            ];
            return Size { disks, seconds: 10, moments: 8 };
        };
        let only = std::env::var("VMPROF_DURABILITY_ONLY").unwrap_or_default();
        let wanted =
            |disk: &Disk| only.is_empty() || only.split_whitespace().any(|word| word == disk.title());
        let mut disks = vec![
            disk("d0", "none", "ext4"),
            disk("d1", "directsync", "ext4"),
            disk("d2", "writeback", "ext4"),
            disk("d3", "writethrough", "ext4"),
            disk("d4", "unsafe", "ext4"),
            Disk { aio: "native", ring: "packed", ..disk("d5", "none", "xfs") },
            Disk { aio: "native", ..disk("d6", "directsync", "xfs") },
            Disk { aio: "threads", ring: "packed", ..disk("d7", "writeback", "xfs") },
            Disk { aio: "threads", ..disk("d8", "writethrough", "xfs") },
        ];
        disks.retain(wanted);
        assert!(!disks.is_empty(), "`{only}` names no disk: there is `none/ext4`, for one");
        Size { disks, seconds, moments: number("VMPROF_DURABILITY_MOMENTS").unwrap_or(300) as usize }
    }
}

/// A number that a disk's writer promised, and the bytes that the log had when it was heard.
type Promise = (u64, u64);

/// The last number that was promised when the log had so many bytes.
fn promised_by(promises: &[Promise], bytes: u64) -> Option<u64> {
    promises.iter().take_while(|(_, heard_at)| *heard_at <= bytes).map(|(number, _)| *number).last()
}

fn profile(home: &Home, name: &str, disks: &str) -> PathBuf {
    let guest = checkout().join("tests/fixtures/proof/proof.kdl");
    let path = home.path().join(format!("{name}.kdl"));
    let text = format!(
        "/- kdl-version 2\nprofile {name} {{\n    guest {guest:?}\n    vcpu 1\n    memory \"384MiB\"\n    iothreads 1\n\
         {disks}}}\n"
    );
    fs::write(&path, text).expect("the profile can be written");
    path
}

/// vmprof in a small lab with these drives.
fn lab(home: &Home, drives: &Drives, profile: &Path, command: &[&str]) -> Command {
    let words = ["up", "--on", "lab", "--lab", "nodes=2,nvme=0,memory=2GiB"];
    let mut vmprof = home.vmprof(words);
    vmprof.arg(profile).arg("--").args(command).env("PATH", drives.path());
    vmprof
}

/// Lets the writers write: their promises, and the logs of the drives.
fn write(home: &Home, size: &Size) -> BTreeMap<&'static str, (Vec<Promise>, WriteLog)> {
    let mut nodes = String::new();
    let (mut drives, mut logs) = (Vec::new(), BTreeMap::new());
    let mut places = Vec::new();
    for disk in &size.disks {
        let (Disk { name, cache, filesystem, aio, ring }, mib) = (disk, disk.mib());
        writeln!(
            nodes,
            "    disk {name} {{ source file=\"{name}.raw\" size=\"{mib}MiB\"; driver raw cache={cache} \
             aio={aio}; queues 1 ring={ring}; format {filesystem} mount=\"/{name}\"; }}"
        )
        .expect("text grows");
        let log = home.path().join(format!("{name}.log"));
        File::create(&log).expect("the log can be made");
        let file = home.path().join(format!(".local/state/vmprof/disks/durable/{name}.raw"));
        let node = serde_json::json!({
            "driver": "blklogwrites",
            "file": file_node(&file),
            "log": file_node(&log),
            "log-sector-size": 512,
        });
        // virtio-blk, whose durable writes are writes and flushes. Merged, requests have more pieces than one write of the log may.
        let device = Some("virtio-blk-pci,write-cache=on,request-merging=off".to_owned());
        drives.push(Drive { name: (*name).to_owned(), node: Some(node), device });
        logs.insert(*name, log);
        places.push(format!("/{name}"));
    }
    let drives = Drives::new(&drives, &[]);
    let profile = profile(home, "durable", &nodes);
    let seconds = size.seconds.to_string();
    let command: Vec<&str> =
        ["perl", "-e", WRITER, &seconds].into_iter().chain(places.iter().map(String::as_str)).collect();

    let told = home.path().join("told");
    let mut running = spawn_with_log(&mut lab(home, &drives, &profile, &command), &told);
    let mut promises: BTreeMap<&str, Vec<Promise>> = BTreeMap::new();
    for line in running.output_lines() {
        let (name, number) = line.split_once(' ').expect("a writer says its name and a number");
        let (name, log) = logs.get_key_value(name).expect("a writer's name is its disk's");
        // What the promise stands on is in the log by now. What else is there by now makes the claim weaker, never wrong.
        let bytes = fs::metadata(log).expect("the log is there").len();
        promises.entry(name).or_default().push((number.parse().expect("a number"), bytes));
    }
    let finished = running.finish();
    assert_eq!(finished.status, Some(0), "{}", fs::read_to_string(&told).unwrap_or_default());
    let read = |(name, log): (&'static str, PathBuf)| {
        let promises = promises.remove(name).unwrap_or_default();
        assert!(promises.iter().map(|(number, _)| *number).eq(0..promises.len() as u64), "{name}: in order");
        (name, (promises, WriteLog::read(&log).expect("the log is whole")))
    };
    logs.into_iter().map(read).collect()
}

/// A sparse file of this content, at `at`.
fn put(image: &[u8], file: &mut File, at: u64) -> std::io::Result<()> {
    const BLOCK: usize = 64 << 10;
    for (index, block) in image.chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start(at + (index * BLOCK) as u64))?;
            file.write_all(block)?;
        }
    }
    Ok(())
}

/// Recovers the ext4 in a file, checks it, and reads all its files.
fn recovered_ext4(path: &Path, into: &Path) -> Result<Files, String> {
    let e2fsck = |words: &[&str]| {
        let finished = finish(e2fs("usr/sbin/e2fsck").args(words).arg(path));
        match finished.status {
            // 1: something was mended, which replaying the journal is.
            Some(0 | 1) => Ok(()),
            status => {
                Err(format!("e2fsck {words:?} ends with {status:?}\n{}{}", finished.stdout, finished.stderr))
            }
        }
    };
    e2fsck(&["-y", "-E", "journal_only"])?;
    // Whatever is not a matter of course after a power cut is left to a person, and is status 4.
    e2fsck(&["-f", "-p"])?;
    fs::create_dir(into).map_err(|error| error.to_string())?;
    let script = format!("rdump / {}", into.display());
    let dumped = finish(e2fs("usr/sbin/debugfs").args(["-R", &script]).arg(path));
    if dumped.status != Some(0) {
        return Err(dumped.stderr);
    }
    let mut files = Files::new();
    for entry in fs::read_dir(into).map_err(|error| error.to_string())?.flatten() {
        if entry.path().is_file() {
            let content = fs::read(entry.path()).map_err(|error| error.to_string())?;
            files.insert(entry.file_name().to_string_lossy().into_owned(), content);
        }
    }
    fs::remove_dir_all(into).map_err(|error| error.to_string())?;
    Ok(files)
}

/// The power is cut at this moment.
#[derive(Debug, Clone, Copy)]
struct Cut {
    moment: usize,
    unflushed: Unflushed,
    /// The last number promised by then.
    last: u64,
}

/// When to cut one disk's power, and what of the unflushed to keep.
fn cuts(promises: &[Promise], log: &WriteLog, most: usize) -> Vec<Cut> {
    let first = promises.first().map_or(usize::MAX, |(_, heard_at)| log.entries_within(*heard_at));
    let moments = log.moments(first, most).into_iter().enumerate();
    moments
        .filter_map(|(index, moment)| {
            let unflushed = match index % 5 {
                0 => Unflushed::Lost,
                1 => Unflushed::Kept,
                _ => Unflushed::Some(index as u64),
            };
            let last = promised_by(promises, log.bytes_of(moment))?;
            Some(Cut { moment, unflushed, last })
        })
        .collect()
}

/// What came of one disk's cuts.
#[derive(Debug, Default)]
struct Account {
    cuts: usize,
    compared: u64,
    lost: Vec<String>,
}

impl Account {
    fn take(&mut self, cut: Cut, kept: Result<u64, String>) {
        self.cuts += 1;
        match kept {
            Ok(compared) => self.compared += compared,
            Err(what) => self.lost.push(format!("{cut:?}: {what}")),
        }
    }
}

fn cut_ext4(disk: &Disk, promises: &[Promise], log: &WriteLog, moments: usize) -> Account {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let (path, into) = (directory.path().join("image"), directory.path().join("files"));
    let bytes = disk.mib() << 20;
    let mut replay = Replay::new(log, bytes);
    let mut account = Account::default();
    for cut in cuts(promises, log, moments) {
        let image = replay.cut(cut.moment, cut.unflushed).expect("the log can be read again");
        let mut file = File::create(&path).expect("the image can be made");
        file.set_len(bytes as u64).and_then(|()| put(&image, &mut file, 0)).expect("it can be written");
        let kept = recovered_ext4(&path, &into).and_then(|files| promises::kept(disk.name, cut.last, &files));
        account.take(cut, kept);
        let _ = fs::remove_dir_all(&into);
    }
    account
}

/// Only the kernel replays the journal of an XFS: one more guest mounts all states of it, which lie one behind the other on a
/// disk, and says what files it finds.
fn cut_xfs(home: &Home, disk: &Disk, promises: &[Promise], log: &WriteLog, moments: usize) -> Account {
    let cuts = cuts(promises, log, moments);
    let (mib, name) = (disk.mib(), format!("cut-{}", disk.name));
    let mut replay = Replay::new(log, mib << 20);
    let states = home.path().join("states.raw");
    let mut file = File::create(&states).expect("the states can be made");
    file.set_len(((mib << 20) * cuts.len().max(1)) as u64).expect("it is sparse");
    for (index, cut) in cuts.iter().enumerate() {
        let image = replay.cut(cut.moment, cut.unflushed).expect("the log can be read again");
        put(&image, &mut file, (index * (mib << 20)) as u64).expect("they can be written");
    }
    drop(file);
    let nodes = format!(
        "    disk states {{ source file={:?}; driver raw cache=unsafe; queues 1; }}\n",
        states.display().to_string()
    );
    let profile = profile(home, &name, &nodes);
    let drives = Drives::new(&[Drive::default()], &[]);
    let (mib, count) = (mib.to_string(), cuts.len().to_string());
    let found = finish(&mut lab(home, &drives, &profile, &["perl", "-e", READER, &mib, &count])).expect(0);
    fs::remove_file(&states).expect("the states can go");
    let mut account = Account::default();
    let mut said = found.stdout.lines().peekable();
    for cut in cuts {
        let kept = read_state(&mut said).and_then(|files| promises::kept(disk.name, cut.last, &files));
        account.take(cut, kept);
    }
    account
}

/// What the reader found in one state: `state`, then `file NAME` with its runs of equal records, `COUNT RECORD`, and `end`; or
/// `failed WHY`.
fn read_state<'a>(said: &mut impl Iterator<Item = &'a str>) -> Result<Files, String> {
    let (mut files, mut name) = (Files::new(), String::new());
    for line in said {
        match line.split_once(' ') {
            None if line == "end" => return Ok(files),
            None if line == "state" => {}
            Some(("failed", why)) => return Err(why.to_owned()),
            Some(("file", path)) => {
                path.clone_into(&mut name);
                files.insert(name.clone(), Vec::new());
            }
            Some((count, record)) => {
                let count = count.parse().map_err(|_| format!("no run of records: {line:?}"))?;
                let record = format!("{record}\n").into_bytes();
                files.entry(name.clone()).or_default().extend(record.repeat(count));
            }
            None => return Err(format!("no line of the reader's: {line:?}")),
        }
    }
    Err("the reader ended early".to_owned())
}

#[test]
fn what_the_guest_was_told_is_safe_survives_a_power_cut_at_any_moment() {
    // A guest writes for so long before its power is cut, and is read for as long again.
    let limit = Duration::from_secs(600 + 10 * u64::from(Size::asked_for().seconds));
    in_labs_of_its_own_for(limit, || {
        let (home, size, begun) = (Home::new(), Size::asked_for(), Instant::now());
        let written = write(&home, &size);
        println!("written and logged after {:.0?}", begun.elapsed());
        let mut failures = Vec::new();
        for disk in &size.disks {
            let (promises, log) = &written[disk.name];
            let (entries, flushes) = log.count();
            let account = match disk.filesystem {
                "xfs" => cut_xfs(&home, disk, promises, log, size.moments),
                _ => cut_ext4(disk, promises, log, size.moments),
            };
            println!(
                "{:17}  {} promises, {entries} entries, {flushes} of them flushes: {} cuts, {} promises compared, {} cuts lost \
             something",
                disk.title(),
                promises.len(),
                account.cuts,
                account.compared,
                account.lost.len()
            );
            let name = disk.title();
            if disk.is_safe() {
                failures.extend(account.lost.iter().map(|lost| format!("{name}: {lost}")));
                if account.cuts < size.moments.min(8) {
                    failures.push(format!(
                        "{name}: only {} cuts, of {} promises",
                        account.cuts,
                        promises.len()
                    ));
                }
            } else if account.lost.is_empty() {
                // Else nothing here could have found a loss.
                failures.push(format!("{name}: nothing was lost by a disk that drops flushes"));
            }
        }
        println!("{:.0?} in all", begun.elapsed());
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
}
