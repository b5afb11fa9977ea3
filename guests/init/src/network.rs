//! Network devices: found by their hardware addresses, brought up, and kept in a lease of DHCP for as long as the guest runs.
//!
//! A process beside the supervisor sees to it, with a thread a device. Each lease is kept by a process of its own
//! (`lease.rs`): what a server answers is read there and nowhere else, and it hears the network only while it asks, so that no
//! packet of the guest's passes by anybody who waits for DHCP's. Where names are asked is of all leases, and so it is written here.

mod lease;
mod settings;

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use vmprof_job::{FromGuest, Net};

use crate::boot::DEVICE_WAIT;
use crate::wait::{Wait, until_there};
use crate::{kmsg, netlink};

pub(crate) use lease::keep as keep_lease;
use settings::Names;

/// First argument of the program in this role; the others are the devices, each as `NAME=ADDRESS`.
pub(crate) const WORD: &str = "network";
/// First argument of a process that keeps one lease; then come the device, its interface, the index and the metric of its routes.
pub(crate) const LEASE_WORD: &str = "lease";
const OURSELVES: &str = "/proc/self/exe";

/// How long the start of the guest's work waits for its network: a device whose network has no server must not hold it up.
const FIRST_LEASE: Duration = Duration::from_secs(10);
/// Routes of the first device go before those of the next.
const FIRST_METRIC: u32 = 100;
/// Of what a process says of its lease; an Ethernet frame has no more nameservers than that.
const LONGEST_LINE: u64 = 16 << 10;

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
    // A handler, and not SIG_IGN, which the processes that keep leases would inherit.
    let _ = signal_hook::flag::register(Signal::TERM.as_raw(), Arc::default());
    let nets: Vec<_> = arguments.iter().filter_map(|word| word.to_str()?.split_once('=')).collect();
    let leased = Arc::new(Leased(Mutex::new(vec![None; nets.len()])));
    let threads: Vec<_> = nets
        .into_iter()
        .enumerate()
        .filter_map(|(position, (name, mac))| {
            let (name, mac, leased) = (name.to_owned(), mac.to_owned(), leased.clone());
            thread::Builder::new().name(name.clone()).spawn(move || keep(&name, &mac, position, &leased)).ok()
        })
        .collect();
    threads.into_iter().for_each(|thread| drop(thread.join()));
    ExitCode::SUCCESS
}

/// What the leases say of names, in the devices' order. The threads of the devices meet there, to write one file.
#[derive(Debug)]
struct Leased(Mutex<Vec<Option<Names>>>);

impl Leased {
    fn change(&self, position: usize, names: Option<Names>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = all.get_mut(position) {
            *place = names;
        }
        if let Err(problem) = settings::resolve(&all) {
            kmsg::note(problem);
        }
    }
}

/// Sees to one device for ever.
fn keep(name: &str, mac: &str, position: usize, leased: &Leased) {
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
    let metric = FIRST_METRIC.saturating_add(u32::try_from(position).unwrap_or(u32::MAX));
    let mut has_told = false;
    let mut failed = 0;
    loop {
        let outcome = lease(name, &interface, metric, |names| {
            failed = 0;
            let is_first = names.is_some() && !std::mem::replace(&mut has_told, true);
            leased.change(position, names);
            if is_first {
                // Whoever waited may have stopped to wait.
                let mut out = io::stdout().lock();
                let _ = writeln!(out, "{name}").and_then(|()| out.flush());
            }
        });
        let Err(problem) = outcome else { return };
        if failed == 0 {
            kmsg::note(format_args!("{name} ({}): nobody keeps its lease: {problem}", interface.name));
        }
        failed += 1;
        thread::sleep(retried_after(failed));
    }
}

/// A process keeps a lease, of which it tells `hear`, until it has one without an end. The error is that it failed.
fn lease(
    name: &str,
    interface: &Interface,
    metric: u32,
    mut hear: impl FnMut(Option<Names>),
) -> Result<(), String> {
    let mut command = Command::new(OURSELVES);
    command.arg0("vmprof-lease").args([LEASE_WORD, name, &interface.name]);
    command.args([interface.index.to_string(), metric.to_string()]).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut out = child.stdout.take().map(BufReader::new);
    let mut line = Vec::new();
    while let Some(out) = &mut out {
        line.clear();
        match out.take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(1..) => {}
            // Its end, which says more.
            Ok(0) | Err(_) => break,
        }
        if let Some(names) = settings::told(&line) {
            hear(names);
        }
    }
    drop(out);
    // A few words, which fit into its pipe.
    let mut problem = String::new();
    if let Some(stream) = child.stderr.take() {
        let _ = stream.take(512).read_to_string(&mut problem);
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    match problem.trim() {
        _ if status.success() => Ok(()),
        "" => Err(status.to_string()),
        problem => Err(problem.to_owned()),
    }
}

/// Sooner at first: what it failed at may be there soon.
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
