//! The emulated host as a process: QEMU's arguments, its start, its end.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use miette::Diagnostic;
use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Shape;
use crate::run::channels::PortEnd;

#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum LabError {
    #[error("the emulated host could not be prepared: {what}")]
    #[diagnostic(code(vmprof::lab::prepare))]
    Prepare { what: &'static str, source: io::Error },
    #[error("the emulator {program:?} could not be started")]
    #[diagnostic(code(vmprof::lab::start))]
    Start { program: OsString, source: io::Error },
}

/// What a drive of the emulated host is backed by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Media {
    File(PathBuf),
    BlockDevice(PathBuf),
    /// Zeroes that forget what is written: a drive that is only there to be seen.
    Empty,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// By which it is found inside; at most 20 bytes.
    pub serial: String,
    pub media: Media,
    pub read_only: bool,
    /// The NUMA node whose PCIe root it hangs from, as an NVMe drive; `None`: a plain virtio disk.
    pub node: Option<usize>,
}

impl Drive {
    /// One that is only there to be seen: the nodes have them in turn.
    pub fn spare(number: usize, shape: &Shape) -> Drive {
        Drive {
            serial: format!("spare{number}"),
            media: Media::Empty,
            read_only: false,
            node: Some(number % shape.nodes.len()),
        }
    }
}

/// All that QEMU is told.
#[derive(Debug)]
pub struct Start<'a> {
    /// The emulator's own words up to its arguments.
    pub emulator: &'a [OsString],
    pub shape: &'a Shape,
    pub kernel: PathBuf,
    pub initramfs: OwnedFd,
    pub drives: Vec<Drive>,
    /// Whether its NVMe drives have queues that are looked at instead of interrupting.
    pub poll_queues: bool,
    pub ports: Vec<PortEnd>,
    /// The emulator's end of the connection to the vhost-user server of its virtio-vsock; `None`: it has none.
    pub vsock: Option<OwnedFd>,
    /// The emulator's end of its monitor, and with it free ports for drives that come later.
    pub monitor: Option<OwnedFd>,
}

/// Of a host with a monitor, the ports behind node 0's PCIe root that drives can be plugged into: a disk or two and a root for each
/// of a handful of VMs.
pub const FREE_PORTS: usize = 12;

/// The id of a free port.
pub fn free_port(number: usize) -> String {
    format!("free{number}")
}

/// What /sys/bus/pci/slots calls it.
pub fn slot_of(number: usize) -> usize {
    100 + number
}

/// A running emulated host.
#[derive(Debug)]
pub struct EmulatedHost {
    child: Child,
    handle: Handle,
}

/// What other threads may do with it.
#[derive(Debug, Clone)]
pub struct Handle {
    process: Arc<OwnedFd>,
    console: Arc<Mutex<Tail>>,
}

impl EmulatedHost {
    /// Starts it as a child of the calling thread, whose end is the child's: call it from the main thread.
    pub fn start(start: Start<'_>) -> Result<EmulatedHost, LabError> {
        let prepare = |what| move |source: io::Error| LabError::Prepare { what, source };
        let (console, console_end) = UnixStream::pair().map_err(prepare("its console"))?;
        let console_end = OwnedFd::from(console_end);

        let [program, own_arguments @ ..] = start.emulator else {
            return Err(LabError::Start {
                program: OsString::new(),
                source: io::ErrorKind::InvalidInput.into(),
            });
        };
        let mut command = Command::new(program);
        command.args(own_arguments).args(arguments(&start, &console_end)).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        vmprof_sys::child::dies_with_this_thread(&mut command);

        let inherited = start
            .ports
            .iter()
            .map(|end| &end.stream)
            .chain([&start.initramfs, &console_end])
            .chain(&start.vsock)
            .chain(&start.monitor);
        for descriptor in inherited {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())
                .map_err(|error| prepare("its descriptors")(error.into()))?;
        }
        let mut child =
            command.spawn().map_err(|source| LabError::Start { program: program.clone(), source })?;
        let process = Pid::from_child(&child);
        let process =
            pidfd_open(process, PidfdFlags::empty()).map_err(|error| prepare("its handle")(error.into()))?;

        let tail = Arc::new(Mutex::new(Tail::default()));
        keep_tail(console, tail.clone()).map_err(prepare("its console"))?;
        if let Some(stderr) = child.stderr.take() {
            keep_tail(stderr, tail.clone()).map_err(prepare("its messages"))?;
        }
        Ok(EmulatedHost { child, handle: Handle { process: Arc::new(process), console: tail } })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Waits for the emulator's end.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Handle {
    /// Ends the emulator at once; nothing happens when it has ended already.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(self.process.as_fd(), Signal::KILL);
    }

    /// The last lines of the host's console and of the emulator's messages.
    pub fn last_words(&self) -> String {
        // A thread that died while it held the lock left the text as readable as before.
        self.console.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).text()
    }
}

/// The end of what a stream has said.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

const TAIL_BYTES: usize = 16 << 10;

impl Tail {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let surplus = self.0.len().saturating_sub(TAIL_BYTES);
        self.0.drain(..surplus);
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let printable =
            |line: &str| line.chars().filter(|c| !c.is_control() || *c == '\t').collect::<String>();
        let lines: Vec<String> = text.lines().map(printable).filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

fn keep_tail(from: impl Read + Send + 'static, tail: Arc<Mutex<Tail>>) -> io::Result<()> {
    thread::Builder::new().name("lab console".into()).spawn(move || {
        let mut from = BufReader::new(from);
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            tail.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).add(&buffer[..length]);
        }
    })?;
    Ok(())
}

/// An EPYC with SVM and nested paging, less what TCG would warn about, once a CPU.
const CPU: &str = "EPYC,+svm,+npt,-fxsr-opt,-misalignsse,-osvw,-nrip-save,-xsavec";

/// AMD numbers the threads of a core where the processor has topoext, which TCG does not take for one of its own: forced, it
/// tells what it should all the same. Without siblings nothing is forced.
fn processor(threads: u32) -> String {
    let topology = if threads > 1 { "+topoext,x-force-features=on" } else { "-topoext" };
    format!("{CPU},{topology}")
}

/// Of the first node's PCIe root: those before it are the machine's own.
const FIRST_BUS: usize = 32;

/// QEMU's arguments. Descriptors are passed by number; they must stay open until the emulator has started.
fn arguments(start: &Start<'_>, console: &OwnedFd) -> Vec<OsString> {
    let shape = start.shape;
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.into(), OsString::from(value)]);

    add("-M", "q35".into());
    // 11.1 with a thread a CPU is the way that neither loses nor doubles interrupts of a nested guest.
    add("-accel", "tcg,thread=multi".into());
    let (threads, cores) = (shape.threads, shape.cores_per_socket());
    add("-cpu", processor(threads));
    let sockets = shape.cpus() / (cores * threads);
    add("-smp", format!("{},sockets={sockets},cores={cores},threads={threads}", shape.cpus()));
    add("-m", format!("{}M", shape.memory_mib));
    let (mut first_cpu, nodes) = (0, shape.nodes.len() as u64);
    // Bus numbers far enough apart for the ports of a root.
    let buses = if start.monitor.is_some() { (256 - FIRST_BUS) / shape.nodes.len().max(1) } else { 12 };
    for (node, &cpus) in shape.nodes.iter().enumerate() {
        // The division's rest goes to the first node.
        let rest = if node == 0 { shape.memory_mib % nodes } else { 0 };
        // Shared, so that the server of the virtio-vsock reads and writes it too.
        add(
            "-object",
            format!("memory-backend-memfd,id=m{node},share=on,size={}M", shape.memory_mib / nodes + rest),
        );
        add("-numa", format!("node,nodeid={node},cpus={first_cpu}-{},memdev=m{node}", first_cpu + cpus - 1));
        // A PCIe root per node.
        let bus = FIRST_BUS + node * buses;
        add("-device", format!("pxb-pcie,id=root{node},bus_nr={bus},numa_node={node},bus=pcie.0"));
        first_cpu += cpus;
    }
    for (index, drive) in start.drives.iter().enumerate() {
        add("-blockdev", block_node(&format!("drive{index}"), &drive.media, drive.read_only).to_string());
        match drive.node {
            Some(node) => {
                let port = format!(
                    "pcie-root-port,id=port{index},bus=root{node},chassis={},slot={index}",
                    index + 1
                );
                add("-device", port);
                add("-device", format!("nvme,serial={},drive=drive{index},bus=port{index}", drive.serial));
            }
            None => add(
                "-device",
                format!("virtio-blk-pci,serial={},drive=drive{index},bus=pcie.0", drive.serial),
            ),
        }
    }
    if let Some(monitor) = &start.monitor {
        for number in 0..FREE_PORTS {
            let (id, slot) = (free_port(number), slot_of(number));
            // What is plugged in has registers in memory alone.
            let port = format!("pcie-root-port,id={id},bus=root0,chassis={slot},slot={slot},io-reserve=0");
            add("-device", port);
        }
        add("-chardev", format!("socket,id=monitor,fd={}", monitor.as_raw_fd()));
        add("-mon", "chardev=monitor,mode=control".into());
    }
    add("-device", "virtio-serial-pci,id=channels,bus=pcie.0".into());
    for (index, end) in start.ports.iter().enumerate() {
        add("-chardev", format!("socket,id=channel{index},fd={}", end.stream.as_raw_fd()));
        add("-device", format!("virtserialport,bus=channels.0,chardev=channel{index},name={}", end.port));
    }
    if let Some(vsock) = &start.vsock {
        add("-chardev", format!("socket,id=vsock,fd={}", vsock.as_raw_fd()));
        add("-device", "vhost-user-vsock-pci,chardev=vsock,bus=pcie.0".into());
    }
    add("-chardev", format!("socket,id=console,fd={}", console.as_raw_fd()));
    add("-serial", "chardev:console".into());
    add("-initrd", format!("/proc/self/fd/{}", start.initramfs.as_raw_fd()));
    // The other CPUs come online once the modules are loaded: the job says so, and why. The kernel would count timer
    // interrupts in a busy loop, and panic where a crowded machine lets too few of them through.
    let poll_queues = if start.poll_queues { " nvme.poll_queues=1" } else { "" };
    add("-append", format!("console=ttyS0 panic=-1 quiet maxcpus=1 no_timer_check{poll_queues}"));
    arguments.extend([OsStr::new("-kernel").to_owned(), start.kernel.clone().into_os_string()]);
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        arguments.push(flag.into());
    }
    arguments.extend(["-display", "none", "-monitor", "none"].map(OsString::from));
    arguments
}

/// A block node as `-blockdev` and `blockdev-add` take it.
pub fn block_node(name: &str, media: &Media, read_only: bool) -> Value {
    // QEMU's JSON is text: a path that is no UTF-8 was refused when the profile was read.
    let text = |path: &PathBuf| String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned();
    let file = match media {
        Media::File(path) => json!({ "driver": "file", "filename": text(path) }),
        Media::BlockDevice(path) => json!({ "driver": "host_device", "filename": text(path) }),
        Media::Empty => {
            let size: u64 = 1 << 30;
            return json!({ "driver": "null-co", "node-name": name, "size": size, "read-zeroes": true });
        }
    };
    json!({ "driver": "raw", "node-name": name, "read-only": read_only, "discard": "unmap", "file": file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(drives: Vec<Drive>) -> Vec<String> {
        start_in(&Shape::default(), drives)
    }

    fn start_in(shape: &Shape, drives: Vec<Drive>) -> Vec<String> {
        let (one, other) = UnixStream::pair().unwrap();
        let (kernel, initramfs, console) =
            ("/k".into(), one.try_clone().unwrap().into(), OwnedFd::from(other));
        let vsock = Some(one.try_clone().unwrap().into());
        let ports = vec![PortEnd { port: "vmprof.control", stream: one.into() }];
        let poll_queues = drives.is_empty();
        let monitor = None;
        let start =
            Start { emulator: &[], shape, kernel, initramfs, drives, poll_queues, ports, vsock, monitor };
        arguments(&start, &console).into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn nodes_get_their_cpus_and_all_the_memory() {
        let line = start(vec![]).join(" ");
        assert!(line.contains("-smp 12,sockets=3,cores=4,threads=1 -m 6144M"), "{line}");
        assert!(
            line.contains("node,nodeid=0,cpus=0-7,memdev=m0")
                && line.contains("node,nodeid=1,cpus=8-11,memdev=m1")
        );
        assert_eq!(line.matches("size=3072M").count(), 2);
    }

    #[test]
    fn siblings_are_shown_where_the_shape_has_them_and_nothing_is_forced_elsewhere() {
        let shape = Shape { nodes: vec![8, 4], threads: 2, ..Shape::default() };
        let line = start_in(&shape, vec![]).join(" ");
        assert!(line.contains("-smp 12,sockets=3,cores=2,threads=2 "), "{line}");
        assert!(line.contains("+topoext,x-force-features=on "), "{line}");
        let line = start(vec![]).join(" ");
        assert!(line.contains("-topoext ") && !line.contains("force"), "{line}");
    }

    #[test]
    fn a_disk_is_an_nvme_drive_behind_its_nodes_root_whatever_its_path_is_called() {
        let media = Media::File("/a,b \"c\".raw".into());
        let words = start(vec![Drive { serial: "data".into(), media, read_only: false, node: Some(1) }]);
        let line = words.join(" ");
        assert!(
            line.contains("pcie-root-port,id=port0,bus=root1,")
                && line.contains("nvme,serial=data,drive=drive0,bus=port0")
        );
        let node = words.iter().find(|word| word.contains("\"raw\"")).unwrap();
        let node: Value = serde_json::from_str(node).unwrap();
        assert_eq!(node["file"]["filename"], "/a,b \"c\".raw");
    }

    #[test]
    fn a_tail_keeps_the_last_lines_readable() {
        let mut tail = Tail::default();
        for line in 0..5_000 {
            tail.add(format!("line {line}\x1b[0m\r\n").as_bytes());
        }
        let text = tail.text();
        assert!(text.ends_with("line 4999[0m") && text.lines().count() == 20, "{text}");
    }

    #[test]
    fn a_child_is_killed_through_its_handle_and_its_messages_kept() {
        let shape = Shape::default();
        let (one, _other) = UnixStream::pair().unwrap();
        let emulator: Vec<OsString> =
            ["/bin/sh", "-c", "echo broken >&2; exec sleep 600", "sh"].map(Into::into).into();
        let start = Start {
            emulator: &emulator,
            shape: &shape,
            kernel: "/k".into(),
            initramfs: one.into(),
            drives: vec![],
            poll_queues: false,
            ports: vec![],
            vsock: None,
            monitor: None,
        };
        let host = EmulatedHost::start(start).unwrap();
        let handle = host.handle();
        while handle.last_words() != "broken" {
            thread::yield_now();
        }
        handle.kill();
        assert!(!host.wait().unwrap().success());
    }
}
