//! Whether a thread that shares its CPUs with the vCPUs it serves takes them from these as it wakes.
//!
//! A doorbell wakes the thread on the CPU of the vCPU that rang. Under SCHED_OTHER it runs at once, and finds the one request
//! that rang: a driver that was about to offer sixty more has the CPU back for the next one, and rings again. Under
//! SCHED_BATCH the vCPU goes on until it sleeps or its slice ends, and the thread finds all of them. But a request that nothing
//! else was to follow waits for that, for milliseconds beside a vCPU that computes. No count in the rings tells the two
//! cases apart, so it is tried: both policies in turn for some milliseconds each, and the one that more requests are done
//! under stays, until the next trial. A thread that has CPUs of its own gains nothing and is not put to it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vmprof_sys::scheduling::{Policy, policy, set_policy};

/// How long each policy has its turn in a trial, several ticks of the clock below, and how many turns there are.
const TURN: Duration = Duration::from_millis(20);
const TURNS: u32 = 6;
/// Requests in a trial that are too few to tell.
const TOO_FEW: u64 = 60;
/// SCHED_BATCH stays where it gets so many times as much done, in percent.
const WORTH: u128 = 125;
/// From the beginning, or the end of an idle time, to the first trial; and from one to the next at most.
const FIRST_REST: Duration = Duration::from_millis(200);
const LONGEST_REST: Duration = Duration::from_secs(10);
/// What SCHED_BATCH once was worth it may not be for the next load: it is tried anew as often as this.
const REST_UNDER_BATCH: Duration = Duration::from_secs(2);
/// A thread with nothing to do for so long begins anew.
const IDLE: Duration = Duration::from_millis(100);

/// A point in time, since the host started.
type Moment = Duration;

/// By the clock that costs a few loads whatever keeps the time of the host; it goes on with each tick (CLOCK_MONOTONIC_COARSE).
fn now() -> Moment {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    Duration::try_from(time).unwrap_or_default()
}

/// What was done in the turns of one policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Done {
    requests: u64,
    time: Duration,
}

impl Done {
    fn add(&mut self, more: Done) {
        self.requests += more.requests;
        self.time += more.time;
    }

    /// Whether it is at least `percent` of the other's requests in the same time.
    fn is_worth(self, percent: u128, other: Done) -> bool {
        let cross = |requests: u64, time: Duration| u128::from(requests) * time.as_nanos();
        cross(self.requests, other.time) * 100 >= cross(other.requests, self.time) * percent
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Resting {
        /// From when the next trial may begin.
        until: Moment,
    },
    Trying {
        turn: u32,
        begun: Moment,
        /// Requests that were done before it began.
        before: u64,
        other: Done,
        batch: Done,
    },
}

/// Decides between the two. It is told of time and work and calls nothing.
#[derive(Debug)]
struct Trials {
    policy: Policy,
    phase: Phase,
    /// How long the next rest is.
    rest: Duration,
    /// When it was told last.
    last: Moment,
    /// What was done in the turns of SCHED_BATCH when it won.
    won_with: Done,
    /// Since when, and after how many requests, it is held against that.
    held: (Moment, u64),
}

impl Trials {
    fn new(now: Moment) -> Self {
        Trials {
            policy: Policy::Other,
            phase: Phase::Resting { until: now + FIRST_REST },
            rest: FIRST_REST,
            last: now,
            won_with: Done::default(),
            held: (now, 0),
        }
    }

    /// The thread woke, after so many requests in all: under what it goes on.
    fn woke(&mut self, now: Moment, requests: u64) -> Policy {
        let gap = now.saturating_sub(std::mem::replace(&mut self.last, now));
        match self.phase {
            _ if gap >= IDLE => {
                (self.policy, self.rest) = (Policy::Other, FIRST_REST);
                self.phase = Phase::Resting { until: now + FIRST_REST };
            }
            Phase::Resting { until } if now >= until => {
                self.policy = Policy::Other;
                let (other, batch) = (Done::default(), Done::default());
                self.phase = Phase::Trying { turn: 0, begun: now, before: requests, other, batch };
            }
            Phase::Resting { .. } if self.policy == Policy::Batch => self.hold(now, requests),
            Phase::Resting { .. } => {}
            Phase::Trying { turn, begun, before, mut other, mut batch } => {
                let time = now.saturating_sub(begun);
                if time >= TURN {
                    let done = Done { requests: requests.saturating_sub(before), time };
                    match self.policy {
                        Policy::Other => other.add(done),
                        Policy::Batch => batch.add(done),
                    }
                    if turn + 1 == TURNS {
                        self.decide(now, requests, other, batch);
                    } else {
                        self.policy = match self.policy {
                            Policy::Other => Policy::Batch,
                            Policy::Batch => Policy::Other,
                        };
                        self.phase =
                            Phase::Trying { turn: turn + 1, begun: now, before: requests, other, batch };
                    }
                }
            }
        }
        self.policy
    }

    fn decide(&mut self, now: Moment, requests: u64, other: Done, batch: Done) {
        let enough = other.requests + batch.requests >= TOO_FEW;
        if enough && batch.is_worth(WORTH, other) {
            self.policy = Policy::Batch;
            (self.won_with, self.held) = (batch, (now, requests));
            self.rest = FIRST_REST;
            self.phase = Phase::Resting { until: now + REST_UNDER_BATCH };
        } else {
            self.policy = Policy::Other;
            self.phase = Phase::Resting { until: now + self.rest };
            self.rest = LONGEST_REST.min(2 * self.rest);
        }
    }

    /// SCHED_BATCH goes at once when half of what it won with is no longer done under it.
    fn hold(&mut self, now: Moment, requests: u64) {
        let (since, before) = self.held;
        let time = now.saturating_sub(since);
        if time < TURN {
            return;
        }
        let done = Done { requests: requests.saturating_sub(before), time };
        self.held = (now, requests);
        if !done.is_worth(50, self.won_with) {
            self.policy = Policy::Other;
            self.phase = Phase::Resting { until: now + FIRST_REST };
        }
    }
}

/// The policy of the calling thread, kept at what gets more done.
#[derive(Debug)]
pub(super) struct Preempting {
    /// `None` leaves the thread as it is.
    trials: Option<Trials>,
    now: Policy,
    requests: u64,
}

impl Preempting {
    /// For the calling thread. One that whoever started vmprof gave another policy keeps it.
    pub(super) fn new(shares_cpus: bool) -> Self {
        let may = shares_cpus && matches!(policy(), Ok(Some(Policy::Other)));
        Preempting { trials: may.then(|| Trials::new(now())), now: Policy::Other, requests: 0 }
    }

    /// The calling thread has other CPUs from here on: it begins anew, under the policy that it began with.
    pub(super) fn moved(&mut self, shares_cpus: bool) {
        if self.now == Policy::Batch && set_policy(Policy::Other).is_ok() {
            self.now = Policy::Other;
        }
        if self.now == Policy::Other {
            *self = Preempting { requests: self.requests, ..Preempting::new(shares_cpus) };
        }
    }

    /// A request was done.
    pub(super) fn done(&mut self) {
        self.requests += 1;
    }

    /// The thread slept and woke. Whether it is under SCHED_BATCH from here on.
    pub(super) fn woke(&mut self) -> bool {
        if let Some(trials) = &mut self.trials {
            let wanted = trials.woke(now(), self.requests);
            if wanted != self.now {
                match set_policy(wanted) {
                    Ok(()) => self.now = wanted,
                    // A container's filter, say: what was in force stays, and nothing that was promised is lost.
                    Err(_) => self.trials = None,
                }
            }
        }
        self.now == Policy::Batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A load: how long a thread sleeps and how many requests it then does, under each policy.
    type Load = fn(Policy) -> (Duration, u64);

    const fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// One request each time it preempts, all that a driver has each time it does not.
    const DEEP: Load = |policy| if policy == Policy::Other { (micros(200), 1) } else { (micros(1_000), 30) };
    /// A request at a time, beside a vCPU that computes.
    const LONE: Load = |policy| if policy == Policy::Other { (micros(100), 1) } else { (micros(3_000), 1) };
    /// The CPU is the thread's own, or the driver has no more to do.
    const EVEN: Load = |_| (micros(100), 2);

    struct Played {
        trials: Trials,
        now: Moment,
        requests: u64,
    }

    impl Played {
        fn new() -> Self {
            let now = Duration::from_secs(1);
            Played { trials: Trials::new(now), now, requests: 0 }
        }

        /// Runs a load: the time spent under SCHED_BATCH, in percent.
        fn play(&mut self, load: Load, time: Duration) -> u128 {
            let (end, mut batch) = (self.now + time, Duration::ZERO);
            while self.now < end {
                let (slept, done) = load(self.trials.policy);
                if self.trials.policy == Policy::Batch {
                    batch += slept;
                }
                self.now += slept;
                self.requests += done;
                self.trials.woke(self.now, self.requests);
            }
            batch.as_nanos() * 100 / time.as_nanos()
        }
    }

    #[test]
    fn what_gets_more_done_is_in_force_and_the_other_has_little_of_the_time() {
        let minute = Duration::from_secs(60);
        assert!(Played::new().play(DEEP, minute) >= 90);
        for load in [LONE, EVEN] {
            let percent = Played::new().play(load, minute);
            assert!(percent <= 1, "{percent} %");
        }
    }

    #[test]
    fn a_load_that_changes_is_followed_at_once_where_requests_wait() {
        let mut played = Played::new();
        played.play(DEEP, Duration::from_secs(5));
        assert_eq!(played.trials.policy, Policy::Batch);
        // Two looks of a turn each, the first of which begins in the load before.
        let begun = played.now;
        while played.trials.policy == Policy::Batch {
            played.play(LONE, micros(1));
        }
        assert!(played.now - begun <= 3 * TURN, "{:?}", played.now - begun);
        played.play(LONE, Duration::from_secs(30));
        // And back, when the next trial comes.
        played.play(DEEP, LONGEST_REST + Duration::from_secs(1));
        assert_eq!(played.trials.policy, Policy::Batch);
    }

    #[test]
    fn few_requests_tell_nothing_and_idle_threads_preempt() {
        let rare: Load = |policy| (micros(8_000), u64::from(policy == Policy::Batch));
        let mut played = Played::new();
        played.play(rare, Duration::from_secs(20));
        assert_eq!(played.trials.policy, Policy::Other);
        let mut played = Played::new();
        played.play(DEEP, Duration::from_secs(5));
        played.now += IDLE;
        assert_eq!(played.trials.woke(played.now, played.requests), Policy::Other);
    }

    #[test]
    fn what_is_decided_is_what_the_thread_is_under() {
        let found = std::thread::spawn(|| {
            let mut own = Preempting::new(true);
            let phase = Phase::Resting { until: now() + LONGEST_REST };
            let won = Trials { policy: Policy::Batch, phase, ..Trials::new(now()) };
            own.trials = Some(won);
            let told = own.woke();
            (told, policy().unwrap())
        });
        assert_eq!(found.join().unwrap(), (true, Some(Policy::Batch)));
    }

    #[test]
    fn a_thread_that_moves_leaves_what_it_was_under_and_tries_where_it_shares() {
        let found = std::thread::spawn(|| {
            let mut own = Preempting::new(true);
            set_policy(Policy::Batch).unwrap();
            own.now = Policy::Batch;
            own.moved(false);
            let alone = (policy().unwrap(), own.trials.is_some());
            own.moved(true);
            (alone, own.trials.is_some())
        });
        assert_eq!(found.join().unwrap(), ((Some(Policy::Other), false), true));
    }

    #[test]
    fn a_thread_with_cpus_of_its_own_stays_as_it_is() {
        let mut own = Preempting::new(false);
        assert!(own.trials.is_none() && !own.woke());
        assert!(Preempting::new(true).trials.is_some());
    }
}
