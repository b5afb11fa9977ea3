//! Errands in an emulated host that stays, which its keeper and the runs that join it have the vmprof inside do: `vmprof inside …`,
//! which nobody else calls.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::PathsInside;
use crate::args::Errand;
use crate::failure::Failure;
use crate::report::Report;
use crate::run::record;

/// How long a drive that was plugged in may take to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(60);
/// How long a run that nobody has any more may take to its end, before it is ended.
const GONE_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What is kept of boot files for runs to come: it lies in the host's memory. A kernel is 53 MB.
const CACHED_BYTES: u64 = 256 << 20;

/// What `prepare` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Those of the files asked for that are there.
    pub has: Vec<String>,
}

pub fn run(errand: &Errand, report: Report) -> Result<(), Failure> {
    let failed = |what: &str, error| Failure::os(format!("in the lab: {what}"), error);
    match errand {
        Errand::Stay => loop {
            thread::park();
        },
        Errand::Prepare { name, links, has } => {
            let prepared = prepare(name, links, has).map_err(|error| failed("the run's place", error))?;
            report.json(&prepared)
        }
        Errand::Relay { socket } => relay(socket).map_err(|error| failed("the way out", error)),
        Errand::Leave { name, slots } => {
            leave(Path::new(PathsInside::RUNTIME), name);
            // One whose drive has gone before is off already.
            for slot in slots {
                let _ = fs::write(format!("/sys/bus/pci/slots/{slot}/power"), "0");
            }
            let _ = fs::remove_dir_all(PathsInside::base_of(name));
            Ok(())
        }
    }
}

fn prepare(name: &str, links: &[String], wanted: &[String]) -> io::Result<Prepared> {
    for directory in [PathsInside::CACHE.to_owned(), PathsInside::base_of(name)] {
        fs::create_dir_all(directory)?;
    }
    for link in links {
        let (serial, path) = link.split_once('=').ok_or(io::ErrorKind::InvalidInput)?;
        let device = wait_for(Path::new("/sys/block"), serial)?;
        lead(&Path::new("/dev").join(device), Path::new(path))?;
    }
    // Of two at once, neither is told of files that the other removes: the second finds that it is not alone.
    let cache = fs::File::open(PathsInside::CACHE)?;
    cache.lock()?;
    if fs::read_dir(PathsInside::RUNS)?.count() <= 1 {
        // Nobody else boots from what lies there, or will once more.
        make_room(Path::new(PathsInside::CACHE), wanted, CACHED_BYTES)?;
    }
    let has = wanted.iter().filter(|path| Path::new(path).exists()).cloned().collect();
    Ok(Prepared { has })
}

/// Removes all but the wanted files where there are more bytes than that.
fn make_room(cache: &Path, wanted: &[String], most: u64) -> io::Result<()> {
    let entries = fs::read_dir(cache)?.collect::<io::Result<Vec<_>>>()?;
    let bytes = entries.iter().map(|entry| entry.metadata().map_or(0, |found| found.len())).sum::<u64>();
    if bytes <= most {
        return Ok(());
    }
    let is_wanted = |path: &Path| wanted.iter().any(|wanted| Path::new(wanted) == path);
    entries.iter().map(fs::DirEntry::path).filter(|path| !is_wanted(path)).try_for_each(fs::remove_file)
}

/// The name of the disk with that serial, once it is there.
fn wait_for(block: &Path, serial: &str) -> io::Result<String> {
    let end = Instant::now() + SEEN_WITHIN;
    loop {
        if let Some(found) = find(block, serial) {
            return Ok(found);
        }
        if Instant::now() >= end {
            return Err(io::Error::other(format!("no drive with the serial {serial} was seen")));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// An NVMe drive's serial is its controller's; a virtio disk's is its own.
fn find(block: &Path, serial: &str) -> Option<String> {
    let has = |path: PathBuf| fs::read_to_string(path).is_ok_and(|found| found.trim() == serial);
    fs::read_dir(block)
        .ok()?
        .flatten()
        .find(|entry| has(entry.path().join("device/serial")) || has(entry.path().join("serial")))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// A link to the device at `path`. One that leads nowhere any more was another run's.
fn lead(device: &Path, path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    if path.exists() {
        let path = path.display();
        let there = format!("{path} is there already: another run's disk, or a device of the lab's own");
        return Err(io::Error::other(there));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(device, path)
}

/// Prints what the one that connects says, to its end.
fn relay(socket: &Path) -> io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let mut out = io::stdout();
    // From here on there is something to connect to.
    out.write_all(b"\n")?;
    out.flush()?;
    let (connection, _) = listener.accept()?;
    let _ = fs::remove_file(socket);
    for line in BufReader::new(connection).split(b'\n') {
        out.write_all(&[line?, b"\n".to_vec()].concat())?;
        out.flush()?;
    }
    Ok(())
}

/// Returns once the run is over; one that takes too long is ended.
fn leave(runtime: &Path, name: &str) {
    let directory = runtime.join(name);
    let end = Instant::now() + GONE_WITHIN;
    let mut is_killed = false;
    while record::is_held(&directory) {
        if Instant::now() >= end && !is_killed {
            is_killed = true;
            let pid = record::read(&directory).and_then(|run| Pid::from_raw(run.pid as i32));
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_found_by_its_serial_whatever_it_is() {
        let keep = tempfile::tempdir().unwrap();
        for (name, file, serial) in
            [("nvme0n1", "device/serial", "place1-0            \n"), ("vda", "serial", "place1-1")]
        {
            let path = keep.path().join(name).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, serial).unwrap();
        }
        assert_eq!(find(keep.path(), "place1-0").as_deref(), Some("nvme0n1"));
        assert_eq!(find(keep.path(), "place1-1").as_deref(), Some("vda"));
        assert_eq!(find(keep.path(), "place1"), None);
    }

    #[test]
    fn room_is_made_where_it_is_needed_and_what_is_wanted_stays() {
        let keep = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            fs::write(keep.path().join(name), [0; 10]).unwrap();
        }
        let wanted = [keep.path().join("b").to_string_lossy().into_owned()];
        make_room(keep.path(), &wanted, 20).unwrap();
        assert!(keep.path().join("a").exists());
        make_room(keep.path(), &wanted, 19).unwrap();
        assert!(!keep.path().join("a").exists() && keep.path().join("b").exists());
    }

    #[test]
    fn a_link_takes_a_dead_ones_place_and_never_a_live_ones() {
        let keep = tempfile::tempdir().unwrap();
        let (device, path) = (keep.path().join("nvme0n1"), keep.path().join("deep/data.raw"));
        lead(&device, &path).unwrap();
        lead(&device, &path).unwrap();
        fs::write(&device, "").unwrap();
        assert!(lead(&device, &path).unwrap_err().to_string().contains("is there already"));
    }
}
