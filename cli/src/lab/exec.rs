//! Commands in the emulated host, by way of its agent.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vmprof_job::agent::{Answer, Exec, Kind, Stream, What};
use vmprof_job::{Bytes, Ended};

use crate::run::reach;

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    pub status: Ended,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Ran {
    /// What it printed; an error: it failed, in its own words.
    pub fn printed(self) -> io::Result<Vec<u8>> {
        match self.status {
            Ended::Exited(0) => Ok(self.stdout),
            _ => Err(io::Error::other(String::from_utf8_lossy(&self.stderr).trim().to_owned())),
        }
    }
}

pub fn command(argv: Vec<Bytes>, env: Vec<(Bytes, Bytes)>) -> What {
    What::Exec(Exec { argv, env, directory: Some("/".into()), user: None, terminal: None })
}

/// Begins it in the host whose sockets lie in `directory`: its frames come over the connection. `within` is how long that may be
/// silent, from the request on.
pub fn begin(directory: &Path, what: What, within: Option<Duration>) -> io::Result<Stream<UnixStream>> {
    let mut stream = reach::host(directory)?;
    stream.get_ref().set_read_timeout(within)?;
    match reach::ask(&mut stream, what)? {
        Answer::Begun => Ok(stream),
        Answer::Refused(why) => Err(io::Error::other(why)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Runs it to its end, without input, in the host whose sockets lie in `directory`. `within` is how long it may be silent.
pub fn run(directory: &Path, argv: Vec<Bytes>, within: Duration) -> io::Result<Ran> {
    let mut stream = begin(directory, command(argv, Vec::new()), Some(within))?;
    stream.write(Kind::InputEnded, &[])?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        let frame = stream.expect()?;
        match frame.kind {
            Kind::Output => stdout.extend_from_slice(frame.payload),
            Kind::Errors => stderr.extend_from_slice(frame.payload),
            Kind::Taken => {}
            Kind::Ended => {
                let status = frame.json()?;
                let _ = stream.get_ref().shutdown(Shutdown::Both);
                return Ok(Ran { status, stdout, stderr });
            }
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
