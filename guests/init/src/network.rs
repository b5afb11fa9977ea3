//! Network devices: found by their hardware addresses, brought up, and kept in a lease of DHCP for as long as the guest runs.
//!
//! A process beside the supervisor sees to it, with a thread a device. Each lease is taken by a process of its own
//! (`lease.rs`): what a server answers is read there and nowhere else, and it is gone until the lease is due again, so that no
//! packet of the guest's passes by anybody who waits for DHCP's.

mod lease;
mod settings;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use vmprof_job::{FromGuest, Net};

use crate::boot::DEVICE_WAIT;
use crate::wait::{Wait, until_there};
use crate::{kmsg, netlink};

pub(crate) use lease::take as take_lease;

/// First argument of the program in this role; the others are the devices, each as `NAME=ADDRESS`.
pub(crate) const WORD: &str = "network";
/// First argument of a process that takes one lease; then come the interface, its index and the metric of its routes.
pub(crate) const LEASE_WORD: &str = "lease";
const OURSELVES: &str = "/proc/self/exe";

/// How long the start of the guest's work waits for its network: a device whose network has no server must not hold it up.
const FIRST_LEASE: Duration = Duration::from_secs(10);
/// Routes of the first device go before those of the next.
const FIRST_METRIC: u32 = 100;

/// The devices whose leases are kept, and what the start of the guest's work waits for.
#[derive(Debug, Default)]
pub(crate) struct Network {
    process: Option<Pid>,
    first: Option<FirstLeases>,
}

/// Those that are waited for.
#[derive(Debug)]
struct FirstLeases {
    /// A line with the name of each device that has its first lease. Reading does not wait.
    news: OwnedFd,
    heard: Vec<u8>,
    names: Vec<String>,
    until: Instant,
}

impl Network {
    /// Starts to see to the devices, and waits for none of them.
    pub(crate) fn start(nets: &[Net]) -> Network {
        if nets.is_empty() {
            return Network::default();
        }
        let names = nets.iter().map(|net| net.name.clone()).collect();
        let mut command = Command::new(OURSELVES);
        command.arg0("vmprof-network").arg(WORD).env_clear().current_dir("/");
        command.args(nets.iter().map(|net| format!("{}={}", net.name, net.mac)));
        let started = io::pipe().and_then(|(news, tell)| {
            rustix::io::ioctl_fionbio(&news, true)?;
            let child = command.stdin(Stdio::null()).stdout(tell).spawn()?;
            // Reaped with all others.
            Ok((Pid::from_child(&child), news))
        });
        match started {
            Ok((process, news)) => Network {
                process: Some(process),
                first: Some(FirstLeases {
                    news: news.into(),
                    heard: Vec::new(),
                    names,
                    until: Instant::now() + FIRST_LEASE,
                }),
            },
            Err(error) => {
                kmsg::error(format_args!("nobody sees to the network: {error}"));
                Network::default()
            }
        }
    }

    /// Whether a device may yet get its first lease in time.
    pub(crate) fn is_awaited(&self) -> bool {
        self.first.is_some()
    }

    /// Hears who has a lease. The answer is for the outside: who has none when that is waited for no longer.
    pub(crate) fn step(&mut self, now: Instant) -> Option<FromGuest> {
        let first = self.first.as_mut()?;
        let is_over = first.hear() || now >= first.until;
        let missing = without(&first.names, &first.heard);
        if !missing.is_empty() && !is_over {
            return None;
        }
        // Closed from here on: it has been told what it has to tell.
        self.first = None;
        let message = format!(
            "{} of the guest has no address from DHCP after {} s; it goes on asking",
            missing.join(", "),
            FIRST_LEASE.as_secs()
        );
        (!missing.is_empty()).then(|| {
            kmsg::note(&message);
            FromGuest::Notice { message }
        })
    }

    pub(crate) fn expect<'a>(&'a self, wait: &mut Wait<'a>) {
        if let Some(first) = &self.first {
            wait.on(first.news.as_fd(), PollFlags::IN);
            wait.until(first.until);
        }
    }

    /// The guest has ended. A clean stop passes it by until then, so that services end with their network.
    pub(crate) fn end(self) {
        if let Some(process) = self.process {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

impl FirstLeases {
    /// Whether nothing more will come.
    fn hear(&mut self) -> bool {
        let mut bytes = [0; 256];
        loop {
            match rustix::io::read(&self.news, &mut bytes) {
                Ok(0) => return true,
                Ok(count) => self.heard.extend_from_slice(bytes.get(..count).unwrap_or_default()),
                Err(Errno::INTR) => {}
                Err(error) => return error != Errno::AGAIN,
            }
        }
    }
}

/// Those that no line of `heard` names.
fn without(names: &[String], heard: &[u8]) -> Vec<String> {
    let is_heard = |name: &str| {
        heard.split_inclusive(|byte| *byte == b'\n').any(|line| line == format!("{name}\n").as_bytes())
    };
    names.iter().filter(|name| !is_heard(name)).cloned().collect()
}

/// The whole role.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    kmsg::open();
    // A handler, and not SIG_IGN, which the processes that take leases would inherit.
    let _ = signal_hook::flag::register(Signal::TERM.as_raw(), Arc::default());
    let nets = arguments.iter().filter_map(|word| word.to_str()?.split_once('='));
    let threads: Vec<_> = (FIRST_METRIC..)
        .zip(nets)
        .filter_map(|(metric, (name, mac))| {
            let (name, mac) = (name.to_owned(), mac.to_owned());
            thread::Builder::new().name(name.clone()).spawn(move || keep(&name, &mac, metric)).ok()
        })
        .collect();
    threads.into_iter().for_each(|thread| drop(thread.join()));
    ExitCode::SUCCESS
}

/// Sees to one device for ever.
fn keep(name: &str, mac: &str, metric: u32) {
    let sys = Path::new("/sys/class/net");
    let found = until_there(DEVICE_WAIT, || Ok::<_, io::Error>(find(sys, mac)));
    let Ok(Some(interface)) = found else {
        kmsg::error(format_args!(
            "{name}: no network device has the address {mac}; its kernel may lack virtio_net"
        ));
        return;
    };
    if let Err(error) = netlink::set_up(interface.index) {
        kmsg::error(format_args!("{name} ({}) could not be brought up: {error}", interface.name));
        return;
    }
    let mut has_told = false;
    let mut failed = 0;
    loop {
        let pause = match ask(&interface, metric) {
            Ok(seconds) => {
                failed = 0;
                if !std::mem::replace(&mut has_told, true) {
                    // Whoever waited may have stopped to wait.
                    let mut out = io::stdout().lock();
                    let _ = writeln!(out, "{name}").and_then(|()| out.flush());
                }
                match renewed_after(seconds) {
                    Some(pause) => pause,
                    None => return,
                }
            }
            Err(problem) => {
                // Said once for a network that has no server, and again for one that loses it.
                if failed == 0 {
                    kmsg::note(format_args!("{name} ({}) has no lease: {problem}", interface.name));
                }
                failed += 1;
                retried_after(failed)
            }
        };
        thread::sleep(pause);
    }
}

/// A process takes a lease and applies it; the answer is for how many seconds it holds.
fn ask(interface: &Interface, metric: u32) -> Result<u32, String> {
    let mut command = Command::new(OURSELVES);
    command.arg0("vmprof-lease").arg(LEASE_WORD).arg(&interface.name);
    command.args([interface.index.to_string(), metric.to_string()]).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let said = said(&mut child).map_err(|error| error.to_string());
    let status = child.wait().map_err(|error| error.to_string())?;
    let (seconds, problem) = said?;
    match seconds.trim().parse() {
        Ok(seconds) if status.success() => Ok(seconds),
        _ if problem.trim().is_empty() => Err(status.to_string()),
        _ => Err(problem.trim().to_owned()),
    }
}

/// A few words on either stream: neither fills its pipe.
fn said(child: &mut Child) -> io::Result<(String, String)> {
    let (mut out, mut error) = (String::new(), String::new());
    if let Some(stream) = &mut child.stdout {
        stream.take(64).read_to_string(&mut out)?;
    }
    if let Some(stream) = &mut child.stderr {
        stream.take(512).read_to_string(&mut error)?;
    }
    Ok((out, error))
}

/// T1 of RFC 2131, 4.4.5: half of the lease, and not so often that nothing else is done. `None` for one without an end.
fn renewed_after(seconds: u32) -> Option<Duration> {
    (seconds != u32::MAX).then(|| Duration::from_secs(u64::from(seconds / 2).max(10)))
}

/// Sooner at first, since servers come up beside their guests.
fn retried_after(failed: u32) -> Duration {
    Duration::from_secs(1 << failed.min(6))
}

#[derive(Debug, PartialEq, Eq)]
struct Interface {
    name: String,
    index: u32,
}

/// The interface with this hardware address; of several, as a bond's parts, the first that was made.
fn find(class: &Path, mac: &str) -> Option<Interface> {
    let read = |path: &Path, file: &str| fs::read_to_string(path.join(file)).ok();
    let mut found: Vec<Interface> = fs::read_dir(class)
        .ok()?
        .flatten()
        .filter(|entry| read(&entry.path(), "address").is_some_and(|at| at.trim().eq_ignore_ascii_case(mac)))
        .filter_map(|entry| {
            let index = read(&entry.path(), "ifindex")?.trim().parse().ok()?;
            Some(Interface { name: entry.file_name().into_string().ok()?, index })
        })
        .collect();
    found.sort_by_key(|interface| interface.index);
    found.into_iter().next()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_by_its_address_however_it_is_called() {
        let class = tempfile::tempdir().unwrap();
        for (name, address, index) in [
            ("lo", "00:00:00:00:00:00", 1),
            ("enp0s5", "52:54:00:ab:cd:ef", 3),
            ("eth0", "52:54:00:00:00:01", 2),
        ] {
            let directory = class.path().join(name);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("address"), format!("{address}\n")).unwrap();
            fs::write(directory.join("ifindex"), format!("{index}\n")).unwrap();
        }
        let found = find(class.path(), "52:54:00:AB:CD:EF");
        assert_eq!(found, Some(Interface { name: "enp0s5".into(), index: 3 }));
        assert_eq!(find(class.path(), "52:54:00:00:00:02"), None);
        assert_eq!(find(Path::new("/nonexistent"), "52:54:00:00:00:01"), None);
    }

    #[test]
    fn leases_are_renewed_at_their_half_and_failures_tried_again_ever_more_seldom() {
        let after = |seconds| renewed_after(seconds).map(|pause| pause.as_secs());
        assert_eq!(
            [after(3600), after(120), after(1), after(0), after(u32::MAX)],
            [Some(1800), Some(60), Some(10), Some(10), None]
        );
        let seconds: Vec<u64> = (1..9).map(|failed| retried_after(failed).as_secs()).collect();
        assert_eq!(seconds, [2, 4, 8, 16, 32, 64, 64, 64]);
    }

    /// A network that waits for two, and where their names come from.
    pub fn awaited(until: Instant) -> (Network, io::PipeWriter) {
        let (news, tell) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&news, true).unwrap();
        let names = vec!["net0".into(), "net1".into()];
        let first = FirstLeases { news: news.into(), heard: Vec::new(), names, until };
        (Network { process: None, first: Some(first) }, tell)
    }

    fn missing(network: &mut Network, now: Instant) -> Option<String> {
        network.step(now).map(|said| match said {
            FromGuest::Notice { message } => message.split(" of the guest").next().unwrap().to_owned(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn who_has_no_lease_yet_is_named() {
        let names = ["net0".to_owned(), "net1".to_owned()];
        assert_eq!(without(&names, b"net0\n"), ["net1"]);
        assert_eq!(without(&names, b"net1\nnet0\n"), [""; 0]);
        // A line that has not come whole is none.
        assert_eq!(without(&names, b"net1\nnet0"), ["net0"]);
        assert_eq!(Network::default().step(Instant::now()), None);
        let now = Instant::now();
        let (mut late, _tell) = awaited(now);
        assert_eq!(missing(&mut late, now).as_deref(), Some("net0, net1"));
        assert!(!late.is_awaited());
    }

    #[test]
    fn news_are_heard_as_they_come_and_an_end_ends_the_wait() {
        let now = Instant::now();
        let (mut network, mut tell) = awaited(now + Duration::from_secs(600));
        tell.write_all(b"net1\nne").unwrap();
        assert_eq!(missing(&mut network, now), None);
        assert!(network.is_awaited());
        drop(tell);
        assert_eq!(missing(&mut network, now).as_deref(), Some("net0"));
        let (mut network, mut tell) = awaited(now + Duration::from_secs(600));
        tell.write_all(b"net1\nnet0\n").unwrap();
        assert_eq!(missing(&mut network, now), None);
        assert!(!network.is_awaited());
    }
}
