//! The emulated host as a process: QEMU with as many CPUs as there are real ones, the lab's kernel, two disks and the channels
//! of its first process.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::io::FdFlags;
use serde_json::json;
use vmprof_job::port;

use crate::Outcome;

const MEMORY_MIB: u32 = 4096;
/// An EPYC with SVM and nested paging, less what TCG does not know.
const CPU: &str = "EPYC,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-nrip-save,-xsavec,-topoext";

/// What it boots.
#[derive(Debug)]
pub struct Start<'a> {
    /// The emulator's own words up to its arguments.
    pub emulator: &'a [OsString],
    pub cpus: u32,
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    /// Serial, file, whether it is only read.
    pub disks: &'a [(&'static str, &'a Path, bool)],
}

#[derive(Debug)]
pub struct Host {
    child: Child,
    console: Arc<Mutex<Vec<u8>>>,
    pub control: UnixStream,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
    _stdin: UnixStream,
}

impl Host {
    pub fn start(start: &Start<'_>) -> Outcome<Host> {
        let [program, own @ ..] = start.emulator else { return Err("there is no emulator".into()) };
        let mut command = Command::new(program);
        command.args(own).args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU]);
        command.args(["-smp", &start.cpus.to_string(), "-m", &format!("{MEMORY_MIB}M")]);
        command.arg("-kernel").arg(start.kernel).arg("-initrd").arg(start.initramfs);
        // The other CPUs come online once the modules are loaded, as the job says.
        command.args(["-append", "console=ttyS0 panic=-1 quiet maxcpus=1"]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-monitor",
            "none",
        ]);
        for (serial, file, read_only) in start.disks {
            let node = json!({ "driver": "raw", "node-name": serial, "read-only": read_only,
                "file": { "driver": "file", "filename": file } });
            command.args(["-blockdev", &node.to_string()]);
            command.args(["-device", &format!("virtio-blk-pci,serial={serial},drive={serial}")]);
        }
        command.args(["-device", "virtio-serial-pci,id=channels"]);
        let mut theirs = Vec::new();
        let mut channel = |command: &mut Command, id: &str| -> Outcome<UnixStream> {
            let (ours, their) = UnixStream::pair()?;
            rustix::io::fcntl_setfd(their.as_fd(), FdFlags::empty())?;
            command.args(["-chardev", &format!("socket,id={id},fd={}", their.as_raw_fd())]);
            theirs.push(OwnedFd::from(their));
            Ok(ours)
        };
        let mut port = |command: &mut Command, id: &str, name: &str| {
            let ours = channel(command, id);
            command.args(["-device", &format!("virtserialport,bus=channels.0,chardev={id},name={name}")]);
            ours
        };
        let control = port(&mut command, "control", port::CONTROL)?;
        let stdin = port(&mut command, "stdin", port::STDIN)?;
        let stdout = port(&mut command, "stdout", port::STDOUT)?;
        let stderr = port(&mut command, "stderr", port::STDERR)?;
        let serial = channel(&mut command, "console")?;
        command.args(["-serial", "chardev:console"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        vmprof_sys::child::dies_with_this_thread(&mut command);
        let child = command.spawn()?;
        drop(theirs);
        let console = Arc::new(Mutex::new(Vec::new()));
        keep(serial, console.clone())?;
        Ok(Host { child, console, control, stdout, stderr, _stdin: stdin })
    }

    /// The last that its console said.
    pub fn last_words(&self) -> String {
        // A thread that died while it held the lock left the text as readable as before.
        let console = self.console.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let from = console.len().saturating_sub(4096);
        String::from_utf8_lossy(console.get(from..).unwrap_or_default()).into_owned()
    }

    /// Waits for the end of one that powers off or has closed its channels, and says what it was.
    pub fn end(&mut self) -> String {
        match self.child.wait() {
            Ok(status) => format!("ended by itself ({status})"),
            Err(error) => format!("cannot be waited for: {error}"),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One thread adds to the console's text, the main thread reads it when something went wrong.
fn keep(mut serial: UnixStream, console: Arc<Mutex<Vec<u8>>>) -> Outcome<()> {
    thread::Builder::new().name("console".into()).spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = serial.read(&mut buffer) {
            let piece = buffer.get(..length).unwrap_or_default();
            console.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend_from_slice(piece);
        }
    })?;
    Ok(())
}
