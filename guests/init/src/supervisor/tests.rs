//! The supervisor with socket pairs for ports and real processes: what the outside sees.

use std::cell::Cell;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;

use rustix::fs::{CWD, FileType, Mode};
use vmprof_job::{Bytes, Ready, Restart, RestartWhen, Service, ServiceKind, ServiceState};

use super::*;
use crate::become_user::Doorway;
use crate::cgroups::Cgroups;
use crate::command;
use crate::network;
use crate::ports::Port;
use crate::power::tests::press;
use crate::reap::ONE_FAMILY_AT_A_TIME;
use crate::services::tests::{service, step};
use crate::services::{Console, Keeper, Places};

/// The outside of a run that goes on in a thread.
struct Outside {
    control: BufReader<UnixStream>,
    stdin: UnixStream,
    stdout: UnixStream,
    stderr: UnixStream,
    run: JoinHandle<End>,
    screen: PipeReader,
    places: tempfile::TempDir,
    /// Whoever writes here presses the power button.
    button: std::fs::File,
    /// What was told of services so far.
    states: Vec<(String, ServiceState)>,
    _alone: Box<dyn std::any::Any>,
}

fn port() -> (Port, UnixStream) {
    let (inside, outside) = UnixStream::pair().unwrap();
    inside.set_nonblocking(true).unwrap();
    (Port::new(inside.into()), outside)
}

/// How long a stop may take where a test does not say.
const STOP_WITHIN: Duration = Duration::from_secs(3_600);

fn run(argv: &[&str]) -> Outside {
    run_with(Vec::new(), Some(argv), STOP_WITHIN)
}

/// A shell in the place of this program's other role: without root it has nothing to do but to become the service. Closing
/// the standard input is the report.
fn doorway() -> Doorway {
    let script = r#"shift 4; exec "$@" </dev/null"#;
    Doorway { words: ["sh", "-c", script, "as-user"].map(Into::into).to_vec() }
}

fn run_with(services: Vec<Service>, argv: Option<&[&str]>, stop_within: Duration) -> Outside {
    run_over(Network::default(), services, argv, stop_within)
}

fn run_over(
    mut network: Network,
    services: Vec<Service>,
    argv: Option<&[&str]>,
    stop_within: Duration,
) -> Outside {
    let awaits = !services.is_empty() || network.is_awaited();
    let alone = ONE_FAMILY_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (control_port, control) = port();
    let (stdin_port, stdin) = port();
    let (stdout_port, stdout) = port();
    let (stderr_port, stderr) = port();
    let argv: Option<Vec<Bytes>> = argv.map(|argv| argv.iter().map(|word| (*word).into()).collect());
    let places = tempfile::tempdir().unwrap();
    let (screen, console) = std::io::pipe().unwrap();
    let (root, logs) = (places.path().to_owned(), places.path().join("log"));
    let sockets = places.path().join("notify");
    let devices = places.path().join("input");
    std::fs::create_dir(&devices).unwrap();
    let device = devices.join("event0");
    rustix::fs::mknodat(CWD, &device, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let button = std::fs::File::options().read(true).write(true).open(&device).unwrap();
    let run = std::thread::spawn(move || {
        let surroundings = Surroundings {
            environment: vec![("PATH".into(), std::env::var_os("PATH").unwrap_or_default())],
            directory: PathBuf::from("/"),
        };
        let children = Children::watch().unwrap();
        let console = Console::new(console.into()).unwrap();
        let places = Places { root, logs, sockets };
        let keeper = Keeper::new(services, places, doorway(), Cgroups::default(), console).unwrap();
        let group = Cell::new(None);
        let launch: Option<Launch> = argv.map(|argv| -> Launch {
            let (surroundings, group) = (surroundings.clone(), &group);
            Box::new(move || {
                let (started, pipes) = command::start(&surroundings, &argv).unwrap();
                group.set(started.as_ref().ok().copied());
                let streams = Streams {
                    stdin: ToCommand::new(stdin_port, pipes.stdin).unwrap(),
                    stdout: FromCommand::new(pipes.stdout, stdout_port).unwrap(),
                    stderr: FromCommand::new(pipes.stderr, stderr_port).unwrap(),
                };
                Ok((started, Some(streams)))
            })
        });
        let everything = |signal| {
            let _ = group.get().map(|group| kill_process_group(group, signal));
        };
        let supervisor = Supervisor {
            control: Control::new(control_port),
            children: &children,
            buttons: Buttons::open(&devices),
            keeper: Keeping::Own(keeper),
            network: &mut network,
            surroundings,
            everything: &everything,
            stop_within,
            uptime_ms: || 1,
        };
        let end = supervisor.run(launch);
        // Nothing of this test's is left for the next one to reap.
        everything(Signal::KILL);
        assert!(children.all_gone(Duration::from_secs(60)));
        end
    });
    let mut outside = Outside {
        control: BufReader::new(control),
        stdin,
        stdout,
        stderr,
        run,
        screen,
        places,
        button,
        states: Vec::new(),
        _alone: Box::new(alone),
    };
    if !awaits {
        assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    }
    outside
}

impl Outside {
    fn tell(&mut self, message: ToGuest) {
        self.control.get_mut().write_all(&vmprof_job::line(&message)).unwrap();
    }

    /// The next message that is not about a service.
    fn hear(&mut self) -> FromGuest {
        loop {
            let mut line = String::new();
            self.control.read_line(&mut line).unwrap();
            match serde_json::from_str(&line).unwrap() {
                FromGuest::Service { name, state } => self.states.push((name, state)),
                other => return other,
            }
        }
    }

    /// Until this has been told of a service.
    fn await_state(&mut self, name: &str, is: impl Fn(&ServiceState) -> bool) {
        while !self.states.iter().any(|(of, state)| of == name && is(state)) {
            let mut line = String::new();
            self.control.read_line(&mut line).unwrap();
            match serde_json::from_str(&line).unwrap() {
                FromGuest::Service { name, state } => self.states.push((name, state)),
                other => panic!("{other:?}"),
            }
        }
    }

    fn log(&self, service: &str) -> String {
        std::fs::read_to_string(self.places.path().join(format!("log/{service}.log"))).unwrap_or_default()
    }

    /// Reads everything and says so; what the streams held, and the grace for what is left.
    fn receive(mut self) -> (String, String, Duration) {
        // It may have heard it before, and be gone.
        let _ = self.control.get_mut().write_all(&vmprof_job::line(&ToGuest::Received));
        let (mut stdout, mut stderr) = (String::new(), String::new());
        self.stdout.read_to_string(&mut stdout).unwrap();
        self.stderr.read_to_string(&mut stderr).unwrap();
        (stdout, stderr, self.run.join().unwrap().grace)
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
    outside.tell(ToGuest::Schedulers { id: 11 });
    assert!(matches!(outside.hear(), FromGuest::Schedulers { id: 11, .. }));
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
    let Outside { control, stdin, stdout, stderr, run, .. } = outside;
    drop((control, stdin, stdout, stderr));
    run.join().unwrap();
}

fn shell(name: &str, after: &[&str], script: &str) -> Service {
    Service { exec: step(&["sh", "-c", script]), ..service(name, after) }
}

/// One whose first leases do not come by themselves while a test lasts.
fn awaited_network() -> (Network, std::io::PipeWriter) {
    network::tests::awaited(Instant::now() + Duration::from_secs(3_600))
}

#[test]
fn a_stop_is_heard_while_the_network_is_waited_for_and_nothing_starts_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let touched = directory.path().join("touched");
    let touch = format!("touch {}", touched.display());
    let command = ["sh", "-c", &touch];
    let (network, _tell) = awaited_network();
    let mut outside = run_over(network, vec![shell("db", &[], &touch)], Some(&command), STOP_WITHIN);
    outside.tell(ToGuest::Ping);
    assert_eq!(outside.hear(), FromGuest::Pong);
    outside.tell(ToGuest::Stop { grace_ms: 3_600_000 });
    assert_eq!(outside.hear(), FromGuest::Stopped { killed: vec![] });
    outside.receive();
    let (network, _tell) = awaited_network();
    let mut outside = run_over(network, vec![], Some(&command), STOP_WITHIN);
    outside.tell(ToGuest::Signal { number: 2 });
    let status = Ended::Signaled(2);
    assert_eq!(outside.hear(), FromGuest::Ended { status, stdout: 0, stderr: 0 });
    outside.receive();
    let (network, _tell) = awaited_network();
    let mut outside = run_over(network, vec![], None, STOP_WITHIN);
    outside.button.write_all(&press()).unwrap();
    assert_eq!(outside.hear(), FromGuest::Stopped { killed: vec![] });
    outside.receive();
    assert!(!touched.exists());
}

#[test]
fn services_and_command_start_once_the_network_is_there() {
    let (network, mut tell) = awaited_network();
    let mut outside = run_over(network, vec![shell("db", &[], PATIENT)], Some(&["true"]), STOP_WITHIN);
    // It has begun, and gone on without a word of services.
    outside.tell(ToGuest::Ping);
    assert_eq!(outside.hear(), FromGuest::Pong);
    assert_eq!(outside.states, []);
    tell.write_all(b"net0\nnet1\n").unwrap();
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    assert!(outside.states.iter().any(|(name, _)| name == "db"));
    assert!(matches!(outside.hear(), FromGuest::Ended { status: Ended::Exited(0), .. }));
    outside.receive();
}

#[test]
fn who_has_no_lease_in_time_is_told_and_the_command_starts_without() {
    let (network, _tell) = network::tests::awaited(Instant::now());
    let mut outside = run_over(network, vec![], Some(&["true"]), STOP_WITHIN);
    match outside.hear() {
        FromGuest::Notice { message } => assert!(message.starts_with("net0, net1 of the guest"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    assert!(matches!(outside.hear(), FromGuest::Ended { status: Ended::Exited(0), .. }));
    outside.receive();
}

/// Waits for its signal, and says so.
const PATIENT: &str = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done";

#[test]
fn the_command_starts_when_every_service_is_ready() {
    let ready = Ready::Command(step(&["test", "-e", "{}"]));
    let mut outside_file = String::new();
    let directory = tempfile::tempdir().unwrap();
    outside_file.push_str(directory.path().join("db").to_str().unwrap());
    let Ready::Command(mut check) = ready else { unreachable!() };
    check.argv = ["test", "-e", &outside_file].map(Bytes::from).to_vec();
    let db = Service {
        ready: Ready::Command(check),
        ..shell("db", &[], &format!("sleep 0.05; touch {outside_file}; {PATIENT}"))
    };
    let once = Service {
        kind: ServiceKind::Once,
        ..shell("migrate", &["db"], &format!("cat {outside_file}; echo migrated"))
    };
    let mut outside = run_with(vec![once, db], Some(&["ls", &outside_file]), STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    let names: Vec<&str> = outside.states.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["db", "db", "migrate", "migrate"]);
    assert!(matches!(outside.hear(), FromGuest::Ended { status: Ended::Exited(0), .. }));
    outside.await_state("db", |state| *state == ServiceState::Stopped { killed: false });
    assert_eq!(outside.log("db"), "up\nbye\n");
    assert_eq!(outside.log("migrate"), "migrated\n");
    outside.receive();
}

#[test]
fn services_stop_before_the_machine_does_even_if_the_outside_has_heard_enough() {
    let slow =
        shell("db", &[], "trap 'sleep 0.3; echo saved; exit 0' TERM; echo up; while :; do sleep 0.01; done");
    let slow = Service { ready: Ready::Command(step(&["true"])), ..slow };
    let mut outside = run_with(vec![slow], Some(&["sleep", "0.2"]), STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    assert!(matches!(outside.hear(), FromGuest::Ended { .. }));
    let places = std::mem::replace(&mut outside.places, tempfile::tempdir().unwrap());
    outside.receive();
    assert_eq!(std::fs::read_to_string(places.path().join("log/db.log")).unwrap(), "up\nsaved\n");
}

#[test]
fn a_service_that_fails_before_all_are_ready_ends_the_boot_with_its_last_words() {
    let bad = shell("bad", &[], "for i in $(seq 1 30); do echo line $i; done; exit 4");
    let bad = Service { ready: Ready::Notify, ..bad };
    let mut outside = run_with(vec![bad, shell("other", &[], PATIENT)], Some(&["true"]), STOP_WITHIN);
    let FromGuest::Failed { message } = outside.hear() else { panic!() };
    assert!(
        message.starts_with(
            "service `bad` failed: it ended with status 4 before it was ready; the last it wrote:\n  line 11\n"
        ),
        "{message}"
    );
    assert!(message.ends_with("\n  line 30"));
    outside.tell(ToGuest::Received);
    outside.await_state("other", |state| matches!(state, ServiceState::Stopped { .. }));
    outside.receive();
}

#[test]
fn a_program_that_is_not_in_the_guest_fails_its_service_by_name() {
    let bad = Service { exec: step(&["no-such-daemon"]), ready: Ready::Notify, ..service("bad", &[]) };
    let mut outside = run_with(vec![bad], None, STOP_WITHIN);
    let FromGuest::Failed { message } = outside.hear() else { panic!() };
    assert!(message.contains("no-such-daemon"), "{message}");
    outside.receive();
}

#[test]
fn a_guest_that_serves_is_stopped_in_order_and_says_so() {
    let ready = |script: &str| Ready::Command(step(&["sh", "-c", script]));
    let db = Service { ready: ready("true"), ..shell("db", &[], PATIENT) };
    let deaf = Service {
        ready: ready("true"),
        ..shell("deaf", &["db"], "trap '' TERM; echo up; while :; do sleep 0.01; done")
    };
    let deaf = Service { stop: vmprof_job::Stop { signal: 15, within_ms: 300 }, ..deaf };
    let mut outside = run_with(vec![db, deaf], None, STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    // Both have set their traps.
    while !(outside.log("db").contains("up") && outside.log("deaf").contains("up")) {
        std::thread::yield_now();
    }
    outside.tell(ToGuest::Stop { grace_ms: 60_000 });
    assert_eq!(outside.hear(), FromGuest::Stopped { killed: vec!["deaf".to_owned()] });
    let stopped: Vec<_> = outside
        .states
        .iter()
        .filter(|(_, state)| matches!(state, ServiceState::Stopped { .. }))
        .cloned()
        .collect();
    assert_eq!(
        stopped,
        [
            ("deaf".to_owned(), ServiceState::Stopped { killed: true }),
            ("db".to_owned(), ServiceState::Stopped { killed: false })
        ]
    );
    outside.receive();
}

#[test]
fn the_power_button_stops_services_as_the_outside_does() {
    let db = shell("db", &[], PATIENT);
    let mut outside = run_with(vec![db], None, STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    while !outside.log("db").contains("up") {
        std::thread::yield_now();
    }
    outside.button.write_all(&press()).unwrap();
    assert_eq!(outside.hear(), FromGuest::Stopped { killed: vec![] });
    let stopped = ("db".to_owned(), ServiceState::Stopped { killed: false });
    assert_eq!(outside.states.last(), Some(&stopped));
    outside.receive();
}

#[test]
fn a_guest_whose_services_all_ran_once_stops_by_itself() {
    let once = Service { kind: ServiceKind::Once, ..shell("report", &[], "echo done") };
    let mut outside = run_with(vec![once], None, STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    assert_eq!(outside.hear(), FromGuest::Stopped { killed: Vec::new() });
    outside.receive();
}

#[test]
fn a_service_that_fails_later_ends_a_guest_that_serves_and_no_command() {
    let restart = Restart { when: RestartWhen::OnFailure, delay_ms: 10, most: 1, window_ms: 60_000 };
    let crash = Service { restart, ..shell("crash", &[], "sleep 0.1; kill -SEGV $$") };
    let mut outside = run_with(vec![crash.clone()], None, STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    let FromGuest::Failed { message } = outside.hear() else { panic!() };
    assert!(message.contains("was ended by signal 11; it was restarted once"), "{message}");
    assert!(
        outside.states.iter().any(|(_, state)| matches!(state, ServiceState::Restarting { in_ms: 10, .. }))
    );
    outside.receive();

    let mut outside = run_with(vec![crash], Some(&["cat"]), STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    outside.await_state("crash", |state| matches!(state, ServiceState::Failed { .. }));
    outside.tell(ToGuest::InputEnded { bytes: 0 });
    assert!(matches!(outside.hear(), FromGuest::Ended { status: Ended::Exited(0), .. }));
    outside.receive();
}

#[test]
fn stop_while_services_start_stops_them() {
    let never = Service { ready: Ready::Notify, ..shell("never", &[], PATIENT) };
    let mut outside = run_with(vec![never.clone()], Some(&["true"]), STOP_WITHIN);
    while !outside.log("never").contains("up") {
        std::thread::yield_now();
    }
    outside.tell(ToGuest::Ping);
    assert_eq!(outside.hear(), FromGuest::Pong);
    outside.tell(ToGuest::Stop { grace_ms: 60_000 });
    assert_eq!(outside.hear(), FromGuest::Stopped { killed: Vec::new() });
    assert_eq!(outside.log("never"), "up\nbye\n");
    outside.receive();

    // A signal that would have ended the command ends it before it has started.
    let mut outside = run_with(vec![never], Some(&["true"]), STOP_WITHIN);
    outside.tell(ToGuest::Signal { number: 15 });
    assert_eq!(outside.hear(), FromGuest::Ended { status: Ended::Signaled(15), stdout: 0, stderr: 0 });
    outside.receive();
}

#[test]
fn stop_leaves_the_services_time_after_a_command_that_does_not_listen() {
    let db = Service { ready: Ready::Command(step(&["true"])), ..shell("db", &[], PATIENT) };
    let deaf = ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done"];
    let mut outside = run_with(vec![db], Some(&deaf), STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    outside.stdout.read_exact(&mut [0; 3]).unwrap();
    while !outside.log("db").contains("up") {
        std::thread::yield_now();
    }
    outside.tell(ToGuest::Stop { grace_ms: 4_000 });
    let heard = outside.hear();
    assert!(matches!(heard, FromGuest::Ended { status: Ended::Signaled(9), .. }), "{heard:?}");
    outside.tell(ToGuest::Received);
    outside.await_state("db", |state| *state == ServiceState::Stopped { killed: false });
    outside.receive();
}

#[test]
fn a_service_that_floods_its_output_starves_nobody() {
    let flood =
        Service { ready: Ready::Command(step(&["true"])), ..shell("flood", &[], "exec yes flooding") };
    let mut outside = run_with(vec![flood], Some(&["cat"]), STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    // The flood has begun: on a busy machine the rest would be over before it had a processor.
    let mut screen = [0; 16];
    outside.screen.read_exact(&mut screen).unwrap();
    assert_eq!(&screen, b"flood: flooding\n");
    outside.stdin.write_all(b"through").unwrap();
    outside.stdout.read_exact(&mut [0; 7]).unwrap();
    outside.tell(ToGuest::Ping);
    assert_eq!(outside.hear(), FromGuest::Pong);
    outside.tell(ToGuest::InputEnded { bytes: 7 });
    assert!(matches!(outside.hear(), FromGuest::Ended { status: Ended::Exited(0), stdout: 7, .. }));
    outside.receive();
}

#[test]
fn a_service_says_itself_when_it_is_ready() {
    // Bash-free: the datagram is sent by the interpreter every Debian has.
    let perl = "use Socket; socket(my $s, AF_UNIX, SOCK_DGRAM, 0); \
        send($s, \"STATUS=soon\\nREADY=1\", 0, sockaddr_un($ENV{NOTIFY_SOCKET})) or die $!; sleep 600";
    let told = Service { exec: step(&["perl", "-e", perl]), ready: Ready::Notify, ..service("told", &[]) };
    let mut outside = run_with(vec![told], Some(&["true"]), STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    assert_eq!(outside.log("told"), "status: soon\n");
    outside.hear();
    outside.receive();
}

#[test]
fn what_a_service_leaves_behind_in_its_group_ends_with_it() {
    let once = Service { kind: ServiceKind::Once, ..shell("once", &[], "sleep 600 & echo $!") };
    let mut outside = run_with(vec![once], Some(&["cat"]), STOP_WITHIN);
    assert_eq!(outside.hear(), FromGuest::Ready { uptime_ms: 1 });
    let pid: i32 = outside.log("once").trim().parse().unwrap();
    let alive = || rustix::process::test_kill_process(Pid::from_raw(pid).unwrap()).is_ok();
    // Dead, or not yet reaped by whoever is its parent now.
    let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    while alive() && !state().contains(") Z ") {
        std::thread::yield_now();
    }
    outside.tell(ToGuest::InputEnded { bytes: 0 });
    outside.hear();
    outside.receive();
}
