//! A guest that runs on one of the two VMMs: its start, its console, the shell in it.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use vmprof_job::port;
use vmprof_profiles::export::{BootFiles, qemu};
use vmprof_profiles::{Ledger, Source, Storage, Topology, plan, read_profile};

use crate::settings::{Backing, GUEST_MIB, QUEUES, Settings, VCPUS, Vmm, place};
use crate::{Outcome, mark};

/// How long a guest may be silent while it boots or works.
const PATIENCE: Duration = Duration::from_secs(180);

/// What a machine is made of.
#[derive(Debug, Clone, Copy)]
pub struct Shape<'a> {
    pub vmm: Vmm,
    pub iothreads: u32,
    pub backing: Backing,
    /// The source of its disk, which is its own.
    pub source: &'a str,
}

#[derive(Debug)]
pub struct Machine {
    pub vmm: Vmm,
    child: Child,
    input: Option<Box<dyn Send + WriteDebug>>,
    output: Receiver<String>,
    /// The last of what the VMM and the guest's console said.
    said: Receiver<String>,
    /// From the start of the VMM's program to the guest's first.
    pub init_after: Duration,
    _ports: Vec<UnixStream>,
}

pub trait WriteDebug: Write + std::fmt::Debug {}
impl<T: Write + std::fmt::Debug> WriteDebug for T {}

impl Machine {
    /// Starts it and waits until the kernel has reached the guest's first program.
    pub fn start(shape: Shape<'_>, settings: &Settings) -> Outcome<Machine> {
        let profile = profile(shape);
        let (tell, output) = mpsc::channel();
        let (murmur, said) = mpsc::channel();
        let (reached, mark) = mpsc::channel();
        let (mut command, ours, theirs) = match shape.vmm {
            Vmm::Vmprof => (vmprof(&profile)?, Vec::new(), Vec::new()),
            Vmm::Qemu => qemu_command(&profile, settings)?,
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn()?;
        drop(theirs);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
            return Err("its streams are no pipes".into());
        };
        listen(stderr, heard(started, reached.clone(), murmur.clone()))?;
        let mut input: Option<Box<dyn Send + WriteDebug>> = None;
        match shape.vmm {
            // The command's output comes out here; the console is among the errors.
            Vmm::Vmprof => {
                listen(stdout, move |line| tell.send(line).is_ok())?;
                input = child.stdin.take().map(|stdin| Box::new(stdin) as _);
            }
            Vmm::Qemu => {
                listen(stdout, heard(started, reached, murmur.clone()))?;
                for (name, stream) in &ours {
                    let stream = stream.try_clone()?;
                    match *name {
                        port::STDIN => input = Some(Box::new(stream)),
                        port::STDOUT => {
                            let tell = tell.clone();
                            listen(stream, move |line| tell.send(line).is_ok())?;
                        }
                        _ => {
                            let murmur = murmur.clone();
                            listen(stream, move |line| murmur.send(line).is_ok())?;
                        }
                    }
                }
            }
        }
        let ports = ours.into_iter().map(|(_, stream)| stream).collect();
        let mut machine =
            Machine { vmm: shape.vmm, child, input, output, said, init_after: Duration::ZERO, _ports: ports };
        machine.init_after = match mark.recv_timeout(PATIENCE) {
            Ok(after) => after,
            Err(_) => return Err(machine.gave_up("the kernel of its guest reached no first program")),
        };
        Ok(machine)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives the guest's shell a line.
    pub fn tell(&mut self, line: &str) -> Outcome<()> {
        let input = self.input.as_mut().ok_or("it has no input")?;
        input.write_all(format!("{line}\n").as_bytes())?;
        Ok(input.flush()?)
    }

    /// The next line of the guest's shell that begins with `word`, without it.
    pub fn hear(&mut self, word: &str) -> Outcome<String> {
        loop {
            let Ok(line) = self.output.recv_timeout(PATIENCE) else {
                return Err(self.gave_up(&format!("its guest did not say `{word}`")));
            };
            if let Some(rest) = line.strip_prefix(word) {
                return Ok(rest.trim().to_owned());
            }
            eprintln!("{}: {line}", self.vmm);
        }
    }

    fn gave_up(&mut self, what: &str) -> Box<dyn std::error::Error + Send + Sync> {
        let said: Vec<String> = self.said.try_iter().collect();
        let last = said.get(said.len().saturating_sub(30)..).unwrap_or_default().join("\n");
        format!("{}: {what}\n{last}", self.vmm).into()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Ended already, or with nothing in it that anybody wants.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks for the mark in what a console says; all else is murmured.
fn heard(
    started: Instant,
    reached: Sender<Duration>,
    murmur: Sender<String>,
) -> impl FnMut(String) -> bool + Send + 'static {
    move |line| {
        if line.contains(mark::LINE) {
            // Nobody waits any more where the machine was given up.
            let _ = reached.send(started.elapsed());
        }
        murmur.send(line).is_ok()
    }
}

fn listen(
    from: impl Read + Send + 'static,
    mut told: impl FnMut(String) -> bool + Send + 'static,
) -> Outcome<()> {
    thread::Builder::new().spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            if !told(String::from_utf8_lossy(&line).trim_end().to_owned()) {
                return;
            }
        }
    })?;
    Ok(())
}

/// The same for both: vmprof reads it, QEMU gets what is exported of it.
fn profile(shape: Shape<'_>) -> String {
    let source = match shape.backing {
        Backing::Null => format!("dev=\"{}\"", shape.source),
        Backing::File => format!("file=\"{}\"", shape.source),
    };
    format!(
        "/- kdl-version 2\nprofile bench {{\n guest \"guest.kdl\"\n vcpu {VCPUS} {{ vcpupin none; }}\n emulatorpin none\n \
         memory \"{GUEST_MIB}MiB\"\n iothreads {} {{\n  iothreadpin none\n  poll-max-ns 0\n }}\n disk data {{\n  \
         source {source}\n  driver raw cache={} aio=io_uring\n  queues {QUEUES}\n  iothread-vq-mapping round-robin\n  \
         scheduler guest=none\n }}\n}}\n",
        shape.iothreads,
        shape.backing.cache()
    )
}

fn vmprof(profile: &str) -> Outcome<Command> {
    let path = "/bench/profile.kdl";
    fs::write(path, profile)?;
    let mut command = Command::new(place::VMPROF);
    command.args(["up", "--on", "kvm", "--image", place::IMAGE, "--name", "bench", path, "--", "/bin/sh"]);
    command.env_clear().env("HOME", "/root").env("PATH", "/usr/bin:/bin");
    command.env("VMPROF_STORE", "/vmprof/store").env("VMPROF_STATE", "/vmprof/state");
    command.env("VMPROF_RUNTIME", "/run/vmprof").env("NO_COLOR", "1");
    Ok(command)
}

type Ports = Vec<(&'static str, UnixStream)>;

/// QEMU's command of the plan that vmprof makes of the profile on this very host, and beside it what carries the channels
/// of the guest's first process. Gives our ends of those, and QEMU's, which must live until it has started.
fn qemu_command(profile: &str, settings: &Settings) -> Outcome<(Command, Ports, Vec<OwnedFd>)> {
    let (profile, _) = read_profile("bench.kdl", profile).map_err(|problems| format!("{problems:?}"))?;
    let topology = Topology::read(&Source::Live);
    let storage = Storage::read(&Source::Live, &profile, &topology, None);
    let plan =
        plan(&profile, &topology, &storage, &Ledger::default()).map_err(|fault| format!("{fault:?}"))?;
    let files = BootFiles {
        kernel: Some(place::KERNEL.into()),
        initramfs: Some(place::INITRAMFS_WITH_JOB.into()),
        root: Some(place::ROOT.into()),
        cmdline: Some(cmdline()),
        disks_dir: None,
    };
    let words = words(&qemu(&plan, &files).text);
    let [program, own @ ..] = settings.qemu.as_slice() else { return Err("no QEMU was packed".into()) };
    let mut command = Command::new(program);
    command.args(own).args(words.iter().skip(1)).args(["-monitor", "none"]);
    // vmprof has no such timer either, and libvirt's tools leave it out: a guest's ticks by it are QEMU's main thread's work.
    command.args(["-machine", "hpet=off"]);
    command.args(["-device", "virtio-serial-pci,id=channels"]);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (index, name) in [port::CONTROL, port::STDIN, port::STDOUT, port::STDERR].into_iter().enumerate() {
        let (our, their) = UnixStream::pair()?;
        rustix::io::fcntl_setfd(their.as_fd(), FdFlags::empty())?;
        command.args(["-chardev".to_owned(), format!("socket,id=channel{index},fd={}", their.as_raw_fd())]);
        let device = format!("virtserialport,bus=channels.0,chardev=channel{index},name={name}");
        command.args(["-device".to_owned(), device]);
        ours.push((name, our));
        theirs.push(OwnedFd::from(their));
    }
    Ok((command, ours, theirs))
}

/// What vmprof gives every guest, with the benchmark's own word behind it; the driver compares what both guests were given.
pub fn cmdline() -> String {
    format!("console=ttyS0 panic=-1 quiet {}", own_cmdline())
}

pub fn own_cmdline() -> String {
    format!("rdinit=/{}", mark::PATH)
}

/// The words of a command as the export writes it: plain, or in single quotes, lines joined by backslashes.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = command.chars();
    while let Some(character) = characters.next() {
        match character {
            '\'' => {
                let word = word.get_or_insert_default();
                word.extend(characters.by_ref().take_while(|c| *c != '\''));
            }
            '\\' => {
                if let Some(escaped) = characters.next().filter(|c| *c != '\n') {
                    word.get_or_insert_default().push(escaped);
                }
            }
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_an_exported_command_come_back() {
        let command =
            "qemu \\\n  -name guest=bench \\\n  -object '{\"id\":\"it'\\''s\",\"n\":[0, 1]}' \\\n  -x ''\n";
        let expected =
            ["qemu", "-name", "guest=bench", "-object", "{\"id\":\"it's\",\"n\":[0, 1]}", "-x", ""];
        assert_eq!(words(command), expected);
    }

    #[test]
    fn the_profile_of_every_shape_can_be_planned() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.raw");
        fs::write(&file, "x").unwrap();
        let source = file.to_str().unwrap();
        for iothreads in [1, 2, 4] {
            let shape = Shape { vmm: Vmm::Qemu, iothreads, backing: Backing::File, source };
            let (profile, _) = read_profile("bench.kdl", &profile(shape)).unwrap();
            let topology = Topology::read(&Source::Live);
            let storage = Storage::read(&Source::Live, &profile, &topology, None);
            let plan = plan(&profile, &topology, &storage, &Ledger::default()).unwrap();
            assert_eq!((plan.iothreads.len(), plan.vcpus.len()), (iothreads as usize, 4));
            assert!(plan.iothreads.iter().all(|iothread| iothread.poll_max_ns == 0));
        }
    }
}
