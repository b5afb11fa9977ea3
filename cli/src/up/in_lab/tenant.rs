//! The vmprof inside, run by the agent of a lab that stays, as the rest of a run knows an emulated host of its own: a control
//! channel with a first process behind it, and three streams.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use signal_hook::consts::SIGKILL;
use vmprof_job::agent::{Kind, Stream, What};
use vmprof_job::{Ended, FromGuest, ToGuest};

use crate::lab::exec;
use crate::run::channels::PortEnd;
use crate::run::outward::{Outward, Window};
use crate::run::reach;
use crate::run::verdict::MachineEnd;

/// How long a request of the control socket may take there.
const ASKED_WITHIN: Duration = Duration::from_secs(45);
/// What a process that was killed may take to be reaped.
const KILLED_WITHIN: Duration = Duration::from_secs(10);

/// Our end of the control channel, a line at a time.
#[derive(Clone)]
struct Control(Arc<Mutex<UnixStream>>);

impl Control {
    fn say(&self, message: &FromGuest) {
        // Whoever listens goes with this process.
        let _ = self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&vmprof_job::line(message));
    }
}

/// The vmprof inside while it runs.
pub(super) struct Running {
    outward: Outward,
    is_over: Arc<AtomicBool>,
    end: thread::JoinHandle<MachineEnd>,
}

impl Running {
    /// What ends it hard, and what waits for its end.
    pub(super) fn apart(self) -> (impl Fn() + Send + 'static, impl FnOnce() -> MachineEnd + 'static) {
        let Running { outward, is_over, end } = self;
        let kill = move || {
            outward.signal(SIGKILL);
            let (outward, is_over) = (outward.clone(), is_over.clone());
            // One that does not even hear that is left to the lab's keeper.
            thread::spawn(move || {
                thread::sleep(KILLED_WITHIN);
                if !is_over.load(Ordering::Acquire) {
                    outward.leave();
                }
            });
        };
        let wait = move || end.join().unwrap_or_else(|_| MachineEnd::LabGone(String::new()));
        (kill, wait)
    }
}

/// Begins `command` in the host whose sockets lie in `host`. `ports` are the ends of the four channels, in their order.
pub(super) fn begin(host: &Path, command: What, ports: Vec<PortEnd>) -> io::Result<Running> {
    let stream = exec::begin(host, command, None)?;
    let ends: Vec<UnixStream> = ports.into_iter().map(|end| end.stream.into()).collect();
    let [control, stdin, stdout, stderr]: [UnixStream; 4] =
        ends.try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    for end in [&control, &stdin, &stdout, &stderr] {
        // A machine's device must not block on them; a thread may.
        end.set_nonblocking(false)?;
    }
    let outward = Outward::of(&stream)?;
    let said = Control(Arc::new(Mutex::new(control.try_clone()?)));
    let window = Arc::<Window>::default();
    let (received, is_received) = mpsc::channel();
    let obeying = Obeying {
        host: host.to_owned(),
        outward: outward.clone(),
        said: said.clone(),
        stdin: stdin.try_clone()?,
    };
    thread::Builder::new().name("lab control".into()).spawn(move || obeying.obey(control, &received))?;
    let (feeding, room) = (outward.clone(), window.clone());
    thread::Builder::new().name("lab input".into()).spawn(move || feed(stdin, &feeding, &room))?;
    said.say(&FromGuest::Hello { kernel: String::new(), uptime_ms: 0 });
    said.say(&FromGuest::Ready { uptime_ms: 0 });
    let is_over = Arc::<AtomicBool>::default();
    let over = is_over.clone();
    let end = thread::Builder::new().name("lab output".into()).spawn(move || {
        let counted = carry(stream, &stdout, &stderr, &window);
        over.store(true, Ordering::Release);
        let end = match counted {
            Ok((status, out, err)) => {
                said.say(&FromGuest::Ended { status, stdout: out, stderr: err });
                // Or nobody is left who could say that it has come.
                let _ = is_received.recv();
                MachineEnd::PowerOff
            }
            Err(_) => MachineEnd::LabGone("the connection to the lab that was joined has ended".to_owned()),
        };
        for end in [&stdout, &stderr] {
            let _ = end.shutdown(Shutdown::Both);
        }
        let _ = said.0.lock().unwrap_or_else(PoisonError::into_inner).shutdown(Shutdown::Both);
        end
    })?;
    Ok(Running { outward, is_over, end })
}

/// What the conversation says to a first process.
struct Obeying {
    host: PathBuf,
    outward: Outward,
    said: Control,
    stdin: UnixStream,
}

impl Obeying {
    fn obey(&self, control: UnixStream, received: &Sender<()>) {
        for line in BufReader::new(control).split(b'\n').map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice::<ToGuest>(&line) else { continue };
            match message {
                // All of it is in the stream by now, whose other end stays open.
                ToGuest::InputEnded { .. } => drop(self.stdin.shutdown(Shutdown::Read)),
                ToGuest::Signal { number } => self.outward.signal(number),
                ToGuest::Received => drop(received.send(())),
                ToGuest::Run { id, argv } => self.beside(move |host| {
                    let ran = exec::run(host, argv, ASKED_WITHIN).unwrap_or_else(|error| exec::Ran {
                        status: Ended::NotStarted { status: 126, errno: error.raw_os_error().unwrap_or(5) },
                        stdout: Vec::new(),
                        stderr: error.to_string().into_bytes(),
                    });
                    let (stdout, stderr) = (ran.stdout.as_slice().into(), ran.stderr.as_slice().into());
                    Some(FromGuest::Ran { id, status: ran.status, stdout, stderr })
                }),
                // A host that answers anything is there.
                ToGuest::Ping => self.beside(|host| {
                    let mut stream = reach::host(host).ok()?;
                    let nowhere = What::Connect { path: "/".into() };
                    reach::ask(&mut stream, nowhere).ok().map(|_| FromGuest::Pong)
                }),
                // It is asked of the vmprof inside, and stops by a signal.
                ToGuest::Schedulers { id } => {
                    self.said.say(&FromGuest::Schedulers { id, disks: Vec::new() });
                }
                ToGuest::Stop { .. } => self.outward.signal(signal_hook::consts::SIGTERM),
            }
        }
    }

    /// Asks on a connection of its own, and says what came of it.
    fn beside(&self, ask: impl FnOnce(&Path) -> Option<FromGuest> + Send + 'static) {
        let (host, said) = (self.host.clone(), self.said.clone());
        let asking = move || {
            if let Some(answer) = ask(&host) {
                said.say(&answer);
            }
        };
        // Out of threads: whoever waits for the answer does not wait for ever.
        let _ = thread::Builder::new().name("lab request".into()).spawn(asking);
    }
}

/// Carries the input to its end.
fn feed(mut stdin: UnixStream, outward: &Outward, window: &Window) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                window.take(count as u32);
                outward.say(Kind::Input, &buffer[..count]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    outward.say(Kind::InputEnded, &[]);
}

/// Carries the output to its end: how the command ended, and how much it wrote.
fn carry(
    mut stream: Stream<UnixStream>,
    mut stdout: &UnixStream,
    mut stderr: &UnixStream,
    window: &Window,
) -> io::Result<(Ended, u64, u64)> {
    let (mut out, mut err) = (0, 0);
    loop {
        let frame = stream.expect()?;
        match frame.kind {
            Kind::Output => {
                stdout.write_all(frame.payload)?;
                out += frame.payload.len() as u64;
            }
            Kind::Errors => {
                stderr.write_all(frame.payload)?;
                err += frame.payload.len() as u64;
            }
            Kind::Taken => window.give_back(frame.number()?),
            Kind::Ended => return Ok((frame.json()?, out, err)),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use vmprof_job::agent::{Answer, Ask, Frame};

    use super::*;
    use crate::run::channels;
    use crate::run::sockets::{VSOCK, listen};

    /// An agent that serves one connection, from the answer to its request on.
    fn agent(
        listener: UnixListener,
        serve: impl FnOnce(Stream<UnixStream>) + Send + 'static,
    ) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let mut line = [0; 1];
            while line != *b"\n" {
                connection.read_exact(&mut line).unwrap();
            }
            connection.write_all(b"OK 7\n").unwrap();
            let mut stream = Stream::new(connection);
            let ask: Ask = stream.expect().unwrap().json().unwrap();
            assert!(matches!(ask.what, What::Exec(exec) if exec.argv == ["true".into()]));
            stream.write_json(Kind::Answer, &Answer::Begun).unwrap();
            serve(stream);
        })
    }

    struct Begun {
        _keep: tempfile::TempDir,
        running: Running,
        ours: channels::Channels,
        agent: thread::JoinHandle<()>,
    }

    fn begun(serve: impl FnOnce(Stream<UnixStream>) + Send + 'static) -> Begun {
        let keep = tempfile::tempdir().unwrap();
        let agent = agent(listen(keep.path(), VSOCK).unwrap(), serve);
        let (ours, ports) = channels::open().unwrap();
        let command = exec::command(vec!["true".into()], Vec::new());
        let running = begin(keep.path(), command, ports).unwrap();
        Begun { _keep: keep, running, ours, agent }
    }

    fn said(control: &UnixStream) -> Vec<FromGuest> {
        let lines = BufReader::new(control).lines().map_while(Result::ok);
        lines.map(|line| serde_json::from_str(&line).unwrap()).collect()
    }

    #[test]
    fn streams_signals_and_the_status_go_through_and_the_end_waits_until_it_is_known() {
        let Begun { running, ours, agent, .. } = begun(|mut stream| {
            let (mut input, mut signals) = (Vec::new(), Vec::new());
            loop {
                match stream.expect().unwrap() {
                    Frame { kind: Kind::Input, payload } => input.extend_from_slice(payload),
                    Frame { kind: Kind::InputEnded, .. } => break,
                    frame => signals.push((frame.kind, frame.number().unwrap())),
                }
                let taken = 256_u32.to_le_bytes();
                stream.write(Kind::Taken, &taken).unwrap();
            }
            assert_eq!(signals, [(Kind::Signal, 10)]);
            stream.write(Kind::Output, &input).unwrap();
            stream.write(Kind::Errors, b"err").unwrap();
            stream.write_json(Kind::Ended, &Ended::Exited(3)).unwrap();
        });
        let control = ours.control.try_clone().unwrap();
        let tell = |message: &ToGuest| (&control).write_all(&vmprof_job::line(message)).unwrap();
        tell(&ToGuest::Signal { number: 10 });
        let input = vec![7; 100_000];
        (&ours.stdin).write_all(&input).unwrap();
        tell(&ToGuest::InputEnded { bytes: input.len() as u64 });
        tell(&ToGuest::Received);
        let (_, wait) = running.apart();
        let mut out = Vec::new();
        (&ours.stdout).read_to_end(&mut out).unwrap();
        assert!(out == input);
        assert_eq!(wait(), MachineEnd::PowerOff);
        agent.join().unwrap();
        let said = said(&ours.control);
        assert!(matches!(said[..2], [FromGuest::Hello { .. }, FromGuest::Ready { .. }]));
        let ended = FromGuest::Ended { status: Ended::Exited(3), stdout: 100_000, stderr: 3 };
        assert_eq!(said[2..], [ended]);
    }

    #[test]
    fn a_lab_that_is_lost_is_the_lab_and_not_the_command() {
        let Begun { running, ours, agent, .. } = begun(|mut stream| {
            stream.write(Kind::Output, b"half").unwrap();
        });
        let (_, wait) = running.apart();
        assert!(matches!(wait(), MachineEnd::LabGone(_)));
        agent.join().unwrap();
        assert!(!said(&ours.control).iter().any(|said| matches!(said, FromGuest::Ended { .. })));
    }

    #[test]
    fn what_is_ended_hard_is_killed() {
        // An input that ends would be said first.
        let Begun { running, agent, ours, .. } = begun(|mut stream| {
            let frame = stream.expect().unwrap();
            assert_eq!((frame.kind, frame.number().unwrap()), (Kind::Signal, 9));
            stream.write_json(Kind::Ended, &Ended::Signaled(9)).unwrap();
        });
        let (kill, _) = running.apart();
        kill();
        agent.join().unwrap();
        drop(ours);
    }
}
