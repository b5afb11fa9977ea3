//! The four channels between a run and the first process inside, as pairs of stream sockets: one end for the machine,
//! which must never block on it, and one for us, which may.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vmprof_job::port;

/// Our ends.
#[derive(Debug)]
pub struct Channels {
    pub control: UnixStream,
    pub stdin: UnixStream,
    pub stdout: UnixStream,
    pub stderr: UnixStream,
}

/// A machine's end of a channel, and the port's name that the first process looks for.
#[derive(Debug)]
pub struct PortEnd {
    pub port: &'static str,
    pub stream: OwnedFd,
}

/// Opens all four. The order of the machine's ends is the order of the ports.
pub fn open() -> io::Result<(Channels, Vec<PortEnd>)> {
    let mut ends = Vec::new();
    let mut channel = |port| -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        ends.push(PortEnd { port, stream: theirs.into() });
        Ok(ours)
    };
    let channels = Channels {
        control: channel(port::CONTROL)?,
        stdin: channel(port::STDIN)?,
        stdout: channel(port::STDOUT)?,
        stderr: channel(port::STDERR)?,
    };
    Ok((channels, ends))
}
