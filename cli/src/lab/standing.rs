//! The lab that stays: where it is found, and what is said to its keeper. Below its directory lie `lock`, held by the keeper for
//! as long as the emulated host lives; `lab.json`, which says what host that is; `lab.sock`, where its keeper is asked, a
//! line of JSON each way; and `vsock.sock`, which leads to the host's agent.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Media, Shape};
use crate::run::record;
use crate::run::sockets::{self, VSOCK};

/// Where the keeper is asked.
pub const SOCKET: &str = "lab.sock";
const FACTS: &str = "lab.json";
const FACTS_SCHEMA: &str = "vmprof.lab/1";
/// The longest line: some paths of drives.
const LINE_BYTES: u64 = 1 << 20;
/// What is joined may have to wait until a run of the same disks has let go of them.
const ANSWER_WITHIN: Duration = Duration::from_secs(180);

/// What the host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub schema: String,
    /// Of its keeper.
    pub pid: u32,
    /// As `--lab` takes it.
    pub shape: String,
    /// QEMU's version.
    pub emulator: String,
    /// What `uname -r` prints in it.
    pub kernel: String,
    /// Seconds since the epoch.
    pub started: u64,
    /// Nobody joins any more, and those who have are being stopped.
    #[serde(default)]
    pub is_stopping: bool,
}

impl Facts {
    pub fn new(shape: &Shape, emulator: &str, kernel: &str, started: u64) -> Facts {
        let (shape, emulator, kernel) = (shape.to_string(), emulator.to_owned(), kernel.to_owned());
        let (schema, pid) = (FACTS_SCHEMA.to_owned(), std::process::id());
        Facts { schema, pid, shape, emulator, kernel, started, is_stopping: false }
    }

    /// Has them found in this directory, whose lock this process holds.
    pub fn publish(&self, directory: &Path) -> io::Result<()> {
        let new = directory.join("lab.json.new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&new, directory.join(FACTS))
    }
}

/// What a keeper can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// A place for a run, for as long as this connection is open.
    Join(Join),
    /// Who has one.
    Runs,
    /// Have all of them stop, and end.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    pub name: String,
    pub drives: Vec<Wanted>,
}

/// A drive to be plugged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub media: Media,
    pub read_only: bool,
    /// As an NVMe drive; otherwise as a virtio disk.
    pub is_nvme: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    Joined(Joined),
    Runs(Vec<Tenant>),
    /// The connection ends with the lab.
    Stopping,
    Refused(String),
}

/// A place in the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// What the run is called inside: its own name, unless another's run has that.
    pub name: String,
    /// Of its drives, by which they are found inside.
    pub serials: Vec<String>,
}

/// A run that has a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    pub name: String,
    pub pid: u32,
    /// It has ended, and its drives are being pulled.
    pub is_leaving: bool,
}

/// A lab that is there.
#[derive(Debug, Clone)]
pub struct Standing {
    pub directory: PathBuf,
    pub facts: Facts,
}

impl Standing {
    /// The lab of that directory; `None`: there is none, or it is not up yet.
    pub fn find(directory: &Path) -> Option<Standing> {
        if !record::is_held(directory) {
            return None;
        }
        let facts: Facts = serde_json::from_slice(&fs::read(directory.join(FACTS)).ok()?).ok()?;
        (facts.schema == FACTS_SCHEMA).then(|| Standing { directory: directory.to_owned(), facts })
    }

    /// Asks its keeper. The connection is what a place in the lab lasts for.
    pub fn ask(&self, asked: &Asked) -> io::Result<(Said, UnixStream)> {
        let mut stream = sockets::connect(&self.directory, SOCKET)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(&vmprof_job::line(asked))?;
        let said = read_line(&stream)?;
        stream.set_read_timeout(None)?;
        Ok((said, stream))
    }

    pub fn vsock(&self) -> PathBuf {
        self.directory.join(VSOCK)
    }
}

/// A line of JSON, and none of what follows it.
pub fn read_line<T: serde::de::DeserializeOwned>(stream: &UnixStream) -> io::Result<T> {
    let mut line = Vec::new();
    // Whoever writes waits for an answer: nothing follows.
    BufReader::new(stream).take(LINE_BYTES).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&line).map_err(io::Error::from)
}

/// The keeper's own side of the directory. Dropped, what lies there goes.
#[derive(Debug)]
pub struct OwnLab {
    directory: PathBuf,
    _lock: File,
}

impl OwnLab {
    /// Takes the directory; `None`: another keeper has it.
    pub fn take(directory: &Path) -> io::Result<Option<OwnLab>> {
        // Whoever reaches the sockets in it has all guests.
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let lock = File::options().create(true).truncate(false).write(true).open(directory.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let own = OwnLab { directory: directory.to_owned(), _lock: lock };
        own.sweep();
        Ok(Some(own))
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// All but the lock, which the next one takes.
    fn sweep(&self) {
        for name in [FACTS, SOCKET, VSOCK] {
            // What is not there need not go.
            let _ = fs::remove_file(self.directory.join(name));
        }
    }
}

impl Drop for OwnLab {
    fn drop(&mut self) {
        self.sweep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_found_while_its_keeper_lives_and_has_published_it() {
        let keep = tempfile::tempdir().unwrap();
        let directory = keep.path().join("lab");
        assert!(Standing::find(&directory).is_none());
        let kept = OwnLab::take(&directory).unwrap().unwrap();
        assert!(Standing::find(&directory).is_none(), "not up yet");
        let facts = Facts::new(&Shape::default(), "11.1", "6.1", 7);
        facts.publish(kept.directory()).unwrap();
        assert_eq!(Standing::find(&directory).unwrap().facts, facts);
        assert!(OwnLab::take(&directory).unwrap().is_none(), "one keeper");
        let stopping = Facts { is_stopping: true, ..facts.clone() };
        stopping.publish(kept.directory()).unwrap();
        assert_eq!(Standing::find(&directory).unwrap().facts, stopping);
        drop(kept);
        assert!(Standing::find(&directory).is_none());
        // One that was killed leaves its files, and they are nobody's.
        fs::write(directory.join(FACTS), serde_json::to_vec(&facts).unwrap()).unwrap();
        assert!(Standing::find(&directory).is_none());
        OwnLab::take(&directory).unwrap().unwrap();
        assert!(!directory.join(FACTS).exists());
    }

    #[test]
    fn what_is_said_survives_the_line_it_travels_in() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let media = Media::File("/a \"b\"\n.raw".into());
        let join = Asked::Join(Join {
            name: "db".into(),
            drives: vec![Wanted { media, read_only: true, is_nvme: false }],
        });
        theirs.write_all(&vmprof_job::line(&join)).unwrap();
        assert_eq!(read_line::<Asked>(&ours).unwrap(), join);
        drop(theirs);
        assert_eq!(read_line::<Asked>(&ours).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
