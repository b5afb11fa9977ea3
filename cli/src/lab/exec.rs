//! Commands in the emulated host, by way of its agent.

use std::io;
use std::net::Shutdown;
use std::path::Path;
use std::time::Duration;

use vmprof_job::agent::{Answer, Exec, Kind, What};
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

/// Runs it to its end, without input, in the host whose sockets lie in `directory`. `within` is how long it may be silent.
pub fn run(directory: &Path, argv: Vec<Bytes>, within: Duration) -> io::Result<Ran> {
    let mut stream = reach::host(directory)?;
    stream.get_ref().set_read_timeout(Some(within))?;
    match reach::ask(&mut stream, command(argv, Vec::new()))? {
        Answer::Begun => {}
        Answer::Refused(why) => return Err(io::Error::other(why)),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
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
