//! The machine of states with a clock and processes that exist only here: examples, and properties over arbitrary lives.

use proptest::prelude::*;
use vmprof_job::{Restart, Step, Stop};

use super::*;

pub(crate) fn service(name: &str, after: &[&str]) -> Service {
    Service {
        name: name.to_owned(),
        after: after.iter().map(|name| (*name).to_owned()).collect(),
        directories: Vec::new(),
        prepare: Vec::new(),
        exec: step(&["sleep", "600"]),
        kind: ServiceKind::Daemon,
        restart: Restart { when: RestartWhen::Never, delay_ms: 0, most: 0, window_ms: 0 },
        ready: Ready::Started,
        ready_within_ms: 10_000,
        stop: Stop { signal: 15, within_ms: 5_000 },
    }
}

/// As whoever runs the test: only root may become somebody else.
pub(crate) fn step(argv: &[&str]) -> Step {
    Step {
        argv: argv.iter().map(|word| (*word).into()).collect(),
        user: rustix::process::geteuid().as_raw().to_string(),
        group: Some(rustix::process::getegid().as_raw().to_string()),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        directory: "/".to_owned(),
    }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What was told of one service, in words.
fn told(actions: &[Action], id: Id) -> Vec<String> {
    let of = |action: &Action| match action {
        Action::Tell(told, state) if *told == id => Some(format!("{state:?}")),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

fn failing(name: &str, when: RestartWhen, most: u32) -> Service {
    Service { restart: Restart { when, delay_ms: 100, most, window_ms: 1_000 }, ..service(name, &[]) }
}

#[test]
fn a_service_waits_until_what_it_needs_is_ready() {
    let now = Instant::now();
    let db = Service { ready: Ready::Notify, ..service("db", &[]) };
    let mut services = Services::new(vec![service("app", &["db"]), db]).unwrap();
    let started = services.on(Event::Tick, now);
    assert!(started.contains(&Action::Exec(1, 1)) && !started.contains(&Action::Begin(0, 1)));
    assert_eq!(services.on(Event::Execed(1, 1), now), []);
    assert!(!services.are_ready());
    let actions = services.on(Event::Notified(1, 1), now + ms(30));
    assert_eq!(
        actions,
        [
            Action::Tell(1, ServiceState::Ready { after_ms: 30 }),
            Action::Tell(0, ServiceState::Starting),
            Action::Begin(0, 2),
            Action::Exec(0, 2)
        ]
    );
    services.on(Event::Execed(0, 2), now + ms(31));
    assert!(services.are_ready());
}

#[test]
fn services_that_need_nothing_of_each_other_start_together() {
    let mut services =
        Services::new(vec![service("a", &[]), service("b", &[]), service("c", &["a", "b"])]).unwrap();
    let actions = services.on(Event::Tick, Instant::now());
    let execs: Vec<_> = actions.iter().filter(|action| matches!(action, Action::Exec(..))).collect();
    assert_eq!(execs, [&Action::Exec(0, 1), &Action::Exec(1, 2)]);
}

#[test]
fn steps_run_one_after_the_other_and_the_first_that_fails_is_named() {
    let now = Instant::now();
    let prepare = vec![step(&["mkdir", "x"]), step(&["initdb"])];
    let mut services = Services::new(vec![Service { prepare, ..service("db", &[]) }]).unwrap();
    let began = services.on(Event::Tick, now);
    assert!(began.contains(&Action::Prepare(0, 1, 0)) && !began.contains(&Action::Exec(0, 1)));
    let next = services.on(Event::Ended(0, 1, Role::Main, Ended::Exited(0)), now);
    assert_eq!(next, [Action::Prepare(0, 1, 1)]);
    let failed = services.on(Event::Ended(0, 1, Role::Main, Ended::Exited(3)), now);
    assert_eq!(failed[0], Action::Kill(0));
    assert_eq!(services.failed(), Some((0, "its prepare step `initdb` failed: it ended with status 3")));
}

#[test]
fn what_runs_once_is_ready_when_it_ended_well() {
    let now = Instant::now();
    let once = Service { kind: ServiceKind::Once, ..service("migrate", &[]) };
    let mut services = Services::new(vec![once, service("app", &["migrate"])]).unwrap();
    services.on(Event::Tick, now);
    assert_eq!(services.on(Event::Execed(0, 1), now), []);
    let actions = services.on(Event::Ended(0, 1, Role::Main, Ended::Exited(0)), now + ms(5));
    assert_eq!(told(&actions, 0), ["Ready { after_ms: 5 }"]);
    assert!(actions.contains(&Action::Exec(1, 2)));
    // It is not over before the daemon is.
    assert!(!services.are_over());
    services.on(Event::Ended(1, 2, Role::Main, Ended::Exited(0)), now + ms(6));
    assert!(services.are_over());
}

#[test]
fn a_daemon_that_forks_away_has_failed() {
    let now = Instant::now();
    let mut services = Services::new(vec![Service { ready: Ready::Notify, ..service("d", &[]) }]).unwrap();
    services.on(Event::Tick, now);
    let actions = services.on(Event::Ended(0, 1, Role::Main, Ended::Exited(0)), now);
    assert_eq!(actions[0], Action::Kill(0), "what it left behind goes, too");
    assert_eq!(services.failed(), Some((0, "it ended with status 0 before it was ready")));
}

#[test]
fn restarts_wait_their_delay_and_are_counted_within_a_window() {
    let mut now = Instant::now();
    let mut services = Services::new(vec![failing("a", RestartWhen::OnFailure, 2)]).unwrap();
    let mut run = 0;
    let mut live = |services: &mut Services, now: Instant| {
        run += 1;
        services.on(Event::Tick, now);
        services.on(Event::Execed(0, run), now);
        services.on(Event::Ended(0, run, Role::Main, Ended::Signaled(11)), now)
    };
    let first = live(&mut services, now);
    assert_eq!(told(&first, 0), ["Restarting { because: \"it was ended by signal 11\", in_ms: 100 }"]);
    assert_eq!(services.next(), Some(now + ms(100)));
    assert_eq!(services.on(Event::Tick, now + ms(99)), []);
    now += ms(100);
    live(&mut services, now);
    // The window of the first restart has passed: it is forgotten.
    now += ms(1_000);
    assert_eq!(told(&live(&mut services, now), 0).len(), 1);
    assert!(services.failed().is_none());
    now += ms(100);
    live(&mut services, now);
    now += ms(100);
    live(&mut services, now);
    assert_eq!(services.failed(), Some((0, "it was ended by signal 11; it was restarted 2 times")));
}

#[test]
fn before_it_was_ever_ready_no_restart_is_forgotten() {
    let mut now = Instant::now();
    let never = Service { ready: Ready::Notify, ..failing("a", RestartWhen::Always, 3) };
    let mut services = Services::new(vec![never]).unwrap();
    for run in 1..=4 {
        assert!(services.failed().is_none());
        services.on(Event::Tick, now);
        services.on(Event::Ended(0, run, Role::Main, Ended::Exited(1)), now);
        // Longer than the window.
        now += ms(60_000);
    }
    assert!(services.failed().is_some());
}

#[test]
fn a_daemon_that_ends_well_has_stopped_unless_it_shall_always_run() {
    for (when, state) in [(RestartWhen::OnFailure, "Stopped"), (RestartWhen::Always, "Restarting")] {
        let now = Instant::now();
        let mut services = Services::new(vec![failing("a", when, 9)]).unwrap();
        services.on(Event::Tick, now);
        services.on(Event::Execed(0, 1), now);
        let actions = services.on(Event::Ended(0, 1, Role::Main, Ended::Exited(0)), now);
        assert!(told(&actions, 0)[0].starts_with(state), "{when:?}");
    }
}

#[test]
fn not_ready_in_time_is_a_failure_and_it_is_killed_before_anything_else() {
    let now = Instant::now();
    let slow = Service { ready: Ready::Tcp { port: 5432 }, ready_within_ms: 500, ..service("db", &[]) };
    let mut services = Services::new(vec![slow]).unwrap();
    services.on(Event::Tick, now);
    let check = services.on(Event::Execed(0, 1), now);
    assert_eq!(check, [Action::Connect(0, 1)]);
    assert_eq!(services.on(Event::Connected(0, 1, false), now), []);
    assert_eq!(services.next(), Some(now + CONNECT_EVERY));
    assert_eq!(services.on(Event::Tick, now + ms(500)), [Action::Kill(0)]);
    services.on(Event::Ended(0, 1, Role::Main, Ended::Signaled(9)), now + ms(501));
    assert_eq!(services.failed(), Some((0, "it was not ready within 0.5 s")));
}

#[test]
fn a_check_by_command_is_tried_again_and_ended_when_it_hangs() {
    let now = Instant::now();
    let ready = Ready::Command(step(&["pg_isready"]));
    let mut services =
        Services::new(vec![Service { ready, ready_within_ms: 60_000, ..service("db", &[]) }]).unwrap();
    services.on(Event::Tick, now);
    assert_eq!(services.on(Event::Execed(0, 1), now), [Action::Probe(0, 1)]);
    assert_eq!(services.on(Event::Ended(0, 1, Role::Probe, Ended::Exited(2)), now), []);
    assert_eq!(services.on(Event::Tick, now + PROBE_EVERY), [Action::Probe(0, 1)]);
    let late = now + PROBE_EVERY + PROBE_LASTS;
    assert_eq!(services.on(Event::Tick, late), [Action::KillProbe(0)]);
    assert_eq!(services.on(Event::Tick, late + ms(1)), []);
    services.on(Event::Ended(0, 1, Role::Probe, Ended::Signaled(9)), late);
    assert_eq!(services.on(Event::Tick, late + PROBE_EVERY), [Action::Probe(0, 1)]);
    let actions = services.on(Event::Ended(0, 1, Role::Probe, Ended::Exited(0)), late + PROBE_EVERY);
    assert_eq!(told(&actions, 0).len(), 1);
    assert!(services.are_ready());
}

#[test]
fn what_needs_something_that_is_gone_for_good_has_failed_with_it() {
    let now = Instant::now();
    let db = Service { ready: Ready::Notify, ..service("db", &[]) };
    let mut services = Services::new(vec![db, service("app", &["db"]), service("web", &["app"])]).unwrap();
    services.on(Event::Tick, now);
    let actions = services.on(Event::CouldNot(0, 1, Role::Main, "no user `pg`".to_owned()), now);
    assert_eq!(told(&actions, 1), ["Failed { because: \"it needs `db`, which failed\" }"]);
    assert_eq!(told(&actions, 2).len(), 1);
    assert_eq!(services.failed(), Some((0, "no user `pg`")), "the cause, not what came of it");
}

#[test]
fn stopping_goes_backwards_and_waits_for_each() {
    let now = Instant::now();
    let mut services = Services::new(vec![service("db", &[]), service("app", &["db"])]).unwrap();
    services.on(Event::Tick, now);
    services.on(Event::Execed(0, 1), now);
    services.on(Event::Execed(1, 2), now);
    assert_eq!(services.on(Event::Stop(ms(60_000)), now), [Action::Signal(1, 15)]);
    let actions = services.on(Event::Ended(1, 2, Role::Main, Ended::Signaled(15)), now + ms(3));
    assert_eq!(
        actions,
        [Action::Kill(1), Action::Tell(1, ServiceState::Stopped { killed: false }), Action::Signal(0, 15)]
    );
    // Its own time is up before that of all.
    assert_eq!(services.on(Event::Tick, now + ms(5_003)), [Action::Kill(0)]);
    let actions = services.on(Event::Ended(0, 1, Role::Main, Ended::Signaled(9)), now + ms(5_004));
    assert_eq!(told(&actions, 0), ["Stopped { killed: true }"]);
    assert!(services.are_over());
    assert_eq!(services.killed(), ["db"]);
}

#[test]
fn a_second_stop_only_shortens() {
    let now = Instant::now();
    let mut services = Services::new(vec![service("db", &[])]).unwrap();
    services.on(Event::Tick, now);
    services.on(Event::Execed(0, 1), now);
    services.on(Event::Stop(ms(1_000)), now);
    services.on(Event::Stop(ms(60_000)), now);
    assert_eq!(services.next(), Some(now + ms(1_000)));
    services.on(Event::Stop(ms(10)), now);
    assert_eq!(services.on(Event::Tick, now + ms(10)), [Action::Kill(0)]);
    // Not even that helps: the machine does not wait for it for ever.
    assert_eq!(services.next(), Some(now + ms(10) + KILLED));
    services.on(Event::Tick, now + ms(10) + KILLED);
    assert!(services.are_over());
}

/// A process as the machine of states must see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Alive {
    run: Run,
    prepares: bool,
    signalled: bool,
    killed: bool,
}

/// What there is of a service in the world.
#[derive(Debug, Default, Clone)]
struct Real {
    main: Option<Alive>,
    probe: Option<Run>,
    connecting: Option<Run>,
    ready: bool,
    over: bool,
    began: Option<Instant>,
}

struct World {
    services: Services,
    real: Vec<Real>,
    now: Instant,
    stop_by: Option<Instant>,
}

impl World {
    fn on(&mut self, event: Event) {
        if let Event::Stop(within) = &event {
            let by = self.now + *within;
            self.stop_by = Some(self.stop_by.map_or(by, |earlier| earlier.min(by)));
        }
        for action in self.services.on(event, self.now) {
            self.act(action);
        }
        self.check();
    }

    fn needs(&self, id: Id) -> Vec<Id> {
        self.services.all[id].needs.needs.clone()
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Begin(id, _) => {
                assert!(self.stop_by.is_none(), "nothing starts while everything stops");
                assert!(self.real[id].main.is_none() && !self.real[id].over);
                for need in self.needs(id) {
                    assert!(self.real[need].ready, "{id} started before {need} was ready");
                }
                self.real[id].began = Some(self.now);
            }
            Action::Prepare(id, run, _) | Action::Exec(id, run) => {
                let prepares = matches!(action, Action::Prepare(..));
                assert!(self.real[id].main.is_none() && !self.real[id].over && self.stop_by.is_none());
                self.real[id].main = Some(Alive { run, prepares, signalled: false, killed: false });
            }
            Action::Probe(id, run) => {
                assert_eq!(self.real[id].main.map(|main| main.run), Some(run));
                assert!(self.real[id].probe != Some(run), "one check at a time");
                self.real[id].probe = Some(run);
            }
            Action::Connect(id, run) => {
                assert_eq!(self.real[id].main.map(|main| main.run), Some(run));
                self.real[id].connecting = Some(run);
            }
            Action::KillProbe(id) => assert!(self.real[id].probe.is_some(), "there is a check to be ended"),
            Action::Signal(id, _) => {
                let needed_by: Vec<Id> = self.services.all[id].needs.needed_by.clone();
                for user in needed_by {
                    assert!(
                        self.real[user].main.is_none() || self.real[user].over,
                        "{id} stopped before {user}, which needs it"
                    );
                }
                let main = self.real[id].main.as_mut().expect("a signal is for a process");
                assert!(!main.signalled && !main.killed);
                main.signalled = true;
            }
            Action::Kill(id) => {
                if let Some(main) = &mut self.real[id].main {
                    main.killed = true;
                }
            }
            Action::Tell(id, state) => {
                assert!(!self.real[id].over, "the last word on a service is the last");
                match state {
                    ServiceState::Starting => {}
                    ServiceState::Ready { .. } => self.real[id].ready = true,
                    ServiceState::Restarting { .. } => {
                        assert!(self.real[id].main.is_none(), "restarted while it runs");
                        self.real[id].ready = false;
                    }
                    ServiceState::Failed { .. } | ServiceState::Stopped { .. } => {
                        self.real[id].ready = false;
                        self.real[id].over = true;
                    }
                }
            }
        }
    }

    /// True at any moment.
    fn check(&self) {
        for (id, real) in self.real.iter().enumerate() {
            let Some(main) = real.main else { continue };
            if self.stop_by.is_some_and(|by| self.now >= by) {
                assert!(main.killed, "{id} lives past the deadline of all");
            }
            let within = ms(self.services.all[id].spec.ready_within_ms);
            let late = real.began.is_some_and(|began| self.now >= began + within);
            if late && !real.ready && self.services.all[id].spec.kind == ServiceKind::Daemon {
                assert!(main.killed || main.signalled, "{id} starts for longer than it may");
            }
        }
    }

    /// Something that could happen now.
    fn happen(&mut self, kind: u8, which: u8, long: u16) {
        let id = usize::from(which) % self.real.len();
        let real = self.real[id].clone();
        let status = if long.is_multiple_of(3) { Ended::Exited(1) } else { Ended::Exited(0) };
        match (kind % 9, real.main) {
            (0 | 1, _) => {
                let next = self.services.next().unwrap_or(self.now);
                self.now = next.max(self.now);
                self.on(Event::Tick);
            }
            (2, _) => {
                self.now += ms(u64::from(long));
                self.on(Event::Tick);
            }
            (3, Some(main)) => {
                self.real[id].main = None;
                let status = if main.killed { Ended::Signaled(9) } else { status };
                self.on(Event::Ended(id, main.run, Role::Main, status));
            }
            (4, Some(main)) if !main.prepares => self.on(Event::Execed(id, main.run)),
            (5, Some(main)) => self.on(Event::Notified(id, main.run)),
            (6, _) if real.connecting.is_some() => {
                let run = self.real[id].connecting.take().unwrap();
                self.on(Event::Connected(id, run, long.is_multiple_of(2)));
            }
            (7, _) if real.probe.is_some() => {
                let run = self.real[id].probe.take().unwrap();
                self.on(Event::Ended(id, run, Role::Probe, status));
            }
            // Word of a start that is long over.
            (8, _) => self.on(Event::Ended(id, 0, Role::Main, status)),
            _ => {}
        }
    }
}

fn any_service(id: usize) -> impl Strategy<Value = Service> {
    let when = prop_oneof![Just(RestartWhen::Never), Just(RestartWhen::OnFailure), Just(RestartWhen::Always)];
    let ready = prop_oneof![
        Just(Ready::Started),
        Just(Ready::Notify),
        Just(Ready::Tcp { port: 1 }),
        Just(Ready::Command(step(&["check"]))),
    ];
    let after = prop::collection::vec(0..id.max(1), 0..3);
    (after, when, ready, any::<bool>(), 0..3usize, 0..3u32, 1..5_000u64).prop_map(
        move |(after, when, ready, once, steps, most, time)| Service {
            after: after.into_iter().filter(|need| *need < id).map(|need| need.to_string()).collect(),
            prepare: vec![step(&["prepare"]); steps],
            kind: if once { ServiceKind::Once } else { ServiceKind::Daemon },
            restart: Restart { when, delay_ms: time / 7, most, window_ms: time * 2 },
            ready,
            ready_within_ms: time,
            stop: Stop { signal: 15, within_ms: time / 2 },
            ..service(&id.to_string(), &[])
        },
    )
}

fn any_services() -> impl Strategy<Value = Vec<Service>> {
    (any_service(0), any_service(1), any_service(2), any_service(3), 1..=4usize).prop_map(
        |(a, b, c, d, count)| {
            let mut services = vec![a, b, c, d];
            services.truncate(count);
            services
        },
    )
}

proptest! {
    #[test]
    fn in_no_life_does_order_or_a_deadline_break(
        specs in any_services(),
        before in prop::collection::vec(any::<(u8, u8, u16)>(), 0..120),
        after in prop::collection::vec(any::<(u8, u8, u16)>(), 0..40),
        stops in prop::collection::vec(0..20_000u64, 1..3),
    ) {
        let real = vec![Real::default(); specs.len()];
        let mut world = World { services: Services::new(specs).unwrap(), real, now: Instant::now(), stop_by: None };
        world.on(Event::Tick);
        for (kind, which, long) in before {
            world.happen(kind, which, long);
        }
        for within in stops {
            world.on(Event::Stop(ms(within)));
            for (kind, which, long) in &after {
                world.happen(*kind, *which, *long);
            }
        }
        // Processes that never end, however they are killed, do not keep the machine up.
        let end = world.stop_by.unwrap().max(world.now) + KILLED;
        while let Some(next) = world.services.next() {
            prop_assert!(next <= end, "something is to be done after the end");
            world.now = next.max(world.now);
            world.on(Event::Tick);
        }
        prop_assert!(world.services.are_over());
    }
}
