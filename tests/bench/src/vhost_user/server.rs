//! A server of the disk in a process of its own, pinned, from its start to its end.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use vmprof_sys::affinity;

use super::connection::Connection;
use crate::error::{Doing as _, Error};

/// A server that is not there by then does not come.
const UP: Duration = Duration::from_secs(20);
const DOWN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    socket: PathBuf,
    /// What it said, for when it fails.
    said: PathBuf,
    _directory: tempfile::TempDir,
}

impl Server {
    /// Starts what `command` makes of a socket's path, on `cpu`.
    pub fn start(name: &str, cpu: u32, command: impl FnOnce(&Path) -> Command) -> Result<Server, Error> {
        let doing = || format!("{name} could not be started");
        let directory = tempfile::tempdir().doing(doing)?;
        let (socket, said) = (directory.path().join("socket"), directory.path().join("said"));
        let mut command = command(&socket);
        let output = File::create(&said).doing(doing)?;
        command.stdin(Stdio::null()).stdout(output.try_clone().doing(doing)?).stderr(output);
        // A child has the CPUs of the thread that starts it.
        let spawn = || affinity::pin_current_thread(&[cpu]).and_then(|()| command.spawn());
        let spawned = std::thread::scope(|scope| scope.spawn(spawn).join());
        let child = spawned.map_err(|_| Error::Asked(doing()))?.doing(doing)?;
        Ok(Server { name: name.to_owned(), child, socket, said, _directory: directory })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects as soon as it listens.
    pub fn connect(&mut self, queues: u16, data_bytes: usize) -> Result<Connection, Error> {
        let begun = Instant::now();
        loop {
            let attempt = Connection::new(&self.socket, queues, data_bytes);
            let failed = match attempt {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > UP {
                let said = std::fs::read_to_string(&self.said).unwrap_or_default();
                let status = ended.map_or_else(String::new, |status| format!(" ({status})"));
                let why = format!("{failed}{status}\n{}", said.trim_end());
                return Err(Error::Server { server: self.name.clone(), why });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            // One that has ended by itself is still ours to wait for.
            let _ = kill_process(pid, Signal::TERM);
        }
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > DOWN {
                eprintln!("{} does not end and is killed", self.name);
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
