//! The difference of two plans for people: a line per thread that moved, a paragraph per device that changed.

use std::fmt::Write;

use crate::plan::Severity;
use crate::topology::CpuSet;
use crate::view::TextStyle;
use crate::view::plan::APART;
use crate::view::prose::{Row, count, hang, painted, table};

use super::{AS_IT_IS, Change, DERIVED, Diff, DiffSide, Kind, OWN_BLOCKS};

impl Diff {
    /// The difference for people.
    pub fn text(&self, style: TextStyle) -> String {
        let mut out = String::new();
        let side = |side: &DiffSide| {
            let (cpus, nodes) = (count(side.cpus, "CPU"), count(side.nodes, "node"));
            let digest: String = side.digest.chars().take(16).collect();
            format!("{}: profile {} on {cpus} in {nodes}, plan {digest}", side.label, side.profile)
        };
        hang(&mut out, "from  ", &side(&self.from), style.width);
        hang(&mut out, "to    ", &side(&self.to), style.width);
        out.push('\n');
        if self.same {
            out.push_str("no difference");
            if self.from.digest != self.to.digest {
                out.push_str("; the digests differ, because the facts that were decided upon do");
            }
            out.push('\n');
            return out;
        }
        let groups = self.changes.chunk_by(|a, b| (a.kind, &a.name) == (b.kind, &b.name));
        let changed: Vec<Changed<'_>> = groups.map(Changed).collect();
        let rows = |kinds: &[Kind]| {
            let of: Vec<&Changed<'_>> = changed.iter().filter(|one| kinds.contains(&one.kind())).collect();
            let runs = of.chunk_by(|one, next| of.len() > APART && one.joins(next));
            runs.filter_map(Changed::row).collect::<Vec<Row>>()
        };
        let threads = rows(&[Kind::Vcpu, Kind::Iothread, Kind::Emulator]);
        if !threads.is_empty() {
            out.push_str("threads\n");
            table(&mut out, &threads, style.width);
        }
        for (kind, title) in [(Kind::Disk, "disks"), (Kind::Net, "nets")] {
            let devices: Vec<&Changed<'_>> = changed.iter().filter(|one| one.kind() == kind).collect();
            if !devices.is_empty() {
                let _ = writeln!(out, "{title}");
                devices.iter().for_each(|device| device.lines(&mut out, style.width));
            }
        }
        let choices = rows(&[Kind::Choice]);
        if !choices.is_empty() {
            out.push_str("choices\n");
            table(&mut out, &choices, style.width);
        }
        if !self.appeared.is_empty() || !self.gone.is_empty() {
            out.push_str("remarks\n");
        }
        for (sign, paint, remarks) in [("+", "32", &self.appeared), ("-", "31", &self.gone)] {
            for remark in remarks {
                let word = match remark.severity {
                    Severity::Warning => "warning",
                    Severity::Note => "note",
                };
                let text = format!("{word}: {}  [{}]", remark.message, remark.code);
                let mut lines = String::new();
                hang(&mut lines, &format!("  {sign} "), &text, style.width);
                out.push_str(&lines.replacen(sign, &painted(sign, paint, style.colour), 1));
            }
        }
        let unchanged = self.unchanged_words();
        if !unchanged.is_empty() {
            hang(&mut out, "unchanged: ", &unchanged, style.width);
        }
        out
    }

    fn unchanged_words(&self) -> String {
        let words = self.unchanged.iter().map(|(kind, number)| match kind {
            Kind::Vcpu => count(*number, "vCPU"),
            Kind::Iothread => count(*number, "IOThread"),
            Kind::Emulator => "the emulator".to_owned(),
            Kind::Disk => count(*number, "disk"),
            Kind::Net => count(*number, "net"),
            Kind::Choice => count(*number, "choice"),
        });
        words.collect::<Vec<_>>().join(", ")
    }
}

/// All changes of one thing; there is at least one.
struct Changed<'d>(&'d [Change]);

impl Changed<'_> {
    fn kind(&self) -> Kind {
        self.0.first().map_or(Kind::Choice, |change| change.kind)
    }

    fn because(&self) -> Option<&str> {
        self.0.first()?.because.as_deref()
    }

    fn field(&self, field: &str) -> Option<&Change> {
        self.0.iter().find(|change| change.field == field)
    }

    /// Where a thread stands now.
    fn cpu(&self) -> Option<u32> {
        self.field("cpus")?.to.as_ref()?.parse().ok()
    }

    /// What there is to say besides the CPUs themselves.
    fn rest(&self) -> (Vec<&Change>, Option<&str>) {
        (self.0.iter().filter(|change| change.field != "cpus").collect(), self.because())
    }

    /// Whether two threads that follow each other have moved alike, from one CPU each to one CPU each.
    fn joins(&self, next: &Self) -> bool {
        let alike = |(one, because): (Vec<&Change>, Option<&str>),
                     (other, why): (Vec<&Change>, Option<&str>)| {
            let values = |changes: &[&Change]| {
                changes.iter().map(|c| (c.field, c.from.clone(), c.to.clone())).collect::<Vec<_>>()
            };
            because == why && values(&one) == values(&other)
        };
        let from = |one: &Self| one.field("cpus").and_then(|c| c.from.as_ref()?.parse::<u32>().ok());
        self.kind() == next.kind()
            && self.cpu().is_some()
            && self.cpu() < next.cpu()
            && from(self).is_some() == from(next).is_some()
            && from(self) <= from(next)
            && alike(self.rest(), next.rest())
    }

    /// One row for a run of things that changed alike.
    fn row(run: &[&Self]) -> Option<Row> {
        let first = run.first()?;
        let ids: Vec<&str> = run.iter().filter_map(|one| Some(one.0.first()?.name.as_str())).collect();
        let numbers: CpuSet = ids.iter().filter_map(|id| id.parse::<u32>().ok()).collect();
        let name = match first.kind() {
            Kind::Vcpu => format!("vcpu {numbers}"),
            Kind::Iothread if run.len() == 1 => format!("iothread{numbers}"),
            Kind::Iothread => format!("iothread {numbers}"),
            _ => ids.first()?.to_string(),
        };
        let (mut words, mut gone) = (Vec::new(), false);
        if let Some(cpus) = first.field("cpus") {
            let all = |pick: fn(&Change) -> Option<&String>| {
                let lists = run.iter().filter_map(|one| pick(one.field("cpus")?)?.parse::<CpuSet>().ok());
                lists.fold(CpuSet::new(), |all, cpus| all.or(&cpus))
            };
            let (old, new) = (all(|c| c.from.as_ref()), all(|c| c.to.as_ref()));
            words.push(match (&cpus.from, &cpus.to) {
                (Some(_), Some(_)) => format!("CPU {old} → CPU {new}"),
                (None, _) => format!("new: CPU {new}"),
                (_, None) => {
                    gone = true;
                    format!("gone: was CPU {old}")
                }
            });
        }
        let appears = first.field("cpus").is_some_and(|cpus| cpus.from.is_none());
        for change in first.0.iter().filter(|change| change.field != "cpus") {
            match (&change.from, &change.to) {
                (Some(old), Some(new)) if change.field == "poll_max_ns" => {
                    words.push(format!("polls up to {old} ns → {new} ns"));
                }
                (Some(old), Some(new)) => words.push(format!("{} {old} → {new}", plain(change.field))),
                (None, Some(new)) if change.field == "poll_max_ns" => {
                    words.push(format!("polls up to {new} ns"));
                }
                (None, Some(new)) if appears => words.push(format!("{} {new}", plain(change.field))),
                (old, new) if !gone => {
                    let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
                    words.push(format!("{} {} → {}", plain(change.field), word(old), word(new)));
                }
                _ => {}
            }
        }
        let because = first.because().map_or(String::new(), |why| format!("because: {why}"));
        Some(Row { name, value: words.join("; "), because, below: None })
    }

    /// A device: a line for each value that differs.
    fn lines(&self, out: &mut String, width: usize) {
        let Some(first) = self.0.first() else { return };
        let whole = |pick: fn(&Change) -> &Option<String>| self.0.iter().all(|change| pick(change).is_none());
        if whole(|change| &change.to) {
            let _ = writeln!(out, "  {}  gone", first.name);
            return;
        }
        let new = whole(|change| &change.from);
        let _ = writeln!(out, "  {}{}", first.name, if new { "  new" } else { "" });
        for change in self.0.iter().filter(|change| !new || !says_nothing(change)) {
            let field = plain(change.field);
            match (&change.from, &change.to) {
                (Some(old), Some(new)) => {
                    hang(out, &format!("    {field}: "), &format!("{old} → {new}"), width)
                }
                (None, Some(new)) => hang(out, &format!("    {field}: "), new, width),
                (_, None) => hang(out, &format!("    {field}: "), "none", width),
            }
        }
        // The reason is the mapping's.
        if let Some(why) = self.because().filter(|_| self.field("virtqueues").is_some()) {
            hang(out, "    because: ", why, width);
        }
    }
}

/// Whether a new device's value is what it is without further words.
fn says_nothing(change: &Change) -> bool {
    // The words of `disk_fields` and `net_fields`; the mapping tells the number of queues and their size.
    let usual = ["none", "no", "report", OWN_BLOCKS, AS_IT_IS, DERIVED];
    let told = ["queues", "queue_size"].contains(&change.field);
    told || (change.field != "cache" && change.to.as_deref().is_some_and(|value| usual.contains(&value)))
}

/// A field's name in words.
fn plain(field: &str) -> String {
    field.replace(['_', '.'], " ")
}
