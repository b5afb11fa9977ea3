//! One measurement, and what many of them come to: medians with their spread, and the measurements that the rest of the
//! machine spoilt left out where enough others are there.

use std::time::Duration;

use serde::Serialize;

use crate::client::Run;
use crate::point::Point;
use crate::usage::{Usage, stolen};

/// A larger part of the time in which a thread was ready and had no CPU, or the CPU was the hypervisor's, spoils a
/// measurement.
pub const SPOILT: f64 = 0.05;
/// With fewer good rounds than this the spoilt ones are taken too, and the result is marked.
const ENOUGH: usize = 3;

#[derive(Debug, Clone, Serialize)]
pub struct Measurement {
    pub subject: String,
    #[serde(flatten)]
    pub point: Point,
    pub round: u32,
    pub requests: u64,
    pub seconds: f64,
    pub iops: f64,
    /// Of the server, its kernel threads included, per request.
    pub cpu_us: f64,
    pub switches: f64,
    /// System calls of the server per request, where they are counted.
    pub syscalls: Option<f64>,
    /// Per request: how often the driver had to notify, and how often it slept.
    pub kicks: Option<f64>,
    pub sleeps: Option<f64>,
    pub client_cpu_us: Option<f64>,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p999_us: Option<f64>,
    /// The part of the time that others had these CPUs while we wanted them.
    pub disturbed: f64,
}

/// The counted end of a measurement, whoever made it.
#[derive(Debug)]
pub struct Counted {
    pub requests: u64,
    pub wall: Duration,
    pub server: Usage,
    pub waited_ns: u64,
}

impl Measurement {
    pub fn new(subject: &str, point: Point, round: u32, counted: &Counted, lost: Duration) -> Measurement {
        let per_request = |value: f64| value / counted.requests.max(1) as f64;
        let seconds = counted.wall.as_secs_f64();
        let waited = counted.server.waited_ns + counted.waited_ns;
        Measurement {
            subject: subject.to_owned(),
            point,
            round,
            requests: counted.requests,
            seconds,
            iops: counted.requests as f64 / seconds,
            cpu_us: per_request(counted.server.cpu_ns as f64 / 1e3),
            switches: per_request((counted.server.voluntary + counted.server.involuntary) as f64),
            syscalls: None,
            kicks: None,
            sleeps: None,
            client_cpu_us: None,
            p50_us: None,
            p99_us: None,
            p999_us: None,
            disturbed: (waited as f64 / 1e9 + lost.as_secs_f64()) / seconds,
        }
    }

    pub fn of_client(subject: &str, point: Point, round: u32, run: &Run, lost: Duration) -> Measurement {
        let counted = Counted {
            requests: run.requests,
            wall: run.wall,
            server: run.server,
            waited_ns: run.client.waited_ns,
        };
        let per_request = |count: u64| count as f64 / run.requests.max(1) as f64;
        let quantile = |at: f64| Some(run.latencies.value_at_quantile(at) as f64 / 1e3);
        Measurement {
            kicks: Some(per_request(run.counts.kicks)),
            sleeps: Some(per_request(run.counts.sleeps)),
            client_cpu_us: Some(per_request(run.client.cpu_ns) / 1e3),
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            ..Measurement::new(subject, point, round, &counted, lost)
        }
    }
}

/// What the hypervisor takes from the CPUs between two looks.
#[derive(Debug)]
pub struct Stolen {
    cpus: Vec<u32>,
    before: Duration,
}

impl Stolen {
    pub fn from_now(cpus: &[u32]) -> Stolen {
        Stolen { cpus: cpus.to_owned(), before: stolen(cpus) }
    }

    pub fn until_now(&self) -> Duration {
        stolen(&self.cpus).saturating_sub(self.before)
    }
}

/// The middle of some values, and half of them around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Middle {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Middle {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Middle> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |part: f64| {
            let place = part * last as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Middle { median: at(0.5), low: at(0.25), high: at(0.75) })
    }

    /// Half the width of the middle half, as a part of the median.
    pub fn spread(self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.high - self.low) / 2.0 / self.median.abs() }
    }
}

/// All rounds of one subject at one point.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub subject: String,
    #[serde(flatten)]
    pub point: Point,
    pub rounds: usize,
    /// Rounds that the rest of the machine spoilt.
    pub spoilt: usize,
    /// Too few rounds were good: the spoilt ones are in the medians.
    pub marked: bool,
    pub iops: Middle,
    pub cpu_us: Middle,
    pub switches: Middle,
    pub syscalls: Option<Middle>,
    pub kicks: Option<Middle>,
    pub p50_us: Option<Middle>,
    pub p99_us: Option<Middle>,
    pub p999_us: Option<Middle>,
}

/// The rounds to be believed: the good ones if there are enough, or all.
pub fn chosen<T>(all: &[T], spoilt: impl Fn(&T) -> bool) -> (Vec<&T>, bool) {
    let good: Vec<&T> = all.iter().filter(|one| !spoilt(one)).collect();
    let enough = good.len() >= ENOUGH.min(all.len());
    if enough { (good, false) } else { (all.iter().collect(), true) }
}

impl Summary {
    /// `None` when nothing was measured there.
    pub fn of(subject: &str, point: Point, all: &[Measurement]) -> Option<Summary> {
        let own: Vec<Measurement> =
            all.iter().filter(|one| one.subject == subject && one.point == point).cloned().collect();
        let spoilt = own.iter().filter(|one| one.disturbed > SPOILT).count();
        let (taken, marked) = chosen(&own, |one| one.disturbed > SPOILT);
        let middle = |value: fn(&Measurement) -> f64| Middle::of(taken.iter().map(|one| value(one)));
        let maybe =
            |value: fn(&Measurement) -> Option<f64>| Middle::of(taken.iter().filter_map(|one| value(one)));
        Some(Summary {
            subject: subject.to_owned(),
            point,
            rounds: own.len(),
            spoilt,
            marked,
            iops: middle(|one| one.iops)?,
            cpu_us: middle(|one| one.cpu_us)?,
            switches: middle(|one| one.switches)?,
            syscalls: maybe(|one| one.syscalls),
            kicks: maybe(|one| one.kicks),
            p50_us: maybe(|one| one.p50_us),
            p99_us: maybe(|one| one.p99_us),
            p999_us: maybe(|one| one.p999_us),
        })
    }
}

/// One subject against another at one point, round by round.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Ratio {
    #[serde(flatten)]
    pub middle: Middle,
    /// As of [`Summary::marked`].
    pub marked: bool,
}

impl Ratio {
    /// `value` of `ours` through that of `theirs`, each pair from the same round.
    pub fn of(
        all: &[Measurement],
        (ours, at): (&str, Point),
        (theirs, there): (&str, Point),
        value: impl Fn(&Measurement) -> Option<f64>,
    ) -> Option<Ratio> {
        let find = |subject: &str, point: Point, round: u32| {
            all.iter().find(|one| one.subject == subject && one.point == point && one.round == round)
        };
        let rounds = all.iter().filter(|one| one.subject == ours && one.point == at);
        let pairs: Vec<(f64, bool)> = rounds
            .filter_map(|our| {
                let their = find(theirs, there, our.round)?;
                let spoilt = our.disturbed > SPOILT || their.disturbed > SPOILT;
                Some((value(our)? / value(their)?, spoilt))
            })
            .collect();
        let (taken, marked) = chosen(&pairs, |pair| pair.1);
        Some(Ratio { middle: Middle::of(taken.iter().map(|pair| pair.0))?, marked })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::Workload;

    const POINT: Point = Point { workload: Workload::RandRead, queues: 1, depth: 1 };

    fn measured(subject: &str, round: u32, iops: f64, disturbed: f64) -> Measurement {
        let counted = Counted {
            requests: iops as u64,
            wall: Duration::from_secs(1),
            server: Usage::default(),
            waited_ns: (disturbed * 1e9) as u64,
        };
        Measurement::new(subject, POINT, round, &counted, Duration::ZERO)
    }

    #[test]
    fn the_middle_half_lies_around_the_median() {
        let middle = Middle::of([5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!(middle, Middle { median: 3.0, low: 2.0, high: 4.0 });
        assert!((middle.spread() - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(Middle::of([1.0, 2.0]).unwrap().median, 1.5);
        assert_eq!(Middle::of([]), None);
    }

    #[test]
    fn spoilt_rounds_are_left_out_while_enough_are_good() {
        let rounds = |spoilt: u32| -> Vec<Measurement> {
            (0..5)
                .map(|round| {
                    measured("a", round, 100.0 + f64::from(round), if round < spoilt { 0.5 } else { 0.0 })
                })
                .collect()
        };
        let some = Summary::of("a", POINT, &rounds(2)).unwrap();
        assert_eq!((some.iops.median, some.spoilt, some.marked), (103.0, 2, false));
        let most = Summary::of("a", POINT, &rounds(3)).unwrap();
        assert_eq!((most.iops.median, most.spoilt, most.marked), (102.0, 3, true));
        assert!(Summary::of("b", POINT, &rounds(0)).is_none());
    }

    #[test]
    fn ratios_pair_the_rounds() {
        // Both fall to half together: the ratio stands.
        let all: Vec<Measurement> = (1..=5)
            .flat_map(|round| {
                let machine = f64::from(round) * 1000.0;
                [measured("ours", round, 1.5 * machine, 0.0), measured("theirs", round, machine, 0.0)]
            })
            .collect();
        let ratio = Ratio::of(&all, ("ours", POINT), ("theirs", POINT), |one| Some(one.iops)).unwrap();
        assert_eq!((ratio.middle.median, ratio.middle.spread(), ratio.marked), (1.5, 0.0, false));
    }
}
