//! The way between passt, which runs beside the `up` that the user called, and the machine in the emulated host: the vmprof
//! inside listens at a socket of its run's record, and the one outside reaches that by way of the host's agent, as verbs do.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use super::passt;
use crate::places::Places;
use crate::run::conversation::Event;
use crate::run::reach;

/// The vmprof inside listens once it has planned: seconds after its host's first word.
const ASKED_AGAIN: Duration = Duration::from_millis(200);
/// As much as a stream of sockets takes at once.
const BUFFER_BYTES: usize = 128 << 10;

/// Name of the socket in the record of the run inside.
pub fn socket(device: &str) -> String {
    format!("{device}.sock")
}

/// All of a run's. What comes back is to be kept to its end.
pub fn carry_all(
    passts: Vec<passt::Running>,
    places: &Places,
    name: &str,
    events: &Sender<Event>,
) -> io::Result<Vec<passt::Carrying>> {
    let carry_one = |running: passt::Running| {
        let device = running.device().to_owned();
        let (socket, carrying) = running.carry(events.clone())?;
        carry(places, name, &device, socket, carrying.expect_end())?;
        Ok(carrying)
    };
    passts.into_iter().map(carry_one).collect()
}

/// Reaches the machine of the run `name` as soon as that can be, and carries bytes both ways until one side ends. From then on
/// passt's end is no news, which `is_ending` says to whoever waits for it.
fn carry(
    places: &Places,
    name: &str,
    device: &str,
    passt: OwnedFd,
    is_ending: Arc<AtomicBool>,
) -> io::Result<()> {
    let (places, name, socket) = (places.clone(), name.to_owned(), socket(device));
    let passt = UnixStream::from(passt);
    thread::Builder::new().name(device.to_owned()).spawn(move || {
        let machine = loop {
            if is_ending.load(Ordering::Acquire) {
                return;
            }
            match reach::socket(&places, &name, &socket) {
                Ok(stream) => break stream,
                Err(_) => thread::sleep(ASKED_AGAIN),
            }
        };
        // What fails here is the end of the one side or of the other, each of which is told elsewhere.
        let _ = both_ways(&passt, &machine, &is_ending);
    })?;
    Ok(())
}

fn both_ways(passt: &UnixStream, machine: &UnixStream, is_ending: &AtomicBool) -> io::Result<()> {
    let has_passt_ended = AtomicBool::new(false);
    thread::scope(|scope| {
        thread::Builder::new().name("frames out".into()).spawn_scoped(scope, || {
            let machine_ended = copy(machine, passt).is_ok();
            if machine_ended && !has_passt_ended.load(Ordering::Acquire) {
                is_ending.store(true, Ordering::Release);
            }
            end(passt, machine);
        })?;
        let _ = copy(passt, machine);
        has_passt_ended.store(true, Ordering::Release);
        end(passt, machine);
        Ok(())
    })
}

fn end(passt: &UnixStream, machine: &UnixStream) {
    // Who has ended already is told nothing new.
    let _ = passt.shutdown(Shutdown::Both);
    let _ = machine.shutdown(Shutdown::Both);
}

fn copy(mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_both_ways_and_the_end_of_either_side_ends_both() {
        for machine_ends in [true, false] {
            let ((mut passt, passts), (mut machine, machines)) =
                (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
            let is_ending = AtomicBool::new(false);
            thread::scope(|scope| {
                let carried = scope.spawn(|| both_ways(&passts, &machines, &is_ending));
                passt.write_all(b"in").unwrap();
                machine.write_all(b"out").unwrap();
                let (mut inward, mut outward) = ([0; 2], [0; 3]);
                machine.read_exact(&mut inward).unwrap();
                passt.read_exact(&mut outward).unwrap();
                assert_eq!((&inward, &outward), (b"in", b"out"));
                let (first, mut other) = if machine_ends { (machine, passt) } else { (passt, machine) };
                drop(first);
                assert_eq!(other.read(&mut [0]).unwrap(), 0);
                carried.join().unwrap().unwrap();
                assert_eq!(is_ending.load(Ordering::Acquire), machine_ends);
            });
        }
    }
}
