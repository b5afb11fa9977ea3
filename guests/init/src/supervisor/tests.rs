//! The supervisor with socket pairs for ports and real processes: what the outside sees.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;

use vmprof_job::Bytes;

use super::*;
use crate::command;
use crate::ports::Port;
use crate::reap::ONE_FAMILY_AT_A_TIME;

/// The outside of a run that goes on in a thread.
struct Outside {
    control: BufReader<UnixStream>,
    stdin: UnixStream,
    stdout: UnixStream,
    stderr: UnixStream,
    run: JoinHandle<Duration>,
    _alone: Box<dyn std::any::Any>,
}

fn port() -> (Port, UnixStream) {
    let (inside, outside) = UnixStream::pair().unwrap();
    inside.set_nonblocking(true).unwrap();
    (Port::new(inside.into()), outside)
}

fn run(argv: &[&str]) -> Outside {
    let alone = ONE_FAMILY_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (control_port, control) = port();
    let (stdin_port, stdin) = port();
    let (stdout_port, stdout) = port();
    let (stderr_port, stderr) = port();
    let argv: Vec<Bytes> = argv.iter().map(|word| (*word).into()).collect();
    let run = std::thread::spawn(move || {
        let surroundings = Surroundings {
            environment: vec![("PATH".into(), std::env::var_os("PATH").unwrap_or_default())],
            directory: PathBuf::from("/"),
        };
        let children = Children::watch().unwrap();
        let (started, pipes) = command::start(&surroundings, &argv).unwrap();
        let streams = Streams {
            stdin: ToCommand::new(stdin_port, pipes.stdin).unwrap(),
            stdout: FromCommand::new(pipes.stdout, stdout_port).unwrap(),
            stderr: FromCommand::new(pipes.stderr, stderr_port).unwrap(),
        };
        let group = started.as_ref().ok().copied();
        let everything = move |signal| {
            let _ = group.map(|group| kill_process_group(group, signal));
        };
        let supervisor = Supervisor {
            control: Control::new(control_port),
            children: &children,
            buttons: Buttons::default(),
            streams: Some(streams),
            surroundings,
            everything: &everything,
        };
        let grace = supervisor.run(started);
        // Nothing of this test's is left for the next one to reap.
        everything(Signal::KILL);
        assert!(children.all_gone(Duration::from_secs(60)));
        grace
    });
    Outside { control: BufReader::new(control), stdin, stdout, stderr, run, _alone: Box::new(alone) }
}

impl Outside {
    fn tell(&mut self, message: ToGuest) {
        self.control.get_mut().write_all(&vmprof_job::line(&message)).unwrap();
    }

    fn hear(&mut self) -> FromGuest {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Reads everything and says so; what the streams held, and the grace for what is left.
    fn receive(mut self) -> (String, String, Duration) {
        self.tell(ToGuest::Received);
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        self.stderr.read_to_string(&mut stderr).unwrap();
        (stdout, stderr, self.run.join().unwrap())
    }
}

#[test]
fn streams_stay_apart_and_the_status_comes_after_them() {
    let mut outside = run(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(outside.hear(), FromGuest::Ended { status: Ended::Exited(7), stdout: 4, stderr: 4 });
    assert_eq!(outside.receive(), ("out\n".into(), "err\n".into(), LEFT_BEHIND));
}

#[test]
fn a_program_that_is_not_there_ends_with_127() {
    let mut outside = run(&["no-such-program"]);
    let status = Ended::NotStarted { status: 127, errno: 2 };
    assert_eq!(outside.hear(), FromGuest::Ended { status, stdout: 0, stderr: 0 });
    outside.receive();
}

#[test]
fn a_file_that_may_not_be_run_ends_with_126() {
    let mut outside = run(&["/etc/passwd"]);
    let status = Ended::NotStarted { status: 126, errno: 13 };
    assert_eq!(outside.hear(), FromGuest::Ended { status, stdout: 0, stderr: 0 });
    outside.receive();
}

#[test]
fn a_signal_reaches_the_whole_process_group() {
    let mut outside = run(&["sh", "-c", "sleep 600 & echo up; wait; sleep 600"]);
    outside.stdout.read_exact(&mut [0; 3]).unwrap();
    outside.tell(ToGuest::Signal { number: 10 });
    assert_eq!(outside.hear(), FromGuest::Ended { status: Ended::Signaled(10), stdout: 3, stderr: 0 });
    outside.receive();
}

#[test]
fn input_of_megabytes_comes_back_through_cat() {
    let mut outside = run(&["cat"]);
    let bytes: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut stdin, mut stdout) = (outside.stdin.try_clone().unwrap(), outside.stdout.try_clone().unwrap());
    let input = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    // Said before it is written: only the count ends the input.
    outside.tell(ToGuest::InputEnded { bytes: bytes.len() as u64 });
    let mut echoed = vec![0; bytes.len()];
    stdout.read_exact(&mut echoed).unwrap();
    writer.join().unwrap();
    assert!(echoed == bytes);
    let stdout = bytes.len() as u64;
    assert_eq!(outside.hear(), FromGuest::Ended { status: Ended::Exited(0), stdout, stderr: 0 });
    outside.receive();
}

#[test]
fn nobody_waits_for_a_grandchild_that_holds_the_pipe() {
    let mut outside = run(&["sh", "-c", "sleep 600 & echo done"]);
    assert_eq!(outside.hear(), FromGuest::Ended { status: Ended::Exited(0), stdout: 5, stderr: 0 });
    assert_eq!(outside.receive().0, "done\n");
}

#[test]
fn a_slow_reader_gets_all_of_it_before_the_end_is_told() {
    // More than the pipe and the socket hold: the command can end only as the outside reads.
    let mut outside = run(&["sh", "-c", "head -c 2000000 /dev/zero"]);
    let mut stdout = outside.stdout.try_clone().unwrap();
    let mut bytes = vec![1; 2_000_000];
    stdout.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert_eq!(outside.hear(), FromGuest::Ended { status: Ended::Exited(0), stdout: 2_000_000, stderr: 0 });
    outside.receive();
}

#[test]
fn a_helper_runs_beside_the_command_and_is_answered() {
    let mut outside = run(&["cat"]);
    let argv = ["sh", "-c", "cat; printf '\\377'; echo err >&2; exit 3"].map(Bytes::from).to_vec();
    outside.tell(ToGuest::Run { id: 9, argv });
    assert_eq!(
        outside.hear(),
        FromGuest::Ran {
            id: 9,
            status: Ended::Exited(3),
            stdout: (&[0xff][..]).into(),
            stderr: "err\n".into()
        }
    );
    outside.tell(ToGuest::Ping);
    assert_eq!(outside.hear(), FromGuest::Pong);
    outside.tell(ToGuest::Run { id: 10, argv: vec!["no-such-program".into()] });
    let status = Ended::NotStarted { status: 127, errno: 2 };
    assert_eq!(outside.hear(), FromGuest::Ran { id: 10, status, stdout: "".into(), stderr: "".into() });
    outside.tell(ToGuest::InputEnded { bytes: 0 });
    assert_eq!(outside.hear(), FromGuest::Ended { status: Ended::Exited(0), stdout: 0, stderr: 0 });
    outside.receive();
}

#[test]
fn a_helper_that_writes_without_end_is_cut_off() {
    let mut outside = run(&["cat"]);
    outside.tell(ToGuest::Run { id: 1, argv: ["cat", "/dev/zero"].map(Bytes::from).to_vec() });
    match outside.hear() {
        FromGuest::Ran { id: 1, status: Ended::Signaled(13), stdout, .. } => {
            assert_eq!(stdout.as_bytes().len(), vmprof_job::CAPTURE_LIMIT);
        }
        other => panic!("{other:?}"),
    }
    outside.tell(ToGuest::InputEnded { bytes: 0 });
    outside.hear();
    outside.receive();
}

#[test]
fn stop_asks_first() {
    let mut outside =
        run(&["sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.01; done"]);
    outside.stdout.read_exact(&mut [0; 3]).unwrap();
    outside.tell(ToGuest::Stop { grace_ms: 3_600_000 });
    assert!(matches!(outside.hear(), FromGuest::Ended { status: Ended::Exited(5), .. }));
    let (stdout, _, grace) = outside.receive();
    assert!(stdout.ends_with("bye\n"));
    assert!(grace > LEFT_BEHIND, "what is left of the grace is for the others");
}

#[test]
fn stop_kills_what_does_not_listen() {
    let mut outside = run(&["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done"]);
    outside.stdout.read_exact(&mut [0; 3]).unwrap();
    outside.tell(ToGuest::Stop { grace_ms: 50 });
    assert!(matches!(outside.hear(), FromGuest::Ended { status: Ended::Signaled(9), .. }));
    assert_eq!(outside.receive().2, Duration::ZERO);
}

#[test]
fn the_run_ends_when_the_outside_is_gone() {
    let outside = run(&["sh", "-c", "exit 0"]);
    let Outside { control, stdin, stdout, stderr, run, _alone } = outside;
    drop((control, stdin, stdout, stderr));
    run.join().unwrap();
}
