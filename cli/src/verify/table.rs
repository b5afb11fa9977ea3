//! The findings for a person.

use super::{Finding, What};

pub fn table(findings: &[Finding]) -> String {
    let rows: Vec<[String; 4]> = findings.iter().map(row).collect();
    let head = ["WHAT", "PLANNED", "FOUND", "VERDICT"].map(str::to_owned);
    let all = || std::iter::once(&head).chain(&rows);
    let width = |column: usize| all().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [what, planned, found, _] = [0, 1, 2, 3].map(width);
    let line = |row: &[String; 4]| {
        let [a, b, c, d] = row;
        format!("{a:<what$}  {b:<planned$}  {c:<found$}  {d}\n")
    };
    all().map(line).collect()
}

fn row(finding: &Finding) -> [String; 4] {
    let verdict = match (&finding.planned, finding.as_planned) {
        (None, _) => "-",
        (Some(_), true) => "as planned",
        (Some(_), false) => "NOT AS PLANNED",
    };
    let planned = finding.planned.clone().unwrap_or_else(|| "-".to_owned());
    let mut details = details(&finding.what);
    details.extend(finding.note.clone());
    let found = finding.found.as_deref().unwrap_or("unknown");
    let found = match details.is_empty() {
        true => found.to_owned(),
        false => format!("{found} ({})", details.join(", ")),
    };
    [finding.what.name(), planned, found, verdict.to_owned()]
}

fn details(what: &What) -> Vec<String> {
    match what {
        What::Thread { tid, last_cpu, .. } => {
            let tid = tid.map(|tid| format!("thread {tid}"));
            let cpu = last_cpu.map(|cpu| format!("last on {cpu}"));
            tid.into_iter().chain(cpu).collect()
        }
        What::Memory { pages } => {
            pages.iter().map(|on| format!("{} pages on node {}", on.pages, on.node)).collect()
        }
        What::HostScheduler { device, .. } => device.iter().cloned().collect(),
        What::HugePages
        | What::Engine { .. }
        | What::DirectIo { .. }
        | What::GuestScheduler { .. }
        | What::Link { .. }
        | What::Virtqueues { .. } => Vec::new(),
    }
}
