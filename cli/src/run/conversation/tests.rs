use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader};
use std::sync::mpsc::{self, Sender};
use std::thread;

use vmprof_job::{DiskScheduler, Ended};

use super::*;

const STOP: ToGuest = ToGuest::Stop { grace_ms: 5_000 };

fn manners() -> Manners {
    Manners::patient(STOP)
}

fn hello() -> Event {
    Event::Said(FromGuest::Hello { kernel: "6.1".into(), uptime_ms: 1 })
}

struct Mock {
    events: Sender<Event>,
    killed: Cell<bool>,
    /// What comes of copying out of the guest, where something is to be.
    collected: RefCell<Option<Vec<Collected>>>,
}

impl Machine for Mock {
    fn kill(&self) {
        self.killed.set(true);
        self.events.send(Event::MachineEnded).unwrap();
    }

    fn received(&self) -> (u64, u64) {
        (4, 0)
    }

    fn collect(&self) -> bool {
        let collected = self.collected.take();
        collected.map(|collected| self.events.send(Event::Collected(collected)).unwrap()).is_some()
    }
}

/// Holds a conversation in which all of `script` has happened already; gives the account, what was said and whether the
/// machine was killed.
fn after(script: Vec<Event>, manners: &Manners) -> (Account, Vec<ToGuest>, bool) {
    let (account, said, killed, _) = told_after(script, manners);
    (account, said, killed)
}

/// The same, with what was told.
fn told_after(script: Vec<Event>, manners: &Manners) -> (Account, Vec<ToGuest>, bool, Vec<News>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (events, heard) = mpsc::channel();
    script.into_iter().for_each(|event| events.send(event).unwrap());
    let mock = Mock { events, killed: Cell::new(false), collected: RefCell::new(None) };
    let mut told = Vec::new();
    let account = hold(ours, &heard, manners, Instant::now(), &mock, |news| told.push(news));
    let said =
        BufReader::new(theirs).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    (account, said, mock.killed.get(), told)
}

fn ready() -> Event {
    Event::Said(FromGuest::Ready { uptime_ms: 1 })
}

fn stopped(killed: &[&str]) -> Event {
    Event::Said(FromGuest::Stopped { killed: killed.iter().map(|name| (*name).to_owned()).collect() })
}

#[test]
fn what_services_do_is_told_as_it_happens_and_so_are_readiness_and_the_stop() {
    let state = |state| FromGuest::Service { name: "db".into(), state };
    let starting = vmprof_job::ServiceState::Starting;
    let gone = vmprof_job::ServiceState::Stopped { killed: false };
    let script = vec![
        hello(),
        Event::Said(state(starting.clone())),
        ready(),
        Event::StopAsked,
        Event::StopAsked,
        Event::Said(state(gone.clone())),
        stopped(&[]),
        Event::MachineEnded,
    ];
    let (account, said, killed, told) = told_after(script, &manners());
    let service = |state| News::Service { name: "db".into(), state };
    let News::Ready { .. } = told[1] else { panic!("{told:?}") };
    let stopping = News::Stopping { because: Because::Asked };
    assert_eq!((&told[0], &told[2], &told[3]), (&service(starting), &stopping, &service(gone)));
    assert_eq!(told.len(), 4, "a second stop is no news: {told:?}");
    assert_eq!((account.stopped, account.stop_asked, killed), (Some(vec![]), true, false));
    assert_eq!(said, [STOP, STOP, ToGuest::Received], "a guest that has stopped is let go");
}

#[test]
fn what_is_to_outlive_the_guest_is_copied_out_before_it_is_let_go() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (events, heard) = mpsc::channel();
    let artifact = |from: &str| super::super::artifacts::Artifact {
        named: from.into(),
        from: from.into(),
        into: "/tmp".into(),
    };
    let collected = vec![
        Collected { artifact: artifact("/here"), failure: None },
        Collected { artifact: artifact("/gone"), failure: Some("it is not there".into()) },
    ];
    let collected = RefCell::new(Some(collected));
    let mock = Mock { events: events.clone(), killed: Cell::new(false), collected };
    events.send(hello()).unwrap();
    events.send(Event::Said(FromGuest::Ended { status: Ended::Exited(0), stdout: 4, stderr: 0 })).unwrap();
    let (told, hears) = mpsc::channel();
    let mut said =
        BufReader::new(theirs).lines().map(|line| serde_json::from_str::<ToGuest>(&line.unwrap()).unwrap());
    let guest = thread::spawn(move || {
        let first = said.next();
        // Everything had been told by then.
        let told: Vec<News> = hears.try_iter().collect();
        events.send(Event::MachineEnded).unwrap();
        (first, told)
    });
    let account = hold(ours, &heard, &manners(), Instant::now(), &mock, |news| told.send(news).unwrap());
    let (first, told) = guest.join().unwrap();
    assert_eq!(first, Some(ToGuest::Received));
    assert_eq!(told.len(), 2);
    assert_eq!(account.uncollected, ["/gone: it is not there"]);
}

#[test]
fn services_that_had_to_be_killed_are_kept() {
    let (account, ..) =
        after(vec![hello(), ready(), stopped(&["db", "web"]), Event::MachineEnded], &manners());
    assert_eq!(account.stopped.unwrap(), ["db", "web"]);
}

#[test]
fn a_service_that_fails_for_good_is_answered_and_its_guest_let_go() {
    let failed = Event::Said(FromGuest::Failed { message: "db failed".into() });
    let (account, said, killed) = after(vec![hello(), failed, Event::MachineEnded], &manners());
    assert_eq!(account.failed.as_deref(), Some("db failed"));
    assert_eq!((said, killed), (vec![ToGuest::Received], false));
}

#[test]
fn a_signal_and_a_request_to_stop_have_messages_of_their_own() {
    let interrupt = ToGuest::Signal { number: 15 };
    let manners = Manners { interrupt: interrupt.clone(), ..manners() };
    let said = |event| after(vec![hello(), event, Event::MachineEnded], &manners).1;
    assert_eq!(said(Event::Interrupted { signal: 2 }), [interrupt]);
    assert_eq!(said(Event::StopAsked), [STOP]);
}

#[test]
fn a_guest_that_has_said_its_last_word_gets_time_to_write_back() {
    let quick =
        Manners { grace: Duration::from_millis(5), timeout: Some(Duration::from_secs(600)), ..manners() };
    let script = || vec![hello(), ready(), Event::StopAsked, stopped(&[])];
    let impatient = Manners { last_word: Duration::from_millis(5), ..quick.clone() };
    let (account, _, killed) = after(script(), &impatient);
    assert!(account.killed && killed, "not for ever");
    let mut ended = script();
    ended.push(Event::MachineEnded);
    let (account, _, killed) = after(ended, &quick);
    assert!(!account.killed && !killed);
}

#[test]
fn a_timeout_while_services_start_stops_cleanly() {
    let state = FromGuest::Service { name: "db".into(), state: vmprof_job::ServiceState::Starting };
    let quick = Manners { timeout: Some(Duration::ZERO), grace: Duration::from_millis(5), ..manners() };
    let (account, said, _, told) = told_after(vec![hello(), Event::Said(state)], &quick);
    assert!(account.timed_out && account.ready_after.is_none());
    assert_eq!(said, [STOP]);
    assert_eq!(told.last(), Some(&News::Stopping { because: Because::TimeIsUp }));
}

#[test]
fn a_timeout_after_the_work_hurries_and_judges_nothing() {
    let quick = Manners { timeout: Some(Duration::ZERO), grace: Duration::ZERO, ..manners() };
    let quick = Manners { last_word: Duration::ZERO, ..quick };
    let ended = FromGuest::Ended { status: Ended::Exited(0), stdout: 4, stderr: 0 };
    let (account, said, killed) = after(vec![hello(), Event::Said(ended)], &quick);
    assert!(!account.timed_out && killed);
    assert_eq!(said, [ToGuest::Received, STOP]);
}

#[test]
fn the_commands_end_is_kept_with_what_it_wrote() {
    let ended = FromGuest::Ended { status: Ended::Exited(7), stdout: 4, stderr: 0 };
    let (account, said, killed) = after(vec![hello(), Event::Said(ended), Event::MachineEnded], &manners());
    assert_eq!(account.ended, Some(Finish { status: Ended::Exited(7), stdout_bytes: 4, stderr_bytes: 0 }));
    assert!(!killed);
    assert_eq!(said, [ToGuest::Received], "all of it has come, so the guest may go");
}

#[test]
fn a_guest_whose_output_has_not_all_come_is_not_let_go() {
    let ended = FromGuest::Ended { status: Ended::Exited(0), stdout: 5, stderr: 0 };
    let (_, said, _) = after(vec![hello(), Event::Said(ended), Event::MachineEnded], &manners());
    assert_eq!(said, []);
}

#[test]
fn one_interrupt_stops_cleanly_and_a_second_one_hard() {
    let interrupt = || Event::Interrupted { signal: 2 };
    let (account, said, killed) = after(vec![hello(), interrupt(), Event::MachineEnded], &manners());
    assert_eq!((account.interrupted, said, killed), (Some(2), vec![STOP], false));
    let (account, said, killed) = after(vec![hello(), interrupt(), interrupt()], &manners());
    assert_eq!((account.killed, said, killed), (true, vec![STOP], true));
}

#[test]
fn a_machine_that_stands_still_is_asked_to_stop_and_ended_hard_in_the_end() {
    let interrupt = || Event::Interrupted { signal: signal_hook::consts::SIGINT };
    let failure = Some("no space".to_owned());
    let paused = || Event::Paused { failure: Some("no space".to_owned()) };
    let (_, said, killed, told) =
        told_after(vec![hello(), ready(), paused(), interrupt(), interrupt()], &manners());
    assert_eq!((said, killed), (vec![STOP], true));
    assert!(told.contains(&News::Paused { failure }) && told.contains(&News::CannotStopPaused));
    let short =
        Manners { grace: Duration::from_millis(1), timeout: Some(Duration::from_millis(1)), ..manners() };
    let (account, _, killed, _) = told_after(vec![hello(), ready(), paused()], &short);
    assert!(account.timed_out && killed);
    let (_, _, killed, told) = told_after(
        vec![hello(), paused(), Event::Resumed, interrupt(), stopped(&[]), Event::MachineEnded],
        &manners(),
    );
    assert!(!killed && told.contains(&News::Resumed) && !told.contains(&News::CannotStopPaused));
}

#[test]
fn a_machine_that_has_not_said_hello_has_nothing_to_end_cleanly() {
    let (account, said, killed) = after(vec![Event::Interrupted { signal: 15 }], &manners());
    assert!(account.killed && killed && said.is_empty());
}

#[test]
fn a_timeout_stops_cleanly_and_after_the_grace_hard() {
    let quick =
        Manners { timeout: Some(Duration::from_millis(5)), grace: Duration::from_millis(5), ..manners() };
    let (account, said, killed) = after(vec![hello()], &quick);
    assert!(account.timed_out && account.killed && killed);
    assert_eq!(said, [STOP]);
}

#[test]
fn a_machine_that_stays_mute_is_ended() {
    let impatient = Manners { hello_within: Some(Duration::from_millis(5)), ..manners() };
    let (account, _, killed) = after(vec![], &impatient);
    assert!(account.mute && killed);
}

#[test]
fn a_machine_that_answers_no_ping_has_stalled() {
    let watchful = Manners { silence: Some(Duration::from_millis(30)), ..manners() };
    let ready = Event::Said(FromGuest::Ready { uptime_ms: 1 });
    let (account, said, killed) = after(vec![hello(), ready], &watchful);
    assert!(account.stalled && killed);
    assert!(said.len() >= 2 && said.iter().all(|message| *message == ToGuest::Ping), "{said:?}");
}

#[test]
fn a_machine_that_does_not_end_after_its_work_is_ended() {
    let watchful = Manners { silence: Some(Duration::from_millis(30)), ..manners() };
    let ended = FromGuest::Ended { status: Ended::Exited(0), stdout: 4, stderr: 0 };
    let (account, said, killed) = after(vec![hello(), Event::Said(ended)], &watchful);
    assert!(!account.stalled && killed);
    assert_eq!(said, [ToGuest::Received]);
}

#[test]
fn the_end_of_input_waits_for_somebody_to_hear_it() {
    let (_, said, _) = after(vec![Event::InputEnded { bytes: 3 }, hello(), Event::MachineEnded], &manners());
    assert_eq!(said, [ToGuest::InputEnded { bytes: 3 }]);
}

#[test]
fn a_helper_answers_whoever_asked() {
    let (answer, got) = mpsc::channel();
    let asked = Event::RunAsked { argv: vec!["true".into()], answer };
    let ran = FromGuest::Ran { id: 1, status: Ended::Exited(0), stdout: "x".into(), stderr: "".into() };
    after(vec![hello(), asked, Event::Said(ran), Event::MachineEnded], &manners());
    assert_eq!(got.recv().unwrap().stdout, b"x");
}

#[test]
fn a_question_about_schedulers_waits_for_hello_and_is_answered_by_its_number() {
    let ((first, _gone), (second, got)) = (mpsc::channel(), mpsc::channel());
    let told = |id, scheduler: &str| {
        let disk = DiskScheduler { serial: "data".into(), scheduler: Some(scheduler.into()) };
        Event::Said(FromGuest::Schedulers { id, disks: vec![disk] })
    };
    let asked = |answer| Event::SchedulersAsked { answer };
    let script = vec![
        asked(first),
        hello(),
        asked(second),
        told(7, "of nobody's question"),
        told(2, "none"),
        told(1, "bfq"),
        Event::MachineEnded,
    ];
    let (_, said, _) = after(script, &manners());
    assert_eq!(said, [1, 2].map(|id| ToGuest::Schedulers { id }));
    assert_eq!(got.recv().unwrap()[0].scheduler.as_deref(), Some("none"));
}
