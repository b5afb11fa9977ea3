//! How far a run in the lab is and what happens to it, said by the vmprof inside to the one outside: a state's word or a
//! happening's JSON a line, over a port of its own of the emulated host. The one outside sees a command run there, and not what the guest in it is at.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::channels::PortEnd;
use super::conversation::Event;
use super::events::Happening;
use super::record::State;

/// The port's name, as /sys/class/virtio-ports/*/name shows it inside.
const PORT: &str = "vmprof.state";

/// The side inside.
#[derive(Debug)]
pub struct Relay {
    /// A port of the emulated host's, or a connection.
    port: File,
    /// For which the port had no room.
    unsent: Vec<u8>,
}

/// How long what is left may take at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Relay {
    /// Opens the port that the lab has for it, or connects to that socket. Without one there is nobody to tell.
    pub fn open(socket: Option<&Path>) -> Option<Relay> {
        if let Some(socket) = socket {
            let stream = UnixStream::connect(socket).ok()?;
            stream.set_nonblocking(true).ok()?;
            return Some(Relay { port: File::from(OwnedFd::from(stream)), unsent: Vec::new() });
        }
        Relay::find("/sys/class/virtio-ports".as_ref(), "/dev".as_ref())
    }

    fn find(class: &Path, devices: &Path) -> Option<Relay> {
        let is_ours = |port: &fs::DirEntry| {
            fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim_end() == PORT)
        };
        let port = fs::read_dir(class).ok()?.flatten().find(is_ours)?;
        // A run waits for nobody who listens to it.
        let flags = OFlags::NONBLOCK.bits() as i32;
        let port = OpenOptions::new().write(true).custom_flags(flags).open(devices.join(port.file_name()));
        port.ok().map(|port| Relay { port, unsent: Vec::new() })
    }

    pub fn tell(&mut self, state: State) {
        self.unsent.extend(format!("{}\n", state.word()).as_bytes());
        self.send();
    }

    pub fn say(&mut self, happening: &Happening) {
        self.unsent.extend(vmprof_job::line(happening));
        self.send();
    }

    /// As much as there is room for.
    fn send(&mut self) {
        while !self.unsent.is_empty() {
            match self.port.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // Nobody is there any more: nothing of the run depends on it.
                Err(_) => self.unsent.clear(),
            }
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let end = Instant::now() + LAST_WORDS;
        self.send();
        while !self.unsent.is_empty() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
            self.send();
        }
    }
}

/// The side outside: the machine's end of the port, and ours, to be listened to.
pub fn open() -> io::Result<(UnixStream, PortEnd)> {
    let (ours, theirs) = UnixStream::pair()?;
    theirs.set_nonblocking(true)?;
    Ok((ours, PortEnd { port: PORT, stream: OwnedFd::from(theirs) }))
}

/// Hears until the machine ends.
pub fn listen(from: impl Read + Send + 'static, events: Sender<Event>) -> io::Result<()> {
    thread::Builder::new().name("state inside".into()).spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            // The one inside is this same program: it says nothing else.
            let state = std::str::from_utf8(&line).ok().and_then(State::from_word).map(Event::InsideIsAt);
            let event = state.or_else(|| serde_json::from_slice(&line).ok().map(Event::InsideSays));
            if let Some(event) = event
                && events.send(event).is_err()
            {
                return;
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn the_relays_port_is_found_by_its_name_among_others() {
        let keep = tempfile::tempdir().unwrap();
        let (class, devices) = (keep.path().join("class"), keep.path().join("dev"));
        fs::create_dir_all(&devices).unwrap();
        assert!(Relay::find(&class, &devices).is_none(), "no lab");
        for (device, name) in [("vport1p1", "vmprof.control\n"), ("vport1p5", "vmprof.state\n")] {
            fs::create_dir_all(class.join(device)).unwrap();
            fs::write(class.join(device).join("name"), name).unwrap();
            fs::write(devices.join(device), "").unwrap();
        }
        let mut relay = Relay::find(&class, &devices).unwrap();
        relay.tell(State::Serving);
        relay.tell(State::Stopping);
        let told = |device: &str| fs::read_to_string(devices.join(device)).unwrap();
        assert_eq!((told("vport1p5").as_str(), told("vport1p1").as_str()), ("serving\nstopping\n", ""));
    }

    #[test]
    fn what_is_told_inside_is_heard_outside_and_nonsense_is_not() {
        let (ours, end) = open().unwrap();
        let (events, heard) = mpsc::channel();
        listen(ours, events).unwrap();
        let mut inside = File::from(end.stream);
        inside.write_all(b"running\nresting\n\xff\n{\"event\":\"unheard\"}\nser").unwrap();
        inside.write_all(b"ving\n").unwrap();
        inside.write_all(&vmprof_job::line(&Happening::Resumed)).unwrap();
        drop(inside);
        let states: Vec<String> = heard.iter().map(|event| format!("{event:?}")).collect();
        assert_eq!(states, ["InsideIsAt(Running)", "InsideIsAt(Serving)", "InsideSays(Resumed)"]);
    }
}
