//! The drives of the lab's emulated host, as a test wants them: another QEMU program before the lab's own on PATH, which puts
//! a filter of QEMU's over a drive or makes it another device, and is QEMU for the rest. vmprof knows nothing of it, and what
//! the filters do was written by nobody here.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use vmprof_guests::{Builder, Emulator, Silent, Store};

use crate::shared_store;

/// The lab's own QEMU.
pub fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| {
        let store = Store::open(shared_store()).expect("the tests' store opens");
        vmprof_guests::emulator::find(&Builder::new(&store, &Silent))
            .expect("a QEMU is on PATH or comes from Debian's trixie-backports")
    })
}

/// What one of a profile's disks is for the emulated host.
#[derive(Debug, Default, Clone)]
pub struct Drive {
    /// Its name in the profile.
    pub name: String,
    /// The block node in place of the lab's, without its name; `None` keeps the lab's.
    pub node: Option<Value>,
    /// The device in place of `nvme`, with properties of its own behind it: `virtio-blk-pci,write-cache=on`.
    pub device: Option<String>,
}

/// A directory for the head of PATH.
#[derive(Debug)]
pub struct Drives {
    directory: tempfile::TempDir,
}

impl Drives {
    /// `drives` are all disks of the profile, in its order; `words` are more arguments for QEMU.
    pub fn new(drives: &[Drive], words: &[String]) -> Drives {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mut cases = String::new();
        for (index, drive) in drives.iter().enumerate() {
            if let Some(node) = &drive.node {
                let mut node = node.clone();
                node["node-name"] = format!("drive{index}").into();
                fs::write(directory.path().join(format!("drive{index}")), node.to_string())
                    .expect("the node can be written down");
                writeln!(cases, "    *'\"node-name\":\"drive{index}\"'*) word=$(<\"$here/drive{index}\") ;;")
                    .expect("text grows");
            }
            if let Some(device) = &drive.device {
                let name = &drive.name;
                writeln!(cases, "    nvme,serial={name},*) word={}${{word#nvme}} ;;", quoted(device))
                    .expect("text grows");
            }
        }
        let quoted_all = |words: &mut dyn Iterator<Item = String>| {
            words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")
        };
        let argv = quoted_all(&mut emulator().argv.iter().map(|word| word.to_string_lossy().into_owned()));
        let more = quoted_all(&mut words.iter().cloned());
        let script = format!(
            "#!/bin/bash\nhere=${{0%/*}}\nwords=()\nfor word; do\n    case $word in\n{cases}    esac\n    \
             words+=(\"$word\")\ndone\n[ \"$1\" = --version ] || words+=({more})\nexec {argv} \"${{words[@]}}\"\n"
        );
        let program = directory.path().join("qemu-system-x86_64");
        fs::write(&program, script).expect("the program can be written");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it can be made one");
        Drives { directory }
    }

    /// PATH for vmprof.
    pub fn path(&self) -> OsString {
        let mut path = OsString::from(self.directory.path());
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        path
    }

    /// A place beside the program, for sockets and logs.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// QEMU's node for a file.
pub fn file_node(path: &Path) -> Value {
    serde_json::json!({ "driver": "file", "filename": path })
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}
