//! What serves `vmprof exec` and `vmprof cp`: a process of its own beside the supervisor, which so has nothing to wait for.
//! It listens on virtio-vsock, for the host alone, and serves each connection on threads of its own. What travels there is
//! told in `vmprof_job::agent`.

mod exec;
mod files;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use vmprof_job::Bytes;
use vmprof_job::agent::{Answer, Ask, Kind, PORT, Stream, VERSION, What};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

use crate::command::Surroundings;
use crate::{kmsg, power};

/// First argument of the program in this role, and then the directory where commands run; for nobody else.
pub(crate) const WORD: &str = "agent";
const OURSELVES: &str = "/proc/self/exe";

/// Starts it. From here on connections wait for it, so that a guest that is ready can be reached. A guest without it runs all
/// the same, and says so once, in its kernel's log.
pub(crate) fn start(surroundings: &Surroundings) -> Agent {
    let started = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, PORT).and_then(|listener| {
        let mut command = Command::new(OURSELVES);
        command.arg0("vmprof-agent").arg(WORD).arg(&surroundings.directory).env_clear();
        command.envs(surroundings.environment.iter().map(|(name, value)| (name, value)));
        // Reaped with all others.
        command.current_dir("/").stdin(OwnedFd::from(listener)).spawn()
    });
    if let Err(error) = &started {
        kmsg::note(format_args!("exec and cp do not reach this guest, which has no vsock: {error}"));
    }
    Agent { process: started.ok().map(|child| Pid::from_child(&child)) }
}

/// One that was started.
#[derive(Debug)]
pub(crate) struct Agent {
    process: Option<Pid>,
}

impl Agent {
    /// Signals everything in the guest. SIGKILL passes it by: what a command made is fetched when that has been killed.
    pub(crate) fn signal_everything(&self, signal: Signal) {
        match self.process {
            Some(process) if signal == Signal::KILL => power::kill_everything_but(process),
            _ => power::signal_everything(signal),
        }
    }

    /// Nobody needs it any more. A clean stop passes it by until then, so that what a command left can be fetched.
    pub(crate) fn end(self) {
        if let Some(process) = self.process {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

/// The whole role. Its standard input is the socket at which it listens.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    kmsg::open();
    let directory = arguments.first().map_or_else(|| PathBuf::from("/"), PathBuf::from);
    let surroundings = Surroundings { environment: std::env::vars_os().collect(), directory };
    // A handler, and not SIG_IGN, which commands would inherit.
    let _ = signal_hook::flag::register(Signal::TERM.as_raw(), Arc::default());
    let listener = match take_listener() {
        Ok(listener) => listener,
        Err(error) => {
            kmsg::error(format_args!("exec and cp do not reach this guest: {error}"));
            return ExitCode::FAILURE;
        }
    };
    loop {
        let served = listener.accept().and_then(|(connection, peer)| {
            // What comes from within the guest, by way of its loopback, may be anybody.
            if peer.cid() != VMADDR_CID_HOST {
                return Ok(());
            }
            let surroundings = surroundings.clone();
            let serve = move || {
                // Whoever asked is gone.
                let _ = serve(connection, &surroundings);
            };
            thread::Builder::new().name("request".into()).spawn(serve).map(drop)
        });
        if served.is_err() {
            // Out of memory or descriptors: whoever asked sees the connection close.
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn take_listener() -> io::Result<VsockListener> {
    let listener = rustix::stdio::stdin().try_clone_to_owned()?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(VsockListener::from(listener))
}

/// One connection, from its request to its end.
fn serve(connection: VsockStream, surroundings: &Surroundings) -> io::Result<()> {
    let mut stream = Stream::new(connection);
    let frame = stream.expect()?;
    let ask = (frame.kind == Kind::Ask).then(|| frame.json::<Ask>());
    let refused = match ask {
        Some(Ok(Ask { version: VERSION, what })) => return obey(stream, what, surroundings),
        Some(Ok(Ask { version, .. })) => format!("version {version} is not {VERSION}, which this guest has"),
        Some(Err(error)) => format!("no request that this guest knows: {error}"),
        None => "no request".to_owned(),
    };
    stream.write_json(Kind::Answer, &Answer::Refused(refused))
}

fn obey(mut stream: Stream<VsockStream>, what: What, surroundings: &Surroundings) -> io::Result<()> {
    match what {
        What::Exec(asked) => exec::run(stream, &asked, surroundings),
        What::Fetch { path } => files::fetch(&mut stream, &surroundings.resolve(&path)),
        What::Store { path, item } => files::store(&mut stream, surroundings.resolve(&path), &item),
        What::Connect { path } => {
            let path = surroundings.resolve(&path);
            match UnixStream::connect(&path) {
                Ok(socket) => {
                    stream.write_json(Kind::Answer, &Answer::Begun)?;
                    connect(stream.into_inner(), socket)
                }
                Err(error) => {
                    let refused = format!("{} cannot be connected to: {error}", path.display());
                    stream.write_json(Kind::Answer, &Answer::Refused(refused))
                }
            }
        }
    }
}

impl Surroundings {
    /// A path as a command would have it.
    fn resolve(&self, path: &Bytes) -> PathBuf {
        self.directory.join(Path::new(OsStr::from_bytes(path.as_bytes())))
    }
}

/// Carries bytes both ways, each until its end.
fn connect(connection: VsockStream, socket: UnixStream) -> io::Result<()> {
    let (mut from_host, mut to_socket) = (connection.try_clone()?, socket.try_clone()?);
    let inward = thread::Builder::new().name("inward".into()).spawn(move || {
        let _ = carry(&mut from_host, &mut to_socket);
        let _ = to_socket.shutdown(Shutdown::Write);
    })?;
    let (mut from_socket, mut to_host) = (socket, connection);
    let _ = carry(&mut from_socket, &mut to_host);
    let _ = to_host.shutdown(Shutdown::Write);
    // The other way has its own end.
    let _ = inward.join();
    Ok(())
}

fn carry(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
