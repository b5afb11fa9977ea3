//! What the reader gets: tables on standard output, and the same with every single measurement as JSON in a file.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::error::{Doing as _, Error};
use crate::host::Host;
use crate::measure::{Measurement, Middle, Ratio, Summary};
use crate::point::Point;

#[derive(Debug, Serialize)]
pub struct Report<'all> {
    pub benchmark: &'static str,
    pub vmprof_bench: &'static str,
    pub started: String,
    pub host: &'all Host,
    pub settings: serde_json::Value,
    pub summaries: Vec<Summary>,
    pub targets: Vec<Verdict>,
    pub measurements: &'all [Measurement],
}

/// One target of the project at one point, and what was found.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    pub point: Point,
    pub ours: String,
    pub against: String,
    pub what: &'static str,
    pub ratio: Ratio,
    /// At least this, or at most.
    pub least: Option<f64>,
    pub most: Option<f64>,
}

impl Verdict {
    pub fn holds(&self) -> bool {
        let median = self.ratio.middle.median;
        self.least.is_none_or(|least| median >= least) && self.most.is_none_or(|most| median <= most)
    }

    /// Whether the middle half of the rounds is on both sides of the target, or too few rounds were good.
    pub fn is_doubtful(&self) -> bool {
        let Middle { low, high, .. } = self.ratio.middle;
        let between = |target: Option<f64>| target.is_some_and(|target| low < target && target < high);
        self.ratio.marked || between(self.least) || between(self.most)
    }

    /// `1.31 (>= 1.25) holds`, or the ratio alone where nothing is asked.
    fn cell(&self) -> String {
        let asked = match (self.least, self.most) {
            (Some(least), _) => format!(">= {least}"),
            (None, Some(most)) => format!("<= {most}"),
            (None, None) => return format!("{:.3}", self.ratio.middle.median),
        };
        format!("{:.2} ({asked}) {}", self.ratio.middle.median, self.word())
    }

    fn word(&self) -> &'static str {
        match (self.holds(), self.is_doubtful()) {
            (true, false) => "holds",
            (true, true) => "holds?",
            (false, false) => "MISSED",
            (false, true) => "missed?",
        }
    }
}

/// Rows under headings, the first column to the left and the others to the right.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(at, (cell, &width))| match at {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn cells<const COUNT: usize>(words: [&str; COUNT]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// `12.3k ±4%`.
fn amount(middle: Middle) -> String {
    let (value, unit) =
        if middle.median >= 10_000.0 { (middle.median / 1e3, "k") } else { (middle.median, "") };
    format!("{value:.1}{unit} ±{:.0}%", middle.spread() * 100.0)
}

fn plain(middle: Option<Middle>, digits: usize) -> String {
    middle.map_or_else(|| "-".to_owned(), |middle| format!("{:.digits$}", middle.median))
}

/// One point after the other, a line for each subject.
pub fn summaries(all: &[Summary], points: &[Point]) -> String {
    let mut text = String::new();
    for point in points {
        let mut rows = vec![cells([
            "",
            "IOPS",
            "CPU µs/req",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
            "switches/req",
            "syscalls/req",
            "kicks/req",
            "rounds",
        ])];
        for summary in all.iter().filter(|summary| summary.point == *point) {
            let mark = if summary.marked { "!" } else { "" };
            rows.push(vec![
                summary.subject.clone(),
                amount(summary.iops),
                format!("{:.2} ±{:.0}%", summary.cpu_us.median, summary.cpu_us.spread() * 100.0),
                plain(summary.p50_us, 1),
                plain(summary.p99_us, 1),
                plain(summary.p999_us, 1),
                format!("{:.3}", summary.switches.median),
                plain(summary.syscalls, 3),
                plain(summary.kicks, 3),
                format!("{}/{}{mark}", summary.rounds - summary.spoilt, summary.rounds),
            ]);
        }
        text += &format!("{point}\n{}\n", table(&rows));
    }
    if all.iter().any(|summary| summary.marked) {
        text += "rounds: good ones of all. ! marks where other work spoilt so many that its medians are of all rounds: \
                 figures of such a run say little, run it again on a quiet machine.\n\n";
    }
    text
}

/// A line for each of our subjects at each point, a column for each kind of target.
pub fn verdicts(all: &[Verdict]) -> String {
    let mut kinds: Vec<&str> = Vec::new();
    let mut lines: Vec<(Point, &str)> = Vec::new();
    for verdict in all {
        if !kinds.contains(&verdict.what) {
            kinds.push(verdict.what);
        }
        let line = (verdict.point, verdict.ours.as_str());
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    let heading = ["targets", ""].into_iter().chain(kinds.iter().copied()).map(str::to_owned).collect();
    let mut rows: Vec<Vec<String>> = vec![heading];
    for (point, ours) in lines {
        let cell = |kind: &&str| {
            let found = all.iter().find(|one| one.point == point && one.ours == ours && one.what == *kind);
            found.map_or_else(String::new, Verdict::cell)
        };
        rows.push([point.to_string(), ours.to_owned()].into_iter().chain(kinds.iter().map(cell)).collect());
    }
    table(&rows)
}

impl Report<'_> {
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::Asked(error.to_string()))?;
        // Whole or not at all: a run that is interrupted leaves the rounds before.
        let new = path.with_extension("new");
        fs::write(&new, text + "\n")
            .and_then(|()| fs::rename(&new, path))
            .doing(|| format!("{} could not be written", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::Workload;

    fn verdict(median: f64, low: f64, high: f64, marked: bool) -> Verdict {
        Verdict {
            point: Point { workload: Workload::RandRead, queues: 1, depth: 32 },
            ours: "ours".into(),
            against: "theirs".into(),
            what: "IOPS",
            ratio: Ratio { middle: Middle { median, low, high }, marked },
            least: Some(1.25),
            most: None,
        }
    }

    #[test]
    fn a_target_holds_is_missed_or_is_in_doubt() {
        assert_eq!(verdict(1.3, 1.26, 1.4, false).word(), "holds");
        assert_eq!(verdict(1.3, 1.2, 1.4, false).word(), "holds?");
        assert_eq!(verdict(1.3, 1.26, 1.4, true).word(), "holds?");
        assert_eq!(verdict(1.2, 1.1, 1.24, false).word(), "MISSED");
        assert_eq!(verdict(1.2, 1.1, 1.3, false).word(), "missed?");
        let most = Verdict { least: None, most: Some(0.8), ..verdict(0.7, 0.6, 0.75, false) };
        assert_eq!(most.word(), "holds");
    }

    #[test]
    fn targets_of_one_subject_at_one_point_stand_in_one_line() {
        let cpu = Verdict { what: "CPU", least: None, most: Some(2.0), ..verdict(1.3, 1.2, 1.4, false) };
        let text = verdicts(&[verdict(1.3, 1.26, 1.4, false), cpu]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("1.30 (>= 1.25) holds  1.30 (<= 2) holds"), "{text}");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["µs".into(), "1".into()], vec!["longer".into(), "1000".into()]];
        assert_eq!(table(&rows), "  µs         1\n  longer  1000\n");
    }
}
