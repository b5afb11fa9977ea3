//! The services of a guest as a machine of states: told what happened and when, it says what to do. It starts nothing
//! itself and reads no clock; `keeper.rs` does both.
//!
//! A service starts when all it needs is ready, and is stopped when nothing that needs it runs any more. Whatever ends a
//! service's main process, all it left behind is killed before anything else happens to the service.

mod keeper;
mod log;
mod notify;
mod order;
mod reach;
mod state;

use std::time::{Duration, Instant};

use vmprof_job::{Ended, Ready, RestartWhen, Service, ServiceKind, ServiceState};

use crate::failure::Failure;
pub(crate) use keeper::{Console, Keeper, Places};
use order::Needs;
use state::{Over, Probe, State};

/// A ready check by a command is tried this often.
const PROBE_EVERY: Duration = Duration::from_millis(200);
/// One that has not ended by then is killed, and tried again.
const PROBE_LASTS: Duration = Duration::from_secs(10);
/// A ready check by connecting costs next to nothing.
const CONNECT_EVERY: Duration = Duration::from_millis(50);
/// What SIGKILL does not end in this time is stuck in the kernel.
pub(crate) const KILLED: Duration = Duration::from_secs(2);

/// A service, by its place in the job.
pub(crate) type Id = usize;

/// What one start of a service is told apart by from the next one: a word about an earlier start is not about this one.
pub(crate) type Run = u32;

/// Which process of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A step of `prepare`, or `exec`.
    Main,
    /// A ready check.
    Probe,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Time has passed, and nothing else.
    Tick,
    /// `exec` is the program it shall be.
    Execed(Id, Run),
    Ended(Id, Run, Role, Ended),
    /// The process could not be started; there is none.
    CouldNot(Id, Run, Role, String),
    /// READY=1 from one of its processes.
    Notified(Id, Run),
    /// The answer to [`Action::Connect`].
    Connected(Id, Run, bool),
    /// Stop all of them within this time. A second one may make it shorter.
    Stop(Duration),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Everything a new start needs before its first process: directories, the notify socket.
    Begin(Id, Run),
    /// Run the step of `prepare` with this number.
    Prepare(Id, Run, usize),
    Exec(Id, Run),
    /// Run the command of the ready check.
    Probe(Id, Run),
    /// End the ready check that runs.
    KillProbe(Id),
    /// Try the socket of the ready check.
    Connect(Id, Run),
    /// To the main process.
    Signal(Id, i32),
    /// Everything it ever started.
    Kill(Id),
    Tell(Id, ServiceState),
}

#[derive(Debug)]
pub(crate) struct Services {
    all: Vec<One>,
    /// Set once everything shall stop: by when.
    stop_by: Option<Instant>,
    runs: Run,
}

#[derive(Debug)]
struct One {
    spec: Service,
    needs: Needs,
    state: State,
    run: Run,
    restarts: Vec<Instant>,
    was_ready: bool,
}

impl Services {
    pub(crate) fn new(specs: Vec<Service>) -> Result<Self, Failure> {
        let needs = order::needs(&specs)?;
        let one = |(spec, needs)| One {
            spec,
            needs,
            state: State::Waiting,
            run: 0,
            restarts: Vec::new(),
            was_ready: false,
        };
        Ok(Services { all: specs.into_iter().zip(needs).map(one).collect(), stop_by: None, runs: 0 })
    }

    pub(crate) fn specs(&self) -> impl Iterator<Item = &Service> {
        self.all.iter().map(|one| &one.spec)
    }

    pub(crate) fn spec(&self, id: Id) -> Option<&Service> {
        self.all.get(id).map(|one| &one.spec)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Every one is ready now.
    pub(crate) fn are_ready(&self) -> bool {
        self.all.iter().all(|one| one.state.is_ready())
    }

    /// None has a process, and none will have one again.
    pub(crate) fn are_over(&self) -> bool {
        self.all.iter().all(|one| matches!(one.state, State::Over(_) | State::Done))
    }

    /// The first that failed for good, and why.
    pub(crate) fn failed(&self) -> Option<(Id, &str)> {
        self.all.iter().enumerate().find_map(|(id, one)| match &one.state {
            State::Over(Over::Failed(because)) => Some((id, because.as_str())),
            _ => None,
        })
    }

    /// The names of those that had to be killed when they were stopped.
    pub(crate) fn killed(&self) -> Vec<String> {
        let killed =
            self.all.iter().filter(|one| matches!(one.state, State::Over(Over::Stopped { killed: true })));
        killed.map(|one| one.spec.name.clone()).collect()
    }

    /// When something is to be done even if nothing happens.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.all.iter().filter_map(|one| one.state.next()).chain(self.pending_deadline()).min()
    }

    fn pending_deadline(&self) -> Option<Instant> {
        // Past the deadline each one has been killed and waits by its own time.
        self.stop_by.filter(|_| self.all.iter().any(|one| one.state.runs_unstopped()))
    }

    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        self.take(event, now, &mut actions);
        for id in 0..self.all.len() {
            self.pass_time(id, now, &mut actions);
        }
        // One that starts or stops may let others do so.
        while self.advance(now, &mut actions) {}
        actions
    }

    fn take(&mut self, event: Event, now: Instant, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::Stop(within) => {
                let by = now + within;
                let by = self.stop_by.map_or(by, |earlier| earlier.min(by));
                self.stop_by = Some(by);
                for one in &mut self.all {
                    if let State::Stopping { kill_at, .. } = &mut one.state {
                        *kill_at = by.min(*kill_at);
                    }
                }
            }
            Event::Execed(id, run) => {
                let Some(one) = self.current(id, run) else { return };
                let State::Starting { probe: probe @ Probe::None, .. } = &mut one.state else { return };
                match (one.spec.kind, &one.spec.ready) {
                    (ServiceKind::Once, _) | (ServiceKind::Daemon, Ready::Notify) => {}
                    (ServiceKind::Daemon, Ready::Started) => one.ready(id, now, actions),
                    (ServiceKind::Daemon, Ready::Command(_) | Ready::Unix { .. } | Ready::Tcp { .. }) => {
                        *probe = Probe::At(now);
                    }
                }
            }
            Event::Notified(id, run) => {
                let Some(one) = self.current(id, run) else { return };
                let waits = one.spec.kind == ServiceKind::Daemon && one.spec.ready == Ready::Notify;
                if waits && matches!(one.state, State::Starting { .. }) {
                    one.ready(id, now, actions);
                }
            }
            Event::Connected(id, run, connected) => {
                let Some(one) = self.current(id, run) else { return };
                let State::Starting { probe: probe @ Probe::Connecting, .. } = &mut one.state else { return };
                if connected {
                    one.ready(id, now, actions);
                } else {
                    *probe = Probe::At(now + CONNECT_EVERY);
                }
            }
            Event::Ended(id, run, Role::Probe, status) => {
                let Some(one) = self.current(id, run) else { return };
                let State::Starting { probe: probe @ Probe::Runs { .. }, .. } = &mut one.state else {
                    return;
                };
                if status == Ended::Exited(0) {
                    one.ready(id, now, actions);
                } else {
                    *probe = Probe::At(now + PROBE_EVERY);
                }
            }
            Event::Ended(id, run, Role::Main, status) => {
                let Some(one) = self.current(id, run) else { return };
                one.main_ended(id, status, now, actions);
            }
            // Its own check that cannot be run now may be run later.
            Event::CouldNot(id, run, Role::Probe, _) => {
                let Some(one) = self.current(id, run) else { return };
                if let State::Starting { probe: probe @ Probe::Runs { .. }, .. } = &mut one.state {
                    *probe = Probe::At(now + PROBE_EVERY);
                }
            }
            Event::CouldNot(id, run, Role::Main, because) => {
                let Some(one) = self.current(id, run) else { return };
                match &one.state {
                    State::Preparing { .. } | State::Starting { .. } => {
                        one.failed(id, because, now, actions);
                    }
                    State::Dying { .. } | State::Stopping { .. } => {
                        one.main_ended(id, Ended::Exited(0), now, actions);
                    }
                    _ => {}
                }
            }
        }
    }

    fn current(&mut self, id: Id, run: Run) -> Option<&mut One> {
        self.all.get_mut(id).filter(|one| one.run == run)
    }

    fn pass_time(&mut self, id: Id, now: Instant, actions: &mut Vec<Action>) {
        let stop_by = self.stop_by;
        let Some(one) = self.all.get_mut(id) else { return };
        match &mut one.state {
            State::Preparing { deadline, .. } | State::Starting { deadline, .. } if now >= *deadline => {
                let because =
                    format!("it was not ready within {}", state::in_seconds(one.spec.ready_within_ms));
                actions.push(Action::Kill(id));
                one.state = State::Dying { because, give_up: now + KILLED };
            }
            State::Starting { probe, .. } => match probe {
                Probe::At(at) if now >= *at => match one.spec.ready {
                    Ready::Command(_) => {
                        *probe = Probe::Runs { until: now + PROBE_LASTS, killed: false };
                        actions.push(Action::Probe(id, one.run));
                    }
                    Ready::Unix { .. } | Ready::Tcp { .. } => {
                        *probe = Probe::Connecting;
                        actions.push(Action::Connect(id, one.run));
                    }
                    Ready::Started | Ready::Notify => *probe = Probe::None,
                },
                Probe::Runs { until, killed: killed @ false } if now >= *until => {
                    *killed = true;
                    actions.push(Action::KillProbe(id));
                }
                _ => {}
            },
            State::Delayed { until } if now >= *until => one.state = State::Waiting,
            State::Dying { because, give_up } if now >= *give_up => {
                let because = format!("{because}, and SIGKILL did not end it");
                one.over(id, Over::Failed(because), actions);
            }
            State::Stopping { kill_at, killed: None } if now >= *kill_at => {
                actions.push(Action::Kill(id));
                one.state = State::Stopping { kill_at: *kill_at, killed: Some(now) };
            }
            State::Stopping { killed: Some(at), .. } if now >= *at + KILLED => {
                one.over(id, Over::Stopped { killed: true }, actions);
            }
            _ => {}
        }
        // The time of all is up: no order holds any more.
        if stop_by.is_some_and(|by| now >= by) && one.state.runs_unstopped() {
            actions.push(Action::Kill(id));
            one.state = State::Stopping { kill_at: now, killed: Some(now) };
        }
    }

    /// One step of starting or stopping; says whether there was one.
    fn advance(&mut self, now: Instant, actions: &mut Vec<Action>) -> bool {
        let ids = 0..self.all.len();
        match self.stop_by {
            None => ids.into_iter().any(|id| self.start(id, now, actions)),
            Some(by) => ids.into_iter().any(|id| self.stop(id, by, now, actions)),
        }
    }

    fn start(&mut self, id: Id, now: Instant, actions: &mut Vec<Action>) -> bool {
        let Some(one) = self.all.get(id) else { return false };
        if !matches!(one.state, State::Waiting) {
            return false;
        }
        let mut needs = one.needs.needs.iter().filter_map(|need| self.all.get(*need));
        let hopeless = needs.clone().find(|need| matches!(need.state, State::Over(_)));
        let because = hopeless.map(|need| {
            let fate = match need.state {
                State::Over(Over::Failed(_)) => "failed",
                _ => "has stopped",
            };
            format!("it needs `{}`, which {fate}", need.spec.name)
        });
        if because.is_none() && !needs.all(|need| need.state.is_ready()) {
            return false;
        }
        self.runs += 1;
        let run = self.runs;
        let Some(one) = self.all.get_mut(id) else { return false };
        if let Some(because) = because {
            one.over(id, Over::Failed(because), actions);
        } else {
            one.run = run;
            one.begin(id, now, actions);
        }
        true
    }

    fn stop(&mut self, id: Id, by: Instant, now: Instant, actions: &mut Vec<Action>) -> bool {
        let Some(one) = self.all.get(id) else { return false };
        let needed = one.needs.needed_by.iter().filter_map(|user| self.all.get(*user));
        let needed = needed.into_iter().any(|user| user.state.has_process());
        let Some(one) = self.all.get_mut(id) else { return false };
        match &one.state {
            State::Waiting => one.state = State::Over(Over::Stopped { killed: false }),
            State::Delayed { .. } => one.over(id, Over::Stopped { killed: false }, actions),
            state if state.runs_unstopped() && !needed => {
                if matches!(state, State::Starting { probe: Probe::Runs { .. }, .. }) {
                    actions.push(Action::KillProbe(id));
                }
                let within = Duration::from_millis(one.spec.stop.within_ms);
                actions.push(Action::Signal(id, one.spec.stop.signal));
                one.state = State::Stopping { kill_at: by.min(now + within), killed: None };
            }
            _ => return false,
        }
        true
    }
}

impl One {
    fn begin(&mut self, id: Id, now: Instant, actions: &mut Vec<Action>) {
        let deadline = now + Duration::from_millis(self.spec.ready_within_ms);
        actions.push(Action::Tell(id, ServiceState::Starting));
        actions.push(Action::Begin(id, self.run));
        if self.spec.prepare.is_empty() {
            self.exec(id, now, deadline, actions);
        } else {
            self.state = State::Preparing { step: 0, began: now, deadline };
            actions.push(Action::Prepare(id, self.run, 0));
        }
    }

    fn exec(&mut self, id: Id, began: Instant, deadline: Instant, actions: &mut Vec<Action>) {
        self.state = State::Starting { began, deadline, probe: Probe::None };
        actions.push(Action::Exec(id, self.run));
    }

    fn ready(&mut self, id: Id, now: Instant, actions: &mut Vec<Action>) {
        let State::Starting { began, .. } = self.state else { return };
        let after = now.saturating_duration_since(began);
        self.was_ready = true;
        self.state = match self.spec.kind {
            ServiceKind::Daemon => State::Ready,
            ServiceKind::Once => State::Done,
        };
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        actions.push(Action::Tell(id, ServiceState::Ready { after_ms }));
    }

    fn main_ended(&mut self, id: Id, status: Ended, now: Instant, actions: &mut Vec<Action>) {
        let well = status == Ended::Exited(0);
        if let State::Preparing { step, began, deadline } = self.state
            && well
        {
            let next = step + 1;
            if next < self.spec.prepare.len() {
                self.state = State::Preparing { step: next, began, deadline };
                actions.push(Action::Prepare(id, self.run, next));
            } else {
                self.exec(id, began, deadline, actions);
            }
            return;
        }
        if !self.state.has_process() {
            return;
        }
        // What it left behind.
        actions.push(Action::Kill(id));
        let how = state::told(status);
        match &self.state {
            State::Preparing { step, .. } => {
                let program = self.spec.prepare.get(*step).and_then(|step| step.argv.first());
                let program =
                    program.map(|word| String::from_utf8_lossy(word.as_bytes())).unwrap_or_default();
                let because = format!("its prepare step `{program}` failed: {how}");
                self.failed(id, because, now, actions);
            }
            State::Starting { .. } => match self.spec.kind {
                ServiceKind::Once if well => self.ready(id, now, actions),
                ServiceKind::Once => self.failed(id, how, now, actions),
                ServiceKind::Daemon => self.failed(id, format!("{how} before it was ready"), now, actions),
            },
            State::Ready if well && self.spec.restart.when != RestartWhen::Always => {
                self.over(id, Over::Stopped { killed: false }, actions);
            }
            State::Ready => self.failed(id, how, now, actions),
            State::Dying { because, .. } => {
                let because = because.clone();
                self.failed(id, because, now, actions);
            }
            State::Stopping { killed, .. } => {
                let killed = killed.is_some();
                self.over(id, Over::Stopped { killed }, actions);
            }
            State::Waiting | State::Delayed { .. } | State::Done | State::Over(_) => {}
        }
    }

    /// It has no process any more. Again, or never again.
    fn failed(&mut self, id: Id, because: String, now: Instant, actions: &mut Vec<Action>) {
        let restart = &self.spec.restart;
        let window = Duration::from_millis(restart.window_ms);
        if self.was_ready {
            self.restarts.retain(|at| now.saturating_duration_since(*at) < window);
        }
        let spent = self.restarts.len() >= usize::try_from(restart.most).unwrap_or(usize::MAX);
        match restart.when {
            RestartWhen::OnFailure | RestartWhen::Always if !spent => {
                self.restarts.push(now);
                let in_ms = restart.delay_ms;
                self.state = State::Delayed { until: now + Duration::from_millis(in_ms) };
                actions.push(Action::Tell(id, ServiceState::Restarting { because, in_ms }));
            }
            RestartWhen::OnFailure | RestartWhen::Always if restart.most > 0 => {
                let because = match self.restarts.len() {
                    1 => format!("{because}; it was restarted once"),
                    times => format!("{because}; it was restarted {times} times"),
                };
                self.over(id, Over::Failed(because), actions);
            }
            _ => self.over(id, Over::Failed(because), actions),
        }
    }

    fn over(&mut self, id: Id, over: Over, actions: &mut Vec<Action>) {
        let told = match &over {
            Over::Failed(because) => ServiceState::Failed { because: because.clone() },
            Over::Stopped { killed } => ServiceState::Stopped { killed: *killed },
        };
        actions.push(Action::Tell(id, told));
        self.state = State::Over(over);
    }
}

#[cfg(test)]
pub(crate) mod tests;
