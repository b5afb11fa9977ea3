//! What there is to do in an emulated host, and what of it is left, read off what was recorded: an emulated host that is lost takes nothing with it but the round it was in.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::record::{Pair, Record};
use crate::settings::{Arguments, Vmm};

/// One thing to do in an emulated host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// The rounds `from` to `to` of a pair, and then, unless that is known, what memory its machines take.
    Measure { pair: Pair, from: u32, to: u32, memory: bool },
    /// Boots of a pair, one after another, that only tell the time.
    Boot { pair: Pair, from: u32, to: u32 },
    /// Windows of a pair under the kernel's trace events.
    Trace { pair: Pair },
}

impl Work {
    pub fn pair(&self) -> Pair {
        match *self {
            Work::Measure { pair, .. } | Work::Boot { pair, .. } | Work::Trace { pair } => pair,
        }
    }
}

/// Rounds that are left of each pair; then boots; then, since events that are switched on and off trouble an emulated host
/// most, the windows of *why*.
pub fn left(arguments: &Arguments, records: &[Record]) -> Vec<Work> {
    let pairs: Vec<Pair> = arguments
        .backing
        .iter()
        .flat_map(|&backing| arguments.iothreads.iter().map(move |&iothreads| Pair { backing, iothreads }))
        .collect();
    let measured = pairs.iter().map(|&pair| {
        let from = rounds_of(pair, arguments.points.len(), records);
        let memory = !Vmm::BOTH.iter().all(|vmm| records.iter().any(|record| is_memory(record, *vmm, pair)));
        Work::Measure { pair, from, to: arguments.rounds, memory }
    });
    let booted = records.iter().filter(|record| matches!(record, Record::Booted { .. })).count() as u32;
    let boots = pairs.first().map(|&pair| Work::Boot { pair, from: booted, to: arguments.boots });
    let traced: BTreeSet<Pair> = records.iter().filter_map(traced).collect();
    let untraced = pairs.iter().filter(|pair| !arguments.no_reasons && !traced.contains(pair));
    let all = measured.chain(boots).chain(untraced.map(|&pair| Work::Trace { pair }));
    all.filter(|work| match work {
        Work::Measure { from, to, memory, .. } => from < to || *memory,
        Work::Boot { from, to, .. } => from < to,
        Work::Trace { .. } => true,
    })
    .collect()
}

/// How many are there whole: a window of each point on each machine.
fn rounds_of(pair: Pair, points: usize, records: &[Record]) -> u32 {
    let mut windows: BTreeMap<u32, usize> = BTreeMap::new();
    for record in records {
        if let Record::Window(window) = record
            && window.pair == pair
        {
            *windows.entry(window.round).or_default() += 1;
        }
    }
    (0..)
        .take_while(|round| windows.get(round).is_some_and(|count| *count >= points * Vmm::BOTH.len()))
        .count() as u32
}

fn is_memory(record: &Record, of: Vmm, with: Pair) -> bool {
    matches!(record, Record::Memory { vmm, pair, .. } if *vmm == of && *pair == with)
}

fn traced(record: &Record) -> Option<Pair> {
    match record {
        Record::Trace { pair, .. } => Some(*pair),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::counters::{Counts, Memory};
    use crate::record::Window;
    use crate::settings::Backing;

    const PAIR: Pair = Pair { backing: Backing::Null, iothreads: 1 };

    fn arguments() -> Arguments {
        Arguments::parse_from([
            "bench",
            "--iothreads=1",
            "--backing=null",
            "--points=randread/1x1",
            "--rounds=2",
            "--boots=2",
        ])
    }

    fn round(round: u32) -> impl Iterator<Item = Record> {
        Vmm::BOTH.into_iter().map(move |vmm| {
            Record::Window(Window {
                vmm,
                pair: PAIR,
                point: "randread/1x1".parse().unwrap(),
                round,
                requests: 1,
                interrupts: 1,
                counts: Counts::default(),
                own: BTreeMap::new(),
            })
        })
    }

    #[test]
    fn what_a_lost_host_told_is_not_asked_again_and_half_a_round_is() {
        let all = [
            Work::Measure { pair: PAIR, from: 0, to: 2, memory: true },
            Work::Boot { pair: PAIR, from: 0, to: 2 },
            Work::Trace { pair: PAIR },
        ];
        assert_eq!(left(&arguments(), &[]), all);

        let half: Vec<Record> = round(0).chain(round(1).take(1)).collect();
        assert_eq!(left(&arguments(), &half)[0], Work::Measure { pair: PAIR, from: 1, to: 2, memory: true });

        let memory = |vmm| Record::Memory { vmm, pair: PAIR, memory: Memory::default() };
        let mut told: Vec<Record> = round(0).chain(round(1)).chain([memory(Vmm::Vmprof)]).collect();
        assert_eq!(left(&arguments(), &told)[0], Work::Measure { pair: PAIR, from: 2, to: 2, memory: true });
        told.push(memory(Vmm::Qemu));
        told.push(Record::Booted { pair: PAIR, round: 0 });
        assert_eq!(left(&arguments(), &told)[0], Work::Boot { pair: PAIR, from: 1, to: 2 });
        told.push(Record::Booted { pair: PAIR, round: 1 });
        assert_eq!(left(&arguments(), &told), [Work::Trace { pair: PAIR }]);
        for vmm in Vmm::BOTH {
            let (point, counts) = ("randread/1x1".parse().unwrap(), BTreeMap::new());
            told.push(Record::Trace { vmm, pair: PAIR, point, requests: 1, counts });
        }
        assert_eq!(left(&arguments(), &told), []);
    }
}
