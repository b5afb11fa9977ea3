//! The order of measuring: every subject at a point, one right after the other, then the next point; each round in an order of
//! its own. What the machine does besides meets all subjects alike.

use crate::error::Error;
use crate::measure::{Measurement, SPOILT};
use crate::point::{Point, Random};

#[derive(Debug, Clone, Copy)]
pub struct Turn<'subject, S> {
    pub subject: &'subject S,
    pub point: Point,
    pub round: u32,
    /// The same for every subject of this point and round.
    pub seed: u64,
}

/// Measures all of it. `measure` answers `None` for a subject that has no such point; `done` hears of each round's end.
pub fn run<S>(
    rounds: u32,
    seed: u64,
    subjects: &[S],
    points: &[Point],
    mut measure: impl FnMut(&Turn<'_, S>) -> Result<Option<Measurement>, Error>,
    mut done: impl FnMut(&[Measurement]) -> Result<(), Error>,
) -> Result<Vec<Measurement>, Error> {
    let mut all = Vec::new();
    for round in 1..=rounds {
        let mut order = Random::new(seed.wrapping_add(round.into()));
        let mut points = points.to_vec();
        order.shuffle(&mut points);
        for (count, &point) in points.iter().enumerate() {
            let seed = order.next();
            let mut subjects: Vec<&S> = subjects.iter().collect();
            order.shuffle(&mut subjects);
            let mut spoilt = 0;
            for subject in subjects {
                let measured = measure(&Turn { subject, point, round, seed })?;
                spoilt += usize::from(measured.as_ref().is_some_and(|one| one.disturbed > SPOILT));
                all.extend(measured);
            }
            let note = if spoilt > 0 { format!(": {spoilt} spoilt by other work") } else { String::new() };
            eprintln!("round {round}/{rounds}, {}/{}: {point}{note}", count + 1, points.len());
        }
        done(&all)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::Workload;

    #[test]
    fn every_subject_meets_every_point_in_every_round_with_the_same_seed() {
        let points: Vec<Point> =
            [1, 32, 128].map(|depth| Point { workload: Workload::RandRead, queues: 1, depth }).to_vec();
        let mut seen = Vec::new();
        let measure = |turn: &Turn<'_, &'static str>| {
            seen.push((turn.round, turn.point.depth, *turn.subject, turn.seed));
            Ok(None)
        };
        let mut ends = 0;
        let done = |_: &[Measurement]| {
            ends += 1;
            Ok(())
        };
        run(4, 9, &["a", "b", "c"], &points, measure, done).unwrap();
        assert_eq!((seen.len(), ends), (36, 4));
        for point in seen.chunks(3) {
            assert!(
                point.iter().all(|turn| (turn.0, turn.1, turn.3) == (point[0].0, point[0].1, point[0].3))
            );
            let mut subjects: Vec<&str> = point.iter().map(|turn| turn.2).collect();
            subjects.sort_unstable();
            assert_eq!(subjects, ["a", "b", "c"]);
        }
        let orders: std::collections::HashSet<Vec<&str>> =
            seen.chunks(3).map(|point| point.iter().map(|turn| turn.2).collect()).collect();
        assert!(orders.len() > 1, "always the same order");
    }
}
