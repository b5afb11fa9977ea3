//! The lab's emulator: a QEMU of at least 11.1, from PATH, or else from Debian's packages, realised into the store without
//! root and run by its own loader. Older ones lose interrupts or deliver them twice under multi-threaded emulation.
//!
//! Its closure is locked on the spot: backports drop a version when the next one comes, and any from 11.1 on will do. The
//! lock that was used is kept in the store, so that a store with the packages can realise it again without the network.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::apt::{Apt, Wanted};
use crate::builder::{BUILDER_VERSION, Builder, in_parallel, role};
use crate::deb::Deb;
use crate::digest::Inputs;
use crate::error::{GuestError, Result};
use crate::lock::{Asked, Lock, LockedPackage};
use crate::progress::Stage;
use crate::store::{Entry, Record, Store};
use crate::tree::{Kind, Origin, Tree};
use crate::{elf, fetch};

/// The least version that emulates nested KVM right.
const WANTED: Version = Version(11, 1);
const PROGRAM: &str = "qemu-system-x86_64";

const PACKAGE: &str = "qemu-system-x86";
const ARCH: &str = "amd64";
/// The second one is preferred, and builds on the first.
const SUITES: [&str; 2] = ["trixie", "trixie-backports"];

const BINARY: &str = "usr/bin/qemu-system-x86_64";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
/// Where QEMU looks for firmware, and what of it a PC without displays and network boot needs.
const FIRMWARE_DIRS: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];
const FIRMWARE: [&str; 8] = [
    "usr/share/qemu/efi-virtio.rom",
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/qemu/multiboot_dma.bin",
    "usr/share/qemu/pvh.bin",
    "usr/share/seabios/bios-256k.bin",
    "usr/share/seabios/bios.bin",
    "usr/share/seabios/vgabios-stdvga.bin",
];
/// Grows when another part of the packages is kept.
const LAYOUT: &str = "1";

/// A QEMU that can be the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emulator {
    /// The words in front of QEMU's own arguments: its path, or its loader with what that needs.
    pub argv: Vec<OsString>,
    /// As QEMU says it: `11.1.3`.
    pub version: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

/// Finds an emulator on PATH or in the store, or realises one. Warm, this starts no process.
pub fn find(builder: &Builder<'_>) -> Result<Emulator> {
    find_with(builder, std::env::var_os("PATH").as_deref())
}

fn find_with(builder: &Builder<'_>, path: Option<&std::ffi::OsStr>) -> Result<Emulator> {
    for directory in path.map(std::env::split_paths).into_iter().flatten() {
        let program = directory.join(PROGRAM);
        if program.is_file()
            && let Some(emulator) = on_path(builder, &program)?
        {
            return Ok(emulator);
        }
    }
    realise(builder)
}

/// The QEMU at that path, if it is new enough. What it said is remembered by what the file was.
fn on_path(builder: &Builder<'_>, program: &Path) -> Result<Option<Emulator>> {
    let program = program.canonicalize().map_err(crate::error::failed("find", program))?;
    let meta = std::fs::metadata(&program).map_err(crate::error::failed("look at", &program))?;
    let inputs = Inputs::of("emulator on PATH")
        .field("path", program.as_os_str().as_encoded_bytes())
        .field(
            "file",
            format!("{} {} {} {}", meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ino()).as_bytes(),
        )
        .finish();
    let known = builder.store().recall(inputs).and_then(|(record, _)| record.facts.get("version").cloned());
    let argv = vec![program.clone().into_os_string()];
    let version = match known {
        Some(version) => version,
        None => {
            // One that does not start is no reason to fail: the store's is there.
            let Ok(version) = ask(builder, &argv) else { return Ok(None) };
            let record = Record::new(format!("version of {}", program.display())).fact("version", &version);
            builder.store().remember(inputs, &record)?;
            version
        }
    };
    Ok((parse(&version) >= Some(WANTED)).then_some(Emulator { argv, version }))
}

fn closure_inputs() -> Inputs {
    Inputs::of("emulator")
        .field("builder", BUILDER_VERSION.as_bytes())
        .field("layout", LAYOUT.as_bytes())
        .field("suites", SUITES.join(" ").as_bytes())
        .finish()
}

fn lock_inputs() -> Inputs {
    Inputs::of("emulator lock").field("suites", SUITES.join(" ").as_bytes()).finish()
}

fn realise(builder: &Builder<'_>) -> Result<Emulator> {
    let inputs = closure_inputs();
    let (record, entries) = builder.once(inputs, |builder| {
        let (lock, packages) = fetched(builder)?;
        let stage = builder.stage("unpacking the emulator", Some(packages.len() as u64));
        let tree = unpack(&stage, &lock.packages, &packages)?;
        let entry = publish(builder.store(), &tree)?;
        drop(stage);
        let version = ask(builder, &argv(&entry))?;
        if parse(&version) < Some(WANTED) {
            return Err(GuestError::EmulatorVersion {
                found: version,
                wanted: format!("{}.{}", WANTED.0, WANTED.1),
            });
        }
        let kept = Record::new("lock of the emulator").with("lock", &publish_lock(builder.store(), &lock)?);
        builder.store().remember(lock_inputs(), &kept)?;
        let bytes = builder.store().size_of(&entry)?.to_string();
        Ok(Record::new("emulator").with("emulator", &entry).fact("version", version).fact("bytes", bytes))
    })?;
    let version = record.facts.get("version").cloned().unwrap_or_default();
    let entry = role(inputs, entries, "emulator")?;
    // Hashing all of it would take longer than starting it. That a file is gone or cut short shows in the sum of sizes.
    let bytes = builder.store().size_of(&entry)?.to_string();
    if record.facts.get("bytes").is_some_and(|then| *then != bytes) {
        return Err(GuestError::StoreDamaged { path: entry.path });
    }
    Ok(Emulator { argv: argv(&entry), version })
}

/// A lock and its packages in the store: the lock used before if everything is still here, otherwise a new one, since the
/// archive may no longer have the old one's packages.
fn fetched(builder: &Builder<'_>) -> Result<(Lock, Vec<Entry>)> {
    if let Some(lock) = kept_lock(builder.store()) {
        let here: Option<Vec<Entry>> =
            lock.packages.iter().map(|p| fetch::find(builder.store(), p)).collect();
        if let Some(entries) = here {
            return Ok((lock, entries));
        }
    }
    if builder.is_offline() {
        return Err(GuestError::Offline { missing: 1, wanted: 1, names: vec![PACKAGE.to_owned()] });
    }
    builder.progress().note(&format!(
        "no {PROGRAM} of at least {}.{} on PATH: taking Debian's from {} into the store",
        WANTED.0, WANTED.1, SUITES[1]
    ));
    let lock = lock(builder)?;
    let packages: Vec<&LockedPackage> = lock.packages.iter().collect();
    let entries = fetch::packages(builder, &packages, SUITES[0])?;
    Ok((lock, entries))
}

fn lock(builder: &Builder<'_>) -> Result<Lock> {
    let _stage =
        builder.stage(&format!("locking the emulator: reading Debian {}", SUITES.join(" and ")), None);
    let apt = Apt::update(builder.store(), &SUITES, ARCH, builder.prepare())?;
    let names = [PACKAGE.to_owned()];
    let packages = apt.resolve(&Wanted { names: &names, without: &[], recommends: false })?;
    let releases = apt.releases()?;
    let asked = Asked {
        suite: SUITES[1].to_owned(),
        packages: names.to_vec(),
        kernel: "none".to_owned(),
        ..Asked::default()
    };
    Ok(Lock {
        guest: "emulator".to_owned(),
        releases,
        arch: ARCH.to_owned(),
        asked,
        kernel: Vec::new(),
        packages,
    })
}

fn publish_lock(store: &Store, lock: &Lock) -> Result<Entry> {
    store.publish_bytes("emulator.lock.kdl", lock.to_text().as_bytes())
}

fn kept_lock(store: &Store) -> Option<Lock> {
    let (_, entries) = store.recall(lock_inputs())?;
    let path = &entries.first()?.path;
    Lock::read(path).ok()
}

/// Everything the packages hold that could be needed, with /usr merged as the archive's newer packages expect.
fn unpack(stage: &Stage<'_>, packages: &[LockedPackage], entries: &[Entry]) -> Result<Tree> {
    let mut tree = Tree::default();
    for (path, target) in
        [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"), ("sbin", "usr/sbin")]
    {
        tree.put(path, crate::tree::Node::link(target), &Origin::Builder)?;
    }
    let wanted = |path: &str| {
        path == BINARY || path.contains(".so") || FIRMWARE_DIRS.iter().any(|dir| path.starts_with(dir))
    };
    let debs = in_parallel(entries.len(), |index| {
        let bytes = fetch::read(&packages[index], &entries[index])?;
        let deb = Deb::read_some(packages[index].file_name(), &bytes, &wanted);
        stage.advance(1);
        deb
    })?;
    for deb in debs {
        let by = Origin::Package { name: deb.name, replaces: deb.replaces.into() };
        for (path, node) in deb.files {
            tree.put(&path, node, &by)?;
        }
    }
    Ok(tree)
}

/// The program, the libraries it names over any number of steps, the loader, the firmware: a quarter of what came.
fn publish(store: &Store, tree: &Tree) -> Result<Entry> {
    let dir = store.temp_dir()?;
    let bad = |problem: String| GuestError::BadArchive { what: "the emulator's closure".to_owned(), problem };
    let content = |path: &str| match tree.look(path) {
        Some((_, node)) => match &node.kind {
            Kind::File(content) => Ok(content),
            _ => Err(bad(format!("{path} is not a file"))),
        },
        None => Err(bad(format!("{path} is missing"))),
    };
    let mut open = vec![(BINARY.to_owned(), true), (LOADER.to_owned(), true)];
    let mut written: std::collections::BTreeSet<String> = open.iter().map(|(path, _)| path.clone()).collect();
    while let Some((path, executable)) = open.pop() {
        let bytes = content(&path)?;
        dir.write(&path, bytes, executable)?;
        for library in elf::needs(bytes).unwrap_or_default().libraries {
            let path = format!("{LIBRARIES}/{library}");
            if written.insert(path.clone()) {
                open.push((path, false));
            }
        }
    }
    for path in FIRMWARE {
        dir.write(path, content(path)?, false)?;
    }
    store.publish_dir(dir, "emulator")
}

fn argv(entry: &Entry) -> Vec<OsString> {
    let at = |below: &str| -> OsString { entry.path.join(below).into_os_string() };
    let mut argv = vec![
        at(LOADER),
        "--argv0".into(),
        PROGRAM.into(),
        "--library-path".into(),
        at(LIBRARIES),
        at(BINARY),
    ];
    for dir in FIRMWARE_DIRS {
        argv.extend(["-L".into(), at(dir)]);
    }
    argv
}

/// What `--version` says.
fn ask(builder: &Builder<'_>, argv: &[OsString]) -> Result<String> {
    let program = PathBuf::from(&argv[0]);
    let broken = |output: String| GuestError::EmulatorBroken { program: program.clone(), output };
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).arg("--version").stdin(Stdio::null());
    let output = (builder.prepare())(&mut command).output().map_err(|error| broken(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    version(&text)
        .map(str::to_owned)
        .ok_or_else(|| broken(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// `QEMU emulator version 11.1.3 (Debian …)` → `11.1.3`.
fn version(text: &str) -> Option<&str> {
    text.lines().next()?.strip_prefix("QEMU emulator version ")?.split_whitespace().next()
}

fn parse(version: &str) -> Option<Version> {
    let mut parts = version.split('.');
    Some(Version(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::progress::Silent;

    fn script(directory: &Path, says: &str) -> PathBuf {
        let path = directory.join(PROGRAM);
        std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_new_enough_emulator_on_path_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let builder = Builder::new(&store, &Silent);
        let program = script(dir.path(), "QEMU emulator version 11.1.0 (test)");
        let found = find_with(&builder, Some(dir.path().as_os_str())).unwrap();
        assert_eq!(found.version, "11.1.0");
        assert_eq!(found.argv, [program.canonicalize().unwrap().into_os_string()]);
    }

    #[test]
    fn an_emulator_that_is_too_old_or_broken_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let builder = Builder::new(&store, &Silent).offline(true);
        for says in ["QEMU emulator version 10.0.2 (Debian)", "Segmentation fault"] {
            script(dir.path(), says);
            let error = find_with(&builder, Some(dir.path().as_os_str())).unwrap_err();
            assert!(matches!(error, GuestError::Offline { .. }), "{error}");
        }
    }

    #[test]
    fn a_realised_emulator_is_found_again_and_one_with_a_file_missing_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let builder = Builder::new(&store, &Silent).offline(true);
        let filled = store.temp_dir().unwrap();
        for path in [LOADER, BINARY, "usr/lib/x86_64-linux-gnu/libz.so.1"] {
            filled.write(path, path.as_bytes(), true).unwrap();
        }
        let entry = store.publish_dir(filled, "emulator").unwrap();
        let bytes = store.size_of(&entry).unwrap().to_string();
        let record = Record::new("emulator").with("emulator", &entry).fact("version", "11.1.3");
        store.remember(closure_inputs(), &record.fact("bytes", bytes)).unwrap();
        assert_eq!(find_with(&builder, None).unwrap().argv[0], entry.path.join(LOADER));

        let libraries = entry.path.join(LIBRARIES);
        std::fs::set_permissions(&libraries, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::remove_file(libraries.join("libz.so.1")).unwrap();
        let error = find_with(&builder, None).unwrap_err();
        assert!(matches!(&error, GuestError::StoreDamaged { path } if *path == entry.path), "{error}");
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(parse("11.1.3") >= Some(WANTED));
        assert!(parse("12.0.0") >= Some(WANTED));
        assert!(parse("11.0.50") < Some(WANTED));
        assert!(parse("9.2.0") < Some(WANTED));
        assert!(parse("nonsense") < Some(WANTED));
    }
}
