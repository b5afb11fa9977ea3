//! The lab's emulator: a QEMU of at least 11.1, from PATH, or else from Debian's packages, realised into the store without
//! root and run by its own loader. Older ones lose interrupts or deliver them twice under multi-threaded emulation.
//!
//! Its packages are locked on the spot: backports drop a version when the next one comes, and any from 11.1 on will do.

mod error;

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::builder::Builder;
use crate::digest::Inputs;
use crate::error::Result;
use crate::store::Record;
use crate::toolset::{Realised, Toolset};

pub use error::EmulatorError;

/// The least version that emulates nested KVM right.
const WANTED: Version = Version(11, 1);
const PROGRAM: &str = "qemu-system-x86_64";
const BINARY: &str = "usr/bin/qemu-system-x86_64";
/// Where QEMU looks for firmware.
const FIRMWARE_DIRS: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

const TOOLSET: Toolset = Toolset {
    name: "emulator",
    suites: &["trixie", "trixie-backports"],
    packages: &["qemu-system-x86"],
    programs: &[BINARY],
    // The firmware that a PC without displays and network boot needs.
    data: &[
        "usr/share/qemu/efi-virtio.rom",
        "usr/share/qemu/kvmvapic.bin",
        "usr/share/qemu/linuxboot_dma.bin",
        "usr/share/qemu/multiboot_dma.bin",
        "usr/share/qemu/pvh.bin",
        "usr/share/seabios/bios-256k.bin",
        "usr/share/seabios/bios.bin",
        "usr/share/seabios/vgabios-stdvga.bin",
    ],
    linked: &FIRMWARE_DIRS,
    layout: "1",
};

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

/// The store's own, whatever is on PATH, and the directory with all that it needs: what can be put into another root.
pub fn packaged(builder: &Builder<'_>) -> Result<(Emulator, PathBuf)> {
    let realised = realise_packages(builder)?;
    let directory = realised.path("");
    Ok((emulator(&realised), directory))
}

fn realise(builder: &Builder<'_>) -> Result<Emulator> {
    if !builder.is_offline() && builder.store().recall_record(TOOLSET.inputs()).is_none() {
        let Version(major, minor) = WANTED;
        builder.progress().note(&format!("no {PROGRAM} of at least {major}.{minor} is on PATH"));
    }
    realise_packages(builder).map(|realised| emulator(&realised))
}

fn realise_packages(builder: &Builder<'_>) -> Result<Realised> {
    TOOLSET.realise_checked(builder, |realised| {
        let version = ask(builder, &argv(realised))?;
        if parse(&version) < Some(WANTED) {
            return Err(EmulatorError::Version {
                found: version,
                wanted: format!("{}.{}", WANTED.0, WANTED.1),
            }
            .into());
        }
        Ok(vec![("version", version)])
    })
}

fn emulator(realised: &Realised) -> Emulator {
    Emulator { argv: argv(realised), version: realised.fact("version").unwrap_or_default().to_owned() }
}

fn argv(realised: &Realised) -> Vec<OsString> {
    let mut argv = realised.argv(BINARY);
    for dir in FIRMWARE_DIRS {
        argv.extend(["-L".into(), realised.path(dir).into()]);
    }
    argv
}

/// What `--version` says.
fn ask(builder: &Builder<'_>, argv: &[OsString]) -> Result<String> {
    let program = PathBuf::from(&argv[0]);
    let broken = |output: String| EmulatorError::Broken { program: program.clone(), output }.into();
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
    use crate::error::GuestError;
    use crate::fetch::FetchError;
    use crate::progress::Silent;
    use crate::store::{Store, StoreError};
    use crate::testing;
    use crate::toolset::{LIBRARIES, LOADER};

    fn script(directory: &Path, says: &str) -> PathBuf {
        let path = directory.join(PROGRAM);
        testing::program(&path, &format!("echo '{says}'"));
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
            assert!(matches!(error, GuestError::Fetch(FetchError::Offline { .. })), "{error}");
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
        store.remember(TOOLSET.inputs(), &record.fact("bytes", bytes)).unwrap();
        assert_eq!(find_with(&builder, None).unwrap().argv[0], entry.path.join(LOADER));

        let libraries = entry.path.join(LIBRARIES);
        std::fs::set_permissions(&libraries, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::remove_file(libraries.join("libz.so.1")).unwrap();
        let error = find_with(&builder, None).unwrap_err();
        assert!(
            matches!(&error, GuestError::Store(StoreError::Damaged { path }) if *path == entry.path),
            "{error}"
        );
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
