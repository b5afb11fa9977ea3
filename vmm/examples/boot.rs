//! Boots a kernel and an initramfs from flags and shows what the guest says: for looking at the machine by itself.
//!
//!     boot --kernel vmlinux --initramfs init.cpio [--append TEXT] [--vcpus N] [--threads N] [--memory MIB]
//!          [--disk FILE[:QUEUES]]... [--port NAME]... [--button SECONDS] [--kill SECONDS]
//!
//! Each port echoes what the guest writes to it. With --button the power button is pressed after that many seconds.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use vmprof_vmm::config::{Boot, CacheMode, Disk, IoThread, Memory, MemoryMode, Vcpu, VmConfig};
use vmprof_vmm::exit::Exit;
use vmprof_vmm::{Channels, Port, Vm, kvm};

struct Options {
    config: VmConfig,
    ports: Vec<String>,
    button: Option<u64>,
    kill: Option<u64>,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(error.as_ref());
            while let Some(error) = cause {
                eprintln!("boot: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u8, Box<dyn std::error::Error>> {
    let options = options(std::env::args().skip(1))?;
    let begun = Instant::now();
    let host = kvm::probe()?;
    let mut ports = Vec::new();
    for name in options.ports {
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        ports.push(Port { name: name.clone(), stream: theirs.into() });
        std::thread::spawn(move || echo(&name, ours));
    }
    let channels =
        Channels { ports, vsock: None, nets: vec![], serial_out: Box::new(io::stdout()), serial_in: None };
    let vm = Vm::build(&host, &options.config, channels, &[])?.start()?;
    eprintln!("boot: started after {:?}", begun.elapsed());
    let control = vm.control();
    for (name, tid) in control.threads() {
        eprintln!("boot: thread {tid} {name}");
    }
    if let Some(seconds) = options.button {
        let control = control.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(seconds));
            control.power_button();
        });
    }
    if let Some(seconds) = options.kill {
        let control = control.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(seconds));
            control.kill();
        });
    }
    let exit = vm.wait();
    eprintln!("boot: {:?} after {:?}", exit, begun.elapsed());
    for vcpu in control.stats().vcpus {
        eprintln!("boot: {} {:?}", vcpu.name, vcpu.exits);
    }
    for disk in control.stats().disks {
        eprintln!("boot: {disk:?}");
    }
    Ok(match exit {
        Exit::PowerOff => 0,
        Exit::Reset => 10,
        Exit::Panicked => 11,
        Exit::TripleFault { .. } => 12,
        Exit::Killed => 13,
        Exit::Failed(_) => 14,
    })
}

fn echo(name: &str, mut stream: UnixStream) {
    let mut bytes = [0; 4096];
    while let Ok(count) = stream.read(&mut bytes) {
        if count == 0 || stream.write_all(&bytes[..count]).is_err() {
            break;
        }
        eprintln!("boot: port {name}: {}", String::from_utf8_lossy(&bytes[..count]).trim_end());
    }
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, Box<dyn std::error::Error>> {
    let mut boot =
        Boot { kernel: PathBuf::new(), initramfs: PathBuf::new(), cmdline: "console=ttyS0 panic=-1".into() };
    let (mut vcpus, mut threads_per_core, mut megabytes) = (1, 1, 256);
    let (mut disks, mut ports, mut button, mut kill) = (Vec::new(), Vec::new(), None, None);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--kernel" => boot.kernel = value.into(),
            "--initramfs" => boot.initramfs = value.into(),
            "--append" => {
                boot.cmdline.push(' ');
                boot.cmdline.push_str(&value);
            }
            "--vcpus" => vcpus = value.parse()?,
            "--threads" => threads_per_core = value.parse()?,
            "--memory" => megabytes = value.parse()?,
            "--disk" => disks.push(value),
            "--port" => ports.push(value),
            "--button" => button = Some(value.parse()?),
            "--kill" => kill = Some(value.parse()?),
            _ => return Err(format!("unknown option {word}").into()),
        }
    }
    let disk = |(index, text): (usize, &String)| -> Result<Disk, Box<dyn std::error::Error>> {
        let (path, queues) = text.split_once(':').unwrap_or((text, "1"));
        let queues: u32 = queues.parse()?;
        let virtqueues = (0..queues).map(|queue| queue % 2).collect();
        let plain = Disk::named(&format!("disk{index}"), path.as_ref(), virtqueues);
        Ok(Disk { cache: CacheMode::Writeback, ..plain })
    };
    let disks: Vec<Disk> = disks.iter().enumerate().map(disk).collect::<Result<_, _>>()?;
    let iothreads = if disks.is_empty() { 0 } else { 2 };
    let iothread = |id: u32| IoThread::named(id, &format!("iothread{id}"));
    let config = VmConfig {
        name: "boot".into(),
        boot,
        memory: Memory {
            bytes: megabytes << 20,
            nodes: vec![],
            mode: MemoryMode::Strict,
            hugepage_bytes: None,
        },
        vcpus: (0..vcpus).map(|id| Vcpu { id, cpus: vec![] }).collect(),
        threads_per_core,
        emulator_cpus: vec![],
        iothreads: (0..iothreads).map(iothread).collect(),
        disks,
        nets: vec![],
    };
    Ok(Options { config, ports, button, kill })
}
