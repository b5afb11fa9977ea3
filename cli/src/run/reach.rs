//! The way to the agent of a running VM's guest: the Unix socket of its virtio-vsock, and for a VM in the lab first that of the
//! emulated host, whose own agent leads on to the vmprof inside.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use vmprof_job::agent::{Answer, Ask, Kind, PORT, Stream, VERSION, What};

use super::control::AskError;
use super::record;
use super::sockets::{self, VSOCK};
use crate::failure::{Failure, Kind as FailureKind};
use crate::lab::PathsInside;
use crate::places::Places;

/// A guest that runs answers at once; one whose host has much to do takes its time.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A connection to the agent of the guest of the running VM `name`.
pub fn guest(places: &Places, name: &str) -> Result<Stream<UnixStream>, Failure> {
    let stream = socket(places, name, VSOCK)?;
    greet(&stream).map_err(|source| unreached(name, source))?;
    Ok(Stream::new(stream))
}

/// A connection to this socket of the running VM `name`; in the lab it is that of the vmprof inside.
pub fn socket(places: &Places, name: &str, socket: &str) -> Result<UnixStream, Failure> {
    let run = record::find(places, name)?;
    let failed = |source| unreached(name, source);
    if run.on != "lab" {
        return sockets::connect(&places.run_of(name), socket).map_err(failed);
    }
    let mut stream = machine(places, name)?;
    let inside = Path::new(PathsInside::RUNTIME).join(run.inside.as_deref().unwrap_or(name)).join(socket);
    let lead_on = What::Connect { path: inside.as_path().into() };
    stream.get_ref().set_read_timeout(Some(ANSWER_WITHIN)).map_err(failed)?;
    match ask(&mut stream, lead_on).map_err(failed)? {
        Answer::Begun => {}
        // The machine inside is not there yet, or no more.
        _ => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
    }
    stream.get_ref().set_read_timeout(None).map_err(failed)?;
    Ok(stream.into_inner())
}

/// A connection to the agent of the machine which the run itself holds: in the lab the emulated host.
pub fn machine(places: &Places, name: &str) -> Result<Stream<UnixStream>, Failure> {
    host(&places.run_of(name)).map_err(|source| unreached(name, source))
}

/// The same for the machine whose socket lies in this directory.
pub fn host(directory: &Path) -> io::Result<Stream<UnixStream>> {
    let stream = sockets::connect(directory, VSOCK)?;
    greet(&stream)?;
    Ok(Stream::new(stream))
}

/// Asks the agent at the other end, and reads its answer.
pub fn ask(stream: &mut Stream<UnixStream>, what: What) -> io::Result<Answer> {
    stream.write_json(Kind::Ask, &Ask { version: VERSION, what })?;
    answer(stream)
}

/// The next frame, which has to be an answer.
pub fn answer(stream: &mut Stream<UnixStream>) -> io::Result<Answer> {
    let frame = stream.expect()?;
    if frame.kind != Kind::Answer {
        return Err(io::ErrorKind::InvalidData.into());
    }
    frame.json()
}

/// Asks for the agent's port. The answer is read to its last byte, and no further: what follows is the agent's.
fn greet(mut stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    stream.set_read_timeout(None)?;
    if line.starts_with(b"OK ") { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn unreached(name: &str, source: io::Error) -> Failure {
    let (message, help) = match source.kind() {
        io::ErrorKind::NotFound => return AskError::NotYet { name: name.to_owned() }.into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => (
            format!("the guest of `{name}` does not answer"),
            "a VM that is paused answers once `vmprof resume` lets it go on; `vmprof logs` and its console show what it does",
        ),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => (
            format!("the guest of `{name}` takes no commands"),
            "it takes them once it has its disks, and until it powers off (`vmprof up --detach --wait` waits until it is ready); \
             a kernel without virtio-vsock never does",
        ),
        _ => return Failure::os(format!("the guest of `{name}` cannot be reached"), source),
    };
    Failure::said(FailureKind::Failure, "vmprof::run::no_agent", message, help)
}

/// The connection ended before what it was for.
pub fn lost(name: &str, source: &io::Error) -> Failure {
    let message = format!("the connection to the guest of `{name}` was lost: {source}");
    let help = "the guest or its VM ended, or was paused for good; `vmprof ps` and `vmprof logs` say more";
    Failure::said(FailureKind::Failure, "vmprof::run::connection_lost", message, help)
}

const REFUSED: &str = "vmprof::run::guest_refused";

/// The agent would not.
pub fn refused(message: String) -> Failure {
    Failure::said(FailureKind::Failure, REFUSED, message, "")
}

pub fn is_refused(failure: &Failure) -> bool {
    failure.problem.code().is_some_and(|code| code.to_string() == REFUSED)
}
