//! The bit-for-bit matrix: the same recipe and packages, built by this test binary started again under other circumstances,
//! give the same bytes; and those bytes are pinned here, so that a change of the builder shows.
//!
//! A digest that changes on purpose is written anew below, together with [`super::BUILDER_VERSION`] where images of the same
//! inputs lie in users' stores already.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use super::*;
use crate::progress::Silent;
use crate::testing::{self, Thing};

/// Every format with what its image's digest is.
const PINNED: [(&str, &str); 5] = [
    ("squashfs compression=lz4", "c321fcbd68c7b73ac1619be8a59c6fa742be12b07034379a227b2a1e8afa9fef"),
    ("squashfs compression=zstd", "f0d0c6f835e9ed7327d5d678e5a77b0a90973b9757d10b6648f753dab9dfdf6c"),
    ("erofs compression=none", "1108179a7cb5178af9b7ce40d417bd88c084a6e3a40a4e279786a440bc8e4228"),
    ("erofs compression=lz4", "b1f269b5cdcc8c32c46492c5b759129beeabf961ef3f52fce1ca70e1058deb9b"),
    ("ext4 size=\"64MiB\"", "6b95436634500a28e3eec0e8db044a99b3638b0589af6283184b02704b955f15"),
];

const LINES: [&str; 7] = [
    "packages tool data",
    "file \"/etc/motd\" \"hello\"",
    "file \"/usr/bin/start\" mode=0o755 \"#!/usr/bin/tool\"",
    "file \"/etc/copied\" from=\"copied.txt\" mode=0o600",
    "directory \"/srv/data\" mode=0o700",
    "link \"/usr/bin/again\" to=\"start\"",
    "run \"/usr/bin/start\"",
];

/// Where the worker's orders stand.
const DIRECTORY: &str = "VMPROF_MATRIX_DIRECTORY";
const ORDERS: &str = "VMPROF_MATRIX_ORDERS";
const NOBODY: u32 = 65_534;

/// A few blocks of an image, neither empty nor packable to nothing.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x3f
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

/// The packages by name.
fn packages(store: &Store) -> (LockedPackage, Vec<LockedPackage>) {
    let noise = noise(700_000);
    let tool = [
        ("usr/bin", Thing::Dir),
        ("usr/bin/tool", Thing::File(0o4755, &b"a program"[..])),
        ("usr/bin/other", Thing::HardLink("./usr/bin/tool")),
        ("usr/share/doc/tool/copyright", Thing::File(0o644, b"words")),
        ("dev/null", Thing::Char(1, 3)),
    ];
    let data = [
        ("usr/share/data", Thing::Dir),
        ("usr/share/data/noise", Thing::File(0o640, &noise)),
        ("usr/share/data/empty", Thing::File(0o644, b"")),
        ("usr/share/data/link", Thing::Link("noise")),
    ];
    let kernel = testing::adopted(store, "linux-image-test", &testing::kernel_deb());
    let tool = testing::adopted(store, "tool", &testing::deb("tool", "", ".gz", &tool));
    let data = testing::adopted(store, "data", &testing::deb("data", "", ".zst", &data));
    (kernel, vec![data, tool])
}

/// Not a test by itself: what the matrix starts. Builds every format, and prints what came out.
#[test]
fn worker() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let orders = std::env::var(ORDERS).unwrap_or_default();
    let told = |order: &str| orders.split(' ').any(|one| one == order);
    if told("umask") {
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    }
    if told("one-cpu") {
        let cpus = rustix::thread::sched_getaffinity(None).unwrap();
        let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| cpus.is_set(*cpu)).unwrap();
        let mut one = rustix::thread::CpuSet::new();
        one.set(first);
        rustix::thread::sched_setaffinity(None, &one).unwrap();
    }
    println!("\nthreads {}", crate::parallel::threads());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    println!("year {}", 1970 + now.as_secs() / 31_556_952);

    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("copied.txt"), "copied").unwrap();
    let store = Store::open(directory.join("store")).unwrap();
    let (kernel, mut packages) = packages(&store);
    let mut lines = LINES.to_vec();
    if told("shuffled") {
        packages.reverse();
        lines.reverse();
        lines.swap(1, 3);
    }
    for (format, _) in PINNED {
        let body = format!("{}\n image root {{ format {format} }}", lines.join("\n"));
        let recipe = testing::recipe(&directory, &body);
        std::fs::write(&recipe.path, "").unwrap();
        let lock = testing::lock(&recipe, kernel.clone(), packages.clone());
        let built =
            Builder::new(&store, &Silent).offline(true).build_locked(&recipe, &lock, "matrix").unwrap();
        let digest = |path: &Path| blake3::hash(&std::fs::read(path).unwrap()).to_hex().to_string();
        println!("root {format}: {}", digest(&built.root.unwrap().path));
        println!("boot {format}: {} {}", digest(&built.kernel), digest(&built.initramfs));
    }
}

/// What a worker says.
struct Said {
    threads: usize,
    year: u64,
    roots: BTreeMap<String, String>,
    boots: Vec<String>,
}

/// This test binary again, as the worker.
struct Worker {
    program: PathBuf,
    directory: PathBuf,
    orders: Vec<&'static str>,
    environment: Vec<(&'static str, String)>,
    user: Option<u32>,
}

impl Worker {
    fn run(&self) -> Said {
        let mut command = Command::new(&self.program);
        command.args(["--exact", "builder::matrix::worker", "--nocapture", "--test-threads=1"]);
        command.env(DIRECTORY, &self.directory).env(ORDERS, self.orders.join(" "));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(user) = self.user {
            command.uid(user).gid(user).current_dir(&self.directory);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let after =
            |start: &str| text.lines().filter_map(|line| line.strip_prefix(start)).collect::<Vec<_>>();
        let number = |start: &str| after(start).first().and_then(|text| text.parse::<u64>().ok()).unwrap();
        let roots = after("root ").into_iter().filter_map(|line| line.split_once(": "));
        Said {
            threads: number("threads ") as usize,
            year: number("year "),
            roots: roots.map(|(format, digest)| (format.to_owned(), digest.to_owned())).collect(),
            boots: after("boot ").into_iter().map(str::to_owned).collect(),
        }
    }
}

/// A library that puts every clock a year ahead.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static const long AHEAD = 370L * 24 * 60 * 60;
int clock_gettime(clockid_t clock, struct timespec *t) {
    int failed = (int)syscall(SYS_clock_gettime, clock, t);
    if (!failed && clock == CLOCK_REALTIME) t->tv_sec += AHEAD;
    return failed;
}
time_t time(time_t *to) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (to) *to = t.tv_sec;
    return t.tv_sec;
}
int gettimeofday(struct timeval *restrict to, void *restrict zone) {
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    to->tv_sec = t.tv_sec;
    to->tv_usec = t.tv_nsec / 1000;
    return 0;
}
"#;

/// Compiles the shim; `None` where there is no C compiler.
fn shim(directory: &Path) -> Option<String> {
    let (source, library) = (directory.join("ahead.c"), directory.join("ahead.so"));
    std::fs::write(&source, SHIM).unwrap();
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source);
    let output = match command.output() {
        Ok(output) => output,
        Err(_) => return None,
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    library.to_str().map(str::to_owned)
}

#[test]
fn a_guest_has_one_digest_whoever_builds_it_and_however() {
    let keep = tempfile::tempdir().unwrap();
    let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    open(keep.path());
    // The checkout may lie where other users cannot look.
    let program = keep.path().join("tests");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    open(&program);
    let worker = |name: &str, orders: &[&'static str], environment: &[(&'static str, &str)]| Worker {
        program: program.clone(),
        directory: keep.path().join(name),
        orders: orders.to_vec(),
        environment: environment.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
        user: None,
    };

    let plain = worker("plain", &[], &[("TZ", "UTC"), ("LC_ALL", "C")]);
    let first = plain.run();
    let pinned: BTreeMap<String, String> =
        PINNED.iter().map(|(format, digest)| ((*format).to_owned(), (*digest).to_owned())).collect();
    assert_eq!(first.roots, pinned, "the builder gives other bytes than before");

    let long = ["a", "much", "longer path with spaces", &"x".repeat(120)].join("/");
    let mut cells = vec![
        ("a warm store", plain),
        ("another umask", worker("umask", &["umask"], &[])),
        (
            "another time zone",
            worker("zone", &[], &[("TZ", "Pacific/Kiritimati"), ("LC_ALL", "tr_TR.UTF-8")]),
        ),
        ("one CPU", worker("one", &["one-cpu"], &[])),
        ("a longer path", worker(&long, &[], &[])),
        ("another order", worker("shuffled", &["shuffled"], &[])),
    ];
    match shim(keep.path()) {
        Some(library) => cells.push(("a year ahead", worker("ahead", &[], &[("LD_PRELOAD", &library)]))),
        None => eprintln!("skipped in part: no C compiler, the clock is not set ahead"),
    }
    if rustix::process::geteuid().is_root() {
        let mut other = worker("nobody", &[], &[]);
        other.user = Some(NOBODY);
        std::fs::create_dir(&other.directory).unwrap();
        chown(&other.directory, Some(NOBODY), Some(NOBODY)).unwrap();
        cells.push(("another user", other));
    } else {
        eprintln!("skipped in part: this user may not become another one");
    }
    for (name, cell) in cells {
        let said = cell.run();
        assert_eq!(said.roots, first.roots, "{name}");
        assert_eq!(said.boots, first.boots, "{name}");
        // The circumstances are what they claim to be.
        match name {
            "one CPU" => assert_eq!(said.threads, 1),
            "a year ahead" => assert_eq!(said.year, first.year + 1),
            _ => {}
        }
    }
}
