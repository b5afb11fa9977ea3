//! passt as a child process: it makes of the guest's frames connections of this host's, without root, and of connections to
//! forwarded ports frames. The frames travel over a socket pair; when our end closes it has nothing to do any more, and ends.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, WaitStatus, kill_process, pidfd_open, pidfd_send_signal, waitpid,
};
use serde::{Deserialize, Serialize};
use vmprof_guests::{Passt, passt};
use vmprof_mac::MacAddress;
use vmprof_profiles::{Forward, Protocol};
use vmprof_sys::child::{dies_with_this_thread, inherits_only};
use vmprof_sys::inherited;

use super::Device;
use crate::failure::{Failure, Kind};
use crate::run::conversation::Event;

/// It has its ports and answers in milliseconds; a machine with much to do takes its time.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// What it announces of its own accord before it answers is a handful.
const MOST_FRAMES_BEFORE: usize = 64;
/// What an Ethernet frame can be at most, header and one tag included.
const LONGEST_FRAME: u32 = 65_535 + 18;
/// The last of what it said is enough to tell why it ended.
const SAID_BYTES: usize = 2048;

/// The network of a guest: the same on every host, and that of QEMU's users (`-netdev user`). Each device has one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    guest: Ipv4Addr,
    gateway: Ipv4Addr,
    nameserver: Ipv4Addr,
}

impl Network {
    const PREFIX: u8 = 24;
    /// Of the gateway, as QEMU has it.
    const MAC: MacAddress = MacAddress::new([0x52, 0x55, 10, 0, 2, 2]);

    fn of(position: usize) -> Network {
        // A machine has fewer devices than there are networks.
        let third = u8::try_from(position + 2).unwrap_or(u8::MAX);
        let host = |last| Ipv4Addr::new(10, 0, third, last);
        Network { guest: host(15), gateway: host(2), nameserver: host(3) }
    }
}

/// What it is told. `socket` is the number of its end.
fn arguments(position: usize, forwards: &[Forward], socket: RawFd) -> Vec<OsString> {
    let Network { guest, gateway, nameserver } = Network::of(position);
    let mut words: Vec<String> = vec!["--foreground".into(), "--quiet".into()];
    let mut say = |option: &str, value: String| words.extend([option.to_owned(), value]);
    say("--fd", socket.to_string());
    say("--address", guest.to_string());
    say("--netmask", Network::PREFIX.to_string());
    say("--gateway", gateway.to_string());
    say("--mac-addr", Network::MAC.to_string());
    // The guest asks an address of its own network, whatever the host's nameserver is.
    say("--dns", nameserver.to_string());
    say("--dns-forward", nameserver.to_string());
    for forward in forwards {
        let option = match forward.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        say(option, format!("127.0.0.1/{}:{}", forward.host, forward.guest));
    }
    // The host's search domains are its own, as is what listens on its loopback alone, which the gateway's address would lead to.
    words.extend(["--ipv4-only", "--no-dhcp-search", "--no-map-gw"].map(str::to_owned));
    words.into_iter().map(OsString::from).collect()
}

/// Starts it, and returns when it has its ports and answers. To be called on a thread that lives as long as the run.
pub fn start(program: &Passt, device: &Device<'_>, forwards: &[Forward]) -> Result<Running, Failure> {
    let failed = |error| Failure::os(format!("passt cannot be started for {}", device.name), error);
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let mut command = Command::new(&program.argv[0]);
    command.args(&program.argv[1..]).args(arguments(device.position, forwards, theirs.as_raw_fd()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    inherits_only(dies_with_this_thread(&mut command), theirs.as_fd());
    let mut child = command.spawn().map_err(failed)?;
    drop(theirs);
    let said =
        child.stderr.take().map(OwnedFd::from).ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
    let running = Running {
        device: device.name.clone(),
        pid: Some(Pid::from_child(&child)),
        socket: ours.into(),
        said,
    };
    match running.answers(device) {
        Ok(()) => Ok(running),
        Err(error) => Err(running.failed(forwards, &error)),
    }
}

/// One that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Running {
    device: String,
    /// Not yet waited for.
    pid: Option<Pid>,
    socket: OwnedFd,
    /// Where its standard error comes out.
    said: OwnedFd,
}

/// On its way to the program that this one goes on as, which has the same children.
#[derive(Debug, Serialize, Deserialize)]
pub struct Passed {
    device: String,
    pid: i32,
    socket: RawFd,
    said: RawFd,
}

impl Running {
    /// `net0`.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Asks who the gateway is. What it answers it does in its main loop, which comes after all that may fail.
    fn answers(&self, device: &Device<'_>) -> io::Result<()> {
        let stream = UnixStream::from(self.socket.try_clone()?);
        stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
        let Network { guest, gateway, .. } = Network::of(device.position);
        (&stream).write_all(&framed(&who_has(gateway, guest, device.mac)))?;
        for _ in 0..MOST_FRAMES_BEFORE {
            if is_answer(&read_frame(&stream)?, gateway) {
                return stream.set_read_timeout(None);
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Why it did not come to that.
    fn failed(mut self, forwards: &[Forward], error: &io::Error) -> Failure {
        let status = self.end();
        let mut said = String::new();
        // It has ended: what it said is all there.
        let _ = self.said.try_clone().map(|said| File::from(said).take(SAID_BYTES as u64)).and_then(
            |mut file| {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                said = unusual(&String::from_utf8_lossy(&bytes));
                Ok(())
            },
        );
        let device = &self.device;
        if said.contains("Address already in use") {
            let taken = forwards.iter().find(|forward| said.contains(&forward.host.to_string()));
            let port = taken.map_or("a port".to_owned(), |forward| {
                format!("{} port {}", word(forward.protocol), forward.host)
            });
            let message = format!("{port} of this host, which {device} forwards, is in use: {said}");
            let help = "`ss -lntup` shows by whom; give the profile another `host=`";
            return Failure::said(Kind::Failure, "vmprof::net::port_in_use", message, help);
        }
        let why = match (said.is_empty(), status) {
            (false, _) => said,
            (true, Some(status)) => how(status),
            (true, None) => error.to_string(),
        };
        let message = format!("passt, which is to carry the frames of {device}, does not start: {why}");
        let help = "ports below 1024 take a privilege (`sysctl net.ipv4.ip_unprivileged_port_start`); its manual page, passt(1), says more";
        Failure::said(Kind::Failure, "vmprof::net::passt_failed", message, help)
    }

    /// Leaves it to the program that this one goes on as; until then it is still this one's.
    pub fn pass(&self) -> io::Result<Passed> {
        Ok(Passed {
            device: self.device.clone(),
            pid: self.pid.map_or(0, |pid| pid.as_raw_nonzero().get()),
            socket: inherited::leave_open(self.socket.as_fd())?,
            said: inherited::leave_open(self.said.as_fd())?,
        })
    }

    /// Its end of the frames, and whoever sees to it from now on and tells when it ends.
    pub fn carry(mut self, events: Sender<Event>) -> io::Result<(OwnedFd, Carrying)> {
        let pid = self.pid.ok_or(io::ErrorKind::NotFound)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        // It has its end of the socket as long as ours is open, so there are no more than the one that is given away.
        let (socket, said) = (self.socket.try_clone()?, self.said.try_clone()?);
        let (device, is_ending) = (self.device.clone(), Arc::new(AtomicBool::new(false)));
        let ends = is_ending.clone();
        let thread = thread::Builder::new().name("passt".into()).spawn(move || {
            let said = last_words(said);
            let status = wait(pid);
            if !ends.load(Ordering::Acquire) {
                let why = if said.is_empty() { status.map_or("gone".to_owned(), how) } else { said };
                // Nobody to hear it means that the run is over.
                let _ = events.send(Event::Notice(format!(
                    "passt, which carries the frames of {device}, has ended ({why}): the guest goes on without that network"
                )));
            }
        })?;
        self.pid = None;
        Ok((socket, Carrying { process, is_ending, thread: Some(thread) }))
    }

    /// Ends it, and waits until it has.
    fn end(&mut self) -> Option<WaitStatus> {
        let pid = self.pid.take()?;
        // The number is its own until it is waited for. It has nothing to put in order, and may be stopped or stuck.
        let _ = kill_process(pid, Signal::KILL);
        wait(pid)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

impl Passed {
    /// In the next program, once, before it opens anything.
    pub fn take(self) -> io::Result<Running> {
        let (socket, said) = (inherited::take(self.socket)?, inherited::take(self.said)?);
        Ok(Running { device: self.device, pid: Pid::from_raw(self.pid), socket, said })
    }
}

/// One whose end is told, unless it is this that ends it.
#[derive(Debug)]
pub struct Carrying {
    process: OwnedFd,
    is_ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Carrying {
    /// What it carries for has ended: its own end is no news.
    pub fn expect_end(&self) -> Arc<AtomicBool> {
        self.is_ending.clone()
    }
}

impl Drop for Carrying {
    fn drop(&mut self) {
        self.is_ending.store(true, Ordering::Release);
        // It may have ended already, or hear no other signal, and is waited for.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
        // It is waited for there.
        self.thread.take().map(JoinHandle::join);
    }
}

fn wait(pid: Pid) -> Option<WaitStatus> {
    loop {
        match waitpid(Some(pid), WaitOptions::empty()) {
            Ok(found) => return found.map(|(_, status)| status),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

fn how(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("with status {code}"),
        (_, Some(signal)) => format!("by signal {signal}"),
        _ => "gone".to_owned(),
    }
}

/// What it said last, read to its end.
fn last_words(said: OwnedFd) -> String {
    let mut last = String::new();
    for line in BufReader::new(File::from(said)).split(b'\n').map_while(Result::ok) {
        let line = unusual(&String::from_utf8_lossy(&line));
        if !line.is_empty() && line.len() <= SAID_BYTES {
            last = line;
        }
    }
    last
}

/// The lines that it does not say each time, as one.
fn unusual(said: &str) -> String {
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && !passt::is_usual(line));
    lines.collect::<Vec<_>>().join("; ")
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

/// As it travels: 32 bits of length, big-endian, before each frame.
fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

fn read_frame(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length > LONGEST_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length as usize];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

/// Ethernet's header, type ARP; Ethernet, IPv4, lengths of their addresses (RFC 826).
const ARP: [u8; 8] = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// As the guest would ask: passt takes its hardware address from what it sends.
fn who_has(wanted: Ipv4Addr, guest: Ipv4Addr, mac: MacAddress) -> Vec<u8> {
    let mac = mac.octets();
    [&[0xff; 6][..], &mac, &ARP, &REQUEST, &mac, &guest.octets(), &[0; 6], &wanted.octets()].concat()
}

fn is_answer(frame: &[u8], from: Ipv4Addr) -> bool {
    frame.get(12..20) == Some(&ARP)
        && frame.get(20..22) == Some(&REPLY)
        && frame.get(28..32) == Some(&from.octets())
}

#[cfg(test)]
mod tests;
